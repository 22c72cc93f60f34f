"""Define `qseek models`, which lists, downloads, converts and averages models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.errors import CheckpointError
from ui.cli.options import json_option
from ui.cli.terminal import say, write
from ui.reports.text_forms import json_line, path_fields, printable_text, size_text, text_table

if TYPE_CHECKING:
    from engine.checkpoints.published import KnownModel
    from engine.models.catalogue import ModelInfo
    from engine.models.conversion import Layout

DTYPES = ("float32", "float16", "bfloat16")
SEARCH, CAPTIONS = "search", "captions"
path_type = click.Path(path_type=Path, exists=True)
new_folder_type = click.Path(path_type=Path, file_okay=False)


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models on this computer and the published ones.

    A published model that is not on this computer is downloaded by `qseek models pull NAME`.
    """
    if context.invoked_subcommand is not None:
        return
    from engine.checkpoints.published import KNOWN
    from engine.models.catalogue import list_models

    present = list_models()
    present_names = {model.name for model in present}
    absent = [model for model in KNOWN if model.name not in present_names]
    if as_json:
        write("".join(json_line(_make_present_fields(model)) for model in present))
        write("".join(json_line(_make_absent_fields(model)) for model in absent))
        return
    width = max(len(name) for name in [*present_names, *(model.name for model in absent)])
    rows = [_make_row(model, width, model.digest[:12], _folder_text(model)) for model in present]
    rows += [
        _make_row(model, width, "not here", f"qseek models pull {model.name}   ({model.note})")
        for model in absent
    ]
    header = ("name".ljust(width), "for", "parameters", "size", "photo side", "digest", "folder")
    write(text_table(header, rows))


def _make_row(model: ModelInfo | KnownModel, width: int, digest: str, folder: str) -> tuple[str, ...]:
    return (
        model.name.ljust(width),
        CAPTIONS if model.writes else SEARCH,
        f"{model.num_parameters / 1e6:,.1f} M",
        size_text(model.num_bytes),
        f"{model.image_size} px",
        digest,
        folder,
    )


def _folder_text(model: ModelInfo) -> str:
    """Return the folder of a model, followed by the model whose image encoder it shares."""
    shared_text = f"   (with the image encoder of {printable_text(model.encoder)})" if model.encoder else ""
    return printable_text(str(model.folder)) + shared_text


def _make_present_fields(model: ModelInfo) -> dict[str, Any]:
    location = {"folder": path_fields(model.folder)["path"], "digest": model.digest}
    return {"name": model.name, "here": True, **location, **_make_size_fields(model)}


def _make_absent_fields(model: KnownModel) -> dict[str, Any]:
    return {"name": model.name, "here": False, "hub_id": model.hub_id, **_make_size_fields(model)}


