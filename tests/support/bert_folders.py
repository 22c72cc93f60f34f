"""Write folders of a random BERT as Hugging Face transformers saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny import SPECIAL, tiny_tokenizer
from transformers import BertConfig, BertForMaskedLM


def save_bert_folder(
    folder: Path, kind: Any = BertForMaskedLM, *, pickled: bool = False, **changes: Any
) -> Any:
    """Save a small BERT with strong random weights, and its vocab.txt; return the model.

    folder: where it is saved. kind: its class in transformers. pickled: write pytorch_model.bin instead of
    safetensors. changes: fields of its BertConfig.
    """
    pieces = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
    words = [piece for piece, _ in pieces if piece != SPECIAL[-1]]  # BERT does not know [DEC].
    sizes = {
        "vocab_size": len(words),
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 16,
    }
    torch.manual_seed(1)
    model = kind(BertConfig(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if parameter.ndim == 1 else 0.0))
    folder.mkdir(exist_ok=True)
    model.save_pretrained(folder)
    if pickled:
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return model
