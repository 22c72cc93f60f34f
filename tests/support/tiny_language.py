"""Language models in milliseconds: random OPT, Flan-T5 and LLaMA with tokenizers that read bytes, as real ones do.

Spaces, newlines and special tokens are what they are in the published ones; only the words are single letters.
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
# In the order of their ids; what stands around a text.
SPECIAL = {
    "opt": (("<s>", "<pad>", "</s>", "<unk>"), "</s> $A"),
    "t5": (("<pad>", "</s>", "<unk>"), "$A </s>"),
    "llama": (("<unk>", "<s>", "</s>"), "<s> $A"),
}
KINDS = tuple(SPECIAL)


def byte_tokenizer(kind: str) -> Tokenizer:
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
    vocab_size = byte_tokenizer(kind).get_vocab_size() + 4  # real ones have unused rows, too
    if kind == "opt":
        return OPTConfig(
            vocab_size=vocab_size, hidden_size=W, word_embed_proj_dim=W, ffn_dim=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=96, activation_function="relu",
        )  # fmt: skip
    if kind == "t5":
        return T5Config(
            vocab_size=vocab_size, d_model=W, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu", dense_act_fn="gelu", tie_word_embeddings=False,
            decoder_start_token_id=0,
        )  # fmt: skip
    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=W, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=96,
    )  # fmt: skip


def randomise_weights(model: torch.nn.Module, seed: int = 0) -> Any:
    """Weights that let what goes in decide what comes out: matrices keep the size of what they turn."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=random)
            if parameter.ndim == 1:
                parameter.copy_(0.1 * noise + float(name.endswith("weight")))
                if name.endswith("qkv.bias"):  # EVA has none for the keys
                    parameter.view(3, -1)[1] = 0
            else:
                parameter.copy_(noise * (1.5 / parameter[0].numel() ** 0.5))
    return model.eval().requires_grad_(False)


def untie(model: Any) -> Any:
    """Flan-T5 has an output matrix of its own, which transformers 5 ties at construction."""
    if model.config.model_type == "t5":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def random_language(kind: str, seed: int = 0) -> Any:
    automatic = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    return randomise_weights(untie(automatic.from_config(language_config(kind))), seed)


def save_language(kind: str, folder: Path, seed: int = 0) -> Path:
    """As people publish it: a transformers folder with a tokenizer.json."""
    random_language(kind, seed).save_pretrained(folder)
    byte_tokenizer(kind).save(str(folder / "tokenizer.json"))
    return folder


def tiny_captioner(kind: str, seed: int = 0) -> Captioner:
    """A whole generative model; LLaMA's Q-Former reads the prompt."""
    language = random_language(kind, seed)
    about = read_language_config(
        language.config, byte_tokenizer(kind), Path("tiny"), reads_prompt=kind == "llama"
    )
    config = tiny_config()
    net = Captioner(CaptionerConfig(config.vision, config.qformer, about), torch.nn.Identity())
    randomise_weights(net, seed)
    net.language = language
    return net


def save_tiny_captioner(kind: str, folder: Path, seed: int = 0) -> Path:
    prompts = tiny_tokenizer() if kind == "llama" else None
    save_captioner(folder, tiny_captioner(kind, seed), byte_tokenizer(kind), prompts)
    return folder