def _make_size_fields(model: ModelInfo | KnownModel) -> dict[str, Any]:
    return {
        "for": CAPTIONS if model.writes else SEARCH,
        "num_parameters": model.num_parameters,
        "num_bytes": model.num_bytes,
        "image_size": model.image_size,
    }


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Download a published model and check it.

    NAME is a name from the list of `qseek models`, or a Hugging Face id (owner/name). A download that was stopped goes
    on from what is there. Every weight file is compared with its published SHA-256.
    """
    from engine.models.catalogue import check_model
    from engine.models.hub import pull as download

    model = check_model(name, download(name, say=say))
    usage = f"qseek caption PHOTO --model {name}" if model.writes else f"--model {name}"
    say(f"{name} is here: {model.image_size} px, digest {model.digest[:12]}. Use it with: {usage}")


@models.command()
@click.argument("source", type=path_type)
@click.argument("folder", type=new_folder_type)
@click.option(
    "--encoder", type=path_type, help="LAVIS: read the image encoder (eva_vit_g.pth or clip_vit_L.pth)."
)
@click.option(
    "--vocabulary",
    type=path_type,
    help="LAVIS: read vocab.txt or tokenizer.json of bert-base-uncased.",
    show_default="from the Hugging Face cache",
)
@click.option(
    "--pixels",
    type=click.IntRange(min=14),
    metavar="N",
    help="LAVIS: let the model read photos of N x N pixels.",
    show_default="the file's size",
)
@click.option(
    "--language",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="LAVIS, stage 2: read the language model from this transformers folder.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Write weights of this type.",
)
@click.option(
    "--share-encoder",
    metavar="NAME",
    help="Captioner: leave its image encoder out and share that of the model folder NAME beside FOLDER.",
)
@click.option(
    "--int8-words",
    is_flag=True,
    help="Write the word embeddings as int8, which halves them and costs nothing.",
)
@click.option(
    "--to",
    "layout",
    type=click.Choice(["qseek", "transformers"]),
    default="qseek",
    show_default=True,
    help="Write a folder for this program.",
)
def convert(
    source: Path,
    folder: Path,
    encoder: Path | None,
    vocabulary: Path | None,
    pixels: int | None,
    language: Path | None,
    dtype: str,
    layout: Layout,
    share_encoder: str | None,
    int8_words: bool,
) -> None:
    """Convert a model to a folder for qseek or for transformers.

    SOURCE is a folder of qseek or of transformers, or a .pth file of LAVIS. FOLDER must be new or empty.
    """
    import torch

    from engine.models.conversion import LavisParts, convert_captioner, convert_retriever, is_captioner

    _check_empty(folder)
    if source.is_dir() and (encoder or vocabulary or pixels or language):
        raise click.UsageError(
            f"--encoder, --vocabulary, --pixels and --language are for LAVIS files, but {source} is a folder. Leave "
            "them out."
        )
    parts = LavisParts(encoder, vocabulary, pixels, language)
    weights: torch.dtype = getattr(torch, dtype)
    writes = is_captioner(source, parts)
    _check_convert_options(source, writes, layout, share_encoder, int8_words)
    if not writes:
        opened = convert_retriever(source, folder, layout, weights, parts, int8_words)
        size = opened.config.vision.image_size
        say(f"Wrote {folder}: {size} px, {dtype}. Use it with: --model {folder}")
        return
    convert_captioner(source, folder, layout, weights, parts, share_encoder or "")
    usage = f"qseek caption PHOTO --model {folder}"
    if layout == "transformers":
        say(f"Wrote {folder}. transformers' from_pretrained loads it, and so does: {usage}")
    else:
        say(f"Wrote {folder}. Use it with: {usage}")


def _check_convert_options(
    source: Path, writes: bool, layout: str, share_encoder: str | None, int8_words: bool
) -> None:
    """Raise UsageError for options of `convert` that do not fit the kind of model or the layout."""
    if share_encoder and not writes:
        raise click.UsageError(f"--share-encoder is for captioners, but {source} searches. Leave it out.")
    if int8_words and writes:
        raise click.UsageError(f"--int8-words is for models that search, but {source} writes. Leave it out.")
    if share_encoder and layout != "qseek":
        raise click.UsageError(
            "--share-encoder is for folders of qseek, since transformers' folders hold their encoder. Leave it out."
        )
    if int8_words and layout != "qseek":
        raise click.UsageError("--int8-words is for folders of qseek, not of transformers. Leave it out.")


@models.command()
@click.argument("sources", nargs=-1, required=True, metavar="MODEL...")
@click.argument("folder", type=new_folder_type)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float16",
    show_default=True,
    help="Write weights of this type.",
)
def average(sources: tuple[str, ...], folder: Path, dtype: str) -> None:
    """Write a model whose weights are the mean of several models.

    The models search, and were trained on from the same model (a model soup). MODEL is a name or folder; a model that
    is named twice counts twice. FOLDER must be new or empty.
    """
    import torch

    from training.loop.weight_average import average_models

    _check_empty(folder)
    average_models(sources, folder, dtype=getattr(torch, dtype))
    say(f"Wrote {folder}: the mean of {len(sources)} models, {dtype}. Use it with: --model {folder}")


def _check_empty(folder: Path) -> None:
    """Raise CheckpointError for a folder that holds anything."""
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty. Give a new or empty folder.")
