"""The paper's recipes for stage 1 and for retrieval fine-tuning (BLIP-2, section 3.4 and appendix, and its code).

Paths are those of the data folder that `qseek train --data` names; `--set sources=...` reads other sets. Batch sizes
count the pairs of all processes together. The expected scores are quoted from the paper: no such run was made here.
"""

from __future__ import annotations

from collections.abc import Callable

from engine.blip2.config import Blip2Config, vit_g, vit_l
from engine.datasets.captioned_sets import SourceConfig
from training.loop.optimizer import OptimConfig
from training.stages.stage1_config import Stage1Config

# A weight is the number of the set's pairs, in millions (BLIP, arXiv:2201.12086, appendix), so that all pairs are read
# equally often.
PRETRAINING_SETS = (
    SourceConfig("coco_karpathy_train.json", weight=0.567, images="coco"),
    SourceConfig("vg_caption.json", weight=0.769, images="visual_genome"),
    SourceConfig("sbu-*.tar", weight=0.860),
    SourceConfig("cc3m-*.tar", weight=3.0),
    SourceConfig("cc12m-*.tar", weight=10.0),
    SourceConfig("laion-*.tar", weight=115.0),
)
COCO_TRAIN = (SourceConfig("coco_karpathy_train.json", images="coco"),)


def _stage1(model: Blip2Config, batch: int, encoder: str) -> Stage1Config:
    optim = OptimConfig(
        steps=250_000,
        batch=batch,
        lr=1e-4,
        min_lr=1e-5,
        warmup=2000,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        dtype="auto",
    )
    return Stage1Config(model, PRETRAINING_SETS, optim, encoder=encoder, bert="bert-base-uncased")


def blip2_vit_g() -> Stage1Config:
    """Train BLIP-2's stage 1 with EVA-CLIP ViT-g: batch 1680, 250,000 steps on 129M pairs at 224 px.

    The learning rate falls from 1e-4 to 1e-5 after a warm-up of 2,000 steps; betas 0.9 and 0.98, weight decay 0.05,
    crops of half the area or more, flips. Needs `eva_g.safetensors` (timm's eva_giant_patch14_clip_224) and
    `bert-base-uncased/`. The paper took less than six days on 16 A100 (40 GB). Expected: a model from which
    `coco-vit-g` starts; the paper reports zero-shot retrieval only after that fine-tuning.
    """
    return _stage1(vit_g(), 1680, "eva_g.safetensors")


def blip2_vit_l() -> Stage1Config:
    """Train BLIP-2's stage 1 with CLIP ViT-L: batch 2320, 250,000 steps on 129M pairs at 224 px.

    All other settings are those of `blip2-vit-g`. Needs `clip_l.safetensors` (timm's
    vit_large_patch14_clip_quickgelu_224) and `bert-base-uncased/`. Expected: a model from which `coco-vit-l` starts.
    """
    return _stage1(vit_l(), 2320, "clip_l.safetensors")


COCO_PAIRS = 566_747
"""Number of captions in COCO's Karpathy training split (113,287 pictures)."""


def _coco(
    model: Blip2Config, start: str, lr: float, layer_decay: float, betas: tuple[float, float]
) -> Stage1Config:
    optim = OptimConfig(
        steps=5 * (COCO_PAIRS // 224),
        batch=224,
        lr=lr,
        min_lr=0.0,
        warmup=1000,
        betas=betas,
        weight_decay=0.05,
        dtype="auto",
        layer_decay=layer_decay,
    )
    return Stage1Config(
        model, COCO_TRAIN, optim, start=start, picture_ids=True, train_encoder=True, recompute_encoder=True
    )


def coco_vit_g() -> Stage1Config:
    """Fine-tune ViT-g for retrieval on COCO: batch 224, 5 epochs (12,650 steps) at 364 px.

    The learning rate falls from 1e-5 to 0 after a warm-up of 1,000 steps; layer decay 0.95, betas 0.9 and 0.999, the
    encoder is trained, and captions of one picture share the targets of ITC. The losses are ITC, ITM and ITG. Starts
    from the run `blip2-vit-g` (`--set start=FOLDER` for another). Expected on COCO 5K: TR@1 85.4, IR@1 68.3; zero-shot
    on Flickr30K 1K: TR@1 97.6, IR@1 89.7.
    """
    return _coco(vit_g(364), "blip2-vit-g", 1e-5, 0.95, (0.9, 0.999))


def coco_vit_l() -> Stage1Config:
    """Fine-tune ViT-L for retrieval on COCO: batch 224, 5 epochs (12,650 steps) at 364 px.

    The learning rate falls from 5e-6 to 0 after a warm-up of 1,000 steps; no layer decay, betas 0.9 and 0.98, the
    encoder is trained. Starts from the run `blip2-vit-l`. Expected on COCO 5K: TR@1 83.5, IR@1 66.3; zero-shot on
    Flickr30K 1K: TR@1 96.9, IR@1 88.6.
    """
    return _coco(vit_l(364), "blip2-vit-l", 5e-6, 1.0, (0.9, 0.98))


STAGE1: dict[str, Callable[[], Stage1Config]] = {"blip2-vit-g": blip2_vit_g, "blip2-vit-l": blip2_vit_l}
RETRIEVAL: dict[str, Callable[[], Stage1Config]] = {"coco-vit-g": coco_vit_g, "coco-vit-l": coco_vit_l}
