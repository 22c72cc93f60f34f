"""Milliseconds of a search in 1,000 and in 100,000 photos, beside brute force; of reranking, beside the original's way.

    python tests/bench/search_speed.py [--sizes 1000 100000] [--photos FOLDER] [--model NAME|FOLDER|random]

Vectors are those of `--real` photos, repeated with noise and made unit again; patches likewise, kept only for those
photos that the texts below will rerank, so that the disk stays small (100,000 photos: 3.3 GB, and 5 GB of memory for
the brute force). Both sides run in turns in one process; ids and scores are compared.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inputs import SEED, TEXTS, make_photos, random_model
from report import MIB, median, spread, table, write_report

if TYPE_CHECKING:
    import numpy as np

    from engine.index.store import Store
    from engine.models.retrieval_model import RetrievalModel
    from engine.search.searcher import Searcher

K = 128
NOISE = 0.3  # length of the noise that is added to a unit vector, and to patches in units of their deviation
BATCH = 2000
TIE = 1e-5  # scores nearer than this may change places between two ways to sum
ROOT = Path(__file__).parents[2]


@dataclass
class Real:
    """vectors (R, Q, E) float32, patches (R, P, V) float32 of real photos; queries (M, E) of the texts."""

    vectors: np.ndarray
    patches: np.ndarray
    queries: np.ndarray


def encode_real(model: RetrievalModel, folder: Path) -> Real:
    import numpy as np

    from indexer.decode import decode

    paths = sorted(folder.iterdir())
    vectors, patches = [], []
    for start in range(0, len(paths), 64):
        pictures = np.stack([decode(path, model.image_size).pixels for path in paths[start : start + 64]])
        some = model.encode_patches(pictures)
        vectors.append(model.encode_photos(some))
        patches.append(some.float().cpu().numpy())
    return Real(np.concatenate(vectors), np.concatenate(patches), model.encode_texts(TEXTS)[0])


def repeated(real: Real, count: int) -> np.ndarray:
    """(count, Q, E) float16 unit vectors."""
    import numpy as np

    draw = np.random.default_rng(SEED)
    made = np.empty((count, *real.vectors.shape[1:]), np.float16)
    for start in range(0, count, BATCH):
        rows = np.arange(start, min(start + BATCH, count))
        some = draw.standard_normal((len(rows), *made.shape[1:]), dtype=np.float32)
        some *= NOISE / np.sqrt(made.shape[2])
        some += real.vectors[rows % len(real.vectors)]
        made[rows] = some / np.linalg.norm(some, axis=2, keepdims=True)
    return made


class BruteForce:
    """All vectors in memory as float32; one matrix product, the maximum over the slots, a partial sort."""

    def __init__(self, vectors_NQE: np.ndarray):
        import numpy as np

        self.num_slots, width = vectors_NQE.shape[1:]
        self.vectors = vectors_NQE.reshape(-1, width).astype(np.float32)

    def best(self, query_E: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, scores), best first, ties by lower row."""
        import numpy as np

        scores = (self.vectors @ query_E).reshape(-1, self.num_slots).max(axis=1)
        k = min(k, len(scores))
        rows = np.argpartition(-scores, k - 1)[:k]
        rows = rows[np.lexsort((rows, -scores[rows]))]
        return rows, scores[rows]


def fill(store: Store, vectors: np.ndarray, real: Real, candidates: set[int]) -> None:
    """Photos with ids 0, 1, 2, ... in their rows' order; patches for the candidates."""
    import numpy as np

    from engine.index.path_table import FileRecord
    from engine.index.photo_table import NewPhoto

    draw = np.random.default_rng(SEED + 1)
    deviation = NOISE * real.patches.std()
    root = store.folder / "photos-that-are-not-there"

    def patches_of(row: int) -> bytes:
        one = real.patches[row % len(real.patches)]
        noisy = one + deviation * draw.standard_normal(one.shape, dtype=np.float32)
        return noisy.astype(np.float16).tobytes()

    with store.writing():
        for start in range(0, len(vectors), BATCH):
            rows = range(start, min(start + BATCH, len(vectors)))
            photos = [
                NewPhoto(
                    f"{row:032x}", 500, 375, vectors[row], patches_of(row) if row in candidates else None
                )
                for row in rows
            ]
            files = [
                FileRecord(root, root / f"{row:06}.jpg", 40000 + row, row, photo.digest)
                for row, photo in zip(rows, photos, strict=True)
            ]
            ids = store.add(photos, files)
            if ids != list(rows):
                raise SystemExit("the store gave other ids than the rows' order")
        store.optimize()


