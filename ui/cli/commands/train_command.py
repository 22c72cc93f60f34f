"""Define `qseek train`, which trains a part of a model by a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from engine.errors import DataError
from ui.cli.options import folder_type
from ui.cli.terminal import finish_stopped, finish_with_failures, say, say_failures, write

KINDS = ("distill", "text", "language", "stage1", "stage2", "retrieval", "caption", "vqa", "capfilt")
HELP = """Train a part of a model by a recipe.

\b
KIND       what is trained                                 in RUNS/NAME
distill    an image encoder, from a pretrained one         encoder.safetensors
text       a tokenizer and the text half, from captions    text.safetensors
language   a small language model, from captions           language/
stage1     the Q-Former, with ITC, ITM and ITG             model/
stage2     a captioner with a frozen language model        model/
retrieval  a stage-1 model further, its encoder too        model/
caption    a stage-2 model further, its encoder too        model/
vqa        like caption, with questions and answers        model/
capfilt    captions are drawn, and the best ones are kept  NAME-000.tar, ...

Started again, the command goes on from the last checkpoint. Under torchrun several processes share each batch (not
in distill, text and the recipe mini-captioner):

\b
    torchrun --nproc-per-node 8 --no-python \\
        qseek train stage1 --recipe blip2-vit-g --data DATA
"""


@click.command(help=HELP)
@click.argument("kind", type=click.Choice(KINDS), metavar="KIND")
@click.option("--recipe", metavar="NAME", help="Train by this recipe; without it the recipes are listed.")
@click.option(
    "--data", type=folder_type, help="Read the recipe's shards and caption tables from this folder."
)
@click.option(
    "--teacher", type=folder_type, help="Read the teacher's weights from this folder (distill, capfilt)."
)
@click.option(
    "--runs", type=folder_type, default=Path("runs"), show_default=True, help="Keep runs in this folder."
)
@click.option("--name", help="Write the run to the folder RUNS/NAME.", show_default="the recipe's name")
@click.option("--phase", help="Run only this phase of a distillation.")
@click.option(
    "--language", type=folder_type, help="Read the frozen language model from this folder (stage2)."
)
@click.option(
    "--set", "changes", multiple=True, metavar="NAME=VALUE", help="Change a setting, such as train.batch=64."
)
@click.option("--dry-run", is_flag=True, help="Print parameters, steps and memory, and train nothing.")
def train(
    kind: str,
    recipe: str | None,
    data: Path | None,
    teacher: Path | None,
    runs: Path,
    name: str | None,
    phase: str | None,
    language: Path | None,
    changes: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train a part of a model by a recipe."""
    if recipe is None:
        _write_lines(_list_recipes(kind))
        return
    config = _make_config(kind, recipe, changes)
    output = runs / (recipe if name is None else _check_run_name(name))
    from training.recipes.trainers import Request, find_trainer

    request = Request(data or Path(), runs, output, teacher, language, phase, say)
    trainer = find_trainer(config)
    if dry_run:
        _write_lines(trainer.outline(config, request))
        return
    _check_data_folder(data)
    try:
        failures = trainer.run(config, request)
    except KeyboardInterrupt:
        finish_stopped(f"Stopped. The same command goes on from the checkpoint in {output}.")
    if failures:
        say_failures(failures, more=f"; the .json files in {output} list them.")
        finish_with_failures()


def _write_lines(lines: Iterable[str]) -> None:
    write("".join(f"{line}\n" for line in lines))


def _check_run_name(name: str) -> str:
    """Return the name of a run that a person has given. Raises DataError for a name that leads out of RUNS."""
    if not name.strip() or name == ".." or Path(name).name != name:
        raise DataError(
            f"--name {name!r} is not the name of a folder below RUNS. Give a name such as mini-2."
        )
    return name


def _check_data_folder(data: Path | None) -> None:
    """Raise DataError when the folder of the recipe's data is not given or missing."""
    if data is None:
        raise DataError("The recipe needs the folder of its data. Give it with --data.")
    if not data.is_dir():
        raise DataError(f"The recipe's data folder {data} is missing. Give it with --data.")


def _list_recipes(kind: str) -> list[str]:
    """Return the name of every recipe of a kind, with the first line of its docstring."""
    from training.recipes.recipe_catalogue import BY_KIND

    return [f"{name}: {(make.__doc__ or '').splitlines()[0]}" for name, make in BY_KIND[kind].items()]


def _make_config(kind: str, recipe: str, changes: tuple[str, ...]) -> object:
    """Return the settings of a recipe after the changes of --set, with the dtypes that are fast on this machine.

    Raises DataError when there is no such recipe.
    """
    from training.loop.run_dtype import resolve_config_dtypes
    from training.recipes.recipe_catalogue import BY_KIND
    from training.recipes.recipe_settings import apply_settings

    recipes = BY_KIND[kind]
    if recipe not in recipes:
        raise DataError(f"There is no {kind} recipe {recipe!r}. Give one of these: {', '.join(recipes)}.")
    return resolve_config_dtypes(apply_settings(recipes[recipe](), changes))
