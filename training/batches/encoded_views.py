"""Encode every picture, and random crops of it, once before training, and give the results out as batches.

This is possible while the image encoder, or its first parts, are frozen. `encode_views` computes the patches that the
whole encoder gives, `encode_maps` the feature maps that its first parts give; `EncodedViews` makes batches of either.

Shapes: N pictures, W views of each (the whole picture and crops), P patches, V vision width, B pictures at a time,
C channels, H W pixels or positions of a feature map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.blip2.captioner import Captioner
from engine.blip2.pixels import to_pixels
from engine.blip2.retriever import Retriever
from engine.blip2.vision import VisionEncoder, fold_batch_norms, list_network_parts
from engine.datasets.captioned_pictures import CaptionedPicture, compute_data_digest
from engine.errors import DataError
from engine.models.devices import choose_fast_dtype
from training.batches.batch_source import Batch
from training.batches.hard_groups import add_neighbours
from training.batches.sample_order import choose_batch
from training.batches.view_files import compute_views_digest, read_or_make
from training.distributed.world import current_world
from training.loop.optimizer import OptimConfig
from training.loop.random_draws import shared_draws
from training.loop.run_dtype import fast_autocast

MIN_WINDOW_SHARE = 0.8
"""Smallest share of a feature map's side that `cut_random_window` keeps."""


class ViewSettings(Protocol):
    """The settings that `encode_views` reads; `Stage1Config` has them."""

    @property
    def views(self) -> int: ...
    @property
    def smallest_crop(self) -> float: ...
    @property
    def optim(self) -> OptimConfig: ...


