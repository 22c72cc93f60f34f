"""Measure searches among 1,000 and 100,000 photos beside brute force, and reranking beside the original's way.

    python tests/bench/search_speed.py [--sizes 1000 100000] [--photos FOLDER] [--model NAME|FOLDER|random]

The vectors are those of `--real` photos, repeated with noise and normalised again. Patches are repeated in the same
way, but only for the photos that the texts will rerank, so that they take little of the disk (100,000 photos take 3.3
GB, and brute force takes 5 GB of memory). Both sides run in turns in one process; ids and scores are compared.

Shapes: R real photos, N photos of an index, Q slots, E embedding, P patches, V their width, M texts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cold_starts import measure_cold_starts, measure_imports
from inputs import MODEL_HELP, TEXTS, make_photos, random_model
from repeated_photos import NOISE, EncodedInputs, encode_inputs, fill_store, repeat_with_noise
from report import MIB, median, spread, table, write_report

if TYPE_CHECKING:
    import numpy as np

    from engine.index.store import Store
    from engine.models.retrieval_model import RetrievalModel
    from engine.search.searcher import Searcher
    from engine.types import Hit

K = 128
# Two photos whose scores differ by less may be in another order when scores are summed in another way.
TIE = 1e-5


class BruteForce:
    """Searches all vectors in memory as float32: one matrix product, the maximum over the slots, a partial sort."""

    def __init__(self, vectors_NQE: np.ndarray) -> None:
        import numpy as np

        self.num_slots, width = vectors_NQE.shape[1:]
        self.vectors = vectors_NQE.reshape(-1, width).astype(np.float32)

    def search(self, text_E: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of the k best photos and their scores, best first; of equal scores the lower row first."""
        import numpy as np

        scores = (self.vectors @ text_E).reshape(-1, self.num_slots).max(axis=1)
        k = min(k, len(scores))
        rows = np.argpartition(-scores, k - 1)[:k]
        rows = rows[np.lexsort((rows, -scores[rows]))]
        return rows, scores[rows]


@dataclass
class Agreement:
    """A count of how often the hits of an index are those of brute force."""

    num_searches: int = 0
    num_same: int = 0
    num_same_but_ties: int = 0
    largest_difference: float = 0.0

    def compare(self, hits: Sequence[Hit], rows: np.ndarray, scores: np.ndarray) -> None:
        """Compare the hits of a search with the rows and scores that brute force returned."""
        import numpy as np

        ids = np.array([hit.photo.id for hit in hits])
        differences = np.abs(np.array([hit.itc for hit in hits]) - scores)
        self.num_searches += 1
        self.num_same += np.array_equal(ids, rows)
        # A photo may be at another rank only where the scores of both ways are almost equal.
        self.num_same_but_ties += bool(differences.max() <= TIE)
        self.largest_difference = max(self.largest_difference, float(differences.max()))

    def __str__(self) -> str:
        return (
            f"The top {K} ids are those of brute force in its order in {self.num_same} of {self.num_searches} "
            f"searches, and but for ties within {TIE:g} in {self.num_same_but_ties} of {self.num_searches}. "
            f"The largest difference of a score is {self.largest_difference:.1e}."
        )


def time_search(
    searcher: Searcher, brute: BruteForce, inputs: EncodedInputs, rounds: int
) -> tuple[dict[str, list[float]], Agreement]:
    """Search for every text in each round; return the seconds by phase, and how the hits agree with brute force."""
    seconds: dict[str, list[float]] = defaultdict(list)
    agreement = Agreement()
    searcher.search(TEXTS[0])  # The first search is slower.
    assert searcher.store is not None
    path = searcher.store.read_photos([0])[0].path
    searcher.similar(path)
    for _ in range(rounds):
        for text, text_E in zip(TEXTS, inputs.texts, strict=True):
            started = time.perf_counter()
            results = searcher.search(text, top=20)
            seconds["search, reranked"].append(time.perf_counter() - started)
            for phase, value in results.seconds.items():
                seconds[f"of it {phase}"].append(value)
            if any(hit.itm is None for hit in results.hits) or results.failures:
                raise SystemExit("A candidate has no patches: the time of reranking would be wrong.")

            started = time.perf_counter()
            rows, scores = brute.search(text_E, K)
            seconds["brute force"].append(time.perf_counter() - started)

            started = time.perf_counter()
            itc_results = searcher.search(text, top=K, rerank=0)
            seconds["search, ITC alone"].append(time.perf_counter() - started)
            seconds["of it retrieve, ITC alone"].append(itc_results.seconds["retrieve"])
            agreement.compare(itc_results.hits, rows, scores)

            started = time.perf_counter()
            searcher.similar(path)
            seconds["similar (stored vectors)"].append(time.perf_counter() - started)
    return seconds, agreement


