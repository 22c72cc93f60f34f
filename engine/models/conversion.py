"""Write checkpoints in another layout: those of LAVIS and transformers as qseek's folders, qseek's for transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from engine.checkpoints.building import make_captioner, make_net
from engine.checkpoints.captioner_reading import has_language, read_captioner
from engine.checkpoints.checkpoint_sources import CaptionerSource, RetrieverSource
from engine.checkpoints.lavis_files import read_lavis, read_lavis_captioner
from engine.checkpoints.layout import read_tokenizer
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.saving import save_captioner, save_checkpoint
from engine.checkpoints.transformers_export import save_transformers, save_transformers_captioner
from engine.models.hub import load_bert_vocabulary

Layout = Literal["qseek", "transformers"]


@dataclass(frozen=True)
class LavisParts:
    """The files that are needed beside a .pth file of LAVIS, which leaves out every frozen part. A folder needs none.

    encoder: path of `eva_vit_g.pth` or `clip_vit_L.pth`. vocabulary: path of vocab.txt or tokenizer.json of
    bert-base-uncased; None takes it from the Hugging Face cache. image_size: side of the pictures in pixels, None for
    that of the file. language: the transformers folder of a captioner's language model.
    """

    encoder: Path | None = None
    vocabulary: Path | None = None
    image_size: int | None = None
    language: Path | None = None


def is_captioner(source: Path, parts: LavisParts) -> bool:
    """Return whether a folder or .pth file is converted as a captioner: it has a language model, or is given one."""
    return parts.language is not None or (source.is_dir() and has_language(source))


def convert_retriever(
    source: Path,
    folder: Path,
    layout: Layout,
    dtype: torch.dtype,
    parts: LavisParts,
    int8_words: bool = False,
) -> RetrieverSource:
    """Write a retrieval checkpoint to `folder` in another layout; return the opened source.

    source: a model folder or a .pth file of LAVIS. dtype: the type of the floating-point weights that are written.
    int8_words: whether the word embeddings are written as int8 (in qseek's layout).
    Raises CheckpointError as `read_folder`, `read_lavis` and `save_transformers` do, and when the vocabulary is needed
    and cannot be downloaded.
    """
    if source.is_dir():
        opened = read_folder(source)
    else:
        vocabulary = read_tokenizer(parts.vocabulary or load_bert_vocabulary())
        opened = read_lavis(source, vocabulary, parts.encoder, parts.image_size)
    net = make_net(opened, source, dtype)
    if layout == "qseek":
        save_checkpoint(folder, net, opened.tokenizer, dtype=dtype, int8_words=int8_words)
    else:
        save_transformers(folder, net, opened.tokenizer, dtype=dtype)
    return opened


def convert_captioner(
    source: Path, folder: Path, layout: Layout, dtype: torch.dtype, parts: LavisParts, share_encoder: str = ""
) -> CaptionerSource:
    """Write a captioner to `folder` in another layout; return the opened source.

    source: a model folder or a .pth file of LAVIS. dtype: the type of the floating-point weights that are written.
    share_encoder: name of a model folder beside `folder` that holds the same image encoder, which is then not written
    again (in qseek's layout). Raises CheckpointError as `read_captioner`, `read_lavis_captioner`, `save_captioner` and
    `save_transformers_captioner` do.
    """
    if parts.language is None:
        opened = read_captioner(source)
    else:
        vocabulary = None if parts.vocabulary is None else read_tokenizer(parts.vocabulary)
        opened = read_lavis_captioner(
            source, parts.language, vocabulary=vocabulary, encoder=parts.encoder, image_size=parts.image_size
        )
    net = make_captioner(opened, source, dtype)
    words = opened.language.tokenizer
    if layout == "qseek":
        save_captioner(folder, net, words, opened.tokenizer, dtype=dtype, encoder=share_encoder)
    else:
        save_transformers_captioner(folder, net, words, opened.tokenizer, dtype=dtype)
    return opened
