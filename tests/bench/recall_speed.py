"""Pairs/s of `qseek recall`'s reranking beside the original's loop and transformers: same weights, same run.

    python tests/bench/recall_speed.py --folder FOLDER [--photos 16] [--texts 128] [--candidates 128]

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
from pathlib import Path

from inputs import SEED, TEXTS
from report import table, write_report

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
    return [*TEXTS, *every][:count]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", required=True)
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--candidates", type=int, default=128)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qseek-bench-") as scratch:
        run(args, Path(scratch))


def run(args: argparse.Namespace, scratch: Path) -> None:
    import numpy as np
    import torch
    from reference_rerank import reference_match
    from transformers import Blip2ForImageTextRetrieval

    from engine.blip2.checkpoint import load_model
    from engine.evaluate import _budget, _match
    from engine.evaluation_cache import EvaluationCache

    model = load_model(args.folder)
    texts = made_up_texts(args.texts)
    generator = torch.Generator().manual_seed(SEED)
    patches = torch.randn(args.candidates, *model.patch_shape, generator=generator).to(model.dtype)
    lengths = model.tokenizer(texts)[1].sum(dim=1).float()

    cache = EvaluationCache(scratch, model)
    cache.begin_photos(args.photos)
    blank = np.zeros((args.photos, model.config.qformer.num_queries, model.config.embed_dim), np.float32)
    cache.put_photos(0, np.ones(args.photos, bool), patches[: args.photos], blank)
    pairs = np.arange(args.photos * len(texts))
    budget = _budget(model, args.photos, len(texts), 2**31)
    started = time.perf_counter()
    logits, _ = _match([model], list(range(args.photos)), texts, pairs, cache, budget, print)
    seconds = {f"ours, {_name(model.dtype)}": (time.perf_counter() - started, len(pairs))}
    ours = np.array(logits).reshape(args.photos, len(texts))[:, 0] / model.config.match_weight
    apart: dict[str, float] = {next(iter(seconds)): 0.0}

    def compare(name: str, started: float, theirs: np.ndarray) -> None:
        seconds[name] = time.perf_counter() - started, args.candidates
        apart[name] = float(np.abs(theirs[: args.photos, 1] - ours).max())

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

    class Given(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor, **_: object) -> tuple[torch.Tensor]:
            return (pixel_values,)

    theirs.vision_model = Given()
    ids, mask, _ = model.tokenizer(texts[:1])
    with torch.inference_mode():
        started = time.perf_counter()
        compare(
            f"transformers, {_name(model.dtype)}",
            started,
            theirs(
                pixel_values=patches,
                input_ids=ids.expand(len(patches), -1).to(model.device),
                attention_mask=mask.long().expand(len(patches), -1).to(model.device),
                use_image_text_matching_head=True,
            ).logits_per_image.float().cpu().numpy(),
        )  # fmt: skip
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
        f"Standard deviation of our logits over the photos: {float(ours.std()):.2f}.",
    ]
    write_report("recall_speed", parts, fp32)


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
