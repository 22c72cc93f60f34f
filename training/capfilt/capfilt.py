"""CapFilt: captions for photos that have none, or poor ones (BLIP, arXiv:2201.12086; BLIP-2, section 3.4).

Several captions of each photo are drawn and ranked (`caption_candidates.py`), the best written as tar shards, which the
other trainings read. Photos pass through in batches, each shard is written whole, and a run that was stopped goes on
with the next one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.json_files import read_json, write_json
from engine.datasets.photo_numbers import PhotoSets
from engine.datasets.tar_shards import write_captioned_shard
from engine.errors import DataError, PhotoError
from engine.pictures.formats import RAW_SUFFIXES
from engine.pictures.opening import open_picture, read_bytes
from engine.pictures.picture_batches import read_batches
from engine.progress import Pace
from engine.types import Failure
from training.capfilt.capfilt_config import CapfiltConfig, check_capfilt_config
from training.capfilt.caption_candidates import CandidateRanker, load_captioner_and_matcher, select_captions
from training.capfilt.photo_labels import Labeller, label_captions
from training.capfilt.shard_tally import Tally, check_written, tally_text
from training.distributed.world import World, device_of_process
from training.loop.run_checkpoint import check_same_settings, flatten_settings


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
    CheckpointError and DataError for what is missing or does not fit, TrainingError for a folder whose shards were made
    with other settings.
    """
    check_capfilt_config(config)
    world = World(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    photos, worker = _open_inputs(config, data, runs, teacher)
    output.mkdir(parents=True, exist_ok=True)
    _check_settings(output / "settings.json", _settings_of(worker, photos), writes=world.rank == 0)
    shards = [output / f"{output.name}-{n:03}.tar" for n in range(-(-len(photos) // config.shard_photos))]
    mine = range(world.rank, len(shards), world.size)
    _write_shards(worker, photos, shards, mine, say)
    whole = Tally()
    for number in mine:
        whole.join(_report_of(shards[number]))
    check_written(whole, config)
    say(f"wrote {output}: {tally_text(whole)}")
    return [Failure(Path(key), reason) for key, reason in whole.unreadable]


def _open_inputs(
    config: CapfiltConfig, data: Path, runs: Path, teacher: Path | None
) -> tuple[PhotoSets, CandidateRanker]:
    """Open the photos and what captions, ranks and labels them."""
    photos = PhotoSets(config.pictures, data, runs)
    check_originals(photos, config)
    device = str(device_of_process())
    captioner, matcher = load_captioner_and_matcher(config, runs, device)
    labeller = None
    if config.label_least is not None:
        if teacher is None:
            raise DataError(
                f"label_least is {config.label_least}: give the teacher's folder with --teacher, or set it to none."
            )
        labeller = Labeller(teacher, config.label_least, device)
    return photos, CandidateRanker(captioner, matcher, config, labeller)


def _settings_of(worker: CandidateRanker, photos: PhotoSets) -> dict[str, Any]:
    """Return all that decides what the shards hold, as JSON keeps it."""
    made_by = {
        "captioner digest": None if worker.captioner is None else worker.captioner.digest,
        "matcher digest": worker.matcher.digest,
        "teacher digest": None if worker.labeller is None else worker.labeller.digest,
        "photos": photos.list_counts(),
    }
    settings: dict[str, Any] = json.loads(json.dumps(flatten_settings(asdict(worker.config)) | made_by))
    return settings


def _check_settings(path: Path, settings: dict[str, Any], writes: bool) -> None:
    """Raise TrainingError when the folder's shards were made with other settings; else see that they are kept."""
    if path.is_file():
        check_same_settings(read_json(path), settings, str(path.parent))
    elif writes:
        write_json(path, settings)


def _write_shards(
    worker: CandidateRanker,
    photos: PhotoSets,
    shards: Sequence[Path],
    mine: range,
    say: Callable[[str], None],
) -> None:
    """Write those of a process's shards that are not there yet, each with its report, and say how far it is."""
    config = worker.config
    waiting = [number for number in mine if not _is_done(shards[number])]
    say(
        f"{len(photos):,} photos, {config.per_photo} captions drawn of each by {config.captioner}, ranked by "
        f"{config.matcher}: {len(mine) - len(waiting)} of {len(mine)} shards are there"
    )
    pace = Pace(sum(len(_photos_of(photos, number, config)) for number in waiting), None)
    for number in waiting:
        tally = _write_shard(worker, photos, number, shards[number], pace)
        left = pace.measure().seconds_left or 0.0
        say(f"{shards[number].name}: {tally_text(tally)}  {left / 60:.1f} min left")


def _photos_of(photos: PhotoSets, shard: int, config: CapfiltConfig) -> range:
    """Return the numbers of the photos that belong into a shard."""
    first = shard * config.shard_photos
    return range(first, min(first + config.shard_photos, len(photos)))


def _write_shard(worker: CandidateRanker, photos: PhotoSets, number: int, path: Path, pace: Pace) -> Tally:
    tally = Tally()
    rows = _captioned(worker, photos, _photos_of(photos, number, worker.config), tally, pace)
    one = next(rows, None)
    if one is not None:  # a tar without any photo could not be read
        write_captioned_shard(path, (row for some in ([one], rows) for row in some))
    write_json(path.with_suffix(".json"), asdict(tally))
    return tally


def _captioned(
    worker: CandidateRanker, photos: PhotoSets, numbers: range, tally: Tally, pace: Pace
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
        yield from _kept_of(worker, good, start, tally)
        pace.step(len(opened), len(opened) - len(good))


def _kept_of(
    worker: CandidateRanker, opened: Sequence[tuple[CaptionedPicture, Image.Image]], start: int, tally: Tally
) -> Iterator[tuple[CaptionedPicture, dict[str, Any]]]:
    """Caption the photos of one pass, whose first has the number `start`; its captions are drawn by that."""
    if not opened:
        return
    seed = int(np.random.SeedSequence([worker.config.seed, start]).generate_state(1)[0])
    samples, pictures = zip(*opened, strict=True)
    for sample, captions in zip(samples, worker.rank_captions(samples, pictures, seed), strict=True):
        chosen = select_captions(captions, worker.config)
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


def _is_done(shard: Path) -> bool:
    report = shard.with_suffix(".json")
    return report.is_file() and (shard.is_file() or not _report_of(shard).written)


def _report_of(shard: Path) -> Tally:
    return Tally(**read_json(shard.with_suffix(".json")))