def time_search(searcher: Searcher, brute: BruteForce, real: Real, rounds: int) -> tuple[dict, list[str]]:
    """Seconds by phase, and how the two sides agree."""
    import numpy as np

    seconds: dict[str, list[float]] = defaultdict(list)
    same = same_but_ties = 0
    difference = 0.0
    searcher.search(TEXTS[0])
    store = searcher.store
    assert store is not None
    some_path = store.read_photos([0])[0].path
    searcher.similar(some_path)
    for _ in range(rounds):
        for text, query in zip(TEXTS, real.queries, strict=True):
            started = time.perf_counter()
            found = searcher.search(text, top=20)
            seconds["search, reranked"].append(time.perf_counter() - started)
            for phase, value in found.seconds.items():
                seconds[f"of it {phase}"].append(value)
            if any(hit.itm is None for hit in found.hits) or found.failures:
                raise SystemExit("a candidate has no patches: the rerank would be timed wrongly")

            started = time.perf_counter()
            rows, scores = brute.best(query, K)
            seconds["brute force"].append(time.perf_counter() - started)

            started = time.perf_counter()
            alone = searcher.search(text, top=K, rerank=0)
            seconds["search, ITC alone"].append(time.perf_counter() - started)
            seconds["of it retrieve, ITC alone"].append(alone.seconds["retrieve"])

            ids = np.array([hit.photo.id for hit in alone.hits])
            itc = np.array([hit.itc for hit in alone.hits])
            same += np.array_equal(ids, rows)
            moved = ids != rows
            near = np.abs(itc - scores).max()
            same_but_ties += bool(
                near <= TIE and (not moved.any() or np.abs(itc - scores)[moved].max() <= TIE)
            )
            difference = max(difference, float(near))

            started = time.perf_counter()
            searcher.similar(some_path)
            seconds["similar (stored vectors)"].append(time.perf_counter() - started)
    total = rounds * len(TEXTS)
    agreement = (
        f"top {K} ids equal to brute force, in its order: {same} of {total}; equal but for ties within {TIE:g}: "
        f"{same_but_ties} of {total}; largest difference of a score: {difference:.1e}"
    )
    return seconds, [agreement]


def time_rerank(
    model: RetrievalModel, fp32: RetrievalModel, store: Store, brute: BruteForce, real: Real, rounds: int
) -> str:
    """Ours, in the model's dtype and in float32, and the original's way in float32, on patches in memory."""
    import numpy as np
    import torch
    from reference_rerank import reference_match

    seconds: dict[str, list[float]] = defaultdict(list)
    apart32 = apart = 0.0
    for number in range(rounds + 1):
        for text, query in zip(TEXTS, real.queries, strict=True):
            kept = [row for row in store.read_patches(brute.best(query, K)[0]) if row is not None]
            patches, patches32 = (one.unpack_patches(kept, store.manifest.features) for one in (model, fp32))
            started = time.perf_counter()
            ours = model.match(patches if model.folding_pays else model.compute_photo_keys(patches), [text])
            middle = time.perf_counter()
            ours32 = fp32.match(fp32.compute_photo_keys(patches32), [text])
            later = time.perf_counter()
            with torch.inference_mode():
                theirs = reference_match(fp32, text, patches32).cpu().numpy()
            end = time.perf_counter()
            apart32 = max(apart32, float(np.abs(ours32 - theirs).max()))
            apart = max(apart, float(np.abs(ours - theirs).max()))
            if number:  # the first round warms up
                for name, value in (
                    ("ours", middle - started), ("ours, float32", later - middle), ("original", end - later),
                ):  # fmt: skip
                    seconds[name].append(value)
    if apart32 > 2e-4:
        raise SystemExit(f"in float32 our match logits differ from the original's by {apart32}")
    dtype = str(model.dtype).removeprefix("torch.")
    reference = median(seconds["original"])
    rows = [
        (title, spread(seconds[name]), f"{reference / median(seconds[name]):.2f}", f"{error:.1e}")
        for title, name, error in (
            ("the original's way, float32 (35 tokens, all rows, attention written out)", "original", 0.0),
            ("ours, float32", "ours, float32", apart32),
            (f"ours, {dtype}, as qseek runs here", "ours", apart),
        )
    ]
    return table(
        (
            f"one text, {K} photos, patches in memory",
            "ms: median (least-most)",
            "times as fast",
            "logits apart",
        ),
        rows,
    )


