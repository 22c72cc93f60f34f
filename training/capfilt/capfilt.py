"""CapFilt: captions for photos that have none, or poor ones (BLIP, arXiv:2201.12086; BLIP-2, section 3.4).

Several captions of each photo are drawn and ranked (`caption_candidates.py`), the best written as tar shards, which the
other trainings read. Photos pass through in batches, each shard is written whole, and a run that was stopped goes on
with the next one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.json_files import write_json
from engine.datasets.photo_numbers import PhotoSets
from engine.datasets.tar_shards import write_captioned
from engine.errors import DataError, PhotoError
from engine.pictures.formats import RAW_SUFFIXES
from engine.pictures.opening import open_picture, read_bytes
from engine.pictures.picture_batches import read_batches
from engine.types import Failure
from training.capfilt.capfilt_config import CapfiltConfig, check
from training.capfilt.caption_candidates import Candidates, Caption, kept, load_parts
from training.capfilt.photo_labels import Labeller, label_captions
from training.distributed.world import World
from training.loop.run_checkpoint import flat_settings


@dataclass
class Tally:
    """What became of a shard's photos. drawn: distinct captions. Sums of scores: of all that were scored, by origin."""

    photos: int = 0
    written: int = 0
    drawn: int = 0
    originals: int = 0
    kept_drawn: int = 0
    kept_originals: int = 0
    drawn_sum: float = 0.0
    originals_sum: float = 0.0
    kept_sum: float = 0.0
    best: float | None = None
    unreadable: list[list[str]] = field(default_factory=list)

    def add(self, captions: Sequence[Caption], kept: Sequence[Caption]) -> None:
        self.written += bool(kept)
        for one in captions:
            self.best = one.score if self.best is None else max(self.best, one.score)
            if one.synthetic:
                self.drawn, self.drawn_sum = self.drawn + 1, self.drawn_sum + one.score
            else:
                self.originals, self.originals_sum = self.originals + 1, self.originals_sum + one.score
        self.kept_drawn += sum(one.synthetic for one in kept)
        self.kept_originals += sum(not one.synthetic for one in kept)
        self.kept_sum += sum(one.score for one in kept)

    def join(self, other: Tally) -> None:
        scores = [best for best in (self.best, other.best) if best is not None]
        for name, value in asdict(other).items():
            if name != "best":
                setattr(self, name, getattr(self, name) + value)
        self.best = max(scores, default=None)


def check_originals(photos: PhotoSets, config: CapfiltConfig) -> None:
    """Raises DataError when originals are asked for and a set has none, or has too few for `keep`. What a teacher will
    say is not known before."""
    if config.originals == "none" or config.label_least is not None:
        return
    most = 0
    for part, name in enumerate(photos.names):
        first = photos.ends[part - 1] if part else 0
        found = 0
        for number in range(first, photos.ends[part]):
            photo = photos[number]
            found = max(found, len(photo.captions) + len(label_captions(photo.label, config.label_texts)))
            if found and (config.originals == "kept" or config.per_photo + max(found, most) >= config.keep):
                break
        if not found:
            raise DataError(
                f"None of the {photos.ends[part] - first:,} photos of {name} has a caption or a label, and originals "
                f"is {config.originals!r}; set originals=none, or leave the set out."
            )
        most = max(most, found)
    if config.originals == "ranked" and config.keep > config.per_photo + most:
        raise DataError(
            f"keep is {config.keep}, but no photo has more than {most} captions of its own and {config.per_photo} "
            "drawn ones (per_photo); keep fewer or draw more."
        )


