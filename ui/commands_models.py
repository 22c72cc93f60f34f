"""models: which there are, downloading published ones, converting files of other code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.errors import CheckpointError
from ui import render
from ui.options import json_option
from ui.terminal import say, write

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from engine.blip2.checkpoint import ModelInfo
    from engine.blip2.hub import KnownModel
    from engine.blip2.sources import Source

DTYPES = ("float32", "float16", "bfloat16")


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models that are here, and the published ones that qseek knows."""
    if context.invoked_subcommand is not None:
        return
    from engine.blip2.checkpoint import list_models
    from engine.blip2.hub import KNOWN

    found = list_models()
    absent = [known for known in KNOWN if known.name not in {one.name for one in found}]
    if as_json:
        write("".join(render.json_line(_fields(one)) for one in found))
        write("".join(render.json_line(_known_fields(one)) for one in absent))
        return
    width = max(len(name) for name in [one.name for one in found] + [one.name for one in absent])
    rows = [
        (
            one.name.ljust(width),
            f"{one.num_parameters / 1e6:,.1f} M",
            render.size_text(one.num_bytes),
            f"{one.image_size} px",
            one.digest[:12],
            render.printable(str(one.folder)),
        )
        for one in found
    ]
    rows += [
        (
            one.name.ljust(width),
            f"{one.num_parameters / 1e6:,.1f} M",
            render.size_text(one.num_bytes),
            f"{one.image_size} px",
            "not here",
            f"qseek models pull {one.name}   ({one.note})",
        )
        for one in absent
    ]
    write(
        render.text_table(("name".ljust(width), "parameters", "size", "photo side", "digest", "folder"), rows)
    )


def _fields(model: ModelInfo) -> dict[str, str | int | bool]:
    names = render.path_fields(model.folder)
    return {
        "name": model.name,
        "here": True,
        "folder": names["path"],
        "digest": model.digest,
        "num_parameters": model.num_parameters,
        "num_bytes": model.num_bytes,
        "image_size": model.image_size,
    }


def _known_fields(model: KnownModel) -> dict[str, str | int | bool]:
    return {
        "name": model.name,
        "here": False,
        "hub_id": model.hub_id,
        "num_parameters": model.num_parameters,
        "num_bytes": model.num_bytes,
        "image_size": model.image_size,
    }


@models.command()
@click.argument("name")
def pull(name: str) -> None:
    """Download a published model: a name from the list, or a Hugging Face id (owner/name).

    It goes on from what an earlier try left, and every weight file is compared with its published SHA-256.
    """
    from engine.blip2.checkpoint import load_model
    from engine.blip2.hub import pull as download

    folder = download(name, say=say)
    model = load_model(str(folder), device="cpu")
    say(f"{name} is here: {model.image_size} px, digest {model.digest[:12]}. Use it with --model {name}.")


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
    "--dtype", type=click.Choice(DTYPES), default="float32", show_default=True, help="Of what is written."
)
@click.option(
    "--to", "layout", type=click.Choice(["qseek", "transformers"]), default="qseek", show_default=True
)
def convert(
    source: Path,
    folder: Path,
    encoder: Path | None,
    vocabulary: Path | None,
    pixels: int | None,
    dtype: str,
    layout: str,
) -> None:
    """Write a checkpoint of other code as a qseek folder, or a qseek folder for transformers.

    SOURCE is a folder (qseek's or transformers') or a LAVIS .pth file. FOLDER must be new or empty.
    """
    import torch

    from engine.blip2.checkpoint import make_net, save_checkpoint
    from engine.blip2.export import save_transformers
    from engine.blip2.sources import read_folder, read_lavis

    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty; give a new folder.")
    read: Source
    if source.is_dir():
        if encoder or vocabulary or pixels:
            raise click.UsageError(
                "--encoder, --vocabulary and --pixels are for LAVIS files; SOURCE is a folder."
            )
        read = read_folder(source)
    else:
        read = read_lavis(source, _vocabulary(vocabulary), encoder, pixels)
    net = make_net(read, source, getattr(torch, dtype))
    write_folder = save_checkpoint if layout == "qseek" else save_transformers
    write_folder(folder, net, read.tokenizer, dtype=getattr(torch, dtype))
    say(f"Wrote {folder}: {read.config.vision.image_size} px, {dtype}. Use it with --model {folder}.")


def _vocabulary(given: Path | None) -> Tokenizer:
    from tokenizers import Tokenizer

    from engine.blip2.sources import vocabulary_tokenizer

    path = given or _cached_vocabulary()
    if path.suffix != ".json":
        return vocabulary_tokenizer(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path} is not a readable tokenizer: {error}") from error


def _cached_vocabulary() -> Path:
    """bert-base-uncased's, from the Hugging Face cache, else downloaded (0.2 MB)."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download("google-bert/bert-base-uncased", "vocab.txt"))
    except Exception as error:  # its errors are of a dozen kinds
        raise CheckpointError(
            "LAVIS files hold no vocabulary: bert-base-uncased's is needed, and it could not be downloaded. Give its "
            "vocab.txt with --vocabulary."
        ) from error
