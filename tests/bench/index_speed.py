"""Measure the photos/s of `build_index` beside those of the bare encoder, the time of a second run, and peak memory.

    python tests/bench/index_speed.py [--count 1000] [--rounds 3] [--photos FOLDER [--as-is]] [--model NAME]

The bare encoder gets the same pictures, already decoded, in batches of 64. A round is: encoder, index with patches
kept, encoder, index without, encoder. An indexing run is compared with the mean of the encoder before and after it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from inputs import MODEL_HELP, make_photos, random_model
from report import MIB, Memory, median, peak_memory, table, write_report

if TYPE_CHECKING:
    import numpy as np

    from engine.models.retrieval_model import RetrievalModel

BATCH = 64
WANTED_RATIO = 0.8


def measure_encoder(model: RetrievalModel, pictures: np.ndarray) -> float:
    """Return the photos/s of the bare encoder on decoded pictures."""
    from engine.models.photo_encoder import PhotoEncoder

    with PhotoEncoder(model, "store") as encoder:
        started = time.perf_counter()
        for start in range(0, len(pictures), BATCH):
            encoder.encode(pictures[start : start + BATCH])
        return len(pictures) / (time.perf_counter() - started)


def measure_indexing(
    model: RetrievalModel, photos: Path, folder: Path, features: str, workers: int | None
) -> tuple[float, float, float, float, Memory]:
    """Index a folder of photos twice.

    Returns the photos/s of the first run, the seconds of the second run, the seconds of writing the FAISS files, the
    bytes on disk for each photo, and the memory of the first run.
    """
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
            f"{len(report.failed)} photos failed and {report.added} of {report.num_photos} were added: the rates would "
            "be wrong. Give photos that can all be read."
        )
    started = time.perf_counter()
    again = build_index([photos], store, encoder, workers=workers)
    second = time.perf_counter() - started
    encoder.close()
    if again.unchanged != report.added:
        raise SystemExit(f"The second run took only {again.unchanged} of {report.added} photos as unchanged.")
    started = time.perf_counter()
    open_photo_index(store)
    return rate, second, time.perf_counter() - started, store.measure_disk_bytes() / report.added, memory


def _name_inputs(args: argparse.Namespace) -> str:
    """Return what the indexed files are, for the report."""
    if args.as_is:
        return "files of a folder as they are"
    source = "photographs of scikit-image and scikit-learn" if args.photos is None else "a folder of photos"
    return f"JPEG files of 500 x 375 from {source}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="Folder of photos from which the files are made.")
    parser.add_argument("--as-is", action="store_true", help="Index the files of --photos themselves.")
    parser.add_argument("--count", type=int, default=1000, help="Number of files to make.")
    parser.add_argument("--rounds", type=int, default=3, help="How often everything is measured.")
    parser.add_argument(
        "--workers", type=int, help="Number of decoding processes; by default as many as `qseek index` takes."
    )
    parser.add_argument("--model", default="mini", help=MODEL_HELP)
    args = parser.parse_args()
    if args.as_is and args.photos is None:
        parser.error("--as-is needs --photos FOLDER.")
    with tempfile.TemporaryDirectory(prefix="qseek-bench-") as scratch:
        run(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> None:
    import numpy as np

    from engine.models.loading import load_model
    from engine.models.malloc import keep_freed_memory
    from indexer.decode import decode

    keep_freed_memory()  # The command line does this too.
    model = load_model(str(random_model(scratch / "random")) if args.model == "random" else args.model)
    photos = args.photos if args.as_is else scratch / "photos"
    if not args.as_is:
        make_photos(args.photos, scratch, args.count)
    paths = sorted(path for path in photos.rglob("*") if path.is_file())
    file_bytes = sum(path.stat().st_size for path in paths)
    started = time.perf_counter()
    pictures = np.stack([decode(path, model.image_size).pixels for path in paths])
    decode_rate = len(paths) / (time.perf_counter() - started)
    measure_encoder(model, pictures[:BATCH])  # The first batch is slower.

    rows = []
    ratios: dict[str, list[float]] = {"store": [], "none": []}
    for number in range(args.rounds):
        before = measure_encoder(model, pictures)
        for features in ratios:
            folder = scratch / f"index-{features}-{number}"
            rate, second, faiss, size, memory = measure_indexing(
                model, photos, folder, features, args.workers
            )
            after = measure_encoder(model, pictures)
            ratio = rate / ((before + after) / 2)
            ratios[features].append(ratio)
            rows.append(
                (
                    f"{number + 1}, features {features}",
                    f"{rate:.1f}",
                    f"{before:.1f}, {after:.1f}",
                    f"{ratio:.2f}",
                    f"{second:.2f}",
                    f"{faiss:.2f}",
                    f"{size / 1024:.0f}",
                    f"{memory.before / MIB:.0f}",
                    f"{memory.peak / MIB:.0f}",
                )
            )
            before = after
    head = (
        "round",
        "index photos/s",
        "encoder photos/s before, after",
        "ratio",
        "second run s",
        "FAISS files s",
        "KiB a photo",
        "MiB before",
        "MiB peak, workers too",
    )
    medians = ", ".join(f"features {features}: {median(values):.2f}" for features, values in ratios.items())
    parts = [
        f"The inputs are {len(paths)} {_name_inputs(args)}, {file_bytes / len(paths) / 1024:.0f} KiB each. One process "
        f"that only decodes reaches {decode_rate:.0f} photos/s. The encoder gets batches of {BATCH}. The rate of "
        "the index counts everything: scanning, starting the workers, decoding, encoding, committing and compacting.",
        table(head, rows),
        f"The median ratio of index to encoder is {medians} (wanted: {WANTED_RATIO}).",
    ]
    write_report("index_speed", parts, model)


if __name__ == "__main__":
    main()
