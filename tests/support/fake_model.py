"""Stand-ins for the models and the searcher, whose answers a person can work out in their head.

A photo is its mean colour, a text the colours that it names. The vector of a photo is its mean (red, green, blue) at
length one, in both slots; "red" is (1, 0, 0). A red photo has the cosine 1 with "red" and 0 with "green"; an orange
one (255, 128, 0) has 0.894 with "red". The match probability is 0.9 of the cosine, at least 0 in a search.

Shapes: B pictures, N photos of an index, H, W and C of a picture, P patches, V their width, Q slots, E embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.errors import PhotoError, QueryError
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.types import Failure, Hit, Photo, Results, TextHit, TextResults
from indexer.decode import decode

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "white": (1, 1, 1)}
SIDE = 8
Q, E = 2, 3
NOT_A_CPU = torch.device("meta")  # On a CPU `PhotoEncoder` would split photos among the cores.


def colour_vector(text: str) -> np.ndarray:
    """Return the unit vector (E,) of the colours that a text names; a text without a colour points at grey."""
    colours = [COLOURS[word] for word in text.lower().split() if word in COLOURS] or [COLOURS["white"]]
    return _normalise(np.sum(np.array(colours, np.float32), axis=0))


def _normalise(vector: np.ndarray) -> np.ndarray:
    """Return a vector of length one; a vector of zeros becomes grey."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else np.full(E, 1 / math.sqrt(E), np.float32)


@dataclass
class FakeModel:
    """Stands in for `RetrievalModel`: its vectors are colours."""

    name: str = "colours"
    digest: str = "c0" * 16
    image_size: int = SIDE
    preprocessing: str = "squash"
    num_queries: int = Q
    embed_dim: int = E
    patch_shape: tuple[int, int] = (4, 4)
    device: torch.device = NOT_A_CPU

    def encode_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        """Return the vectors (number of texts, E), and 0 for each text: none of them is cut."""
        return np.stack([colour_vector(text) for text in texts]), [0] * len(texts)

    def encode_patches(self, pictures_BHWC: np.ndarray) -> torch.Tensor:
        """Return patches (B, P, V) of which the first holds the picture's mean colour and the others are zero."""
        patches_BPV = torch.zeros(len(pictures_BHWC), *self.patch_shape)
        means_BE = pictures_BHWC.reshape(len(pictures_BHWC), -1, E).mean(axis=1)
        patches_BPV[:, 0, :E] = torch.from_numpy(means_BE)
        return patches_BPV

    def encode_photos(self, patches_BPV: torch.Tensor) -> np.ndarray:
        """Return the vectors (B, Q, E) of photos: the mean colour in every slot."""
        means_BE = patches_BPV[:, 0, :E].double().numpy()
        return np.stack([np.tile(_normalise(mean), (Q, 1)) for mean in means_BE])


