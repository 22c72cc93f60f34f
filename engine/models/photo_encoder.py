"""What indexing asks of a model: pictures become the vectors and the patches that an index keeps.

Shapes: B photos, H W pixels, Q queries, E embedding.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from engine.models.patch_bytes import pack
from engine.models.retrieval_model import RetrievalModel

STREAMS, STREAM_AT_ONCE = 2, 8


class PhotoEncoder:
    """Turn uint8 pictures into what the store keeps of them.

    It holds threads on a CPU with several cores: use it in a `with` statement, or close it.
    """

    def __init__(self, model: RetrievalModel, features: str):
        """features: how patches are kept for reranking, "store" (float16), "int8" or "none"."""
        self.model, self.features = model, features
        self.streams = _streams(model.device)

    @property
    def image_size(self) -> int:
        return self.model.image_size

    def encode(self, pixels_BHWC: np.ndarray, /) -> tuple[np.ndarray, list[bytes] | None]:
        """uint8 (B, H, W, 3) -> unit vectors (B, Q, E) float16, and each photo's patches as bytes or None."""
        if self.streams is None:
            return self._encode(pixels_BHWC)
        num_parts = STREAMS * -(-len(pixels_BHWC) // (STREAMS * STREAM_AT_ONCE))
        pictures = np.array_split(pixels_BHWC, min(num_parts, len(pixels_BHWC)))
        parts = list(self.streams.map(self._encode, pictures))
        vectors = np.concatenate([vectors for vectors, _ in parts])
        rows = [row for _, part in parts for row in part or ()]
        return vectors, None if self.features == "none" else rows

    def close(self) -> None:
        """End the threads; the encoder encodes nothing from then on."""
        if self.streams is not None:
            self.streams.shutdown()

    def __enter__(self) -> PhotoEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(self, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, list[bytes] | None]:
        patches = self.model.encode_patches(pixels_BHWC)
        vectors = self.model.encode_photos(patches).astype(np.float16)
        return vectors, None if self.features == "none" else pack(patches, self.features)


def _streams(device: torch.device) -> ThreadPoolExecutor | None:
    """Threads that each encode photos of their own, on a CPU with several cores: beside decoding processes the cores
    are never all free at once, and cores that share a pass wait for the one that is not."""
    threads = torch.get_num_threads() // STREAMS
    if device.type != "cpu" or not threads:
        return None
    # The number of threads is each thread's own: others keep theirs.
    return ThreadPoolExecutor(STREAMS, initializer=torch.set_num_threads, initargs=(threads,))
