"""Photos/s of `build_index` beside the bare encoder's, in turns in one run; the second run; peak memory.

    python tests/bench/index_speed.py [--count 1000] [--rounds 3] [--photos FOLDER [--as-is]] [--model NAME]

The bare encoder gets the same pictures, decoded before, in batches of 64. A round is: encoder, index with patches
kept, encoder, index without, encoder; an index run is compared with the mean of the encoder before and after it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from inputs import make_photos, random_model
from report import MIB, Memory, median, peak_memory, table, write_report

if TYPE_CHECKING:
    import numpy as np

    from engine.models.retrieval_model import RetrievalModel

BATCH = 64
TARGET = 0.8


def bare(model: RetrievalModel, pictures: np.ndarray) -> float:
    """Photos/s."""
    from engine.models.photo_encoder import PhotoEncoder

    with PhotoEncoder(model, "store") as encoder:
        started = time.perf_counter()
        for start in range(0, len(pictures), BATCH):
            encoder.encode(pictures[start : start + BATCH])
        return len(pictures) / (time.perf_counter() - started)


def indexed(
    model: RetrievalModel, photos: Path, folder: Path, features: str, workers: int | None
) -> tuple[float, float, float, float, Memory]:
    """Photos/s of the first run, seconds of the second, seconds of writing FAISS' files, bytes a photo, memory."""
    from engine.index.manifest import Manifest
    from engine.index.store import Store
    from engine.models.photo_encoder import PhotoEncoder
    from engine.vectors.table_indexes import open_photo_index
    from indexer.build import build_index

    store = Store.create(folder, Manifest.for_model(model, features))
    encoder = PhotoEncoder(model, features)
    with peak_memory() as memory:
        started = time.perf_counter()
        report = build_index([photos], store, encoder, workers=workers)
        rate = report.added / (time.perf_counter() - started)
    if report.failed or report.added != report.num_photos:
        raise SystemExit(
            f"{len(report.failed)} photos failed, {report.added} added: the rates would be wrong"
        )
    started = time.perf_counter()
    again = build_index([photos], store, encoder, workers=workers)
    second = time.perf_counter() - started
    encoder.close()
    if again.unchanged != report.added:
        raise SystemExit(f"the second run took {again.unchanged} of {report.added} photos as unchanged")
    started = time.perf_counter()
    open_photo_index(store)
    return rate, second, time.perf_counter() - started, store.measure_disk_bytes() / report.added, memory


def _kind(args: argparse.Namespace) -> str:
    if args.as_is:
        return "files of a folder as they are"
    source = "photographs of scikit-image and scikit-learn" if args.photos is None else "a folder of photos"
    return f"JPEG files of 500 x 375 from {source}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="folder of photos to make the files from")
    parser.add_argument("--as-is", action="store_true", help="index the files of --photos themselves")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, help="decoding processes; default as in `qseek index`")
    parser.add_argument(
        "--model", default="mini", help="a name, a folder, or random: mini's shape, no training"
    )
    args = parser.parse_args()
    if args.as_is and args.photos is None:
        parser.error("--as-is needs --photos")
    with tempfile.TemporaryDirectory(prefix="qseek-bench-") as scratch:
        run(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> None:
    import numpy as np

    from engine.models.loading import load_model
    from engine.models.malloc import keep_freed_memory
    from indexer.decode import decode

    keep_freed_memory()  # as the command does
    model = load_model(str(random_model(scratch / "random")) if args.model == "random" else args.model)
    photos = args.photos if args.as_is else scratch / "photos"
    if not args.as_is:
        make_photos(args.photos, scratch, args.count)
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    file_bytes = sum(path.stat().st_size for path in paths)
    started = time.perf_counter()
    pictures = np.stack([decode(path, model.image_size).pixels for path in paths])
    decode_rate = len(paths) / (time.perf_counter() - started)
    bare(model, pictures[:BATCH])

    rows = []
    ratios: dict[str, list[float]] = {"store": [], "none": []}
    for number in range(args.rounds):
        before = bare(model, pictures)
        for features in ratios:
            folder = scratch / f"index-{features}-{number}"
            rate, second, faiss, size, memory = indexed(model, photos, folder, features, args.workers)
            after = bare(model, pictures)
            ratio = rate / ((before + after) / 2)
            ratios[features].append(ratio)
            rows.append(
                (
                    f"{number + 1}, features {features}", f"{rate:.1f}", f"{before:.1f}, {after:.1f}",
                    f"{ratio:.2f}", f"{second:.2f}", f"{faiss:.2f}", f"{size / 1024:.0f}",
                    f"{memory.before / MIB:.0f}", f"{memory.peak / MIB:.0f}",
                )
            )  # fmt: skip
            before = after
    head = (
        "round", "index photos/s", "encoder photos/s before, after", "ratio", "second run s", "FAISS files s",
        "KiB a photo", "MiB before", "MiB peak, workers too",
    )  # fmt: skip
    summary = ", ".join(f"features {name}: {median(found):.2f}" for name, found in ratios.items())
    parts = [
        f"{len(paths)} {_kind(args)}, {file_bytes / len(paths) / 1024:.0f} KiB each; "
        f"decoding alone in one process: {decode_rate:.0f} photos/s. Batches of {BATCH}. The index's rate counts "
        "everything: scan, starting the workers, decoding, encoding, committing, compacting.",
        table(head, rows),
        f"Median ratio, index to encoder: {summary} (wanted: {TARGET}).",
    ]
    write_report("index_speed", parts, model)


if __name__ == "__main__":
    main()