def time_rerank(
    model: RetrievalModel,
    fp32: RetrievalModel,
    store: Store,
    brute: BruteForce,
    inputs: EncodedInputs,
    rounds: int,
) -> str:
    """Rerank patches in memory with ours in both dtypes and in the original's way; return the report's table.

    fp32: the model in float32, in which the original's way runs, too.
    """
    import numpy as np
    import torch
    from reference_rerank import reference_match

    seconds: dict[str, list[float]] = defaultdict(list)
    difference32 = difference = 0.0
    for number in range(rounds + 1):
        for text, text_E in zip(TEXTS, inputs.texts, strict=True):
            rows = brute.search(text_E, K)[0]
            stored_patches = [stored for stored in store.read_patches(rows) if stored is not None]
            patches = model.unpack_patches(stored_patches, store.manifest.features)
            patches32 = fp32.unpack_patches(stored_patches, store.manifest.features)
            started = time.perf_counter()
            ours = model.match(patches if model.folding_pays else model.compute_photo_keys(patches), [text])
            ours_ended = time.perf_counter()
            ours32 = fp32.match(fp32.compute_photo_keys(patches32), [text])
            ours32_ended = time.perf_counter()
            with torch.inference_mode():
                theirs = reference_match(fp32, text, patches32).cpu().numpy()
            theirs_ended = time.perf_counter()
            difference32 = max(difference32, float(np.abs(ours32 - theirs).max()))
            difference = max(difference, float(np.abs(ours - theirs).max()))
            if number:  # The first round warms up.
                seconds["ours"].append(ours_ended - started)
                seconds["ours, float32"].append(ours32_ended - ours_ended)
                seconds["original"].append(theirs_ended - ours32_ended)
    if difference32 > 2e-4:
        raise SystemExit(f"In float32 our match logits differ from the original's by {difference32}.")
    dtype = str(model.dtype).removeprefix("torch.")
    reference = median(seconds["original"])
    table_rows = [
        (title, spread(seconds[name]), f"{reference / median(seconds[name]):.2f}", f"{largest:.1e}")
        for title, name, largest in (
            ("the original's way, float32 (35 tokens, all rows, attention written out)", "original", 0.0),
            ("ours, float32", "ours, float32", difference32),
            (f"ours, {dtype}, as qseek runs here", "ours", difference),
        )
    ]
    head = (
        f"one text, {K} photos, patches in memory",
        "ms: median (least-most)",
        "times as fast",
        "logits apart",
    )
    return table(head, table_rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, help="Folder of photos from which the vectors are made.")
    parser.add_argument(
        "--real", type=int, default=256, help="Number of distinct photos whose vectors are repeated."
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1000, 100_000], help="Numbers of photos of the indexes."
    )
    parser.add_argument("--rounds", type=int, default=3, help="How often everything is measured.")
    parser.add_argument("--model", default="mini", help=MODEL_HELP)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qseek-bench-") as scratch:
        run(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> None:
    from engine.models.loading import load_model
    from engine.models.malloc import keep_freed_memory

    name = str(random_model(scratch / "random")) if args.model == "random" else args.model
    keep_freed_memory()  # The command line does this too.
    model, fp32 = load_model(name), load_model(name, dtype="float32")
    # A search then reranks: its cost does not depend on how well the model is trained.
    for loaded in (model, fp32):
        loaded.net.config = replace(loaded.config, match_ready=True)
    make_photos(args.photos, scratch, args.real)
    inputs = encode_inputs(model, scratch / "photos")
    parts = [
        f"The vectors of {args.real} real photos are repeated with noise of length {NOISE}. Each of {args.rounds} "
        f"rounds searches for {len(TEXTS)} texts; a search retrieves and reranks {K} photos."
    ]
    for size in args.sizes:
        parts += measure(size, scratch / f"index-{size}", model, fp32, inputs, args.rounds)
    write_report("search_speed", parts, model)


def measure(
    size: int, folder: Path, model: RetrievalModel, fp32: RetrievalModel, inputs: EncodedInputs, rounds: int
) -> list[str]:
    """Return the parts of the report about an index of `size` photos."""
    from engine.index.manifest import Manifest
    from engine.index.store import Store
    from engine.search.searcher import Searcher
    from engine.vectors.table_indexes import open_photo_index

    vectors = repeat_with_noise(inputs, size)
    brute = BruteForce(vectors)
    candidates = {int(row) for text_E in inputs.texts for row in brute.search(text_E, K)[0]}
    store = Store.create(folder, Manifest.for_model(model, "store"))
    fill_store(store, vectors, inputs, candidates)
    del vectors
    started = time.perf_counter()
    open_photo_index(store)
    build_seconds = time.perf_counter() - started
    started = time.perf_counter()
    open_photo_index(store)
    open_seconds = time.perf_counter() - started

    seconds, agreement = time_search(Searcher(store, model), brute, inputs, rounds)
    order = (
        "search, reranked",
        "of it encode",
        "of it retrieve",
        "of it rerank",
        "search, ITC alone",
        "of it retrieve, ITC alone",
        "brute force",
        "similar (stored vectors)",
    )
    titles = {"brute force": f"numpy brute force over the same vectors, top {K}, float32 in memory"}
    phases = table(
        (f"{size:,} photos", "ms: median (least-most)"),
        [(titles.get(name, name), spread(seconds[name])) for name in order],
    )
    ratio = median(seconds["brute force"]) / median(seconds["of it retrieve, ITC alone"])
    facts = (
        f"Brute force takes {ratio:.2f} times as long as retrieving. {agreement} The FAISS files were built in "
        f"{build_seconds:.1f} s and opened in {1000 * open_seconds:.0f} ms. The index takes "
        f"{store.measure_disk_bytes() / MIB:,.0f} MiB of the disk."
    )
    rerank = time_rerank(model, fp32, store, brute, inputs, rounds)
    del brute
    starts = [
        (title, spread(times, 1, 2), f"{peak / MIB:,.0f}")
        for title, times, peak in measure_cold_starts(folder, model, rounds)
    ]
    commands = table(("`qseek search` as a command", "s: median (least-most)", "MiB peak"), starts)
    imports = table(("importing, in one cold start", "ms"), measure_imports(folder, model))
    return [f"## {size:,} photos", phases, facts, rerank, commands, imports]


if __name__ == "__main__":
    main()
