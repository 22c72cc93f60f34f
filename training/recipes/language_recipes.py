"""The paper's recipes with a language model: stage 2, COCO captions, questions (BLIP-2, 3.3, 3.4, tables 7 and 8).

The image encoder is ViT-g; the language model is OPT 2.7B, OPT 6.7B or Flan-T5 XL. Batch sizes count the pairs of all
processes together; `--set chunk=8` computes the share of a process in parts of 8 pairs. Paths are those of the data
folder. The expected scores are quoted from the paper: no such run was made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.blip2.config import vit_g
from engine.datasets.question_sets import QuestionConfig
from training.loop.optimizer import OptimConfig
from training.recipes.blip2_recipes import COCO_PAIRS, COCO_TRAIN, PRETRAINING_SETS
from training.stages.finetuning import CaptionConfig, VqaConfig
from training.stages.stage2_config import Architecture, Stage2Config

OPT = {"model_type": "opt", "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 50272}
OPT_2_7B = OPT | {"hidden_size": 2560, "ffn_dim": 10240, "word_embed_proj_dim": 2560}
OPT_6_7B = OPT | {"hidden_size": 4096, "ffn_dim": 16384, "word_embed_proj_dim": 4096}
FLAN_T5_XL = {
    "model_type": "t5",
    "d_model": 2048,
    "d_kv": 64,
    "d_ff": 5120,
    "num_layers": 24,
    "num_heads": 32,
    "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu",
}


def _architecture(language: dict[str, Any]) -> Architecture:
    return Architecture(vit_g().vision, vit_g().qformer, language)


def _stage2(language: dict[str, Any], batch: int, prefix_share: float = 0.0) -> Stage2Config:
    optim = OptimConfig(
        steps=80_000,
        batch=batch,
        lr=1e-4,
        min_lr=5e-5,
        warmup=2000,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        dtype="auto",
    )
    return Stage2Config(
        PRETRAINING_SETS,
        optim,
        "blip2-vit-g",
        _architecture(language),
        prompts=("",),
        prefix_share=prefix_share,
    )


def blip2_opt_2_7b() -> Stage2Config:
    """Train BLIP-2's stage 2 with ViT-g and OPT 2.7B: batch 1920, 80,000 steps on 129M pairs at 224 px.

    The learning rate falls from 1e-4 to 5e-5 after a warm-up of 2,000 steps; betas 0.9 and 0.98, weight decay 0.05.
    Encoder and language model (--language) are frozen, in bfloat16. Starts from the run `blip2-vit-g`. The paper took
    less than three days on 16 A100 (40 GB) for its largest model. Expected: zero-shot VQAv2 53.5 (val), 52.3
    (test-dev).
    """
    return _stage2(OPT_2_7B, 1920)


def blip2_opt_6_7b() -> Stage2Config:
    """Train BLIP-2's stage 2 with ViT-g and OPT 6.7B: batch 1920, 80,000 steps on 129M pairs at 224 px.

    All other settings are those of `blip2-opt-2.7b`. Expected: zero-shot VQAv2 54.3 (val), 52.6 (test-dev).
    """
    return _stage2(OPT_6_7B, 1920)


def blip2_flan_t5_xl() -> Stage2Config:
    """Train BLIP-2's stage 2 with ViT-g and Flan-T5 XL: batch 1520, 80,000 steps, captions cut in two at random.

    The beginning of a caption goes to the encoder with the queries, and the model learns the rest (prefix language
    modelling). All other settings are those of `blip2-opt-2.7b`. Expected: zero-shot VQAv2 63.1 (val), 63.0 (test-dev).
    """
    return _stage2(FLAN_T5_XL, 1520, prefix_share=1.0)


def _finetuning_optim(steps: int, batch: int, layer_decay: float) -> OptimConfig:
    return OptimConfig(
        steps=steps,
        batch=batch,
        lr=1e-5,
        min_lr=0.0,
        warmup=1000,
        betas=(0.9, 0.999),
        weight_decay=0.05,
        dtype="auto",
        layer_decay=layer_decay,
    )


def _caption(language: dict[str, Any], start: str, layer_decay: float) -> CaptionConfig:
    return CaptionConfig(
        COCO_TRAIN,
        _finetuning_optim(5 * (COCO_PAIRS // 256), 256, layer_decay),
        start,
        _architecture(language),
        image_size=364,
        prompts=("a photo of",),
        train_encoder=True,
        recompute_encoder=True,
    )


def coco_opt_2_7b() -> CaptionConfig:
    """Fine-tune ViT-g and OPT 2.7B on COCO captions: batch 256, 5 epochs (11,065 steps) at 364 px.

    The learning rate falls from 1e-5 to 0 after a warm-up of 1,000 steps; betas 0.9 and 0.999, weight decay 0.05, no
    layer decay, prompt "a photo of". The encoder is trained. Captions are written with 5 beams. Starts from the run or
    model `blip2-opt-2.7b`. Expected on COCO's Karpathy test split: CIDEr 145.8,
    BLEU-4 43.7; zero-shot on NoCaps (val): CIDEr 119.7.
    """
    return _caption(OPT_2_7B, "blip2-opt-2.7b", 1.0)


def coco_opt_6_7b() -> CaptionConfig:
    """Fine-tune ViT-g and OPT 6.7B on COCO captions: batch 256, 5 epochs (11,065 steps) at 364 px, layer decay 0.95.

    All other settings are those of `coco-opt-2.7b`. Expected on COCO: CIDEr 145.2, BLEU-4 43.5; zero-shot on NoCaps:
    CIDEr 121.0.
    """
    return _caption(OPT_6_7B, "blip2-opt-6.7b", 0.95)


def coco_flan_t5_xl() -> CaptionConfig:
    """Fine-tune ViT-g and Flan-T5 XL on COCO captions: batch 256, 5 epochs (11,065 steps) at 364 px.

    All other settings, layer decay among them, are those of `coco-opt-2.7b`. Expected on COCO: CIDEr 144.5, BLEU-4
    42.4; zero-shot on NoCaps: CIDEr 121.6.
    """
    return _caption(FLAN_T5_XL, "blip2-flan-t5-xl", 1.0)


VQA_TRAIN, VQA_VAL, GENOME = 443_757, 214_354, 1_445_322
"""Numbers of questions of VQAv2's train and val splits, and of Visual Genome (its version 1.2)."""
VQA_SETS = (
    QuestionConfig(
        "v2_OpenEnded_mscoco_train2014_questions.json",
        VQA_TRAIN / 1e6,
        "coco/train2014",
        "v2_mscoco_train2014_annotations.json",
    ),
    QuestionConfig(
        "v2_OpenEnded_mscoco_val2014_questions.json",
        VQA_VAL / 1e6,
        "coco/val2014",
        "v2_mscoco_val2014_annotations.json",
    ),
    QuestionConfig("vg_qa.json", GENOME / 1e6, "visual_genome"),
)


