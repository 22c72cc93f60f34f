"""Encode pictures as the vectors and the patches that an index keeps; this is all that indexing asks of a model.

Shapes: B photos, H W pixels, Q queries, E embedding.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from engine.models.patch_bytes import pack
from engine.models.retrieval_model import RetrievalModel

STREAMS, STREAM_BATCH = 2, 8


class PhotoEncoder:
    """An encoder of uint8 pictures for an index.

    features: how patches are kept for reranking, "store" (float16), "int8" or "none". On a CPU with several cores the
    encoder holds threads: use it in a `with` statement, or close it.
    """

    def __init__(self, model: RetrievalModel, features: str):
        self.model, self.features = model, features
        self.streams = _make_streams(model.device)

    @property
    def image_size(self) -> int:
        """Return the side of the square that the model reads, in pixels."""
        return self.model.image_size

    def encode(self, pixels_BHWC: np.ndarray, /) -> tuple[np.ndarray, list[bytes] | None]:
        """Encode uint8 pictures (B, H, W, 3) as unit vectors (B, Q, E) float16, and each photo's patches as bytes.

        The patches are None where `features` is "none".
        """
        if self.streams is None:
            return self._encode(pixels_BHWC)
        num_parts = STREAMS * -(-len(pixels_BHWC) // (STREAMS * STREAM_BATCH))
        pictures = np.array_split(pixels_BHWC, min(num_parts, len(pixels_BHWC)))
        parts = list(self.streams.map(self._encode, pictures))
        vectors = np.concatenate([vectors for vectors, _ in parts])
        rows = [row for _, part in parts for row in part or ()]
        return vectors, None if self.features == "none" else rows

    def close(self) -> None:
        """End the threads. The encoder cannot be used after this."""
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


def _make_streams(device: torch.device) -> ThreadPoolExecutor | None:
    """Return a pool of threads that each encode photos of their own; None on a GPU and on a single core.

    Beside decoding processes the cores are never all free at once, and cores that share a pass would wait for the one
    that is busy.
    """
    threads = torch.get_num_threads() // STREAMS
    if device.type != "cpu" or not threads:
        return None
    # torch.set_num_threads counts for the calling thread alone, so that the other threads keep their number.
    return ThreadPoolExecutor(STREAMS, initializer=torch.set_num_threads, initargs=(threads,))
