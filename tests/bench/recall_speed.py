"""Pairs/s of `qseek recall`'s reranking beside the original's loop and transformers: same weights, same run.

    python tests/bench/recall_speed.py --folder FOLDER [--photos 16] [--texts 128] [--texts-a-photo N]

FOLDER: a checkpoint, for example the one that full_size.py wrote. Patches are made up, texts are mini's training kind.
Ours reads every text with every photo as an evaluation does (photos' keys once a block, texts by length, patches
mapped from disk). The original reads one text and its candidates at a time, texts padded to 35, all rows, keys made
anew for each text; transformers does the same without the padding. Logits are compared on the pairs that all read.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inputs import SEED, TEXTS
from report import table, write_report

if TYPE_CHECKING:
    from torch import Tensor

    from engine.models.retrieval_model import RetrievalModel

SUBJECTS = (
    "a dog",
    "two small children",
    "a man in a red jacket",
    "three women",
    "a brown horse",
    "a cyclist",
)
DOINGS = ("runs", "is jumping high", "stands and looks at the camera", "plays with a ball", "waits", "climbs")
PLACES = (
    "in the snow",
    "on a beach",
    "near an old brick wall in the city",
    "",
    "at night",
    "on a grassy hill",
)


def made_up_texts(count: int) -> list[str]:
    """Of 5 to 18 words, as captions are."""
    draw = random.Random(SEED)
    every = [" ".join(f"{s} {d} {p}".split()) for s in SUBJECTS for d in DOINGS for p in PLACES]
    draw.shuffle(every)
    more = [f"{one} and {other}" for one in every for other in every] if count > len(every) else []
    return [*TEXTS, *every, *more][:count]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", required=True)
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument(
        "--texts-a-photo", type=int, help="how many of them each photo reads, at random; default all"
    )
    parser.add_argument("--candidates", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qseek-bench-") as scratch:
        run(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> None:
    import numpy as np
    import torch
    from reference_rerank import reference_match, transformers_match
    from transformers import Blip2ForImageTextRetrieval

    from engine.evaluation.memory_budget import split_memory
    from engine.evaluation.pair_matching import PairMatcher
    from engine.evaluation.retrieval_cache import EvaluationCache
    from engine.models.loading import load_model
    from engine.models.malloc import keep_freed_memory

    keep_freed_memory()  # as the command does
    model = load_model(args.folder)
    texts = made_up_texts(args.texts)
    generator = torch.Generator().manual_seed(SEED)
    patches = torch.randn(args.candidates, *model.patch_shape, generator=generator).to(
        model.device, model.dtype
    )
    lengths = model.tokenizer(texts)[1].sum(dim=1).float()

    cache = EvaluationCache(scratch, model)
    cache.begin_photos(args.photos)
    blank = np.zeros((args.photos, model.config.qformer.num_queries, model.config.embed_dim), np.float32)
    for first in range(0, args.photos, len(patches)):
        some = slice(first, min(first + len(patches), args.photos))
        count = some.stop - some.start
        cache.put_photos(first, np.ones(count, bool), patches[:count], blank[some])
    draw = np.random.default_rng(SEED)
    count = min(len(texts), args.texts_a_photo or len(texts))
    chosen = [np.sort(draw.permutation(np.arange(1, len(texts)))[: count - 1]) for _ in range(args.photos)]
    pairs = np.concatenate([row * len(texts) + np.array([0, *some]) for row, some in enumerate(chosen)])
    budget = split_memory(model, args.photos, len(texts), 2**31)
    started = time.perf_counter()
    matcher = PairMatcher(model, range(args.photos), texts, pairs, cache, budget.texts)
    matcher.match_photos(model, range(args.photos))
    seconds = {f"ours, {_name(model.dtype)}": (time.perf_counter() - started, len(pairs))}
    ours = np.array(matcher.logits)[pairs % len(texts) == 0] / model.config.match_weight
    share = _share_of_peak(
        model, texts[: args.candidates], patches[:1], len(pairs), len(pairs) / args.photos, seconds
    )
    apart: dict[str, float] = {next(iter(seconds)): 0.0}

    def compare(name: str, started: float, theirs: np.ndarray) -> None:
        seconds[name] = time.perf_counter() - started, args.candidates
        both = min(len(ours), len(theirs))
        apart[name] = float(np.abs(theirs[:both, 1] - ours[:both]).max())

    with torch.inference_mode():
        started = time.perf_counter()
        compare(
            f"the original's loop, {_name(model.dtype)}",
            started,
            reference_match(model, texts[0], patches).float().cpu().numpy(),
        )

    theirs = (
        Blip2ForImageTextRetrieval.from_pretrained(args.folder, dtype=model.dtype).to(model.device).eval()
    )

    with torch.inference_mode():
        started = time.perf_counter()
        compare(
            f"transformers, {_name(model.dtype)}",
            started,
            transformers_match(theirs, model, texts[0], patches).cpu().numpy(),
        )
    del theirs, model
    fp32 = load_model(args.folder, dtype="float32")
    with torch.inference_mode():
        started = time.perf_counter()
        compare(
            "the original's loop, float32",
            started,
            reference_match(fp32, texts[0], patches.float()).cpu().numpy(),
        )

    rate = seconds[next(iter(seconds))][1] / seconds[next(iter(seconds))][0]
    rows = [
        (
            name,
            f"{count:,}",
            f"{spent:.1f}",
            f"{count / spent:.1f}",
            f"{rate * spent / count:.1f}",
            f"{apart[name]:.1e}",
        )
        for name, (spent, count) in seconds.items()
    ]
    parts = [
        f"{args.photos} photos and {len(texts)} texts of {int(lengths.min())} to {int(lengths.max())} tokens (mean "
        f"{float(lengths.mean()):.1f}) for ours; one text of {int(lengths[0])} tokens and {args.candidates} photos for "
        "the others.",
        table(("reranking", "pairs", "s", "pairs/s", "ours is so many times as fast", "logits apart"), rows),
        f"Standard deviation of our logits over the photos: {float(ours.std()):.2f}. {share}",
    ]
    write_report("recall_speed", parts, fp32)


def _share_of_peak(
    model: RetrievalModel, texts: Sequence[str], patches_1PV: Tensor, num_pairs: int, pairs_a_photo: float,
    seconds: dict[str, tuple[float, int]],
) -> str:  # fmt: skip
    """Counted operations of ours beside the rate of a large matrix product here, in the same dtype."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as of_keys:
        keys = model.compute_photo_keys(patches_1PV)
    start = model.start_texts(texts)
    with FlopCounterMode(display=False) as of_pairs:
        model.match(keys, start)
    side = 8192 if model.device.type == "cuda" else 2048
    square = torch.randn(side, side, device=model.device, dtype=model.dtype)
    spent = []
    for _ in range(8):
        started = time.perf_counter()
        float((square @ square)[0, 0])  # waits for the device
        spent.append(time.perf_counter() - started)
    peak = 2 * side**3 / sorted(spent)[2]
    ours = of_pairs.get_total_flops() / len(texts) + of_keys.get_total_flops() / pairs_a_photo
    rate = ours * num_pairs / next(iter(seconds.values()))[0]
    return (
        f"Ours: {ours / 1e9:.1f} GFLOP a pair counted, {rate / 1e12:.2f} TFLOP/s, {rate / peak:.0%} of what a product "
        f"of {side} x {side} matrices reaches here ({peak / 1e12:.2f} TFLOP/s)."
    )


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