def _vqa(language: dict[str, Any], start: str, layer_decay: float, prompt: str) -> VqaConfig:
    steps = 5 * ((VQA_TRAIN + VQA_VAL + GENOME) // 128)
    return VqaConfig(
        VQA_SETS,
        _finetuning_optim(steps, 128, layer_decay),
        start,
        _architecture(language),
        image_size=490,
        prompts=(prompt,),
        max_tokens=64,
        reads_prompt=True,
        train_encoder=True,
        recompute_encoder=True,
        text_start="blip2-vit-g",
    )


def vqav2_opt_2_7b() -> VqaConfig:
    """Fine-tune ViT-g and OPT 2.7B to answer questions: batch 128, 5 epochs (82,165 steps) at 490 px.

    The sets are VQAv2 train and val and Visual Genome; without Visual Genome's `vg_qa.json`, set `sources` and 25,705
    steps. The learning rate falls from 1e-5 to 0 after a warm-up of 1,000 steps; betas 0.9 and 0.999, weight decay
    0.05, layer decay 0.95. The encoder is trained. The Q-Former also reads the prompt, "Question: {} Answer:". Answers
    are written with 5 beams. Starts from `blip2-opt-2.7b`; the Q-Former's text branch comes from the stage-1 run
    `blip2-vit-g`. Expected: VQAv2 81.59 (test-dev).
    """
    return _vqa(OPT_2_7B, "blip2-opt-2.7b", 0.95, "Question: {} Answer:")


def vqav2_opt_6_7b() -> VqaConfig:
    """Fine-tune ViT-g and OPT 6.7B to answer questions: batch 128, 5 epochs (82,165 steps) at 490 px, layer decay 0.9.

    All other settings are those of `vqav2-opt-2.7b`. Expected: VQAv2 82.19 (test-dev).
    """
    return _vqa(OPT_6_7B, "blip2-opt-6.7b", 0.9, "Question: {} Answer:")


def vqav2_flan_t5_xl() -> VqaConfig:
    """Fine-tune ViT-g and Flan-T5 XL to answer questions: batch 128, 5 epochs (82,165 steps) at 490 px.

    The prompt is "Question: {} Short answer:", as it is asked zero-shot (the paper's table 8 prints "Question: {}
    Answer:" for all three language models). All other settings, layer decay among them, are those of `vqav2-opt-2.7b`.
    Expected: VQAv2 81.55 (test-dev).
    """
    return _vqa(FLAN_T5_XL, "blip2-flan-t5-xl", 0.95, "Question: {} Short answer:")


STAGE2: dict[str, Callable[[], Stage2Config]] = {
    "blip2-opt-2.7b": blip2_opt_2_7b,
    "blip2-opt-6.7b": blip2_opt_6_7b,
    "blip2-flan-t5-xl": blip2_flan_t5_xl,
}
CAPTION: dict[str, Callable[[], CaptionConfig]] = {
    "coco-opt-2.7b": coco_opt_2_7b,
    "coco-opt-6.7b": coco_opt_6_7b,
    "coco-flan-t5-xl": coco_flan_t5_xl,
}
VQA: dict[str, Callable[[], VqaConfig]] = {
    "vqav2-opt-2.7b": vqav2_opt_2_7b,
    "vqav2-opt-6.7b": vqav2_opt_6_7b,
    "vqav2-flan-t5-xl": vqav2_flan_t5_xl,
}
