"""Distil a small image encoder of our own from a pretrained one, block by block.

The student has the teacher's layout and starts from random weights. Every block is asked for what the teacher's
block gives (hints, FitNets, arXiv:1412.6550), in units of the teacher's variance. At first each block reads the
teacher's activations, so that all blocks learn at once (as in blockwise distillation, arXiv:1911.13053); then
each reads what the student's own blocks before it give, so that errors do not add up.

Shapes: B photos, C channels, H W pixels or feature map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from engine.atomic import write_file
from engine.blip2.config import VisionConfig
from engine.blip2.pixels import to_pixels
from engine.blip2.vision import EncoderPart, VisionEncoder, list_network_parts
from engine.datasets.picture_reading import load_pictures
from engine.datasets.tar_shards import find_shards, read_shards
from engine.errors import DataError
from engine.models.devices import choose_fast_dtype
from training.distributed.world import device_of_process
from training.loop.optimizer import OptimConfig
from training.loop.run_checkpoint import CHECKPOINT
from training.loop.run_dtype import fast_autocast
from training.loop.train_loop import train
from training.stages.teacher import load_teacher

ENCODER = "encoder.safetensors"


@dataclass(frozen=True)
class Phase:
    """Parts [first, last) of the network, trained on square windows of what the first of them reads.

    crop: the window's side, in pixels when first = 0, else in positions of the teacher's feature map there.
    forced: share of the steps in which every part reads the teacher's activations instead of the student's own.
    own_inputs: the first part reads what the student's earlier parts (trained before, fixed now) give.
    hints: "all", every part is asked for what the teacher's gives, or "last", the last one alone.
    """

    name: str
    first: int
    last: int
    crop: int
    forced: float
    optim: OptimConfig
    own_inputs: bool = False
    hints: str = "all"


@dataclass(frozen=True)
class DistillConfig:
    """vision: the student. pictures: shards to learn from, names below the data folder. phases: in order.

    start: the run whose encoder to train on from; random weights when empty.
    """

    vision: VisionConfig
    pictures: tuple[str, ...]
    phases: tuple[Phase, ...] = field(default_factory=tuple)
    start: str = ""


def hint_error(got_BCHW: Tensor, want_BCHW: Tensor) -> Tensor:
    """Mean squared error in units of the wanted channel's variance; 1 = as good as a constant, 0 = perfect.

    Channels that hardly vary are held by 5% of the mean variance.
    """
    want = want_BCHW.float()
    variance = want.var((0, 2, 3))
    variance = variance + 0.05 * variance.mean()
    return ((got_BCHW.float() - want).square().mean((0, 2, 3)) / variance).mean()


class DistillTask:
    """One phase; see `Phase`. pictures: uint8 (N, H, W, 3)."""

    def __init__(
        self,
        student: VisionEncoder,
        teacher: VisionEncoder,
        pictures: np.ndarray,
        phase: Phase,
        device: torch.device,
    ):
        self.phase, self.vision, self.device = phase, student.config, device
        student_parts, teacher_parts = list_network_parts(student), list_network_parts(teacher)
        self.teacher = [part for _, part in teacher_parts[phase.first : phase.last]]
        chosen = student_parts[phase.first : phase.last]
        self.student = [part for _, part in chosen]
        self.model = nn.ModuleList(modules for modules, _ in chosen).train()
        self.pictures = pictures
        self.student_before = student_parts[: phase.first]
        self.teacher_before = teacher_parts[: phase.first]

    @cached_property
    def teacher_inputs(self) -> Tensor:
        """What the teacher's first part reads: (N, H, W, 3) uint8, or (N, H, W, C) bfloat16. Made at the first step."""
        if not self.phase.first:
            return torch.from_numpy(self.pictures)
        return self._feature_maps([part for _, part in self.teacher_before])

    @cached_property
    def inputs(self) -> Tensor:
        """The same for the student's first part."""
        if not self.phase.own_inputs:
            return self.teacher_inputs
        for modules, _ in self.student_before:
            modules.eval()
        return self._feature_maps([part for _, part in self.student_before])

    def losses(self, step: int) -> dict[str, Tensor]:
        x, seen = self._windows()
        forced = step < self.phase.forced * self.phase.optim.steps
        with fast_autocast(self.device):
            hints = []
            with torch.no_grad():
                for part in self.teacher:
                    seen = part(seen)
                    hints.append(seen)
            errors = []
            for part, hint in zip(self.student, hints, strict=True):
                own = part(x)
                if self.phase.hints == "all" or part is self.student[-1]:
                    errors.append(hint_error(own, hint))
                x = hint if forced else own
        asked = errors if self.phase.hints == "all" else errors[-1:]
        return {"loss": torch.stack(asked).sum(), "last": errors[-1]}

    def _windows(self) -> tuple[Tensor, Tensor]:
        """A batch for the student and for the teacher (B, C, crop, crop): one random window and flip for all (B is
        random enough)."""
        crop, size = self.phase.crop, self.inputs.shape[1]
        chosen = torch.randint(len(self.inputs), (self.phase.optim.batch,))
        top, left = torch.randint(size - crop + 1, (2,)).tolist()
        flip = bool(torch.rand(()) < 0.5)

        def cut(inputs: Tensor) -> Tensor:
            windows = inputs[chosen][:, top : top + crop, left : left + crop]
            windows = windows.flip(2) if flip else windows
            if self.phase.first:
                return windows.to(self.device, choose_fast_dtype(self.device)).permute(0, 3, 1, 2)
            return to_pixels(windows.numpy(), self.vision.mean, self.vision.std, self.device)

        own = cut(self.inputs)
        return own, own if self.teacher_inputs is self.inputs else cut(self.teacher_inputs)

    def _feature_maps(self, before: list[EncoderPart], batch: int = 50) -> Tensor:
        """What these parts make of every picture -> (N, H, W, C) bfloat16."""
        maps, pictures = [], self.pictures
        with torch.inference_mode(), fast_autocast(self.device):
            for start in range(0, len(pictures), batch):
                x = to_pixels(pictures[start : start + batch], self.vision.mean, self.vision.std, self.device)
                for part in before:
                    x = part(x)
                maps.append(x.permute(0, 2, 3, 1).to("cpu", torch.bfloat16))
        return torch.cat(maps).clone()


