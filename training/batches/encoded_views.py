"""What a frozen encoder, or its first parts, make of every picture and of crops of it: read once, before training.

`EncodedViews` gives it out again as the batches of a run.

Shapes: N pictures, W views of each, P patches, V vision width, B pictures at a time, H W places of a feature map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
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
from training.batches.sample_order import choose_batch
from training.distributed.world import current_world
from training.loop.optimizer import OptimConfig
from training.loop.random_draws import shared_draws
from training.loop.run_dtype import fast_autocast

LEAST_WINDOW = 0.8
"""Of a feature map's side, that `random_window` leaves."""


class ViewSettings(Protocol):
    """What `encode_views` asks of a config; see `Stage1Config`."""

    @property
    def views(self) -> int: ...
    @property
    def smallest_crop(self) -> float: ...
    @property
    def optim(self) -> OptimConfig: ...


class EncodedViews:
    """Patches (or feature maps) that were made once, as batches by step; every picture comes once an epoch.

    A step draws one of the views and one of the captions of each picture.
    """

    def __init__(
        self,
        views: Tensor,
        samples: Sequence[CaptionedPicture],
        optim: OptimConfig,
        *,
        draws_from_torch: bool = False,
    ):
        """Raises DataError for pictures without captions, and for fewer of them than a batch.

        views: (N, W, ...), in the order of the samples. alone: draws come from torch's own generator, which the loop
        seeds for every step, so that one process alone can train on the batches; else they are the same for any number
        of processes, and each gets its share.
        """
        uncaptioned = [sample.key for sample in samples if not sample.captions]
        if uncaptioned:
            raise DataError(f"{len(uncaptioned)} pictures have no caption (first: {uncaptioned[0]}).")
        if len(samples) < optim.batch:
            raise DataError(f"{len(samples)} pictures are fewer than a batch of {optim.batch}.")
        self.views, self.samples, self.optim, self.draws_from_torch = views, samples, optim, draws_from_torch

    def __getitem__(self, step: int) -> Batch:
        draws = None if self.draws_from_torch else shared_draws(self.optim.seed, step)
        chosen = choose_batch(step, len(self.samples), self.optim)
        views = torch.randint(self.views.shape[1], (len(chosen),), generator=draws)
        shares = (
            None
            if draws is None
            else current_world().select_share(torch.rand(len(chosen), generator=draws)).tolist()
        )
        numbers, views = current_world().select_share(chosen), current_world().select_share(views)
        return Batch(
            self.views[numbers, views],
            self._captions(numbers.tolist(), shares),
            numbers.numpy(),
            [""] * len(numbers),
            draws,
        )

    def settings(self) -> dict[str, str]:
        """Return a digest of all pictures and captions, as what a resumed run must find again."""
        return {"data": compute_data_digest(self.samples)}

    def _captions(self, numbers: list[int], shares: list[float] | None) -> Iterable[str]:
        """Return a caption of each picture. shares: uniform numbers that decide which; drawn when read without them."""
        texts = [self.samples[number].captions for number in numbers]
        if shares is None:
            return (group[int(torch.randint(len(group), ()))] for group in texts)
        return [group[int(share * len(group))] for group, share in zip(texts, shares, strict=True)]


def encode_views(net: Retriever | Captioner, pictures: np.ndarray, config: ViewSettings) -> Tensor:
    """The frozen encoder's patches of every picture, whole and (views - 1) times cropped -> (N, W, P, V) bfloat16.

    Crops are squares of `smallest_crop` to 1 of the side, half of them mirrored; drawn from the seed.
    """
    dtype = choose_fast_dtype(net.vision.device)
    vision = fold_batch_norms(net.vision.eval())  # frozen: batch norms neither learn nor see the batch
    if vision is net.vision:
        vision = copy.deepcopy(vision)  # net's keeps its precision
    vision = vision.to(dtype)
    return compute_views(lambda pixels: vision(pixels.to(dtype)), net.vision, pictures, config)


def compute_views(
    read: Callable[[Tensor], Tensor],
    encoder: VisionEncoder,
    pictures: np.ndarray,
    config: ViewSettings,
    batch: int = 50,
) -> Tensor:
    """What `read` makes of the pixels (B, 3, H, W) of every view, bfloat16, stacked as in `encode_views`."""
    size, device, vision = pictures.shape[1], encoder.device, encoder.config
    generator = torch.Generator().manual_seed(config.optim.seed)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pictures), batch):
            whole = to_pixels(pictures[start : start + batch], vision.mean, vision.std, device)
            views = [read(whole)]
            for _ in range(config.views - 1):
                views.append(read(_random_crop(whole, size, config.smallest_crop, generator)))
            rows.append(torch.stack(views, dim=1).to("cpu", torch.bfloat16))
    return torch.cat(rows).clone()


def _random_crop(pixels_B3HW: Tensor, size: int, smallest: float, generator: torch.Generator) -> Tensor:
    """One window and flip for the whole batch, resized back to the full side."""
    share, y, x, flip = torch.rand(4, generator=generator).tolist()
    side = round(size * (smallest + (1 - smallest) * share))
    top, left = round(y * (size - side)), round(x * (size - side))
    window = pixels_B3HW[:, :, top : top + side, left : left + side]
    window = F.interpolate(window, size=(size, size), mode="bicubic", antialias=True)
    return window.flip(3) if flip < 0.5 else window


def encode_maps(net: Retriever, pictures: np.ndarray, config: ViewSettings, count: int) -> Tensor:
    """What a convolutional encoder's first `count` parts make of every picture's views -> (N, S, H, W, C) bfloat16."""
    parts = [part for _, part in list_network_parts(net.vision.eval())[:count]]

    def read(pixels_B3HW: Tensor) -> Tensor:
        features = pixels_B3HW
        with fast_autocast(features.device):
            for part in parts:
                features = part(features)
        return features.permute(0, 2, 3, 1).to("cpu", torch.bfloat16)

    return compute_views(read, net.vision, pictures, config)


def cut_random_window(maps_BHWC: Tensor, draws: torch.Generator) -> Tensor:
    """One random window and flip for the whole batch."""
    side = maps_BHWC.shape[1]
    window = int(torch.randint(round(LEAST_WINDOW * side), side + 1, (), generator=draws))
    top, left = torch.randint(side - window + 1, (2,), generator=draws).tolist()
    cut = maps_BHWC[:, top : top + window, left : left + window]
    return cut.flip(2) if float(torch.rand((), generator=draws)) < 0.5 else cut
