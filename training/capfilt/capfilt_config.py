"""The settings of a CapFilt run, and errors for settings that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.blip2.generation import GenerationOptions
from engine.datasets.photo_numbers import PhotoSets
from engine.errors import DataError
from training.capfilt.photo_labels import check_texts


def outline_capfilt(config: CapfiltConfig, data: Path, runs: Path) -> Iterator[str]:
    """Yield the lines of `--dry-run`: what would be drawn, ranked and kept.

    The number of photos is left out when the sets cannot be opened.
    """
    try:
        count = f"{len(PhotoSets(config.pictures, data, runs)):,} photos"
    except DataError:
        count = "photos"
    yield (
        f"{count} of {', '.join(config.pictures)}: {config.per_photo} captions drawn of each by {config.captioner}, "
        f"ranked by {config.matcher}"
    )
    score_text = "" if config.least is None else f" that score at least {config.least:g}"
    yield f"kept: the best {config.keep}{score_text}; the photos' own captions and labels: {config.originals}"
    if config.label_least is not None:
        yield f"labels of the teacher, where their probability is at least {config.label_least:g}"


ORIGINALS = ("none", "ranked", "kept")
"""The ways in which a run treats the captions that photos have: leave them out, rank them with the drawn ones, or
keep all.
"""


@dataclass(frozen=True)
class CapfiltConfig:
    """The settings of a CapFilt run: which photos get captions, by which models, and which captions are kept.

    pictures: names of sets, see `captioned_sets.read_small_sets`.
    captioner: a run or the name of a model, of stage 2 or a retrieval model with an ITG head.
    matcher: a run or the name of a retrieval model, which ranks the captions.
    per_photo: number of captions to draw of each photo, 0 to filter the photos' own; equal captions count once.
    keep: number of captions that stay, the best by score.
    originals: a photo's own captions are "ranked" with the drawn ones, all "kept" beside the best drawn ones, or left
    out ("none").
    label_texts: texts that turn a photo's label into captions of its own (`photo_labels.label_captions`).
    label_least: photos without a label get the teacher's label where its probability is at least this; None for never.
    least: captions with a lower score are dropped, and photos left without any; originals="kept" stay in any case.
    top_p, temperature: see `GenerationOptions`.
    min_tokens, max_tokens: length of a drawn caption, its end included (BLIP: 5 to 20).
    prompt: the beginning of a caption that a stage-2 captioner continues.
    photos_at_once: number of photos in a pass. shard_photos: number of photos in a tar file. seed: decides the draws.
    """

    pictures: tuple[str, ...]
    captioner: str = "mini"
    matcher: str = "mini"
    per_photo: int = 10
    keep: int = 2
    originals: str = "none"
    label_texts: tuple[str, ...] = ("{label}", "a photo of {a}")
    label_least: float | None = None
    least: float | None = None
    top_p: float = 0.9
    temperature: float = 1.0
    min_tokens: int = 5
    max_tokens: int = 20
    prompt: str = "a photo of"
    photos_at_once: int = 16
    shard_photos: int = 1000
    seed: int = 0


def check_capfilt_config(config: CapfiltConfig) -> None:
    """Raise DataError for settings that contradict each other or are out of range."""
    if config.originals not in ORIGINALS:
        raise DataError(f"originals is {config.originals!r}; it must be one of {', '.join(ORIGINALS)}.")
    if config.per_photo < 0 or (config.per_photo == 0 and config.originals != "ranked"):
        raise DataError(
            f"per_photo is {config.per_photo}; draw at least one caption, or 0 to filter the photos' own "
            "(originals=ranked)."
        )
    check_texts(config.label_texts)
    if config.label_least is not None:
        if not 0 <= config.label_least <= 1:
            raise DataError(f"label_least is {config.label_least}; it is a probability, 0 to 1.")
        if config.originals == "none" or not config.label_texts:
            raise DataError(
                "label_least asks for labels that nothing uses; set originals=kept (or ranked) and label_texts."
            )
    for name in ("keep", "photos_at_once", "shard_photos"):
        if getattr(config, name) < 1:
            raise DataError(f"{name} is {getattr(config, name)}; it must be at least 1.")
    if config.originals != "ranked" and config.keep > config.per_photo:
        raise DataError(
            f"keep is {config.keep}, but only {config.per_photo} captions are drawn of each photo (per_photo); keep "
            "fewer or draw more."
        )
    if not 1 <= config.min_tokens <= config.max_tokens:
        raise DataError(
            f"min_tokens is {config.min_tokens} and max_tokens is {config.max_tokens}; they must be at least 1, and "
            "min_tokens must not be above max_tokens."
        )
    try:
        GenerationOptions(top_p=config.top_p, temperature=config.temperature)
    except ValueError as error:
        raise DataError(f"{error}.") from None
