"""Measure the time of a caption beside transformers' Blip2ForConditionalGeneration, with the same random weights.

    python tests/bench/caption_speed.py [--size tiny|mini|full] [--batch 1 16] [--beams 1 5] [--rounds 5] [--layers 32]

Both sides write token ids for the same pictures, greedily and with beams, in turns (ours, theirs, theirs, ours, ...).
Every text is as long as it may be, so both write equally many tokens. The report holds the wall time and the ratio of
processor times, which depends less on how busy the machine is. Our side starts from uint8 pictures; transformers gets
normalised pixels. In float32 all ids must be equal, or nothing is reported; in bfloat16 (full) the report says how many
texts are equal. Sizes:
  - tiny: the size of the tests, all widths 32 to 88; most of the time is Python's;
  - mini: 36 patches of a small ViT, mini's Q-Former, OPT-125M's shape;
  - full: ViT-g (39 layers), BLIP-2's Q-Former, OPT-2.7B's shape. It takes 7.5 GB on disk and 11 GB of memory, because
    both sides share one language model; --layers makes it smaller.
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

EVA_RATIO = 4.3637  # Inner width of EVA's layers to their width; timm takes it from the architecture's name.
PROMPT = "a photo of"


@dataclass(frozen=True)
class Size:
    """The size of a captioner. vision, qformer and language: fields of transformers' configs, the last of OPT's."""

    vision: dict[str, int]
    qformer: dict[str, int]
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


def opt_config(size: Size, num_layers: int | None) -> OPTConfig:
    """Return the config of the language model. num_layers: None keeps those of the size."""
    from transformers import OPTConfig

    fields = size.language | ({} if num_layers is None else {"num_hidden_layers": num_layers})
    return OPTConfig(word_embed_proj_dim=fields["hidden_size"], max_position_embeddings=2048, **fields)


def make_theirs(size: Size, num_layers: int | None) -> Any:
    """Return transformers' captioner in the dtype of the run, with random weights under which inputs decide outputs."""
    from tiny_language import randomise_weights
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2QFormerConfig,
        Blip2VisionConfig,
    )

    width = size.vision["hidden_size"]
    language = opt_config(size, num_layers)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            intermediate_size=int(width * EVA_RATIO), layer_norm_eps=1e-6, **size.vision
        ),
        qformer_config=Blip2QFormerConfig(encoder_hidden_size=width, **size.qformer),
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


def make_sides(size: Size, num_layers: int | None, folder: Path) -> tuple[Any, CaptionModel]:
    """Return transformers' captioner and ours, which is loaded from what the former saved in `folder`.

    At full size both then share our language model, so that only one is in memory.
    """
    from tiny_language import byte_tokenizer

    from engine.models.loading import load_captioner
    from engine.models.malloc import keep_freed_memory

    theirs = make_theirs(size, num_layers)
    theirs.save_pretrained(folder, max_shard_size="2GB")
    byte_tokenizer("opt").save(str(folder / "tokenizer.json"))
    if size is SIZES["full"]:
        theirs.language_model = None
    keep_freed_memory()  # The command line does this too.
    ours = load_captioner(str(folder), dtype=size.dtype)
    if size is SIZES["full"]:
        theirs.language_model = ours.net.language
    return theirs.to(ours.device), ours


def generate_with_theirs(
    theirs: Any, ours: CaptionModel, pixels: Tensor, options: GenerationOptions, prompt: Tensor
) -> Tensor:
    """Write token ids (B, new tokens) with transformers. ours: the captioner whose config has the special tokens."""
    images = torch.full((len(pixels), ours.config.qformer.num_queries), theirs.config.image_token_index)
    ids = torch.cat([images, prompt.cpu().expand(len(pixels), -1)], dim=1).to(pixels.device)
    language = ours.config.language
    with torch.inference_mode():
        output_ids = theirs.generate(
            pixel_values=pixels,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            num_beams=options.num_beams,
            do_sample=False,
            eos_token_id=language.end_id,
            pad_token_id=language.pad_id,
        )
    return output_ids[:, ids.shape[1] :]


def generate_with_ours(
    ours: CaptionModel, pictures: np.ndarray, options: GenerationOptions, prompt: Tensor
) -> Tensor:
    """Write token ids (B, new tokens) with our captioner, without decoding them to text."""
    with torch.inference_mode():
        soft_prompts = ours.net.read_photos(ours.encode_patches(pictures))
        ids = prompt.expand(len(pictures), -1)
        return ours.net.generate(soft_prompts, ids, torch.ones_like(ids, dtype=torch.bool), options)


