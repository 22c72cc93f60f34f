"""Compute the small golden arrays, which tests compare with what the model gave when it equalled the original code.

They cover more than the recordings in tests/golden/original, for example losses with given negatives. Weights and
inputs come from the formula of `reference.py`, under the tensor names of this project. `make golden` alone writes the
file of the arrays; a change of it is visible in the diff.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from caption_logits import caption_logits
from reference import draw_normal, draw_weight, small_config

from engine.blip2.itg_decoding import search_captions
from engine.blip2.retriever import Retriever
from training.losses.stage1_losses import stage1_losses

FILE = Path(__file__).parents[1] / "golden" / "small.npz"
IDS = torch.tensor([[101, 7, 8, 9, 102, 0, 0], [101, 5000, 102, 0, 0, 0, 0], [101, 3, 1, 4, 1, 5, 102]])


def compute_arrays() -> dict[str, np.ndarray]:
    """Compute every head and loss of the small model, which has the formula's weights, on three pairs."""
    model = Retriever(small_config()).eval().requires_grad_(False)
    state = model.state_dict()
    model.load_state_dict(
        {name: draw_weight(name, tensor.shape, 0.12, 0.1) for name, tensor in state.items()}
    )
    model.temperature.fill_(0.07)
    patches = model.encode_patches(draw_normal(11, (3, 3, 56, 56)))
    keys = model.compute_photo_keys(patches)
    mask = IDS != 0
    negatives = torch.tensor([1, 2, 0]), torch.tensor([2, 0, 1])
    losses = stage1_losses(model, patches, IDS, mask, dec_id=30522, negatives=negatives)
    _, past = model.qformer.read_photos(keys)
    arrays = {
        "patches": patches[:, ::4, ::8],
        "photos": model.encode_photos(keys)[..., ::8],
        "texts": model.encode_texts(IDS, mask)[..., ::4],
        "match": model.match(keys, IDS, mask),
        "caption_logits": caption_logits(model, past, IDS, mask)[..., ::997][mask],
        "greedy": search_captions(model, keys, dec_id=30522, sep_id=102, max_length=8),
        "beams": search_captions(model, keys, dec_id=30522, sep_id=102, num_beams=3, max_length=8),
        "losses": torch.stack([losses.itc, losses.itm, losses.itg]),
    }
    return {name: array.numpy() for name, array in arrays.items()}


if __name__ == "__main__":
    np.savez_compressed(FILE, **compute_arrays())
    print(f"Wrote {FILE}: {FILE.stat().st_size} bytes.")
