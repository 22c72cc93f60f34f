"""Seconds a caption beside transformers' Blip2ForConditionalGeneration: same random weights, same photos, same run.

    python tests/bench/caption_speed.py [--size tiny|mini|full] [--batch 1 16] [--beams 1 5] [--rounds 5] [--layers 32]

Pictures to token ids, greedy and by beams, in turns (ours, theirs, theirs, ours, ...); every text is as long as it may
be, so both write equally many tokens. Beside the wall's time stands the processors', which a busy machine blurs less.
Ours starts from uint8 pictures, theirs is given normalised pixels. In float32 all ids must be equal, else nothing is
reported; in bfloat16 (full) it is said how many texts are. Sizes:
  - tiny: what the tests use, everything 32 to 88 wide: the time is Python's;
  - mini: 36 patches of a small ViT, mini's Q-Former, OPT-125M's shape;
  - full: ViT-g (39 layers), BLIP-2's Q-Former, OPT-2.7B's shape; 7.5 GB on disk and 11 GB of memory, for both sides
    hold one and the same language model; --layers gives it fewer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from report import median, spread, table, write_report

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from transformers import OPTConfig

    from engine.blip2.generation import GenerationOptions
    from engine.models.caption_model import CaptionModel

EVA_RATIO = 4.3637  # of the inner width, which timm takes from the architecture
PROMPT = "a photo of"


@dataclass(frozen=True)
class Size:
    """vision, former: of transformers' configs. language: OPT's."""

    vision: dict[str, int]
    former: dict[str, int]
    num_queries: int
    language: dict[str, int]
    dtype: str
    rounds: int


SIZES = {
    "tiny": Size(
        {"hidden_size": 88, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56, "patch_size": 14},
        {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96},
        8,
        {"vocab_size": 264, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
        "float32",
        15,
    ),
    "mini": Size(
        {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "image_size": 192, "patch_size": 32},
        {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 1024},
        32,
        {"vocab_size": 50272, "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        "float32",
        5,
    ),
    "full": Size(
        {"hidden_size": 1408, "num_hidden_layers": 39, "num_attention_heads": 16, "image_size": 224, "patch_size": 14},
        {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
        32,
        {"vocab_size": 50272, "hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32,
         "num_attention_heads": 32},
        "bfloat16",
        3,
    ),
}  # fmt: skip


def opt_config(size: Size, layers: int | None) -> OPTConfig:
    from transformers import OPTConfig

    chosen = size.language | ({} if layers is None else {"num_hidden_layers": layers})
    return OPTConfig(word_embed_proj_dim=chosen["hidden_size"], max_position_embeddings=2048, **chosen)


def make_theirs(size: Size, layers: int | None) -> Any:
    """Transformers' model with weights that let what goes in decide what comes out, each made in the run's dtype."""
    from tiny_language import randomise_weights
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
    )

    width = size.vision["hidden_size"]
    language = opt_config(size, layers)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            intermediate_size=int(width * EVA_RATIO), layer_norm_eps=1e-6, **size.vision
        ),
        qformer_config=Blip2QFormerConfig(encoder_hidden_size=width, **size.former),
        text_config=language,
        num_query_tokens=size.num_queries,
        image_token_index=language.vocab_size - 1,
    )
    with torch.device("meta"):
        theirs = Blip2ForConditionalGeneration(config)
    theirs = theirs.to(getattr(torch, size.dtype)).to_empty(device="cpu")
    theirs.tie_weights()
    for name, buffer in theirs.named_buffers():
        if name.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[1])[None])
    return randomise_weights(theirs)


def make_sides(size: Size, layers: int | None, folder: Path) -> tuple[Any, CaptionModel]:
    """Theirs and ours, read from what theirs saved. At full size theirs then takes our language model for its own."""
    from tiny_language import byte_tokenizer

    from engine.models.loading import load_captioner
    from engine.models.malloc import keep_freed_memory

    theirs = make_theirs(size, layers)
    theirs.save_pretrained(folder, max_shard_size="2GB")
    byte_tokenizer("opt").save(str(folder / "tokenizer.json"))
    if size is SIZES["full"]:
        theirs.language_model = None
    keep_freed_memory()  # as the command does
    ours = load_captioner(str(folder), dtype=size.dtype)
    if size is SIZES["full"]:
        theirs.language_model = ours.net.language
    return theirs.to(ours.device), ours


def ids_by_theirs(
    theirs: Any, ours: CaptionModel, pixels: Tensor, how: GenerationOptions, prompt: Tensor
) -> Tensor:
    images = torch.full((len(pixels), ours.config.qformer.num_queries), theirs.config.image_token_index)
    ids = torch.cat([images, prompt.cpu().expand(len(pixels), -1)], dim=1).to(pixels.device)
    language = ours.config.language
    with torch.inference_mode():
        written = theirs.generate(
            pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids),
            max_new_tokens=how.max_new_tokens, min_new_tokens=how.min_new_tokens, num_beams=how.num_beams,
            do_sample=False, eos_token_id=language.end_id, pad_token_id=language.pad_id,
        )  # fmt: skip
    return written[:, ids.shape[1] :]


def ids_by_ours(ours: CaptionModel, pictures: np.ndarray, how: GenerationOptions, prompt: Tensor) -> Tensor:
    """As `CaptionModel.generate`, without making text of the ids."""
    with torch.inference_mode():
        soft = ours.net.read_photos(ours.encode_patches(pictures))
        ids = prompt.expand(len(pictures), -1)
        return ours.net.generate(soft, ids, torch.ones_like(ids, dtype=torch.bool), how)


def measure(
    theirs: Any, ours: CaptionModel, batch: int, how: GenerationOptions, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """Seconds of each round by side, by the wall's clock and the processors', and how many of the texts are equal."""
    import numpy as np

    from engine.blip2.pixels import make_pixel_batches

    side = ours.image_size
    pictures = np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    pixels = next(
        make_pixel_batches(pictures, ours.config.vision, batch, ours.device, ours.dtype)
    ).contiguous()
    prompt = ours.tokenizer.encode_prompts([PROMPT], how.max_new_tokens)[0].to(ours.device)
    sides: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: ids_by_ours(ours, pictures, how, prompt),
        "transformers": lambda: ids_by_theirs(theirs, ours, pixels, how, prompt),
    }
    got = {name: one().cpu() for name, one in sides.items()}  # also warms both up
    equal = int((got["ours"] == got["transformers"]).all(dim=1).sum())
    seconds: dict[str, list[float]] = defaultdict(list)
    busy: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            started, before = time.perf_counter(), time.process_time()
            sides[name]().cpu()
            seconds[name].append(time.perf_counter() - started)
            busy[name].append(time.process_time() - before)
    return seconds, busy, equal


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--new-tokens", type=int, default=12)
    parser.add_argument("--rounds", type=int, help="[default: 15 tiny, 5 mini, 3 full]")
    parser.add_argument("--layers", type=int, help="of the language model; the size's own when not given")
    parser.add_argument("--no-report", action="store_true", help="print the table and write no file")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from engine.blip2.generation import GenerationOptions

    size = SIZES[args.size]
    with tempfile.TemporaryDirectory(prefix="qseek-bench-") as scratch:
        theirs, ours = make_sides(size, args.layers, Path(scratch))
        rows, slowest = [], float("inf")
        for batch in args.batch:
            for beams in args.beams:
                how = GenerationOptions(args.new_tokens, args.new_tokens, beams)
                seconds, busy, equal = measure(theirs, ours, batch, how, args.rounds or size.rounds)
                if size.dtype == "float32" and equal < batch:
                    raise SystemExit(
                        f"batch {batch}, {beams} beams: {batch - equal} texts have other ids than theirs"
                    )
                ratio, busy_ratio = (
                    median(some["transformers"]) / median(some["ours"]) for some in (seconds, busy)
                )
                slowest = min(slowest, ratio)
                per_caption = [
                    spread([one / batch for one in seconds[name]]) for name in ("ours", "transformers")
                ]
                rows.append(
                    [
                        f"{batch}, {beams}",
                        *per_caption,
                        f"{ratio:.2f}",
                        f"{busy_ratio:.2f}",
                        f"{equal} of {batch}",
                    ]
                )
    numbers = sum(one.numel() for one in ours.net.parameters())
    parts = [
        f"Size {args.size}: {numbers / 1e6:.1f} million parameters, {ours.config.vision.image_size} px, OPT of "
        f"{ours.net.language.config.num_hidden_layers} layers of {ours.config.language.width}; {size.dtype}, "
        f"{torch.get_num_threads()} torch threads, {args.new_tokens} new tokens, {args.rounds or size.rounds} rounds "
        "in turns.",
        table(
            ["batch, beams", "ours, ms a caption", "transformers", "ratio", "processor time", "equal texts"],
            rows,
        ),
        f"Least ratio: {slowest:.2f} (wanted: 1, never slower).",
    ]
    if args.no_report:
        print("\n\n".join(parts))
    else:
        write_report(f"caption_speed-{args.size}", parts)


if __name__ == "__main__":
    main()