class EncodedViews:
    """Batches of patches or feature maps that were computed once; every picture comes once an epoch.

    A step draws one of the views and one of the captions of each of its pictures.
    """

    def __init__(
        self,
        views: Tensor,
        samples: Sequence[CaptionedPicture],
        optim: OptimConfig,
        *,
        draws_from_torch: bool = False,
        neighbours: Tensor | None = None,
        group: int = 1,
    ):
        """Raise DataError when a picture has no caption, or when the pictures do not fill a batch.

        views: (N, W, ...), in the order of the samples. neighbours, group: the table of `hard_groups.find_neighbours`,
        by which batches are filled with groups of so many photos; None draws all at random. draws_from_torch: random
        numbers come from torch's global generator, which the loop seeds for every step, so that only a single process
        can train on the batches. By default they are equal for any number of processes, and each process gets its share
        of a batch.
        """
        uncaptioned = [sample.key for sample in samples if not sample.captions]
        if uncaptioned:
            raise DataError(f"{len(uncaptioned)} pictures have no caption (first: {uncaptioned[0]}).")
        if len(samples) < optim.batch:
            raise DataError(f"{len(samples)} pictures are fewer than a batch of {optim.batch}.")
        self.views, self.samples, self.optim = views, samples, optim
        self.draws_from_torch = draws_from_torch
        self.neighbours, self.group = neighbours, group

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step."""
        world = current_world()
        draws = None if self.draws_from_torch else shared_draws(self.optim.seed, step)
        batch_numbers = self._choose_pictures(step, draws)
        view_numbers = torch.randint(self.views.shape[1], (len(batch_numbers),), generator=draws)
        caption_draws = None
        if draws is not None:
            caption_draws = world.select_share(torch.rand(len(batch_numbers), generator=draws)).tolist()
        numbers, view_numbers = world.select_share(batch_numbers), world.select_share(view_numbers)
        return Batch(
            self.views[numbers, view_numbers],
            self._choose_captions(numbers.tolist(), caption_draws),
            numbers.numpy(),
            [""] * len(numbers),
            draws,
        )

    def _choose_pictures(self, step: int, draws: torch.Generator | None) -> Tensor:
        """Return the numbers of a step's pictures, of all processes."""
        optim, count = self.optim, len(self.samples)
        if self.neighbours is None or draws is None:
            return choose_batch(step, count, optim)
        seeds = choose_batch(step, count, replace(optim, batch=max(1, optim.batch // self.group)))
        return add_neighbours(seeds, self.neighbours, optim.batch, draws)

    def settings(self) -> dict[str, str]:
        """Return a digest of all pictures and captions, which must be unchanged when a stopped run goes on."""
        return {"data": compute_data_digest(self.samples)}

    def _choose_captions(self, numbers: list[int], draws: list[float] | None) -> Iterable[str]:
        """Return a caption of each picture.

        draws: uniform numbers in [0, 1) that decide which; with None torch draws each caption when it is iterated.
        """
        texts = [self.samples[number].captions for number in numbers]
        if draws is None:
            return (group[int(torch.randint(len(group), ()))] for group in texts)
        return [group[int(draw * len(group))] for group, draw in zip(texts, draws, strict=True)]


def encode_views(
    net: Retriever | Captioner, pictures: np.ndarray, config: ViewSettings, folder: Path | None = None
) -> Tensor:
    """Encode every picture and (views - 1) random crops of it by the frozen encoder -> (N, W, P, V) bfloat16.

    pictures: uint8 (N, H, W, 3), square. Crops are squares of `smallest_crop` to 1 of the side, half of them mirrored;
    the seed decides them. folder: where the views are kept for the next run (`view_files.py`), None for nowhere.
    """
    dtype = choose_fast_dtype(net.vision.device)
    # The encoder is frozen: its batch norms neither learn nor see the batch.
    vision = fold_batch_norms(net.vision.eval())
    if vision is net.vision:
        # The network's encoder keeps its precision.
        vision = copy.deepcopy(vision)
    vision = vision.to(dtype)
    return compute_views(lambda pixels: vision(pixels.to(dtype)), net.vision, pictures, config, folder=folder)


def compute_views(
    compute: Callable[[Tensor], Tensor],
    encoder: VisionEncoder,
    pictures: np.ndarray,
    config: ViewSettings,
    batch: int = 50,
    folder: Path | None = None,
) -> Tensor:
    """Apply a function to every view of every picture -> (N, W, ...) bfloat16, on the CPU.

    compute: takes pixels (B, 3, H, W). encoder: gives the device and the pixels' mean and deviation.
    batch: number of pictures at a time; a crop is the same for all of them. folder: see `encode_views`.
    """
    size, device, vision = pictures.shape[1], encoder.device, encoder.config

    @torch.inference_mode()
    def compute_rows(first: int) -> Tensor:
        draws = torch.Generator().manual_seed((config.optim.seed << 32) + first)
        whole = to_pixels(pictures[first : first + batch], vision.mean, vision.std, device)
        views = [compute(whole)]
        for _ in range(config.views - 1):
            views.append(compute(_cut_random_crop(whole, size, config.smallest_crop, draws)))
        return torch.stack(views, dim=1).to("cpu", torch.bfloat16)

    if folder is None:
        return torch.cat([compute_rows(first) for first in range(0, len(pictures), batch)]).clone()
    settings = (vision, config.views, config.smallest_crop, config.optim.seed, batch)
    name = compute_views_digest(encoder, pictures, *settings)
    shape = compute_rows(len(pictures) - 1).shape[1:]
    return read_or_make(folder / f"{name}.bf16", shape, len(pictures), compute_rows, batch)


def _cut_random_crop(pixels_B3HW: Tensor, size: int, min_side: float, draws: torch.Generator) -> Tensor:
    """Cut a random square, the same from all pictures, resize it to the full side, and mirror it half of the time."""
    side_draw, y, x, flip = torch.rand(4, generator=draws).tolist()
    side = round(size * (min_side + (1 - min_side) * side_draw))
    top, left = round(y * (size - side)), round(x * (size - side))
    window = pixels_B3HW[:, :, top : top + side, left : left + side]
    window = F.interpolate(window, size=(size, size), mode="bicubic", antialias=True)
    return window.flip(3) if flip < 0.5 else window


def encode_maps(net: Retriever, pictures: np.ndarray, config: ViewSettings, num_parts: int) -> Tensor:
    """Compute what the first `num_parts` parts of a convolutional encoder give for every view of every picture.

    Returns feature maps (N, W, H, W, C) in bfloat16; see `encode_views` for the views.
    """
    parts = [part for _, part in list_network_parts(net.vision.eval())[:num_parts]]

    def compute_map(pixels_B3HW: Tensor) -> Tensor:
        feature_map = pixels_B3HW
        with fast_autocast(feature_map.device):
            for part in parts:
                feature_map = part(feature_map)
        return feature_map.permute(0, 2, 3, 1).to("cpu", torch.bfloat16)

    return compute_views(compute_map, net.vision, pictures, config)


def cut_random_window(maps_BHWC: Tensor, draws: torch.Generator) -> Tensor:
    """Cut a random square window, the same from all feature maps of a batch, and mirror it half of the time."""
    side = maps_BHWC.shape[1]
    window = int(torch.randint(round(MIN_WINDOW_SHARE * side), side + 1, (), generator=draws))
    top, left = torch.randint(side - window + 1, (2,), generator=draws).tolist()
    windows = maps_BHWC[:, top : top + window, left : left + window]
    return windows.flip(2) if float(torch.rand((), generator=draws)) < 0.5 else windows