def run_capfilt(
    config: CapfiltConfig,
    data: Path,
    runs: Path,
    output: Path,
    *,
    teacher: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Failure]:
    """Writes `output/<its name>-000.tar`, ... and a report beside each; returns the photos that could not be read.

    data: holds the sets, or runs does, which also holds captioner and matcher when they are runs. teacher: the folder
    of what labels photos, for `label_least`. Under torchrun each process writes every so-many-th shard. Raises
    CheckpointError and DataError for what is missing or does not fit.
    """
    check(config)
    here = World(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    photos = PhotoSets(config.pictures, data, runs)
    check_originals(photos, config)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    captioner, matcher = load_parts(config, runs, device)
    labeller = None
    if config.label_least is not None:
        if teacher is None:
            raise DataError(
                f"label_least is {config.label_least}: give the teacher's folder with --teacher, or set it to none."
            )
        labeller = Labeller(teacher, config.label_least, device)
    output.mkdir(parents=True, exist_ok=True)
    made_by = {
        "captioner digest": None if captioner is None else captioner.digest,
        "matcher digest": matcher.digest,
        "teacher digest": None if labeller is None else labeller.digest,
        "photos": photos.facts(),
    }
    settings = flat_settings(asdict(config)) | made_by
    _check_settings(output / "settings.json", settings, writes=here.rank == 0)
    worker = Candidates(captioner, matcher, config, labeller)
    shards = [output / f"{output.name}-{n:03}.tar" for n in range(-(-len(photos) // config.shard_photos))]
    mine = range(here.rank, len(shards), here.size)
    waiting = [number for number in mine if not _is_done(shards[number])]
    say(
        f"{len(photos):,} photos, {config.per_photo} captions drawn of each by {config.captioner}, ranked by "
        f"{config.matcher}: {len(mine) - len(waiting)} of {len(mine)} shards are there"
    )
    started = time.monotonic()
    for done, number in enumerate(waiting, 1):
        tally = _write_shard(worker, photos, number, shards[number])
        left = (time.monotonic() - started) / done * (len(waiting) - done)
        say(f"{shards[number].name}: {_told(tally)}  {left / 60:.1f} min left")
    whole = Tally()
    for number in mine:
        whole.join(_report_of(shards[number]))
    _check_written(whole, config)
    say(f"wrote {output}: {_told(whole)}")
    return [Failure(Path(key), reason) for key, reason in whole.unreadable]


def _write_shard(worker: Candidates, photos: PhotoSets, number: int, path: Path) -> Tally:
    config, tally = worker.config, Tally()
    first = number * config.shard_photos
    numbers = range(first, min(first + config.shard_photos, len(photos)))
    rows = _captioned(worker, photos, numbers, tally)
    one = next(rows, None)
    if one is not None:  # a tar without any photo could not be read
        write_captioned(path, (row for some in ([one], rows) for row in some))
    write_json(path.with_suffix(".json"), asdict(tally))
    return tally


def _captioned(
    worker: Candidates, photos: PhotoSets, numbers: range, tally: Tally
) -> Iterator[tuple[CaptionedPicture, dict[str, Any]]]:
    """Photos that keep a caption, with what their JSON says. A few are in memory at a time."""
    config = worker.config
    opened_batches = read_batches(
        numbers, lambda number: _opened(photos, number, worker.least_side), config.photos_at_once
    )
    for start, opened in zip(numbers[:: config.photos_at_once], opened_batches, strict=True):
        tally.photos += len(opened)
        tally.unreadable += [[str(one.path), one.reason] for one in opened if isinstance(one, Failure)]
        good = [one for one in opened if not isinstance(one, Failure)]
        if not good:
            continue
        seed = int(np.random.SeedSequence([config.seed, start]).generate_state(1)[0])
        samples, pictures = zip(*good, strict=True)
        for sample, captions in zip(samples, worker.captions(samples, pictures, seed), strict=True):
            chosen = kept(captions, config)
            tally.add(captions, chosen)
            if chosen:
                yield (
                    sample,
                    {
                        "captions": [one.text for one in chosen],
                        "synthetic": [one.synthetic for one in chosen],
                        "scores": [round(one.score, 4) for one in chosen],
                        "key": sample.key,
                    },
                )


def _opened(
    photos: PhotoSets, number: int, least_side: int
) -> tuple[CaptionedPicture, Image.Image] | Failure:
    """A photo with its file's bytes (of a RAW file its path), and upright."""
    key = f"photo {number}"
    try:
        sample = photos[number]
        key, source = sample.key, sample.picture
        if isinstance(source, Path) and source.suffix.lower() not in RAW_SUFFIXES:
            sample = replace(sample, picture=read_bytes(source))
        return sample, open_picture(sample.picture, least_side=least_side)
    except (DataError, PhotoError) as error:
        return Failure(Path(key), str(error))


def _check_settings(path: Path, settings: dict[str, Any], writes: bool) -> None:
    """Raises DataError when the folder's shards were made otherwise. JSON keeps what is compared."""
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        old = json.loads(path.read_text())
        names = [name for name in {**old, **settings} if old.get(name) != settings.get(name)]
        if names:
            other = "; ".join(
                f"{name} was {old.get(name)}, is {settings.get(name)}" for name in sorted(names)
            )
            raise DataError(
                f"{path.parent} was made with other settings ({other}); use them, or another folder for the run."
            )
    elif writes:
        write_json(path, settings)


def _is_done(shard: Path) -> bool:
    report = shard.with_suffix(".json")
    return report.is_file() and (shard.is_file() or not _report_of(shard).written)


def _report_of(shard: Path) -> Tally:
    return Tally(**json.loads(shard.with_suffix(".json").read_text()))


def _check_written(tally: Tally, config: CapfiltConfig) -> None:
    """Raises DataError when no photo has a caption: nothing could be trained on."""
    if tally.written or not tally.photos:
        return
    if len(tally.unreadable) == tally.photos:
        key, reason = tally.unreadable[0]
        raise DataError(f"None of the {tally.photos:,} photos could be read (first: {key}: {reason}).")
    if tally.best is None:
        raise DataError(
            f"None of the {tally.photos:,} photos got a caption: nothing but empty ones were drawn."
        )
    raise DataError(
        f"No caption scores at least {config.least} (the best: {tally.best:.3f}); lower `least`, and use another "
        "folder for the run."
    )


def _told(tally: Tally) -> str:
    def mean(total: float, count: int) -> str:
        return f"{total / count:.2f}" if count else "-"

    kept_count = tally.kept_drawn + tally.kept_originals
    scored = f"mean score drawn {mean(tally.drawn_sum, tally.drawn)}"
    if tally.originals:
        scored += f", own {mean(tally.originals_sum, tally.originals)}"
    line = (
        f"{tally.written:,} of {tally.photos:,} photos with {kept_count:,} captions, {tally.kept_drawn:,} of them "
        f"drawn; {scored}, kept {mean(tally.kept_sum, kept_count)}"
    )
    left_out = tally.photos - tally.written - len(tally.unreadable)
    if tally.unreadable:
        line += f"; {len(tally.unreadable):,} unreadable"
    return line + (f"; {left_out:,} without a caption that is good enough" if left_out else "")
