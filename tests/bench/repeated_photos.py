"""Fill a store with many photos that are made from a few real ones: their vectors and patches repeated with noise.

Shapes: R real photos, N photos of the store, Q slots, E embedding, P patches, V their width, M texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inputs import SEED, TEXTS

if TYPE_CHECKING:
    import numpy as np

    from engine.index.store import Store
    from engine.models.retrieval_model import RetrievalModel

NOISE = 0.3  # Length of the noise that is added to a unit vector; for patches, in units of their deviation.
BATCH = 2000


@dataclass
class EncodedInputs:
    """Real photos as vectors (R, Q, E) and patches (R, P, V), both float32, and the vectors (M, E) of the texts."""

    vectors: np.ndarray
    patches: np.ndarray
    texts: np.ndarray


def encode_inputs(model: RetrievalModel, folder: Path) -> EncodedInputs:
    """Encode the photos of a folder and the texts."""
    import numpy as np

    from indexer.decode import decode

    paths = sorted(folder.iterdir())
    vectors, patches = [], []
    for start in range(0, len(paths), 64):
        pictures = np.stack([decode(path, model.image_size).pixels for path in paths[start : start + 64]])
        batch = model.encode_patches(pictures)
        vectors.append(model.encode_photos(batch))
        patches.append(batch.float().cpu().numpy())
    return EncodedInputs(np.concatenate(vectors), np.concatenate(patches), model.encode_texts(TEXTS)[0])


def repeat_with_noise(inputs: EncodedInputs, count: int) -> np.ndarray:
    """Return float16 unit vectors (count, Q, E): those of the real photos, each time with other noise."""
    import numpy as np

    draws = np.random.default_rng(SEED)
    vectors = np.empty((count, *inputs.vectors.shape[1:]), np.float16)
    for start in range(0, count, BATCH):
        rows = np.arange(start, min(start + BATCH, count))
        batch = draws.standard_normal((len(rows), *vectors.shape[1:]), dtype=np.float32)
        batch *= NOISE / np.sqrt(vectors.shape[2])
        batch += inputs.vectors[rows % len(inputs.vectors)]
        vectors[rows] = batch / np.linalg.norm(batch, axis=2, keepdims=True)
    return vectors


def fill_store(store: Store, vectors: np.ndarray, inputs: EncodedInputs, candidates: set[int]) -> None:
    """Add photos whose ids are the rows of their vectors (N, Q, E); the candidates get patches, too."""
    import numpy as np

    from engine.index.path_table import FileRecord
    from engine.index.photo_table import NewPhoto

    draws = np.random.default_rng(SEED + 1)
    deviation = NOISE * inputs.patches.std()
    root = store.folder / "photos-that-are-not-there"

    def make_patches(row: int) -> bytes | None:
        if row not in candidates:
            return None
        patches = inputs.patches[row % len(inputs.patches)]
        noisy = patches + deviation * draws.standard_normal(patches.shape, dtype=np.float32)
        return noisy.astype(np.float16).tobytes()

    with store.writing():
        for start in range(0, len(vectors), BATCH):
            rows = range(start, min(start + BATCH, len(vectors)))
            photos = [NewPhoto(f"{row:032x}", 500, 375, vectors[row], make_patches(row)) for row in rows]
            files = [
                FileRecord(root, root / f"{row:06}.jpg", 40000 + row, row, photo.digest)
                for row, photo in zip(rows, photos, strict=True)
            ]
            ids = store.add(photos, files)
            if ids != list(rows):
                raise SystemExit(
                    "The ids of the store are not the rows' numbers: hits could not be compared."
                )
        store.optimize()
