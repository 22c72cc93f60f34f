"""train: how a model is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import click

from engine.errors import DataError
from ui.terminal import STOPPED, say, write

folder_option = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("what", type=click.Choice(["distill", "text", "stage1", "stage2"]))
@click.option("--recipe", help="Its name; without one, the recipes are listed.")
@click.option("--data", type=folder_option, help="Folder of the recipe's shards and caption tables.")
@click.option("--teacher", type=folder_option, help="Folder of the teacher's weights (distill).")
@click.option(
    "--runs", type=folder_option, default=Path("runs"), show_default=True, help="Where runs are kept."
)
@click.option("--phase", help="One phase of a distillation alone.")
@click.option("--language", type=folder_option, help="Folder of the frozen language model (stage2).")
def train(
    what: str,
    recipe: str | None,
    data: Path | None,
    teacher: Path | None,
    runs: Path,
    phase: str | None,
    language: Path | None,
) -> None:
    """Train a part of a model by a recipe; started again, it goes on from its last checkpoint.

    \b
    distill   an image encoder from a pretrained one     -> RUNS/RECIPE/encoder.safetensors
    text      a tokenizer and the text half, from captions -> RUNS/RECIPE/text.safetensors
    stage1    the Q-Former: ITC + ITM + ITG               -> RUNS/RECIPE/model
    stage2    captions by a frozen language model         -> RUNS/RECIPE/model
    """
    from training import recipes

    all_recipes: dict[str, Mapping[str, Callable[[], object]]] = {
        "distill": recipes.DISTILL,
        "text": recipes.TEXT,
        "stage1": recipes.STAGE1,
        "stage2": recipes.STAGE2,
    }
    known = all_recipes[what]
    if recipe is None:
        write("".join(f"{name}: {(make.__doc__ or '').splitlines()[0]}\n" for name, make in known.items()))
        return
    if recipe not in known:
        raise DataError(f"There is no {what} recipe {recipe!r}; there are: {', '.join(known)}.")
    if data is None or not data.is_dir():
        raise DataError(f"The recipe's data folder {data or ''} is not there; give it with --data.")
    try:
        _train(what, recipe, data, teacher, runs, phase, language)
    except KeyboardInterrupt:
        say(f"Stopped; the same command goes on from the checkpoint in {runs / recipe}.")
        click.get_current_context().exit(STOPPED)


def _train(
    what: str,
    recipe: str,
    data: Path,
    teacher: Path | None,
    runs: Path,
    phase: str | None,
    language: Path | None,
) -> None:
    from training import recipes
    from training.distill import run_distill
    from training.stage1 import run_stage1
    from training.stage2 import run_stage2
    from training.text import run_text

    output = runs / recipe
    if what == "distill":
        if teacher is None:
            raise DataError("A distillation needs --teacher: the folder of the teacher's weights.")
        run_distill(recipes.DISTILL[recipe](), data, teacher, output, only=phase, say=say)
    elif what == "text":
        run_text(recipes.TEXT[recipe](), data, output, say=say)
    elif what == "stage2":
        if language is None:
            raise DataError(
                "Stage 2 needs --language: a transformers folder of a language model, with its tokenizer."
            )
        run_stage2(recipes.STAGE2[recipe](), data, runs, language, output, say=say)
    else:
        run_stage1(recipes.STAGE1[recipe](), data, runs, output, say=say)