def cold_starts(folder: Path, model: RetrievalModel, rounds: int) -> Iterator[tuple[str, list[float], float]]:
    """`qseek search` as a command: seconds, and most resident bytes."""
    for title, options in (("reranked", []), ("--no-rerank", ["--no-rerank"])):
        seconds, peak = [], 0.0
        for number in range(rounds + 1):  # the first one warms the disk's cache
            started = time.perf_counter()
            process = subprocess.Popen(_command(folder, model, options), cwd=ROOT, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise SystemExit("qseek search failed")
            if number:
                seconds.append(time.perf_counter() - started)
            peak = max(peak, usage.ru_maxrss * 1024)
        yield title, seconds, peak


def import_times(folder: Path, model: RetrievalModel) -> list[tuple[str, str]]:
    """Milliseconds of a cold start that go to importing, by package, from -X importtime."""
    command = _command(folder, model, ["--no-rerank"])
    command[1:1] = ["-X", "importtime"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    times: dict[str, int] = defaultdict(int)
    for line in found.splitlines():
        fields = line.removeprefix("import time:").split("|")
        if line.startswith("import time:") and fields[0].strip().isdigit():
            times[fields[2].strip().partition(".")[0]] += int(fields[0])
    rows = sorted(times.items(), key=lambda item: -item[1])
    top = [(name, f"{value / 1000:.0f}") for name, value in rows[:8]]
    return [*top, ("all imports", f"{sum(times.values()) / 1000:.0f}")]


def _command(folder: Path, model: RetrievalModel, options: list[str]) -> list[str]:
    start = [sys.executable, "-m", "ui.cli.main", "search", TEXTS[0], "--json"]
    return [*start, "--index", str(folder), "--model", str(model.folder), *options]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="folder of photos to take the vectors from")
    parser.add_argument(
        "--real", type=int, default=256, help="distinct real photos behind the repeated vectors"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--model", default="mini", help="a name, a folder, or random: mini's shape, no training"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qseek-bench-") as scratch:
        run(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> None:
    from engine.models.loading import load_model
    from engine.models.malloc import keep_freed_memory

    name = str(random_model(scratch / "random")) if args.model == "random" else args.model
    keep_freed_memory()  # as the command does
    model, fp32 = load_model(name), load_model(name, dtype="float32")
    for one in (model, fp32):  # what ITM costs does not depend on whether its order is good yet
        one.net.config = replace(one.config, match_ready=True)
    make_photos(args.photos, scratch, args.real)
    real = encode_real(model, scratch / "photos")
    parts = [
        f"{args.real} real photos, their vectors repeated with noise of length {NOISE}; {len(TEXTS)} texts, "
        f"{args.rounds} rounds; retrieves and reranks {K}."
    ]
    for size in args.sizes:
        parts += measure(size, scratch / f"index-{size}", model, fp32, real, args.rounds)
    write_report("search_speed", parts, model)


def measure(
    size: int, folder: Path, model: RetrievalModel, fp32: RetrievalModel, real: Real, rounds: int
) -> list[str]:
    """The report's parts for an index of so many photos."""
    from engine.index.manifest import Manifest
    from engine.index.store import Store
    from engine.search.searcher import Searcher
    from engine.vectors.table_indexes import open_photo_index

    vectors = repeated(real, size)
    brute = BruteForce(vectors)
    candidates = {int(row) for query in real.queries for row in brute.best(query, K)[0]}
    store = Store.create(folder, Manifest.for_model(model, "store"))
    fill(store, vectors, real, candidates)
    del vectors
    started = time.perf_counter()
    open_photo_index(store)
    built = time.perf_counter() - started
    started = time.perf_counter()
    open_photo_index(store)
    opened = time.perf_counter() - started

    seconds, agreement = time_search(Searcher(store, model), brute, real, rounds)
    order = (
        "search, reranked", "of it encode", "of it retrieve", "of it rerank", "search, ITC alone",
        "of it retrieve, ITC alone", "brute force", "similar (stored vectors)",
    )  # fmt: skip
    titles = {"brute force": f"numpy brute force over the same vectors, top {K}, float32 in memory"}
    phases = table(
        (f"{size:,} photos", "ms: median (least-most)"),
        [(titles.get(name, name), spread(seconds[name])) for name in order],
    )
    ratio = median(seconds["brute force"]) / median(seconds["of it retrieve, ITC alone"])
    facts = (
        f"Brute force takes {ratio:.2f} times as long as retrieving. {agreement[0]}. FAISS files: built in "
        f"{built:.1f} s, opened in {1000 * opened:.0f} ms. Disk: {store.measure_disk_bytes() / MIB:,.0f} MiB."
    )
    rerank = time_rerank(model, fp32, store, brute, real, rounds)
    del brute
    starts = [
        (title, spread(found, 1, 2), f"{peak / MIB:,.0f}")
        for title, found, peak in cold_starts(folder, model, rounds)
    ]
    commands = table(("`qseek search` as a command", "s: median (least-most)", "MiB peak"), starts)
    imports = table(("importing, in one cold start", "ms"), import_times(folder, model))
    return [f"## {size:,} photos", phases, facts, rerank, commands, imports]


if __name__ == "__main__":
    main()