def measure(
    theirs: Any, ours: CaptionModel, batch: int, options: GenerationOptions, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]], int]:
    """Measure both sides on the same random pictures.

    Returns the wall seconds of each round by side, the processor seconds of each round by side, and the number of
    equal texts.
    """
    import numpy as np

    from engine.blip2.pixels import make_pixel_batches

    side = ours.image_size
    pictures = np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    pixels = next(
        make_pixel_batches(pictures, ours.config.vision, batch, ours.device, ours.dtype)
    ).contiguous()
    prompt = ours.tokenizer.encode_prompts([PROMPT], options.max_new_tokens)[0].to(ours.device)
    sides: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: generate_with_ours(ours, pictures, options, prompt),
        "transformers": lambda: generate_with_theirs(theirs, ours, pixels, options, prompt),
    }
    ids = {name: generate().cpu() for name, generate in sides.items()}  # This also warms up both sides.
    num_equal = int((ids["ours"] == ids["transformers"]).all(dim=1).sum())
    wall_seconds: dict[str, list[float]] = defaultdict(list)
    processor_seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
            started, before = time.perf_counter(), time.process_time()
            sides[name]().cpu()
            wall_seconds[name].append(time.perf_counter() - started)
            processor_seconds[name].append(time.process_time() - before)
    return wall_seconds, processor_seconds, num_equal


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--size", choices=SIZES, default="tiny", help="Size of the captioner; tiny by default."
    )
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 16], help="Numbers of pictures in a batch."
    )
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5], help="Numbers of beams; 1 is greedy.")
    parser.add_argument("--new-tokens", type=int, default=12, help="Number of tokens of each text.")
    parser.add_argument("--rounds", type=int, help="By default 15 for tiny, 5 for mini, 3 for full.")
    parser.add_argument(
        "--layers", type=int, help="Number of layers of the language model; by default those of the size."
    )
    parser.add_argument("--no-report", action="store_true", help="Print the table and write no file.")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from engine.blip2.generation import GenerationOptions

    size = SIZES[args.size]
    rounds = args.rounds or size.rounds
    with tempfile.TemporaryDirectory(prefix="qseek-bench-") as scratch:
        theirs, ours = make_sides(size, args.layers, Path(scratch))
        rows, least_ratio = [], float("inf")
        for batch in args.batch:
            for beams in args.beams:
                options = GenerationOptions(args.new_tokens, args.new_tokens, beams)
                seconds, processor_seconds, num_equal = measure(theirs, ours, batch, options, rounds)
                if size.dtype == "float32" and num_equal < batch:
                    raise SystemExit(
                        f"With batch {batch} and {beams} beams, {batch - num_equal} texts have other ids than "
                        "transformers' texts. Nothing is reported."
                    )
                ratio, processor_ratio = (
                    median(times["transformers"]) / median(times["ours"])
                    for times in (seconds, processor_seconds)
                )
                least_ratio = min(least_ratio, ratio)
                per_caption = [
                    spread([value / batch for value in seconds[name]]) for name in ("ours", "transformers")
                ]
                rows.append(
                    [
                        f"{batch}, {beams}",
                        *per_caption,
                        f"{ratio:.2f}",
                        f"{processor_ratio:.2f}",
                        f"{num_equal} of {batch}",
                    ]
                )
    num_parameters = sum(parameter.numel() for parameter in ours.net.parameters())
    parts = [
        f"The captioner of size {args.size} has {num_parameters / 1e6:.1f} million parameters, pictures of "
        f"{ours.config.vision.image_size} px and an OPT of {ours.net.language.config.num_hidden_layers} layers of "
        f"width {ours.config.language.width}. It ran in {size.dtype} with {torch.get_num_threads()} torch threads, "
        f"wrote {args.new_tokens} tokens for each picture, and both sides took turns for {rounds} rounds.",
        table(
            ["batch, beams", "ours, ms a caption", "transformers", "ratio", "processor time", "equal texts"],
            rows,
        ),
        f"The least ratio is {least_ratio:.2f} (wanted: at least 1, never slower).",
    ]
    if args.no_report:
        print("\n\n".join(parts))
    else:
        write_report(f"caption_speed-{args.size}", parts)


if __name__ == "__main__":
    main()