def measure_patch_error(
    student: VisionEncoder, teacher: VisionEncoder, pictures: np.ndarray, batch: int = 50
) -> float:
    """Error of the student's patches against the teacher's on pictures (N, H, W, 3), in the units of `hint_error`."""
    errors = []
    config, device = student.config, student.device
    student.eval()
    with torch.inference_mode(), fast_autocast(device):
        for start in range(0, len(pictures), batch):
            pixels = to_pixels(pictures[start : start + batch], config.mean, config.std, device)
            got, want = student.backbone.forward_features(pixels), teacher.backbone.forward_features(pixels)
            errors.append(hint_error(got, want))
    return float(torch.stack(errors).mean())


def distill(
    config: DistillConfig, teacher: VisionEncoder, pictures: np.ndarray, folder: Path, *,
    start: dict[str, Tensor] | None = None, only: str | None = None, say: Callable[[str], None] = lambda line: None,
) -> VisionEncoder:  # fmt: skip
    """Run the phases in order and return the trained encoder. Each phase resumes from `folder/<phase>/`.

    start: the student's weights at the beginning; random when not given. only: run that one phase alone, upon what is
    there of those before it (phases that share no parts may run at the same time in two processes).
    """
    torch.manual_seed(config.phases[0].optim.seed)
    student = VisionEncoder(config.vision).to(teacher.device).to(memory_format=torch.channels_last)
    if start is not None:
        student.load_state_dict(start)
    for phase in config.phases:
        if only not in (None, phase.name):
            checkpoint = folder / phase.name / CHECKPOINT
            if checkpoint.exists():
                state = torch.load(checkpoint, weights_only=True)["model"]
                parts = nn.ModuleList(
                    modules for modules, _ in list_network_parts(student)[phase.first : phase.last]
                )
                parts.load_state_dict(state)
        else:
            say(f"phase {phase.name}: parts {phase.first} to {phase.last}, {phase.optim.steps} steps")
            task = DistillTask(student, teacher, pictures, phase, teacher.device)
            train(task, phase.optim, folder / phase.name, say=say)
    return student.eval()


def run_distill(
    config: DistillConfig,
    data: Path,
    teacher_folder: Path,
    output: Path,
    *,
    only: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Train config.vision on the shards below `data` and write `output/encoder.safetensors`.

    only: one phase by name; then the encoder is not written. Raises DataError and TrainingError.
    """
    start = None
    if config.start:
        if not (path := output.parent / config.start / ENCODER).is_file():
            raise DataError(f"No encoder to train on from at {path}; train the recipe {config.start} first.")
        start = load_file(path)
    device = device_of_process()
    teacher = load_teacher(config.vision, teacher_folder).to(device)
    samples = list(read_shards(find_shards(config.pictures, data)))
    pictures, _, failures = load_pictures(samples, config.vision.image_size)
    say(f"{len(pictures)} pictures, {len(failures)} unreadable")
    student = distill(config, teacher, pictures, output, start=start, only=only, say=say)
    if only is None:
        write_file(output / ENCODER, save({k: v.contiguous() for k, v in student.state_dict().items()}))
        error = measure_patch_error(student, teacher, pictures[:: max(1, len(pictures) // 500)])
        say(f"wrote {output / ENCODER}; its patches differ from the teacher's by {error:.3f} of the variance")
