"""The Q-Former's start: BERT's weights from a Hugging Face folder (BLIP-2, section 3.1).

Text and queries share BERT's self-attention; the text's feed-forwards are BERT's and the queries' begin as copies of
them; cross-attention and queries begin at random. BLIP-2 uses bert-base-uncased; any BERT folder does.
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

from engine.blip2.config import QFormerConfig
from engine.blip2.retriever import Retriever
from engine.checkpoints.key_names import BERT, to_our_name
from engine.checkpoints.layout import add_dec_token, read_tokenizer
from engine.checkpoints.tensors import StoredTensor, read_pickled, read_safetensors
from engine.errors import CheckpointError, DataError

SIZES = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings",
    "vocab_size",
)  # fmt: skip
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TYPES = "embeddings.token_type_embeddings.weight"
UNUSED = re.compile(r"pooler\.|cls\.seq_relationship\.|cls\.predictions\.decoder\.|embeddings\.position_ids$")
BY_VOCABULARY = ("qformer.words.weight", "caption_head.bias")


@dataclass(frozen=True)
class Bert:
    """A BERT folder. tensors: under our names. tokenizer: with [DEC] added. shape: the Q-Former's sizes it asks for."""

    folder: Path
    shape: QFormerConfig
    tensors: Mapping[str, StoredTensor]
    types: StoredTensor | None
    tokenizer: Tokenizer


def read_bert(folder: Path, like: QFormerConfig) -> Bert:
    """config.json + model.safetensors (or pytorch_model.bin) + tokenizer.json or vocab.txt.

    like: gives what BERT does not have (number of queries, cross-attention). No weight is read yet. Raises DataError
    saying what is missing or no BERT, and CheckpointError for a file that cannot be read.
    """
    facts = _facts(folder / "config.json")
    tokenizer = _tokenizer(folder)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise DataError(f"{folder} has neither {' nor '.join(WEIGHTS)}; download the BERT folder again.")
    read = read_safetensors if weights.suffix == ".safetensors" else read_pickled
    tensors, types, unknown = {}, None, []
    for name, tensor in read(weights).items():
        bare = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
        bare = bare.replace("LayerNorm.beta", "LayerNorm.bias")
        ours = _our_name(bare)
        if ours is not None:
            tensors[ours] = tensor
        elif bare == TYPES:
            types = tensor
        elif not UNUSED.match(bare):
            unknown.append(name)
    if unknown:
        raise DataError(f"{weights} has tensors that are not BERT's: {', '.join(unknown[:5])}.")
    if "qformer.words.weight" not in tensors:
        raise DataError(f"{weights} is no BERT: it has no embeddings.word_embeddings.weight.")
    shape = replace(
        like,
        num_layers=facts["num_hidden_layers"],
        width=facts["hidden_size"],
        num_heads=facts["num_attention_heads"],
        mlp_width=facts["intermediate_size"],
        max_positions=facts["max_position_embeddings"],
        norm_eps=facts.get("layer_norm_eps", 1e-12),
        vocab_size=max(facts["vocab_size"], tokenizer.get_vocab_size()),
    )
    return Bert(folder, shape, tensors, types, tokenizer)


def start_from_bert(net: Retriever, bert: Bert) -> None:
    """Give a Q-Former of `bert.shape` BERT's weights; what BERT does not have stays as it is.

    Token types, which a Q-Former does not have, are kept by adding the first one to every position. Raises DataError
    naming the tensors that are missing or of another shape.
    """
    own = net.state_dict()
    prefix = ("qformer.words", "qformer.positions", "qformer.norm")
    needed = {
        name
        for name in own
        if name.startswith(prefix) or re.match(r"qformer\.layers\.\d+\.(attention|text_mlp)\.", name)
    }
    problems = [f"missing {name}" for name in sorted(needed - bert.tensors.keys())]
    rows = bert.tensors["qformer.words.weight"].shape[0]
    for name, tensor in bert.tensors.items():
        if name not in own:
            if not name.startswith("caption_head."):  # a model without captions has no use for that head
                problems.append(f"unknown {name}")
            continue
        wanted = (rows, *own[name].shape[1:]) if name in BY_VOCABULARY else tuple(own[name].shape)
        if tensor.shape != wanted:
            problems.append(f"{name} is {tensor.shape}, should be {wanted}")
    if problems:
        raise DataError(f"{bert.folder} does not fit the Q-Former: {'; '.join(problems[:5])}.")
    with torch.no_grad():
        for name, tensor in bert.tensors.items():
            if name in own:
                own[name][: tensor.shape[0]].copy_(tensor.read())  # [DEC]'s row is new
        if bert.types is not None:
            own["qformer.positions.weight"].add_(bert.types.read()[0].float())
    for layer in net.qformer.layers:
        layer.query_mlp.load_state_dict(layer.text_mlp.state_dict())


def _our_name(bare: str) -> str | None:
    """Return our name of a tensor of BERT, None for one that a Q-Former has no place for."""
    try:
        return to_our_name(bare, BERT)
    except CheckpointError:
        return None


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; give the folder of a Hugging Face BERT.") from error
    if not isinstance(facts, dict) or facts.get("model_type", "bert") != "bert":
        kind = facts.get("model_type") if isinstance(facts, dict) else facts
        raise DataError(f"{path} describes no BERT: model_type is {kind!r}.")
    missing = [name for name in SIZES if not isinstance(facts.get(name), int)]
    if missing:
        raise DataError(f"{path} describes no BERT; missing: {', '.join(missing)}.")
    if facts.get("hidden_act", "gelu") != "gelu":
        raise DataError(f"{path}: hidden_act is {facts['hidden_act']!r}, the Q-Former has gelu.")
    if facts.get("position_embedding_type", "absolute") != "absolute":
        raise DataError(
            f"{path}: its positions are {facts['position_embedding_type']!r}, the Q-Former's absolute."
        )
    return facts


def _tokenizer(folder: Path) -> Tokenizer:
    path = next((folder / n for n in ("tokenizer.json", "vocab.txt") if (folder / n).is_file()), None)
    if path is None:
        raise DataError(f"{folder} has neither tokenizer.json nor vocab.txt; download the BERT folder again.")
    tokenizer = read_tokenizer(path)
    settings = folder / "tokenizer_config.json"
    if path.name == "vocab.txt" and settings.is_file():
        lowers = json.loads(settings.read_text(encoding="utf-8")).get("do_lower_case", True)
        tokenizer = tokenizer if lowers else BertWordPieceTokenizer(str(path), lowercase=False)._tokenizer
    return add_dec_token(tokenizer)
