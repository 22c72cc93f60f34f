"""Measure the samples/s of a training step of stage 1 beside a plain transcription of the original's step.

    python tests/bench/stage1_speed.py [--batch 8] [--steps 5] [--dtype bfloat16] [--patches 257] [--layers 12]

Both sides train the full-size Q-Former (with ViT-g's patch width) on random patches, with the same weights and dtype:
forward, backward and AdamW's step, without dropout. The original computes each pass by itself over all of its rows,
pads texts to 32 tokens, computes a photo's keys and values again in each pass that reads the photo, and scores the
vocabulary for padding too. Both draw the same negatives. The losses of the first step are compared before anything is
measured. The sides take turns, so that both run on an equally busy machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from report import median, spread, table, write_report
from torch import Tensor

from engine.blip2 import masks
from engine.blip2.config import vit_g
from engine.blip2.layers import KeysValues
from engine.blip2.retriever import Retriever
from training.loop.optimizer import OptimConfig, make_optimizer
from training.loop.trained_weights import TrainedWeights
from training.losses.itc_itm_itg import draw_negatives, itc_loss, itc_similarities, itm_loss
from training.losses.stage1_losses import stage1_losses

LENGTHS = (9, 13, 11, 15, 10, 12, 19, 14)  # Captions of COCO have 8 to 20 tokens, 12 on average.
PADDED_LENGTH = 32
DEC_ID = 30522


def run_bert_layers(
    model: Retriever,
    hidden: Tensor,
    num_queries: int,
    mask: Tensor | None,
    patches: Tensor | None,
    past: list[KeysValues] | None = None,
) -> tuple[Tensor, list[KeysValues]]:
    """Run all layers over queries and text together, as LAVIS' BertModel does.

    Returns the hidden rows and the keys and values of each layer. hidden: the embedded queries, then the text.
    past: keys and values that each layer reads before those of `hidden`.
    """
    keys_values_of_layers = []
    for number, layer in enumerate(model.qformer.layers):
        keys, values = layer.attention.compute_keys_values(hidden)
        if past is not None:
            past_keys, past_values = past[number]
            keys, values = torch.cat([past_keys, keys], dim=2), torch.cat([past_values, values], dim=2)
        keys_values_of_layers.append((keys, values))
        hidden = layer.attention(hidden, (keys, values), mask)
        queries, text = hidden[:, :num_queries], hidden[:, num_queries:]
        if num_queries:
            if layer.cross_attention is not None and patches is not None:
                queries = layer.cross_attention(
                    queries, layer.cross_attention.compute_keys_values(patches), None
                )
            queries = layer.query_mlp(queries)
        hidden = torch.cat([queries, layer.text_mlp(text)], dim=1) if text.shape[1] else queries
    return hidden, keys_values_of_layers


def original_losses(
    model: Retriever, patches: Tensor, ids: Tensor, mask: Tensor, draws: Tensor
) -> dict[str, Tensor]:
    """Compute the three losses as LAVIS' `Blip2Qformer.forward` does on one GPU: ITC, then ITM, then ITG."""
    qformer, batch = model.qformer, len(ids)
    num_queries = qformer.config.num_queries
    queries = qformer._embed_queries(batch, None)
    hidden, past = run_bert_layers(model, queries, num_queries, None, patches)
    photos = F.normalize(model.photo_head(hidden).float(), dim=-1)
    text_hidden, _ = run_bert_layers(model, qformer._embed_texts(ids), 0, masks.padding_mask(mask), None)
    texts = F.normalize(model.text_head(text_hidden[:, 0]).float(), dim=-1)
    scores = itc_similarities(photos, texts, photos, texts, model.temperature)

    is_pair = torch.eye(batch, dtype=torch.bool, device=ids.device)
    photo_for_text = draw_negatives(scores.text_to_photo, is_pair, draws[0])
    text_for_photo = draw_negatives(scores.photo_to_text, is_pair, draws[1])
    all_ids = torch.cat([ids, ids, ids[text_for_photo]])
    all_masks = torch.cat([mask, mask, mask[text_for_photo]])
    all_patches = torch.cat([patches, patches[photo_for_text], patches])
    inputs = torch.cat([qformer._embed_queries(3 * batch, None), qformer._embed_texts(all_ids)], dim=1)
    match_mask = masks.bidirectional_mask(all_masks, num_queries)
    match_hidden, _ = run_bert_layers(model, inputs, num_queries, match_mask, all_patches)
    match_logits = model.match_head(match_hidden[:, :num_queries]).float().mean(dim=1)

    caption_ids = torch.cat([torch.full_like(ids[:, :1], DEC_ID), ids[:, 1:]], dim=1)
    caption_mask = masks.causal_text_mask(mask, num_queries)
    caption_hidden, _ = run_bert_layers(model, qformer._embed_texts(caption_ids), 0, caption_mask, None, past)
    caption_logits = model.caption_head(caption_hidden, qformer.words)[:, :-1].float()
    labels = caption_ids[:, 1:].masked_fill(~mask[:, 1:], -100)
    itg = F.cross_entropy(caption_logits.flatten(0, 1), labels.flatten(), label_smoothing=0.1)
    itc, itm = itc_loss(scores), itm_loss(match_logits, batch)
    return {"itc": itc, "itm": itm, "itg": itg}


