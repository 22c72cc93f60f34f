"""Samples/s of a stage-1 training step beside a plain transcription of the original's: same weights, dtype and run.

    python tests/bench/stage1_speed.py [--batch 8] [--steps 5] [--dtype bfloat16] [--patches 257] [--layers 12]

The full-size Q-Former (ViT-g's patch width) on made-up patches; forward, backward and AdamW's step, without dropout.
The original: every pass by itself over all of its rows, texts padded to 32 tokens, the photo's keys and values made
anew in each pass that reads it, the vocabulary scored for padding too. Both draw the same negatives; the losses of the
first step are compared before anything is measured. The rounds alternate, so that both see the same machine.
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

LENGTHS = (9, 13, 11, 15, 10, 12, 19, 14)  # COCO captions: 8 to 20 tokens, 12 on average
PADDED = 32
DEC = 30522


def bert_layer(
    model: Retriever, hidden: Tensor, num_queries: int, mask: Tensor | None, patches: Tensor | None,
    past: list[KeysValues] | None = None,
) -> tuple[Tensor, list[KeysValues]]:  # fmt: skip
    """All layers over queries and text together, as LAVIS' BertModel goes through them -> hidden, keys and values."""
    kept = []
    for number, layer in enumerate(model.qformer.layers):
        own = layer.attention.compute_keys_values(hidden)
        if past is not None:
            own = torch.cat([past[number][0], own[0]], dim=2), torch.cat([past[number][1], own[1]], dim=2)
        kept.append(own)
        hidden = layer.attention(hidden, own, mask)
        queries, text = hidden[:, :num_queries], hidden[:, num_queries:]
        if num_queries:
            if layer.cross_attention is not None and patches is not None:
                queries = layer.cross_attention(
                    queries, layer.cross_attention.compute_keys_values(patches), None
                )
            queries = layer.query_mlp(queries)
        hidden = torch.cat([queries, layer.text_mlp(text)], dim=1) if text.shape[1] else queries
    return hidden, kept


def original_losses(
    model: Retriever, patches: Tensor, ids: Tensor, mask: Tensor, draws: Tensor
) -> dict[str, Tensor]:
    """`Blip2Qformer.forward` on one GPU, loss by loss."""
    former, batch = model.qformer, len(ids)
    num = former.config.num_queries
    embedded = former._embed_queries(batch, None)
    hidden, past = bert_layer(model, embedded, num, None, patches)
    photos = F.normalize(model.photo_head(hidden).float(), dim=-1)
    text, _ = bert_layer(model, former._embed_texts(ids), 0, masks.padding_mask(mask), None)
    texts = F.normalize(model.text_head(text[:, 0]).float(), dim=-1)
    scores = itc_similarities(photos, texts, photos, texts, model.temperature)
    own = torch.eye(batch, dtype=torch.bool, device=ids.device)
    photo_for_text = draw_negatives(scores.text_to_photo, own, draws[0])
    text_for_photo = draw_negatives(scores.photo_to_text, own, draws[1])
    all_ids = torch.cat([ids, ids, ids[text_for_photo]])
    all_masks = torch.cat([mask, mask, mask[text_for_photo]])
    all_patches = torch.cat([patches, patches[photo_for_text], patches])
    both = torch.cat([former._embed_queries(3 * batch, None), former._embed_texts(all_ids)], dim=1)
    joint, _ = bert_layer(model, both, num, masks.bidirectional_mask(all_masks, num), all_patches)
    logits = model.match_head(joint[:, :num]).float().mean(dim=1)
    read = torch.cat([torch.full_like(ids[:, :1], DEC), ids[:, 1:]], dim=1)
    written, _ = bert_layer(
        model, former._embed_texts(read), 0, masks.causal_text_mask(mask, num), None, past
    )
    scored = model.caption_head(written, former.words)[:, :-1].float()
    wanted = read[:, 1:].masked_fill(~mask[:, 1:], -100)
    itg = F.cross_entropy(scored.flatten(0, 1), wanted.flatten(), label_smoothing=0.1)
    itc, itm = itc_loss(scores), itm_loss(logits, batch)
    return {"itc": itc, "itm": itm, "itg": itg}


