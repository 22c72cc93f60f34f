"""train: how a model is made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from engine.errors import DataError
from ui.cli.terminal import STOPPED, finish_with_failures, say, say_failures, write

folder_option = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument(
    "what",
    type=click.Choice(
        ["distill", "text", "language", "stage1", "stage2", "retrieval", "caption", "vqa", "capfilt"]
    ),
)
@click.option("--recipe", help="Its name; without one, the recipes are listed.")
@click.option("--data", type=folder_option, help="Folder of the recipe's shards and caption tables.")
@click.option("--teacher", type=folder_option, help="Folder of the teacher's weights (distill, capfilt).")
@click.option(
    "--runs", type=folder_option, default=Path("runs"), show_default=True, help="Where runs are kept."
)
@click.option("--name", help="Of the run's folder below RUNS.  [default: the recipe's]")
@click.option("--phase", help="One phase of a distillation alone.")
@click.option("--language", type=folder_option, help="Folder of the frozen language model (stage2).")
@click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a setting: train.batch=64."
)
@click.option("--dry-run", is_flag=True, help="Parameters, steps and memory; trains nothing.")
def train(
    what: str, recipe: str | None, data: Path | None, teacher: Path | None, runs: Path, name: str | None,
    phase: str | None, language: Path | None, changes: tuple[str, ...], dry_run: bool,
) -> None:  # fmt: skip
    """Train a part of a model by a recipe; started again, it goes on from its last checkpoint. Under torchrun,
    `torchrun --nproc-per-node 8 --no-python qseek train ...`, several share each batch (all but distill, text,
    mini-captioner).

    \b
    distill   an image encoder from a pretrained one     -> RUNS/NAME/encoder.safetensors
    text      a tokenizer and the text half, from captions -> RUNS/NAME/text.safetensors
    language  a small language model, from captions      -> RUNS/NAME/language
    stage1    the Q-Former: ITC + ITM + ITG               -> RUNS/NAME/model
    stage2    captions by a frozen language model         -> RUNS/NAME/model
    retrieval stage 1 trained on, encoder too             -> RUNS/NAME/model
    caption   stage 2 trained on, encoder too             -> RUNS/NAME/model
    vqa       the same with questions and answers         -> RUNS/NAME/model
    capfilt   captions drawn for photos, the best kept   -> RUNS/NAME/NAME-000.tar, ...
    """
    from training.recipes import recipe_catalogue

    known = recipe_catalogue.BY_KIND[what]
    if recipe is None:
        write("".join(f"{name}: {(make.__doc__ or '').splitlines()[0]}\n" for name, make in known.items()))
        return
    if recipe not in known:
        raise DataError(f"There is no {what} recipe {recipe!r}; there are: {', '.join(known)}.")
    from training.recipes.recipe_settings import with_settings

    config = with_settings(known[recipe](), changes)
    if name is not None and (not name.strip() or name == ".." or Path(name).name != name):
        raise DataError(f"--name {name!r} is no folder's name; it lies below RUNS, as mini-2 does.")
    if dry_run:
        write("".join(f"{line}\n" for line in _plan(config, data or Path(), runs, language)))
        return
    if data is None or not data.is_dir():
        raise DataError(f"The recipe's data folder {data or ''} is not there; give it with --data.")
    output = runs / (name or recipe)
    try:
        _train(config, data, teacher, runs, output, phase, language)
    except KeyboardInterrupt:
        say(f"Stopped; the same command goes on from the checkpoint in {output}.")
        click.get_current_context().exit(STOPPED)


def _train(
    config: Any, data: Path, teacher: Path | None, runs: Path, output: Path, phase: str | None,
    language: Path | None,
) -> None:  # fmt: skip
    from training.capfilt.capfilt import run_capfilt
    from training.capfilt.capfilt_config import CapfiltConfig
    from training.stages.distillation import DistillConfig, run_distill
    from training.stages.finetuning import CaptionConfig, run_finetune
    from training.stages.pretrain import PretrainConfig, run_pretrain
    from training.stages.small_language_model import TrainLanguageConfig, run_language
    from training.stages.stage1 import run_stage1
    from training.stages.stage2 import Stage2Config, run_stage2
    from training.stages.stage2_stream import Stage2StreamConfig, run_stage2_stream
    from training.stages.text_half import TextConfig, run_text

    if isinstance(config, DistillConfig):
        if teacher is None:
            raise DataError("A distillation needs --teacher: the folder of the teacher's weights.")
        run_distill(config, data, teacher, output, only=phase, say=say)
    elif isinstance(config, TextConfig):
        run_text(config, data, output, say=say)
    elif isinstance(config, TrainLanguageConfig):
        run_language(config, data, output, say=say)
    elif isinstance(config, Stage2Config | Stage2StreamConfig):
        if language is None:
            raise DataError(
                "Stage 2 needs --language: a transformers folder of a language model, with its tokenizer."
            )
        if isinstance(config, Stage2Config):
            run_stage2(config, data, runs, language, output, say=say)
        else:
            run_stage2_stream(config, data, runs, language, output, say=say)
    elif isinstance(config, CaptionConfig):
        run_finetune(config, data, runs, output, say=say)
    elif isinstance(config, CapfiltConfig):
        if failures := run_capfilt(config, data, runs, output, teacher=teacher, say=say):
            say_failures(failures, more=f", see the .json files in {output}")
            finish_with_failures()
    elif isinstance(config, PretrainConfig):
        run_pretrain(config, data, runs, output, say=say)
    else:
        run_stage1(config, data, runs, output, say=say)


def _plan(config: Any, data: Path, runs: Path, language: Path | None) -> Iterator[str]:
    """The lines of a dry run. Under torchrun's WORLD_SIZE, of one of so many processes."""
    from training.capfilt.capfilt_config import CapfiltConfig, describe_capfilt
    from training.stages.distillation import DistillConfig
    from training.stages.dry_run import (
        describe_distillation,
        describe_generative,
        describe_language_model,
        describe_plan,
        describe_stage1,
    )
    from training.stages.generative import GenerativeConfig
    from training.stages.pretrain import PretrainConfig, check
    from training.stages.small_language_model import TrainLanguageConfig
    from training.stages.stage1 import Stage1Config
    from training.stages.stage2 import Stage2Config

    processes = int(os.environ.get("WORLD_SIZE", 1))
    if isinstance(config, DistillConfig):
        return describe_distillation(config)
    if isinstance(config, GenerativeConfig | Stage2Config):
        return describe_generative(config, data, runs, language, processes)
    if isinstance(config, TrainLanguageConfig):
        return describe_language_model(config)
    if isinstance(config, CapfiltConfig):
        return describe_capfilt(config, data, runs)
    if isinstance(config, Stage1Config):
        return describe_stage1(config, processes)
    options: dict[str, Any] = {}
    if isinstance(config, PretrainConfig):
        check(config)
        options = {
            "train_encoder": config.train_encoder,
            "recompute": config.recompute_encoder,
            "chunk": config.chunk,
        }
    return describe_plan(config.model, config.optim, processes=processes, **options)
