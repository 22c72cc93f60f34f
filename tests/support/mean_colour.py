"""Build indexes with an encoder whose vectors are mean colours, so that a person can work them out in their head."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from engine.index.manifest import Manifest
from engine.index.store import Store
from indexer.build import BuildReport, build_index

MANIFEST = Manifest("fake", "00ff", 8, "squash-bicubic-8", 2, 8, (3, 4), "none")
KINDS = ("added", "copied", "moved", "restored", "changed", "unchanged", "removed")
"""Fields of a BuildReport that count photos."""


class MeanColour:
    """Stands in for `PhotoEncoder`: encodes a photo as its mean colour, divided by 256, in each of two slots.

    The first slot is (red, green, blue, 0, ...), the second (0, red, green, blue, 0, ...).

    batches: the size of each batch that was encoded.
    """

    image_size = 8

    def __init__(self) -> None:
        self.batches: list[int] = []

    def encode(self, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, list[bytes] | None]:
        """Return the vectors (B, 2, 8) float16 of pictures, and None: it stores no patches."""
        assert pixels_BHWC.dtype == np.uint8
        assert pixels_BHWC.shape[1:] == (8, 8, 3)
        self.batches.append(len(pixels_BHWC))
        vectors = np.zeros((len(pixels_BHWC), 2, 8), np.float16)
        vectors[:, 0, :3] = vectors[:, 1, 1:4] = pixels_BHWC.mean(axis=(1, 2)) / 256
        return vectors, None


def colour_of_number(number: int) -> tuple[int, int, int]:
    """Return a colour that belongs to this number alone."""
    return number % 256, number // 256, 64


def paint(path: Path, number: int) -> Path:
    """Write a PNG file of the colour of a number; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), colour_of_number(number)).save(path, format="PNG")
    return path


def write_numbered_photos(folder: Path, numbers: Iterable[int]) -> Path:
    """Write a photo for each number, called 0001.png and so on, into a folder; return the folder."""
    for number in numbers:
        paint(folder / f"{number:04}.png", number)
    return folder


def build_and_count(
    store: Store, *roots: Path, encoder: MeanColour | None = None, **options: object
) -> tuple[BuildReport, int]:
    """Build an index of the photos below `roots`; return the report and the number of photos that were encoded.

    encoder: a new one when it is not given. options: of `build_index`.
    """
    encoder = encoder or MeanColour()
    report = build_index(roots, store, encoder, **{"workers": 0, **options})  # type: ignore[arg-type]
    return report, sum(encoder.batches)


def count_changes(report: BuildReport) -> dict[str, int]:
    """Return how many photos were added, changed, failed, ..., without the counts that are zero."""
    counts = {kind: getattr(report, kind) for kind in KINDS} | {"failed": len(report.failed)}
    return {kind: count for kind, count in counts.items() if count}


def read_stored_colours(store: Store) -> dict[Path, tuple[int, ...]]:
    """Return the path of every photo that a search can find -> the colour in its first slot."""
    ids = store.list_live_ids()
    vectors = store.read_vectors(ids).astype(np.float32) * 256
    return {
        path: tuple(vector[0, :3].astype(int))
        for photo, vector in zip(store.read_photos(ids), vectors, strict=True)
        for path in photo.paths
    }
