"""recall and train: how good a model is, and how one is made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.errors import DataError
from ui import render
from ui.opening import load_model
from ui.options import json_option, model_option
from ui.terminal import STOPPED, finish_with_failures, say, say_failures, write

if TYPE_CHECKING:
    from engine.recall import RecallReport
    from training.data import CaptionedPicture

folder_option = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("dataset")
@click.option("--images", type=folder_option, help="Folder that the annotations' image names lie in.")
@click.option(
    "--annotations", type=click.Path(path_type=Path, dir_okay=False), help="ALBEF/LAVIS JSON: image, caption."
)
@model_option
@click.option(
    "--rerank", default=128, show_default=True, type=click.IntRange(min=0), help="Candidates that ITM reads."
)
@click.option("--no-rerank", is_flag=True, help="ITC alone.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many pictures: a quick look.")
@json_option
def recall(
    dataset: str,
    images: Path | None,
    annotations: Path | None,
    model: str | None,
    rerank: int,
    no_rerank: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Recall@1, 5, 10 of a captioned set, photo to text (TR) and text to photo (IR), before and after reranking.

    DATASET is a WebDataset shard (a .tar file, or a pattern of them in quotes), or, with --images and
    --annotations, a name for the report.
    """
    from engine.recall import evaluate_retrieval
    from training.data import load_pictures

    samples = _samples(dataset, images, annotations)[:limit]
    loaded = load_model(model)
    say(f"Reading {render.count_text(len(samples), 'picture')} for {loaded.name}.")
    pictures, kept, failures = load_pictures(samples, loaded.image_size)
    k = 0 if no_rerank else rerank
    report = evaluate_retrieval(loaded, pictures, [sample.captions for sample in kept], k=k, say=say)
    if as_json:
        values = {"dataset": dataset, "limit": limit, "model": loaded.name, "digest": loaded.digest}
        values |= {"pixels": loaded.image_size, "dtype": str(loaded.dtype).removeprefix("torch.")}
        write(json.dumps(values | {"unit": "percent"} | asdict(report)) + "\n")
    else:
        write(_recall_table(dataset, limit, loaded.name, loaded.digest, report))
    if failures:
        say_failures(failures, "they are left out of the numbers.")
        finish_with_failures()


def _samples(dataset: str, images: Path | None, annotations: Path | None) -> list[CaptionedPicture]:
    from training.data import find_shards, read_annotations, read_shards

    if annotations is not None:
        return read_annotations(annotations, images or annotations.parent)
    if images is not None:
        raise click.UsageError("--images needs --annotations: the JSON file with the captions.")
    pattern = Path(dataset).expanduser()
    if pattern.suffix != ".tar":
        raise DataError(
            f"{dataset!r} is no .tar shard; for other sets give --images FOLDER and --annotations FILE."
        )
    return list(read_shards(find_shards([pattern.name], pattern.parent)))


def _recall_table(dataset: str, limit: int | None, model: str, digest: str, report: RecallReport) -> str:
    """Markdown."""
    names = list(report.before)
    rows = [("ITC alone", report.before)]
    if report.after:
        rows.append((f"reranked, k = {report.k}", report.after))
    lines = [
        f"{dataset}{f' (the first {limit} pictures)' if limit else ''}, {model} ({digest[:12]}): "
        f"{report.num_photos:,} photos, {report.num_captions:,} captions, percent",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        *(f"| {title} | {' | '.join(f'{found[n]:.1f}' for n in names)} |" for title, found in rows),
        "",
        ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in report.seconds.items())
        + (f", {report.num_pairs / report.seconds['rerank']:,.0f} pairs/s" if report.num_pairs else ""),
    ]
    return "\n".join(lines) + "\n"


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
