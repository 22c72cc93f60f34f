"""Hold the cross-attention keys and values of photos that were matched lately, up to a number of bytes.

A later question about the same photos need not compute them again. They take 4.7 MB a photo for ViT-g in bfloat16 and
74 KB for mini.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from engine.blip2.qformer import PhotoKeys


class KeyCache:
    """A cache of photos' keys and values by digest, which drops the least recently used ones first.

    max_bytes: the most bytes of all keys and values together; 0 holds nothing.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._held: OrderedDict[str, PhotoKeys] = OrderedDict()

    def __contains__(self, digest: str) -> bool:
        return digest in self._held

    def put(self, digests: Sequence[str], photo_keys: PhotoKeys) -> None:
        """Hold the keys of photos, in the order of their digests; a photo with an empty digest is not held."""
        if not self.max_bytes:
            return
        for row, digest in enumerate(digests):
            if not digest or digest in self._held:
                continue
            # The rows are copied, because a view would keep the whole batch in memory.
            keys_of_photo = [(keys[row].clone(), values[row].clone()) for keys, values in photo_keys]
            self._held[digest] = keys_of_photo
            self.num_bytes += _count_bytes(keys_of_photo)
        while self.num_bytes > self.max_bytes:
            _, gone = self._held.popitem(last=False)
            self.num_bytes -= _count_bytes(gone)

    def take(self, digests: Sequence[str]) -> PhotoKeys:
        """Return the keys of photos, all of which must be held, as one batch."""
        rows = [self._held[digest] for digest in digests]
        for digest in digests:
            self._held.move_to_end(digest)
        return [
            (torch.stack([keys for keys, _ in layer]), torch.stack([values for _, values in layer]))
            for layer in zip(*rows, strict=True)
        ]


def _count_bytes(photo_keys: PhotoKeys) -> int:
    return sum(part.nbytes for layer in photo_keys for part in layer)
