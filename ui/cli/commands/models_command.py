"""models: which there are, downloading published ones, converting files of other code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from engine.errors import CheckpointError
from ui.cli.options import json_option
from ui.cli.terminal import say, write
from ui.reports import text_forms

if TYPE_CHECKING:
    from engine.checkpoints.published import KnownModel
    from engine.models.catalogue import ModelInfo
    from engine.models.conversion import Layout

DTYPES = ("float32", "float16", "bfloat16")
SEARCH, CAPTIONS = "search", "captions"


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models that are here, and the published ones that qseek knows."""
    if context.invoked_subcommand is not None:
        return
    from engine.checkpoints.published import KNOWN
    from engine.models.catalogue import list_models

    found = list_models()
    absent = [known for known in KNOWN if known.name not in {one.name for one in found}]
    if as_json:
        write("".join(text_forms.json_line(_fields(one)) for one in found))
        write("".join(text_forms.json_line(_known_fields(one)) for one in absent))
        return
    width = max(len(name) for name in [one.name for one in found] + [one.name for one in absent])
    rows = [_row(one, width, one.digest[:12], _place(one)) for one in found]
    rows += [_row(one, width, "not here", f"qseek models pull {one.name}   ({one.note})") for one in absent]
    write(
        text_forms.text_table(
            ("name".ljust(width), "for", "parameters", "size", "photo side", "digest", "folder"), rows
        )
    )


def _row(model: ModelInfo | KnownModel, width: int, digest: str, place: str) -> tuple[str, ...]:
    parameters = f"{model.num_parameters / 1e6:,.1f} M"
    size, side = text_forms.size_text(model.num_bytes), f"{model.image_size} px"
    return (
        model.name.ljust(width),
        CAPTIONS if model.writes else SEARCH,
        parameters,
        size,
        side,
        digest,
        place,
    )


def _place(model: ModelInfo) -> str:
    """Return the folder of a model, and whose image encoder it needs beside its own weights."""
    shares = (
        f"   (with the image encoder of {text_forms.printable_text(model.encoder)})" if model.encoder else ""
    )
    return text_forms.printable_text(str(model.folder)) + shares


def _fields(model: ModelInfo) -> dict[str, Any]:
    place = {"folder": text_forms.path_fields(model.folder)["path"], "digest": model.digest}
    return {"name": model.name, "here": True, **place, **_sizes(model)}


def _known_fields(model: KnownModel) -> dict[str, Any]:
    return {"name": model.name, "here": False, "hub_id": model.hub_id, **_sizes(model)}


def _sizes(model: ModelInfo | KnownModel) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        name: getattr(model, name) for name in ("num_parameters", "num_bytes", "image_size")
    }
    return {"for": CAPTIONS if model.writes else SEARCH, **sizes}


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Download a published model: a name from the list, or a Hugging Face id (owner/name).

    It goes on from what an earlier try left, and every weight file is compared with its published SHA-256.
    """
    from engine.models.catalogue import check_model
    from engine.models.hub import pull as download

    model = check_model(name, download(name, say=say))
    use = f"qseek caption PHOTO --model {name}" if model.writes else f"--model {name}"
    say(f"{name} is here: {model.image_size} px, digest {model.digest[:12]}. Use it: {use}")


@models.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--encoder", type=click.Path(path_type=Path, exists=True), help="LAVIS: eva_vit_g.pth or clip_vit_L.pth."
)
@click.option(
    "--vocabulary", type=click.Path(path_type=Path, exists=True),
    help="LAVIS: vocab.txt or tokenizer.json of bert-base-uncased.  [default: from the Hugging Face cache]",
)  # fmt: skip
@click.option(
    "--pixels", type=click.IntRange(min=14), help="LAVIS: read photos at this side.  [default: the file's]"
)
@click.option(
    "--language", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="LAVIS, stage 2: the transformers folder of its language model.",
)  # fmt: skip
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of what is written."
)
@click.option(
    "--share-encoder", metavar="NAME",
    help="A captioner: leave its image encoder out, it is that of the model folder NAME beside FOLDER.",
)  # fmt: skip
@click.option(
    "--to", "layout", type=click.Choice(["qseek", "transformers"]), default="qseek", show_default=True
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
) -> None:
    """Write a checkpoint of other code as a qseek folder, or a qseek folder for transformers.

    SOURCE is a folder (qseek's or transformers') or a LAVIS .pth file. FOLDER must be new or empty.
    """
    import torch

    from engine.models.conversion import LavisParts, convert_captioner, convert_retriever, is_captioner

    _check_empty(folder)
    if source.is_dir() and (encoder or vocabulary or pixels or language):
        raise click.UsageError(
            "--encoder, --vocabulary, --pixels and --language are for LAVIS files; SOURCE is a folder."
        )
    parts = LavisParts(encoder, vocabulary, pixels, language)
    weights: torch.dtype = getattr(torch, dtype)
    if not is_captioner(source, parts):
        if share_encoder:
            raise click.UsageError(f"--share-encoder is for captioners; {source} searches.")
        size = convert_retriever(source, folder, layout, weights, parts).config.vision.image_size
        say(f"Wrote {folder}: {size} px, {dtype}. Use it with --model {folder}.")
        return
    if share_encoder and layout != "qseek":
        raise click.UsageError("--share-encoder is for qseek's folders; transformers' hold their encoder.")
    convert_captioner(source, folder, layout, weights, parts, share_encoder or "")
    if layout == "transformers":
        say(
            f"Wrote {folder}: transformers' from_pretrained loads it, and so does qseek caption --model {folder}"
        )
    else:
        say(f"Wrote {folder}. Use it: qseek caption PHOTO --model {folder}")


@models.command()
@click.argument("sources", nargs=-1, required=True, metavar="MODEL...")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--dtype", type=click.Choice(DTYPES), default="float16", show_default=True, help="Of what is written."
)
def average(sources: tuple[str, ...], folder: Path, dtype: str) -> None:
    """Write the mean of the weights of search models that were trained on from the same one (a model soup).

    MODEL is a name or folder; named twice it counts twice. FOLDER must be new or empty.
    """
    import torch

    from training.stages.weight_average import average_models

    _check_empty(folder)
    average_models(sources, folder, dtype=getattr(torch, dtype))
    say(f"Wrote {folder}: the mean of {len(sources)} models, {dtype}. Use it with --model {folder}.")


def _check_empty(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; give a new folder.")
