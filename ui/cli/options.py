"""Define the options that several commands share, so that they have the same help text everywhere."""

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
positive_type = click.IntRange(min=1)


class Output(enum.Enum):
    """The form in which hits are written to stdout."""

    TABLE = "table"
    JSON = "json"
    PATHS = "paths"
    NUL = "nul"


def retrieval_model_option(default: str) -> Callable[[Command], Command]:
    """Return the option --model of a command that searches. default: the model that is used without it, in words."""
    return click.option(
        "--model",
        envvar="QSEEK_MODEL",
        show_envvar=True,
        metavar="NAME|FOLDER",
        help="Use this model; `qseek models` lists them.",
        show_default=default,
    )


index_option = click.option(
    "--index",
    type=folder_type,
    envvar="QSEEK_INDEX",
    show_envvar=True,
    metavar="DIR",
    help="Use the index in this folder.",
    show_default="in the user's data folder",
)
model_option = retrieval_model_option("the model that made the index, else the bundled one")
captions_option = click.option(
    "--captions", is_flag=True, help="Show a caption of each photo; missing captions are written now."
)
captioner_option = click.option(
    "--captioner",
    envvar=CAPTIONER_VARIABLE,
    show_envvar=True,
    metavar="NAME|FOLDER",
    help="Write captions with this model.",
    show_default="the model that wrote the index's captions, else that of `qseek caption`",
)
shown_captioner_option = click.option(
    "--captioner",
    envvar=CAPTIONER_VARIABLE,
    show_envvar=True,
    metavar="NAME|FOLDER",
    help="Show captions by this model.",
    show_default="captions of the index, missing ones by the model of `qseek caption`",
)
top_option = click.option(
    "-k", "--top", type=positive_type, default=20, show_default=True, metavar="N", help="Show the best N."
)


def rerank_options(command: Command) -> Command:
    """Give a command the options --rerank N and --no-rerank as one argument `rerank`, which is 0 for --no-rerank."""

    @click.option(
        "--rerank",
        type=positive_type,
        default=RERANKED,
        show_default=True,
        metavar="N",
        help="Put the N nearest in order by reading photo and text together.",
    )
    @click.option(
        "--no-rerank", is_flag=True, help="Order by the cosine alone, which is faster and less exact."
    )
    @functools.wraps(command)
    def with_rerank(*args: Any, rerank: int, no_rerank: bool, **others: Any) -> Any:
        return command(*args, rerank=0 if no_rerank else rerank, **others)

    return with_rerank


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on each line.")
paths_option = click.option(
    "--paths", "as_paths", is_flag=True, help="Print the paths alone, one on each line."
)
nul_option = click.option(
    "-0", "--null", "as_nul", is_flag=True, help="Print the paths alone, each ended by a NUL byte."
)


def choose_output(as_json: bool, as_paths: bool, as_nul: bool) -> Output:
    """Return the form of output that the flags ask for. Raises UsageError when they contradict each other."""
    if as_json and (as_paths or as_nul):
        raise click.UsageError(
            "--json prints objects, but --paths and -0 print paths. Give only one of them."
        )
    if as_json:
        return Output.JSON
    if as_nul:
        return Output.NUL
    return Output.PATHS if as_paths else Output.TABLE


def output_options(command: Command) -> Command:
    """Give a command the options --json, --paths and -0 as one argument `output`."""

    @json_option
    @paths_option
    @nul_option
    @functools.wraps(command)
    def with_output(*args: Any, as_json: bool, as_paths: bool, as_nul: bool, **others: Any) -> Any:
        return command(*args, output=choose_output(as_json, as_paths, as_nul), **others)

    return with_output


split_option = click.option(
    "--split", default="test", show_default=True, help="Use this split of a Karpathy file."
)
allow_missing_option = click.option(
    "--allow-missing", is_flag=True, help="Leave out photos that are missing or cannot be read."
)


def limit_option(noun: str = "") -> Callable[[Command], Command]:
    """Return the option --limit, which takes only the beginning of a set.

    noun: what is counted, in the plural, where there is one word for it.
    """
    text = f"Use only the first N{noun and ' ' + noun}, for a quick look."
    return click.option("--limit", type=positive_type, metavar="N", help=text)


def captioner_model_option(help_text: str, default: str | None = None) -> Callable[[Command], Command]:
    """Return the option --model of a command whose model writes; its variable is that of --captioner elsewhere.

    default: the model that is used without the option, in words; None where the option is needed.
    """
    return click.option(
        "--model",
        envvar=CAPTIONER_VARIABLE,
        show_envvar=True,
        metavar="NAME|FOLDER",
        help=help_text,
        show_default=default,
    )


@dataclass(frozen=True)
class WritingOptions:
    """The options that `qseek evaluate caption` and `qseek evaluate vqa` share.

    images: the folder of the pictures, None for that of the first file. predictions: a results file to score, None
    when a model writes. save: the results file to write. limit: only the first items, None for all. beams: number of
    beams of the beam search.
    """

    images: Path | None
    predictions: Path | None
    save: Path | None
    limit: int | None
    allow_missing: bool
    beams: int
    as_json: bool


def writing_options(command: Command) -> Command:
    """Give a command the options of `WritingOptions` as one argument `options`."""

    @click.option(
        "--images",
        type=folder_type,
        help="Find the pictures in this folder.",
        show_default="the folder of the first file",
    )
    @click.option("--predictions", type=file_type, help="Score this results file; no model is loaded.")
    @click.option(
        "--save", type=file_type, help="Write this results file; a stopped run can then be continued."
    )
    @limit_option()
    @allow_missing_option
    @click.option(
        "--beams", type=positive_type, default=5, show_default=True, metavar="N", help="Search with N beams."
    )
    @json_option
    @functools.wraps(command)
    def with_options(
        *args: Any,
        images: Path | None,
        predictions: Path | None,
        save: Path | None,
        limit: int | None,
        allow_missing: bool,
        beams: int,
        as_json: bool,
        **others: Any,
    ) -> Any:
        options = WritingOptions(images, predictions, save, limit, allow_missing, beams, as_json)
        return command(*args, options=options, **others)

    return with_options
