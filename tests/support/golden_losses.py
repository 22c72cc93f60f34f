"""Compute the losses of short training runs at a fixed seed, which tests compare with recorded ones.

So no change of the code can change what is learned without being seen. Each run trains a tiny model for a few steps on
eight one-coloured pictures and records one loss for each step. `make golden` alone writes the file of the losses; a
change of it is visible in the diff.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from shard_writing import make_png, write_shard
from tiny import tiny_checkpoint, tiny_config
from tiny_language import save_language

from engine.datasets.captioned_sets import SourceConfig
from training.loop.optimizer import OptimConfig
from training.stages.stage1 import run_stage1
from training.stages.stage1_config import Stage1Config
from training.stages.stage2 import run_stage2
from training.stages.stage2_config import Stage2Config

FILE = Path(__file__).parents[1] / "golden" / "losses.json"
COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "orange")
OPTIM = OptimConfig(steps=4, batch=4, lr=1e-3, log_every=1, weight_decay=0.01)
MODEL = tiny_config(dropout=0.1)


def write_inputs(folder: Path) -> None:
    """Write what the runs read: a shard of eight captioned pictures, a tiny model of stage 1 and a tiny OPT."""
    members: dict[str, bytes] = {}
    for colour in COLOURS:
        facts = json.dumps({"captions": [f"a {colour} house", f"the {colour} snow"]})
        members |= {f"{colour}.png": make_png(colour), f"{colour}.json": facts.encode()}
    write_shard(folder / "s-0.tar", members)
    tiny_checkpoint(folder / "model", MODEL)
    save_language("opt", folder / "language")


def stage1_from_patches(folder: Path, output: Path) -> None:
    """Run stage 1 on patches that are computed once: first with the ITC loss alone, then with all losses."""
    config = Stage1Config(
        MODEL,
        (SourceConfig("s-*.tar"),),
        OPTIM,
        views=2,
        smallest_crop=0.6,
        itc_optim=OPTIM,
        patch_share=0.5,
        query_share=0.5,
        match_distillation=0.5,
        start="model",
    )
    run_stage1(config, folder, folder, output)


def stage1_from_pictures(folder: Path, output: Path) -> None:
    """Run stage 1 on pictures that are read in every step; the image encoder is trained too."""
    config = Stage1Config(
        MODEL,
        (SourceConfig("s-*.tar"),),
        OPTIM,
        start="model",
        train_encoder=True,
        picture_ids=True,
        workers=2,
    )
    run_stage1(config, folder, folder, output)


def stage2_from_patches(folder: Path, output: Path) -> None:
    """Run stage 2 on patches that are computed once."""
    config = Stage2Config(
        (SourceConfig("s-*.tar"),),
        OPTIM,
        "model",
        prompts=("a photo of", "the"),
        views=2,
        smallest_crop=0.6,
    )
    run_stage2(config, folder, folder, folder / "language", output)


def stage2_from_pictures(folder: Path, output: Path) -> None:
    """Run stage 2 on pictures that are read in every step."""
    config = Stage2Config(
        (SourceConfig("s-*.tar"),), OPTIM, "model", prompts=("a photo of", "the"), workers=2
    )
    run_stage2(config, folder, folder, folder / "language", output)


RUNS: dict[str, Callable[[Path, Path], None]] = {
    run.__name__: run
    for run in (stage1_from_patches, stage1_from_pictures, stage2_from_patches, stage2_from_pictures)
}


def run_and_read_losses(name: str, folder: Path) -> dict[str, list[float]]:
    """Run one of `RUNS` below `folder`; return the losses of each phase, one for each step.

    It computes in one thread and in float32, so that the losses are alike on every processor.
    """
    write_inputs(folder)
    output = folder / "out"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch("training.batches.encoded_views.choose_fast_dtype", lambda device: torch.float32):
            RUNS[name](folder, output)
    finally:
        torch.set_num_threads(threads)
    return {
        log.parent.relative_to(output).as_posix(): [
            json.loads(line)["loss"] for line in log.read_text().splitlines()
        ]
        for log in sorted(output.rglob("log.jsonl"))
    }


def compute_losses() -> dict[str, dict[str, list[float]]]:
    """Compute the losses of every run: the run's name -> its phases -> one loss for each step."""
    losses = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as folder:
            losses[name] = run_and_read_losses(name, Path(folder))
    return losses


if __name__ == "__main__":
    FILE.write_text(json.dumps(compute_losses(), indent=1) + "\n")
    print(f"Wrote {FILE}.")