class FakeSearcher:
    """Stands in for `Searcher`: compares a question with every photo of the store."""

    def __init__(
        self,
        store: Store | None,
        model: FakeModel,
        *,
        hold_bytes: int = 0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.store, self.model, self.tell = store, model, tell
        if store is not None:
            store.manifest.check_same(Manifest.for_model(model, "none"))

    def search(self, text: str, *, top: int = 20, rerank: int = 128, caption_weight: float = 0.0) -> Results:
        """Search photos for the colours of a text; the first `rerank` hits have a match probability."""
        ids, vectors_NE = self._read_photo_vectors()
        hits = self._make_hits(ids, vectors_NE @ colour_vector(text), top, rerank)
        return Results(hits, seconds={"retrieve": 0.01})

    def similar(self, path: Path, *, top: int = 20) -> Results:
        """Search for photos whose mean colour is like that of a photo."""
        photo = self.store.find_photo(path)
        if photo is None:
            vector = self._encode_file(path)
        else:
            vector = self.store.read_vectors([photo.id])[0, 0].astype(np.float32)
        ids, vectors_NE = self._read_photo_vectors()
        return Results(self._make_hits(ids, vectors_NE @ vector, top, 0))

    def match(
        self, path: Path, texts: Sequence[str] | None, *, top: int = 20, rerank: int = 128
    ) -> TextResults:
        """Rank texts, or those of the index, for a photo; with `rerank` each has a match probability."""
        if texts is None:
            texts = self.store.texts.read(
                np.concatenate([ids for ids, _ in self.store.texts.iterate_vectors()])
            )
        vector = self._encode_file(path)
        scored = sorted(((float(colour_vector(text) @ vector), text) for text in texts), reverse=True)[:top]
        return TextResults(
            tuple(
                TextHit(rank, text, cosine, cosine, 0.9 * cosine if rerank else None)
                for rank, (cosine, text) in enumerate(scored, start=1)
            )
        )

    def rerank(self, text: str, paths: Sequence[Path], *, top: int | None = None) -> Results:
        """Rank photo files by the colours of a text; files that cannot be read become failures."""
        scored, failures = [], []
        for path in paths:
            try:
                scored.append((float(self._encode_file(path) @ colour_vector(text)), path))
            except PhotoError as error:
                failures.append(Failure(path, str(error)))
        scored.sort(reverse=True)
        hits = tuple(
            Hit(rank, Photo(-1, "", SIDE, SIDE, (path,)), cosine, cosine, 0.9 * cosine)
            for rank, (cosine, path) in enumerate(scored[:top], start=1)
        )
        return Results(hits, failures=tuple(failures))

    def _read_photo_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the ids (N,) of the photos, and the vectors (N, E) of their first slots."""
        ids = self.store.list_live_ids()
        return ids, self.store.read_vectors(ids)[:, 0].astype(np.float32)

    def _make_hits(self, ids: np.ndarray, cosines: np.ndarray, top: int, rerank: int) -> tuple[Hit, ...]:
        """Return the `top` best photos as hits; the first `rerank` have a match probability."""
        order = np.argsort(-cosines, kind="stable")[:top]
        photos = self.store.read_photos(ids[order])
        captions = self.store.captions.read_captions(ids[order])
        return tuple(
            Hit(
                rank,
                photo,
                float(cosines[row]),
                float(cosines[row]),
                max(0.0, 0.9 * float(cosines[row])) if rank <= rerank else None,
                captions.get(photo.id),
            )
            for rank, (row, photo) in enumerate(zip(order, photos, strict=True), start=1)
        )

    def _encode_file(self, path: Path) -> np.ndarray:
        """Return the vector (E,) of a photo file."""
        return _normalise(decode(path, SIDE).pixels.reshape(-1, E).mean(axis=0))


def make_fake_searcher(store: Store | None, model: FakeModel, *, hold: bool = False) -> FakeSearcher:
    """Return a FakeSearcher. Stands in for `ui.session.make_searcher`."""
    return FakeSearcher(store, model)


@dataclass
class FakeCaptioner:
    """Stands in for `PhotoCaptioner`: a caption is the name of the colour that is nearest to the photo's mean.

    num_pictures: the number of pictures that it has captioned.
    """

    name: str = "painter"
    digest: str = "d1" * 16
    image_size: int = SIDE
    answers: bool = True
    num_pictures: int = 0

    def caption(
        self, pictures_BHWC: np.ndarray, prompt: str | None = None, options: object = None
    ) -> list[str]:
        """Return "a <colour> thing" for each picture."""
        self.num_pictures += len(pictures_BHWC)
        means = [_normalise(picture.reshape(-1, E).mean(axis=0)) for picture in pictures_BHWC]
        return [f"a {max(COLOURS, key=lambda name: mean @ colour_vector(name))} thing" for mean in means]

    def answer(
        self, pictures_BHWC: np.ndarray, questions: Sequence[str], options: object = None
    ) -> list[str]:
        """Return the caption of the only picture, a comma and the last word of the only question."""
        (colour,) = self.caption(pictures_BHWC)
        return [f"{colour}, {questions[0].split()[-1]}"]


def load_fake_captioner(name: str | None, searching: object = None) -> FakeCaptioner:
    """Return the captioner "painter" or "sketcher". Stands in for `ui.session.load_photo_captioner`."""
    if name not in (None, "painter", "sketcher"):
        raise QueryError(f"there is no model {name}")
    return FakeCaptioner(*(("sketcher", "d2" * 16) if name == "sketcher" else ()))


def choose_fake_captioner(given: str | None, store: Store, searching: str) -> tuple[str, bool]:
    """Return the captioner's name, and whether it answers questions. Stands in for `ui.session.choose_captioner`."""
    return given or "painter", given != "mute"


def load_fake_model(name: str | None) -> FakeModel:
    """Return the model "colours". Stands in for `ui.session.load_model`."""
    if name not in (None, "colours"):
        raise QueryError(f"there is no model {name}")
    return FakeModel()