def our_losses(
    model: Retriever, patches: Tensor, ids: Tensor, mask: Tensor, draws: Tensor
) -> dict[str, Tensor]:
    """Compute the three losses with the code that training uses."""
    longest = int(mask.sum(1).max())
    losses = stage1_losses(model, patches, ids[:, :longest], mask[:, :longest], dec_id=DEC_ID, draws_2N=draws)
    return {"itc": losses.itc, "itm": losses.itm, "itg": losses.itg}


Losses = Callable[[Retriever, Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]


def make_step(
    model: Retriever, compute_losses: Losses, inputs: tuple[Tensor, ...], dtype: str
) -> Callable[[], float]:
    """Return a function that takes a whole training step and returns its seconds.

    Both sides train the same weights in turn. inputs: from `make_inputs`. dtype: that of training.
    """
    weights = TrainedWeights(model, dtype)
    optimizer = make_optimizer(weights.masters, OptimConfig(steps=1, batch=len(inputs[1]), lr=1e-6))
    on_gpu = inputs[0].is_cuda

    def step() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        patches = model.vision_norm(inputs[0].to(model.vision_norm.weight.dtype))
        torch.stack(list(compute_losses(model, patches, *inputs[1:]).values())).sum().backward()
        weights.move_gradients_to_masters()
        optimizer.step()
        weights.copy_masters_to_model()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return step


def make_inputs(batch: int, num_patches: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
    """Return random patches (B, P, V), token ids (B, T), the mask of the tokens, and draws (2, B) of negatives."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([LENGTHS[number % len(LENGTHS)] for number in range(batch)])
    mask = torch.arange(PADDED_LENGTH) < lengths[:, None]
    ids = torch.randint(1000, 30000, (batch, PADDED_LENGTH), generator=generator) * mask
    patches = torch.randn(batch, num_patches, width, generator=generator)
    draws = torch.rand(2, batch, generator=generator)
    return patches.to(device), ids.to(device), mask.to(device), draws.to(device)


def make_model(num_layers: int, device: torch.device) -> Retriever:
    """Return a random network with ViT-g's patch width and a full-size Q-Former of this many layers, in training
    mode.
    """
    config = vit_g()
    # The image encoder is never called, because the patches are random; so it is small.
    encoder_arguments = {"embed_dim": 1408, "depth": 1, "img_size": 224}
    config = replace(
        config,
        vision=replace(config.vision, timm_args=encoder_arguments),
        qformer=replace(config.qformer, num_layers=num_layers, dropout=0.0),
    )
    torch.manual_seed(0)
    model = Retriever(config).to(device).train()
    model.vision.requires_grad_(False)
    # The weights are larger than BERT's initial ones, so that the losses depend on what each pass reads.
    with torch.no_grad():
        for parameter in model.qformer.layers.parameters():
            parameter.mul_(3.0 if parameter.ndim == 2 else 1.0)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8, help="Number of samples in a batch.")
    parser.add_argument("--steps", type=int, default=5, help="Number of steps that each side is measured.")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="bfloat16", help="Type that training computes in."
    )
    parser.add_argument("--patches", type=int, default=257, help="Number of patches of a picture.")
    parser.add_argument("--layers", type=int, default=12, help="Number of layers of the Q-Former.")
    parser.add_argument("--no-report", action="store_true", help="Print the table and write no file.")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = make_model(options.layers, device)
    inputs = make_inputs(options.batch, options.patches, model.config.vision.num_channels, device)
    with torch.no_grad():
        patches = model.vision_norm(inputs[0])
        ours = our_losses(model, patches, *inputs[1:])
        theirs = original_losses(model, patches, *inputs[1:])
    difference = max(float((ours[name] - theirs[name]).abs()) for name in ours)
    if difference > 1e-3:
        raise SystemExit(f"The losses of the two sides differ by {difference:.1e}: {ours} and {theirs}.")
    sides: dict[str, Losses] = {"ours": our_losses, "the original": original_losses}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    steps = {
        name: make_step(model, compute_losses, inputs, options.dtype)
        for name, compute_losses in sides.items()
    }
    for step in steps.values():
        step()  # The first step of each side warms up.
    for _ in range(options.steps):
        for name, step in steps.items():
            seconds[name].append(step())
    rows = [[name, spread(times), f"{options.batch / median(times):.2f}"] for name, times in seconds.items()]
    ratio = median(seconds["the original"]) / median(seconds["ours"])
    parts = [
        f"A step trains {options.layers} layers in {options.dtype} on {options.batch} samples with {options.patches} "
        f"patches each. Both sides took turns for {options.steps} steps. Captions have 9 to 19 tokens; the original "
        f"pads them to {PADDED_LENGTH}.",
        table(["step", "ms (least-largest)", "samples/s"], rows),
        f"Ours is {ratio:.2f} times as fast (wanted: 1.5). The losses of the first step differ by {difference:.1e}.",
    ]
    if options.no_report:
        print("\n\n".join(parts))
    else:
        write_report("stage1_speed", parts)


if __name__ == "__main__":
    main()