def our_losses(
    model: Retriever, patches: Tensor, ids: Tensor, mask: Tensor, draws: Tensor
) -> dict[str, Tensor]:
    longest = int(mask.sum(1).max())
    got = stage1_losses(model, patches, ids[:, :longest], mask[:, :longest], dec_id=DEC, draws_2N=draws)
    return {"itc": got.itc, "itm": got.itm, "itg": got.itg}


Losses = Callable[[Retriever, Tensor, Tensor, Tensor, Tensor], dict[str, Tensor]]


def make_step(
    model: Retriever, losses_of: Losses, inputs: tuple[Tensor, ...], dtype: str
) -> Callable[[], float]:
    """A whole training step, and the seconds that it takes. Both sides train the same weights in turn."""
    weights = TrainedWeights(model, dtype)
    optimizer = make_optimizer(weights.masters, OptimConfig(steps=1, batch=len(inputs[1]), lr=1e-6))
    on_gpu = inputs[0].is_cuda

    def step() -> float:
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        patches = model.vision_norm(inputs[0].to(model.vision_norm.weight.dtype))
        torch.stack(list(losses_of(model, patches, *inputs[1:]).values())).sum().backward()
        weights.move_gradients_to_masters()
        optimizer.step()
        weights.copy_masters_to_model()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    return step


def make_inputs(batch: int, patches: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    lengths = torch.tensor([LENGTHS[i % len(LENGTHS)] for i in range(batch)])
    mask = torch.arange(PADDED) < lengths[:, None]
    ids = torch.randint(1000, 30000, (batch, PADDED), generator=random) * mask
    made = (
        torch.randn(batch, patches, width, generator=random),
        ids,
        mask,
        torch.rand(2, batch, generator=random),
    )
    return tuple(one.to(device) for one in made)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--patches", type=int, default=257)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--no-report", action="store_true", help="print the table and write no file")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = vit_g()
    tiny = {
        "embed_dim": 1408,
        "depth": 1,
        "img_size": 224,
    }  # the encoder takes no part: its patches are made up
    config = replace(
        config,
        vision=replace(config.vision, timm_args=tiny),
        qformer=replace(config.qformer, num_layers=options.layers, dropout=0.0),
    )
    torch.manual_seed(0)
    model = Retriever(config).to(device).train()
    model.vision.requires_grad_(False)
    with torch.no_grad():  # stronger than BERT's initialisation, so that the losses show what a pass reads
        for parameter in model.qformer.layers.parameters():
            parameter.mul_(3.0 if parameter.ndim == 2 else 1.0)
    inputs = make_inputs(options.batch, options.patches, config.vision.num_channels, device)
    with torch.no_grad():
        normed = model.vision_norm(inputs[0])
        ours, theirs = (f(model, normed, *inputs[1:]) for f in (our_losses, original_losses))
    apart = max(float((ours[name] - theirs[name]).abs()) for name in ours)
    if apart > 1e-3:
        raise SystemExit(f"the two steps' losses differ by {apart:.1e}: {ours} {theirs}")
    sides: dict[str, Losses] = {"ours": our_losses, "the original": original_losses}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    step_of = {name: make_step(model, losses_of, inputs, options.dtype) for name, losses_of in sides.items()}
    for step in step_of.values():
        step()
    for _ in range(options.steps):
        for name, step in step_of.items():
            seconds[name].append(step())
    rows = [[name, spread(some), f"{options.batch / median(some):.2f}"] for name, some in seconds.items()]
    ratio = median(seconds["the original"]) / median(seconds["ours"])
    parts = [
        f"Batch {options.batch}, {options.patches} patches, {options.layers} layers, {options.dtype}, "
        f"{options.steps} steps each in turn; captions of 9 to 19 tokens, padded to {PADDED} in the original's.",
        table(["step", "ms (least-largest)", "samples/s"], rows),
        f"Ours is {ratio:.2f} times as fast (wanted: 1.5). Losses of the first step differ by {apart:.1e}.",
    ]
    if options.no_report:
        print("\n\n".join(parts))
    else:
        write_report("stage1_speed", parts)


if __name__ == "__main__":
    main()
