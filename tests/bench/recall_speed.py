"""Measure the pairs/s of the reranking of `qseek recall` beside the original's loop and transformers.

    python tests/bench/recall_speed.py --folder FOLDER [--photos 16] [--texts 128] [--texts-a-photo N]

FOLDER is a checkpoint, for example the one that full_size.py wrote; all sides use its weights in the same run. Patches
are random, and texts are sentences like captions. Ours matches every text with every photo as an evaluation does: keys
of photos once for each block, texts sorted by length, patches mapped from disk. The original matches one text and its
candidates at a time: texts padded to 35 tokens, all rows computed, keys computed again for each text. transformers does
the same without the padding. Logits are compared for the pairs that all sides match.
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
ACTIONS = (
    "runs",
    "is jumping high",
    "stands and looks at the camera",
    "plays with a ball",
    "waits",
    "climbs",
)
PLACES = (
    "in the snow",
    "on a beach",
    "near an old brick wall in the city",
    "",
    "at night",
    "on a grassy hill",
)


def compose_texts(count: int) -> list[str]:
    """Return distinct texts of 5 to 18 words, as captions have."""
    sentences = [
        " ".join(f"{subject} {action} {place}".split())
        for subject in SUBJECTS
        for action in ACTIONS
        for place in PLACES
    ]
    random.Random(SEED).shuffle(sentences)
    double_sentences = []
    if count > len(sentences):
        double_sentences = [f"{first} and {second}" for first in sentences for second in sentences]
    return [*TEXTS, *sentences, *double_sentences][:count]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", required=True, help="Folder of the checkpoint.")
    parser.add_argument("--photos", type=int, default=16, help="Number of photos that ours matches.")
    parser.add_argument("--texts", type=int, default=128, help="Number of texts that ours matches.")
    parser.add_argument(
        "--texts-a-photo",
        type=int,
        help="Number of random texts that each photo is matched with; all by default.",
    )
    parser.add_argument(
        "--candidates", type=int, default=128, help="Number of photos that the others match with one text."
    )
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

    keep_freed_memory()  # The command line does this too.
    model = load_model(args.folder)
    texts = compose_texts(args.texts)
    generator = torch.Generator().manual_seed(SEED)
    patches = torch.randn(args.candidates, *model.patch_shape, generator=generator).to(
        model.device, model.dtype
    )
    lengths = model.tokenizer(texts)[1].sum(dim=1).float()

    cache = EvaluationCache(scratch, model)
    cache.begin_photos(args.photos)
    vectors = np.zeros((args.photos, model.config.qformer.num_queries, model.config.embed_dim), np.float32)
    for start in range(0, args.photos, len(patches)):
        photos = slice(start, min(start + len(patches), args.photos))
        num_photos = photos.stop - photos.start
        cache.put_photos(start, np.ones(num_photos, bool), patches[:num_photos], vectors[photos])
    draws = np.random.default_rng(SEED)
    num_texts = min(len(texts), args.texts_a_photo or len(texts))
    # Every photo is matched with the first text, which the other sides match too, and with random other texts.
    other_texts = [
        np.sort(draws.permutation(np.arange(1, len(texts)))[: num_texts - 1]) for _ in range(args.photos)
    ]
    pairs = np.concatenate(
        [photo * len(texts) + np.array([0, *numbers]) for photo, numbers in enumerate(other_texts)]
    )
    budget = split_memory(model, args.photos, len(texts), 2**31)
    started = time.perf_counter()
    matcher = PairMatcher(model, range(args.photos), texts, pairs, cache, budget.texts)
    matcher.match_photos(model, range(args.photos))
    seconds = {f"ours, {_name(model.dtype)}": (time.perf_counter() - started, len(pairs))}
    ours = np.array(matcher.logits)[pairs % len(texts) == 0] / model.config.match_weight
    operations = _report_operations(
        model, texts[: args.candidates], patches[:1], len(pairs), len(pairs) / args.photos, seconds
    )
    differences: dict[str, float] = {next(iter(seconds)): 0.0}

    def compare(name: str, started: float, logits: np.ndarray) -> None:
        """Note the seconds since `started`, and the largest difference of logits (candidates, 2) from ours."""
        seconds[name] = time.perf_counter() - started, args.candidates
        num_common = min(len(ours), len(logits))
        differences[name] = float(np.abs(logits[:num_common, 1] - ours[:num_common]).max())

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

    our_seconds, num_pairs = seconds[next(iter(seconds))]
    rate = num_pairs / our_seconds
    rows = [
        (
            name,
            f"{count:,}",
            f"{spent:.1f}",
            f"{count / spent:.1f}",
            f"{rate * spent / count:.1f}",
            f"{differences[name]:.1e}",
        )
        for name, (spent, count) in seconds.items()
    ]
    parts = [
        f"Ours matches {args.photos} photos with {len(texts)} texts of {int(lengths.min())} to {int(lengths.max())} "
        f"tokens (mean {float(lengths.mean()):.1f}). The others match {args.candidates} photos with one text of "
        f"{int(lengths[0])} tokens.",
        table(("reranking", "pairs", "s", "pairs/s", "ours is so many times as fast", "logits apart"), rows),
        f"The standard deviation of our logits over the photos is {float(ours.std()):.2f}. {operations}",
    ]
    write_report("recall_speed", parts, fp32)


def _report_operations(
    model: RetrievalModel,
    texts: Sequence[str],
    patches_1PV: Tensor,
    num_pairs: int,
    pairs_a_photo: float,
    seconds: dict[str, tuple[float, int]],
) -> str:
    """Return a sentence on the operations/s of ours beside those of a large matrix product in the same dtype.

    seconds: (seconds, pairs) by side, ours first.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter_of_keys:
        keys = model.compute_photo_keys(patches_1PV)
    started_texts = model.start_texts(texts)
    with FlopCounterMode(display=False) as counter_of_pairs:
        model.match(keys, started_texts)
    side = 8192 if model.device.type == "cuda" else 2048
    square = torch.randn(side, side, device=model.device, dtype=model.dtype)
    product_seconds = []
    for _ in range(8):
        started = time.perf_counter()
        float((square @ square)[0, 0])  # The conversion waits for the device.
        product_seconds.append(time.perf_counter() - started)
    peak_rate = 2 * side**3 / sorted(product_seconds)[2]
    per_pair = (
        counter_of_pairs.get_total_flops() / len(texts) + counter_of_keys.get_total_flops() / pairs_a_photo
    )
    rate = per_pair * num_pairs / next(iter(seconds.values()))[0]
    return (
        f"Ours computes {per_pair / 1e9:.1f} GFLOP for each pair at {rate / 1e12:.2f} TFLOP/s, "
        f"{rate / peak_rate:.0%} of what a product of {side} x {side} matrices reaches here "
        f"({peak_rate / 1e12:.2f} TFLOP/s)."
    )


def _name(dtype: object) -> str:
    """Return the short name of a dtype of torch, such as bfloat16."""
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
