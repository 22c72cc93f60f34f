"""Options that several commands share."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from engine.types import RERANKED
from ui.session import CAPTIONER_VARIABLE

Command = Callable[..., Any]
folder_type = click.Path(path_type=Path, file_okay=False)
file_type = click.Path(path_type=Path, dir_okay=False)


class Output(enum.Enum):
    """How hits are written to stdout."""

    TABLE = "table"
    JSON = "json"
    PATHS = "paths"
    NUL = "nul"


index_option = click.option(
    "--index",
    type=folder_type,
    envvar="QSEEK_INDEX",
    show_envvar=True,
    metavar="DIR",
    help="Where the index lies.  [default: in the user's data folder]",
)
model_option = click.option(
    "--model",
    envvar="QSEEK_MODEL",
    show_envvar=True,
    metavar="NAME|FOLDER",
    help="Which model, see `qseek models`.  [default: the one the index was made with]",
)
captions_option = click.option("--captions", is_flag=True, help="Show what each photo shows, in words, too.")
captioner_option = click.option(
    "--captioner",
    envvar=CAPTIONER_VARIABLE,
    show_envvar=True,
    metavar="NAME|FOLDER",
    help="What writes captions.  [default: what wrote the index's, else that of `qseek caption`]",
)
top_option = click.option(
    "-k", "--top", type=click.IntRange(min=1), default=20, show_default=True, help="How many to show."
)


def rerank_options(command: Command) -> Command:
    """--rerank N and --no-rerank as one argument `rerank`, 0 for none."""

    @click.option(
        "--rerank",
        type=click.IntRange(min=1),
        default=RERANKED,
        show_default=True,
        metavar="N",
        help="How many of the nearest are read together with the text and put in order.",
    )
    @click.option("--no-rerank", is_flag=True, help="Order by the cosine alone: faster, less exact.")
    @functools.wraps(command)
    def with_rerank(*args: Any, rerank: int, no_rerank: bool, **others: Any) -> Any:
        return command(*args, rerank=0 if no_rerank else rerank, **others)

    return with_rerank


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
paths_option = click.option("--paths", "as_paths", is_flag=True, help="Paths alone, one a line.")
nul_option = click.option(
    "-0", "--null", "as_nul", is_flag=True, help="Paths alone, each closed by a NUL byte."
)


def choose_output(as_json: bool, as_paths: bool, as_nul: bool) -> Output:
    """Raises a usage error where two of them contradict each other."""
    if as_json and (as_paths or as_nul):
        raise click.UsageError("--json prints objects, --paths and -0 print paths: give one of them.")
    if as_json:
        return Output.JSON
    if as_nul:
        return Output.NUL
    return Output.PATHS if as_paths else Output.TABLE


def output_options(command: Command) -> Command:
    """--json, --paths and -0 as one argument `output`."""

    @json_option
    @paths_option
    @nul_option
    @functools.wraps(command)
    def with_output(*args: Any, as_json: bool, as_paths: bool, as_nul: bool, **others: Any) -> Any:
        return command(*args, output=choose_output(as_json, as_paths, as_nul), **others)

    return with_output


split_option = click.option(
    "--split", default="test", show_default=True, help="Which part of a Karpathy file."
)
allow_missing_option = click.option(
    "--allow-missing", is_flag=True, help="Leave out photos that are not there or cannot be read."
)


def limit_option(noun: str = "") -> Callable[[Command], Command]:
    """--limit: only the beginning of a set. noun: what is counted, where there is one word for it."""
    text = f"Only the first so many{noun and ' ' + noun}: a quick look."
    return click.option("--limit", type=click.IntRange(min=1), help=text)


def captioner_model_option(help_text: str) -> Callable[[Command], Command]:
    """--model of a command that lets a model write, from the same variable as --captioner elsewhere."""
    return click.option(
        "--model", envvar=CAPTIONER_VARIABLE, show_envvar=True, metavar="NAME|FOLDER", help=help_text
    )


@dataclass(frozen=True)
class WritingOptions:
    """What `qseek evaluate caption` and `qseek evaluate vqa` are both told.

    images: the folder of the pictures, None for that of the first file. predictions: a results file to be scored, None
    where a model writes. save: where results are written. limit: only the first so many. beams: of the beam search.
    """

    images: Path | None
    predictions: Path | None
    save: Path | None
    limit: int | None
    allow_missing: bool
    beams: int
    as_json: bool


def writing_options(command: Command) -> Command:
    """The options of `WritingOptions` as one argument `options`."""

    @click.option("--images", type=folder_type, help="Folder of the pictures.  [default: the first file's]")
    @click.option("--predictions", type=file_type, help="Score this results file; no model is loaded.")
    @click.option("--save", type=file_type, help="Write a results file; a stopped run goes on beside it.")
    @limit_option()
    @allow_missing_option
    @click.option(
        "--beams", type=click.IntRange(min=1), default=5, show_default=True, help="Of the beam search."
    )
    @json_option
    @functools.wraps(command)
    def with_options(
        *args: Any, images: Path | None, predictions: Path | None, save: Path | None, limit: int | None,
        allow_missing: bool, beams: int, as_json: bool, **others: Any,
    ) -> Any:  # fmt: skip
        options = WritingOptions(images, predictions, save, limit, allow_missing, beams, as_json)
        return command(*args, options=options, **others)

    return with_options
