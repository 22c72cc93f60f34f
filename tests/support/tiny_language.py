"""Build random OPT, Flan-T5 and LLaMA models in milliseconds, with tokenizers that read bytes as real ones do.

Spaces, newlines and special tokens are those of the published tokenizers; only the words are single letters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import tiny_config, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    T5Config,
)

from engine.blip2.captioner import Captioner
from engine.blip2.config import CaptionerConfig
from engine.checkpoints.language_folder import read_language_config
from engine.checkpoints.saving import save_captioner

W = 32
# Kind of a language model -> its special tokens in the order of their ids, and the template of a text ($A).
SPECIAL = {
    "opt": (("<s>", "<pad>", "</s>", "<unk>"), "</s> $A"),
    "t5": (("<pad>", "</s>", "<unk>"), "$A </s>"),
    "llama": (("<unk>", "<s>", "</s>"), "<s> $A"),
}
KINDS = tuple(SPECIAL)


def byte_tokenizer(kind: str) -> Tokenizer:
    """Return the tokenizer of a kind of language model: opt, t5 or llama. Each letter is a token."""
    special, around = SPECIAL[kind]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate((*special, *letters))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokens = [(token, vocabulary[token]) for token in special if token in around.split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=tokens)
    return tokenizer


def language_config(kind: str) -> PreTrainedConfig:
    """Return transformers' config of a small language model: opt, t5 or llama."""
    vocab_size = byte_tokenizer(kind).get_vocab_size() + 4  # Published models have unused rows, too.
    if kind == "opt":
        return OPTConfig(
            vocab_size=vocab_size,
            hidden_size=W,
            word_embed_proj_dim=W,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=96,
            activation_function="relu",
        )
    if kind == "t5":
        return T5Config(
            vocab_size=vocab_size,
            d_model=W,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            dense_act_fn="gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
        )
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=W,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
    )


def randomise_weights(model: torch.nn.Module, seed: int = 0) -> Any:
    """Give a network random weights under which the inputs decide the outputs, freeze it, and return it.

    Matrices are scaled so that what they multiply keeps its size.
    """
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + float(name.endswith("weight")))
                if name.endswith("qkv.bias"):  # EVA has no bias for the keys.
                    parameter.view(3, -1)[1] = 0
            else:
                parameter.copy_(noise * (1.5 / parameter[0].numel() ** 0.5))
    return model.eval().requires_grad_(False)


def untie(model: Any) -> Any:
    """Give a T5 model an output matrix of its own, as Flan-T5 has, and return the model.

    transformers 5 makes it share the matrix of the input embedding when it is created.
    """
    if model.config.model_type == "t5":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def random_language(kind: str, seed: int = 0) -> Any:
    """Return a small random language model of transformers: opt, t5 or llama."""
    automatic = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    return randomise_weights(untie(automatic.from_config(language_config(kind))), seed)


def save_language(kind: str, folder: Path, seed: int = 0) -> Path:
    """Save a random language model as people publish it, with its tokenizer.json; return the folder."""
    random_language(kind, seed).save_pretrained(folder)
    byte_tokenizer(kind).save(str(folder / "tokenizer.json"))
    return folder


def tiny_captioner(kind: str, seed: int = 0) -> Captioner:
    """Return a whole small captioner. kind: opt, t5 or llama, whose Q-Former reads the prompt."""
    language = random_language(kind, seed)
    settings = read_language_config(
        language.config, byte_tokenizer(kind), Path("tiny"), reads_prompt=kind == "llama"
    )
    config = tiny_config()
    net = Captioner(CaptionerConfig(config.vision, config.qformer, settings), torch.nn.Identity())
    randomise_weights(net, seed)
    net.language = language
    return net


def save_tiny_captioner(kind: str, folder: Path, seed: int = 0) -> Path:
    """Save a small captioner and its tokenizers as a model folder; return the folder."""
    prompt_tokenizer = tiny_tokenizer() if kind == "llama" else None
    save_captioner(folder, tiny_captioner(kind, seed), byte_tokenizer(kind), prompt_tokenizer)
    return folder
