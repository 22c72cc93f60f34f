"""train: how a model is made."""

from __future__ import annotations

from pathlib import Path

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
    """Train a part of a model by a recipe; started again, it goes on from its last checkpoint. Several
    processes share each batch under torchrun (all but distill, text and the recipe mini-captioner):

    \b
        torchrun --nproc-per-node 8 --no-python qseek train stage1 --recipe blip2-vit-g --data DATA

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
    if recipe is None:
        write("".join(f"{line}\n" for line in _recipe_lines(what)))
        return
    config = _recipe(what, recipe, changes)
    output = runs / (recipe if name is None else _folder_name(name))
    from training.recipes.trainers import Request, find_trainer

    request = Request(data or Path(), runs, output, teacher, language, phase, say)
    if dry_run:
        write("".join(f"{line}\n" for line in find_trainer(config).outline(config, request)))
        return
    if data is None or not data.is_dir():
        raise DataError(f"The recipe's data folder {data or ''} is not there; give it with --data.")
    try:
        failures = find_trainer(config).run(config, request)
    except KeyboardInterrupt:
        say(f"Stopped; the same command goes on from the checkpoint in {output}.")
        click.get_current_context().exit(STOPPED)
    if failures:
        say_failures(failures, more=f", see the .json files in {output}")
        finish_with_failures()


def _folder_name(name: str) -> str:
    """Return the name of a run that a person has given. Raises DataError for one that leads out of RUNS."""
    if not name.strip() or name == ".." or Path(name).name != name:
        raise DataError(f"--name {name!r} is no folder's name; it lies below RUNS, as mini-2 does.")
    return name


def _recipe_lines(what: str) -> list[str]:
    """Return every recipe of a kind by its name, with the first line of what it says of itself."""
    from training.recipes.recipe_catalogue import BY_KIND

    return [f"{name}: {(make.__doc__ or '').splitlines()[0]}" for name, make in BY_KIND[what].items()]


def _recipe(what: str, recipe: str, changes: tuple[str, ...]) -> object:
    """Return a recipe with its changed settings, and with the dtypes that are fast on this machine."""
    from training.loop.run_dtype import resolve_config_dtypes
    from training.recipes.recipe_catalogue import BY_KIND
    from training.recipes.recipe_settings import apply_settings

    known = BY_KIND[what]
    if recipe not in known:
        raise DataError(f"There is no {what} recipe {recipe!r}; there are: {', '.join(known)}.")
    return resolve_config_dtypes(apply_settings(known[recipe](), changes))
