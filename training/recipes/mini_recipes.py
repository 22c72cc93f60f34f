"""Recipes of the bundled models, mini and mini-captioner, and of training them on.

A recipe is a function that returns one complete config. Run it with `qseek train stage1 --recipe mini`, for example.
"""

from __future__ import annotations

from dataclasses import replace

from engine.blip2.config import mini
from engine.datasets.captioned_sets import SourceConfig
from engine.datasets.question_sets import QuestionConfig
from training.capfilt.capfilt_config import CapfiltConfig
from training.loop.optimizer import OptimConfig
from training.stages.distillation import DistillConfig, Phase
from training.stages.finetuning import CaptionConfig, VqaConfig
from training.stages.small_language_model import TrainLanguageConfig
from training.stages.stage1_config import Stage1Config
from training.stages.stage2_config import Stage2Config
from training.stages.text_half import TextConfig

FLICKR8K = (SourceConfig("flickr8k-train-*.tar"),)
UNLABELLED = ("coco-unlabelled-*.tar", "imagenet-sample-*.tar", "imagenette-*.tar")


def mini_encoder() -> DistillConfig:
    """Mini's image encoder: a MobileNetV2 from random weights, taught block by block; about an hour on two cores.

    17,054 pictures (Flickr8k train, unlabelled COCO, an ImageNet sample, Imagenette). Parts: stem 0, blocks 1-17,
    head 18. "early" (to stride 8) and "late" share no parts and may run at the same time (`--phase`); "chain" teaches
    the late ones again to mend what the early ones get wrong.
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
    """Mini's image encoder, trained on as a whole, by its last features; 45 minutes on two cores."""
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
    """Mini's text half, from paraphrases: 136,310 captions of 27,262 photos (Flickr30k train, none of Flickr8k's)."""
    optim = OptimConfig(steps=1600, batch=192, lr=8e-4, warmup=60, clip=1.0, seed=4, dtype="auto")
    return TextConfig(mini(), ("flickr30k-train-captions.tsv.gz",), optim)


def mini_language() -> TrainLanguageConfig:
    """Mini's language model: an OPT of 3 layers, width 256, from 136,310 captions of 27,262 photos (Flickr30k)."""
    optim = OptimConfig(steps=1500, batch=64, lr=2e-3, warmup=100, clip=1.0, seed=10, dtype="auto")
    return TrainLanguageConfig(("flickr30k-train-captions.tsv.gz",), optim)


def mini_stage1() -> Stage1Config:
    """Mini's Q-Former: ITC, then ITC + ITM + ITG, on Flickr8k train (6,000 pictures, 5 captions each)."""
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


def mini_tuned() -> Stage1Config:
    """The bundled mini: the recipe `mini`'s model, whose encoder's later parts learn from ITC, then all losses again.

    The encoder's parts from 7 on (stride 8), 700 steps of 128 pairs; then 700 steps of 96 pairs on its patches; the
    weights before and after these are averaged.
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
    """One of the runs whose mean is the bundled mini: ITC trains its encoder's later parts on; 400 steps of 128 pairs.

    Each has a seed and pictures of its own (`--name`, `--set encoder_optim.seed`, `--set pictures`).
    """
    encoder = OptimConfig(steps=400, batch=128, lr=3e-4, warmup=40, clip=1.0, seed=11, log_every=25)
    nothing = OptimConfig(steps=0, batch=96, lr=3e-4, seed=12)
    return replace(mini_tuned(), encoder_optim=encoder, optim=nothing, earlier_share=0.0, views=2)


def mini_again() -> Stage1Config:
    """The bundled mini: the mean of such runs (`qseek models average`), then all losses again, the encoder frozen."""
    return replace(mini_tuned(), start="mini-soup", encoder_optim=None, earlier_share=0.75)


def mini_retrieval() -> Stage1Config:
    """The bundled mini, trained on: give captions of your own with --set 'sources=[{"path": "mine.json"}]'.

    Global batch 64, 1,000 steps, the encoder frozen, captions of one photo never each other's negatives.
    """
    optim = OptimConfig(steps=1000, batch=64, lr=1e-4, warmup=50, clip=1.0, seed=9, dtype="auto")
    return Stage1Config(mini(), FLICKR8K, optim, start="mini", picture_ids=True, workers=2)


def mini_captioner() -> Stage2Config:
    """Mini's captioner: the bundled mini before the recipe `mini-language`'s, on Flickr8k train."""
    optim = OptimConfig(
        steps=2500, batch=64, lr=6e-4, min_lr=3e-5, warmup=100, clip=1.0, seed=8, dtype="auto"
    )
    return Stage2Config(
        FLICKR8K, optim, start="mini", views=4, smallest_crop=0.6, question=None, repetition_penalty=1.4
    )


def mini_capfilt() -> CapfiltConfig:
    """Captions for the uncaptioned COCO photos: the teacher's label where it is sure, and what mini draws well.

    mini was trained with smoothed labels, which leave 0.1 of the probability to words that mean nothing: the
    temperature takes it back. Of ten drawn captions the best two stay where they score 0.8, as what people
    wrote does on average.
    """
    return CapfiltConfig(
        ("coco-unlabelled-*.tar",), originals="kept", label_least=0.5, least=0.8, temperature=0.6
    )


def mini_capfilt_labelled() -> CapfiltConfig:
    """Captions for labelled photos, one of each ImageNet class: their label, and what mini draws well."""
    return CapfiltConfig(("imagenet-sample-*.tar",), originals="kept", least=0.8, keep=1, temperature=0.6)


def mini_capfilt_captioned() -> CapfiltConfig:
    """Flickr8k train's five captions and ten drawn ones compete; the five that fit best are kept."""
    return CapfiltConfig(("flickr8k-train-*.tar",), keep=5, originals="ranked", temperature=0.6)


def mini_captions() -> CaptionConfig:
    """A captioning model trained on: give captions of your own with --set 'sources=[{"path": "mine.json"}]'.

    Global batch 16, 500 steps, at the start's pixels, the encoder frozen. Starts from the bundled `mini-captioner`;
    --set start=FOLDER for another.
    """
    optim = OptimConfig(steps=500, batch=16, lr=1e-4, warmup=25, clip=1.0, seed=10, dtype="auto")
    return CaptionConfig(FLICKR8K, optim, "mini-captioner", workers=2)


def mini_vqa() -> VqaConfig:
    """A captioning model taught to answer: --set 'sources=[{"path": "questions.json", "images": "photos"}]'.

    A row of the list has "image", "question" and "answer" (a text, or a list with repeats). Global batch 16, 500 steps,
    the encoder frozen. Starts from the bundled `mini-captioner`; the Q-Former reads the question by mini's text branch.
    """
    optim = OptimConfig(steps=500, batch=16, lr=1e-4, warmup=25, clip=1.0, seed=11, dtype="auto")
    sources = (QuestionConfig("questions.json", images="photos"),)
    return VqaConfig(
        sources, optim, "mini-captioner", max_tokens=64, reads_prompt=True, text_start="mini", workers=2
    )
