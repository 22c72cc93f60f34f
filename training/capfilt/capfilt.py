"""CapFilt: write captions for photos that have none, or poor ones (BLIP, arXiv:2201.12086; BLIP-2, section 3.4).

Several captions of each photo are drawn and ranked (`caption_candidates.py`), and the best are written as tar shards,
which the other trainings read. Photos pass through in batches, each shard is written whole, and a run that was stopped
goes on with the next shard.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import chain
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

_Row = tuple[CaptionedPicture, dict[str, Any]]
"""A photo and the content of its JSON in a shard."""


def check_originals(photos: PhotoSets, config: CapfiltConfig) -> None:
    """Raise DataError when the photos' own captions are asked for and a set has none, or too few for `keep`.

    Nothing is checked when a teacher labels photos, since its labels are not known before the run.
    """
    if config.originals == "none" or config.label_least is not None:
        return
    most_of_all = 0
    for part, name in enumerate(photos.names):
        first = photos.ends[part - 1] if part else 0
        most = 0
        for number in range(first, photos.ends[part]):
            photo = photos[number]
            most = max(most, len(photo.captions) + len(label_captions(photo.label, config.label_texts)))
            is_enough = config.per_photo + max(most, most_of_all) >= config.keep
            if most and (config.originals == "kept" or is_enough):
                break
        if not most:
            raise DataError(
                f"None of the {photos.ends[part] - first:,} photos of {name} has a caption or a label, and originals "
                f"is {config.originals!r}; set originals=none, or leave the set out."
            )
        most_of_all = max(most_of_all, most)
    if config.originals == "ranked" and config.keep > config.per_photo + most_of_all:
        raise DataError(
            f"keep is {config.keep}, but no photo has more than {most_of_all} captions of its own and "
            f"{config.per_photo} drawn ones (per_photo); keep fewer or draw more."
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
    """Write the shards of a run, each with a report beside it, and return the photos that could not be read.

    The shards are `<name of output>-000.tar`, ... in `output`. Under torchrun with n processes each writes every n-th.
    data: folder of the sets, which may be in `runs`, too. runs: folder of the runs that captioner and matcher may name.
    teacher: folder of the classifier that labels photos, for `label_least`. say: is called with progress lines.
    Raise CheckpointError or DataError for what is missing or does not fit, TrainingError when the shards in the folder
    were written with other settings.
    """
    check_capfilt_config(config)
    world = World(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
    photos, ranker = _open_inputs(config, data, runs, teacher)
    output.mkdir(parents=True, exist_ok=True)
    _check_settings(output / "settings.json", _list_settings(ranker, photos), writes=world.rank == 0)
    num_shards = -(-len(photos) // config.shard_photos)
    shards = [output / f"{output.name}-{number:03}.tar" for number in range(num_shards)]
    shard_numbers = range(world.rank, num_shards, world.size)
    _write_shards(ranker, photos, shards, shard_numbers, say)
    tally = Tally()
    for number in shard_numbers:
        tally.join(_read_report(shards[number]))
    check_written(tally, config)
    say(f"wrote {output}: {tally_text(tally)}")
    return [Failure(Path(key), reason) for key, reason in tally.unreadable]


def _open_inputs(
    config: CapfiltConfig, data: Path, runs: Path, teacher: Path | None
) -> tuple[PhotoSets, CandidateRanker]:
    """Open the photos, and the models that write, rank and label."""
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


def _list_settings(ranker: CandidateRanker, photos: PhotoSets) -> dict[str, Any]:
    """Return all settings, digests and counts that decide what the shards hold, as they are when read from JSON."""
    inputs = {
        "captioner digest": None if ranker.captioner is None else ranker.captioner.digest,
        "matcher digest": ranker.matcher.digest,
        "teacher digest": None if ranker.labeller is None else ranker.labeller.digest,
        "photos": photos.list_counts(),
    }
    settings: dict[str, Any] = json.loads(json.dumps(flatten_settings(asdict(ranker.config)) | inputs))
    return settings


def _check_settings(path: Path, settings: dict[str, Any], writes: bool) -> None:
    """Raise TrainingError when the shards beside `path` were written with other settings than these.

    Where no settings are saved yet, save them if `writes`.
    """
    if path.is_file():
        check_same_settings(read_json(path), settings, str(path.parent))
    elif writes:
        write_json(path, settings)


def _write_shards(
    ranker: CandidateRanker,
    photos: PhotoSets,
    shards: Sequence[Path],
    shard_numbers: range,
    say: Callable[[str], None],
) -> None:
    """Write the shards of a process that are missing, each with its report, and say after each how far the run is."""
    config = ranker.config
    missing_numbers = [number for number in shard_numbers if not _is_done(shards[number])]
    say(
        f"{len(photos):,} photos, {config.per_photo} captions drawn of each by {config.captioner}, ranked by "
        f"{config.matcher}: {len(shard_numbers) - len(missing_numbers)} of {len(shard_numbers)} shards are there"
    )
    pace = Pace(sum(len(_photo_numbers(photos, number, config)) for number in missing_numbers), None)
    for number in missing_numbers:
        tally = _write_shard(ranker, photos, number, shards[number], pace)
        seconds_left = pace.measure().seconds_left or 0.0
        say(f"{shards[number].name}: {tally_text(tally)}  {seconds_left / 60:.1f} min left")


def _photo_numbers(photos: PhotoSets, shard_number: int, config: CapfiltConfig) -> range:
    """Return the numbers of the photos that belong to a shard."""
    first = shard_number * config.shard_photos
    return range(first, min(first + config.shard_photos, len(photos)))


def _write_shard(ranker: CandidateRanker, photos: PhotoSets, number: int, path: Path, pace: Pace) -> Tally:
    """Write a shard and its report, and return the report. A shard without any photo is not written."""
    tally = Tally()
    rows = _caption_photos(ranker, photos, _photo_numbers(photos, number, ranker.config), tally, pace)
    first_row = next(rows, None)
    # A tar without any photo could not be read again.
    if first_row is not None:
        write_captioned_shard(path, chain([first_row], rows))
    write_json(path.with_suffix(".json"), asdict(tally))
    return tally


def _caption_photos(
    ranker: CandidateRanker, photos: PhotoSets, numbers: range, tally: Tally, pace: Pace
) -> Iterator[_Row]:
    """Yield the photos for which a caption is kept. Only a few photos are in memory at a time.

    numbers: of the photos. tally, pace: count the photos and captions.
    """
    config = ranker.config
    opened_batches = read_batches(
        numbers, lambda number: _open_photo(photos, number, ranker.min_side), config.photos_at_once
    )
    for start, opened_batch in zip(numbers[:: config.photos_at_once], opened_batches, strict=True):
        failures = [photo for photo in opened_batch if isinstance(photo, Failure)]
        opened_photos = [photo for photo in opened_batch if not isinstance(photo, Failure)]
        tally.photos += len(opened_batch)
        tally.unreadable += [[str(failure.path), failure.reason] for failure in failures]
        yield from _caption_batch(ranker, opened_photos, start, tally)
        pace.step(len(opened_batch), len(failures))


def _caption_batch(
    ranker: CandidateRanker,
    opened_photos: Sequence[tuple[CaptionedPicture, Image.Image]],
    start: int,
    tally: Tally,
) -> Iterator[_Row]:
    """Yield the photos of a batch for which a caption is kept. start: number of its first photo, seeds the draws."""
    if not opened_photos:
        return
    seed = int(np.random.SeedSequence([ranker.config.seed, start]).generate_state(1)[0])
    samples, pictures = zip(*opened_photos, strict=True)
    for sample, captions in zip(samples, ranker.rank_captions(samples, pictures, seed), strict=True):
        selected = select_captions(captions, ranker.config)
        tally.add(captions, selected)
        if selected:
            fields = {
                "captions": [caption.text for caption in selected],
                "synthetic": [caption.synthetic for caption in selected],
                "scores": [round(caption.score, 4) for caption in selected],
                "key": sample.key,
            }
            yield sample, fields


def _open_photo(
    photos: PhotoSets, number: int, min_side: int
) -> tuple[CaptionedPicture, Image.Image] | Failure:
    """Return a photo with the bytes of its file (with its path for a RAW file) and its upright picture.

    A Failure is returned for a photo that cannot be read.
    """
    key = f"photo {number}"
    try:
        sample = photos[number]
        key, picture = sample.key, sample.picture
        if isinstance(picture, Path) and picture.suffix.lower() not in RAW_SUFFIXES:
            sample = replace(sample, picture=read_bytes(picture))
        return sample, open_picture(sample.picture, least_side=min_side)
    except (DataError, PhotoError) as error:
        return Failure(Path(key), str(error))


def _is_done(shard: Path) -> bool:
    """Return whether a shard has its report, and is there unless the report says that no photo was written."""
    report = shard.with_suffix(".json")
    return report.is_file() and (shard.is_file() or not _read_report(shard).written)


def _read_report(shard: Path) -> Tally:
    return Tally(**read_json(shard.with_suffix(".json")))
