"""Distil a small image encoder of our own from a pretrained one, block by block.

The student has the teacher's layout and starts from random weights. Every block learns to give what the teacher's block
gives (hints, FitNets, arXiv:1412.6550); the errors are measured in units of the teacher's variance. At first each block
reads the teacher's activations, so that all blocks learn at once (as in blockwise distillation, arXiv:1911.13053). Then
each block reads what the student's own earlier blocks give, so that errors do not add up.

Shapes: N pictures, B pictures of a step, C channels, H W pixels or positions of a feature map.
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
from engine.wording import count_text
from training.distributed.world import device_of_process
from training.loop.optimizer import OptimConfig
from training.loop.run_checkpoint import CHECKPOINT
from training.loop.run_dtype import fast_autocast
from training.loop.train_loop import train
from training.stages.teacher import load_teacher

ENCODER = "encoder.safetensors"


@dataclass(frozen=True)
class Phase:
    """A phase of a distillation, which trains some parts of the network on square windows.

    first, last: the parts from number `first` up to, but not including, number `last` are trained. optim: the settings
    of the optimizer.
    crop: the window's side, in pixels when first = 0, else in positions of the feature map that part `first` reads.
    forced: share of the steps in which every part reads the teacher's activations instead of the student's own.
    own_inputs: the first part reads what the student's earlier parts (trained before, fixed now) give.
    hints: with "all" the output of every part is compared with the teacher's, with "last" that of the last part alone.
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
    """The settings of a distillation.

    vision: the student. pictures: the shards to learn from, as names below the data folder. phases: in their order.
    start: the run whose encoder is trained further; the weights are random when this is empty.
    """

    vision: VisionConfig
    pictures: tuple[str, ...]
    phases: tuple[Phase, ...] = field(default_factory=tuple)
    start: str = ""


def hint_error(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Return the mean squared error in units of the variance of the teacher's channel.

    0 is perfect, and 1 is as good as a constant. 5% of the mean variance is added to the variance of each channel, so
    that channels that hardly vary do not count too much.
    """
    target = teacher_BCHW.float()
    variance = target.var((0, 2, 3))
    variance = variance + 0.05 * variance.mean()
    return ((student_BCHW.float() - target).square().mean((0, 2, 3)) / variance).mean()


class DistillTask:
    """The training of one phase of a distillation."""

    def __init__(
        self,
        student: VisionEncoder,
        teacher: VisionEncoder,
        pictures: np.ndarray,
        phase: Phase,
        device: torch.device,
    ):
        """Choose the parts that the phase trains. pictures: uint8 (N, H, W, 3)."""
        self.phase, self.vision, self.device = phase, student.config, device
        student_parts, teacher_parts = list_network_parts(student), list_network_parts(teacher)
        self.teacher = [part for _, part in teacher_parts[phase.first : phase.last]]
        trained_parts = student_parts[phase.first : phase.last]
        self.student = [part for _, part in trained_parts]
        self.model = nn.ModuleList(modules for modules, _ in trained_parts).train()
        self.pictures = pictures
        self.student_before = student_parts[: phase.first]
        self.teacher_before = teacher_parts[: phase.first]

    @cached_property
    def teacher_inputs(self) -> Tensor:
        """Return what the teacher's first part reads of all pictures; computed at the first step.

        These are pixels (N, H, W, 3) uint8 in a phase that begins at part 0, else feature maps (N, H, W, C) bfloat16.
        """
        if not self.phase.first:
            return torch.from_numpy(self.pictures)
        return self._compute_feature_maps([part for _, part in self.teacher_before])

    @cached_property
    def student_inputs(self) -> Tensor:
        """Return what the student's first part reads of all pictures, in the form of `teacher_inputs`."""
        if not self.phase.own_inputs:
            return self.teacher_inputs
        for modules, _ in self.student_before:
            modules.eval()
        return self._compute_feature_maps([part for _, part in self.student_before])

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the summed errors of the parts under "loss", and the error of the last part under "last"."""
        student_map, teacher_map = self._draw_windows()
        is_forced = step < self.phase.forced * self.phase.optim.steps
        with fast_autocast(self.device):
            hints = []
            with torch.no_grad():
                for part in self.teacher:
                    teacher_map = part(teacher_map)
                    hints.append(teacher_map)
            errors = []
            for part, hint in zip(self.student, hints, strict=True):
                output = part(student_map)
                if self.phase.hints == "all" or part is self.student[-1]:
                    errors.append(hint_error(output, hint))
                student_map = hint if is_forced else output
        return {"loss": torch.stack(errors).sum(), "last": errors[-1]}

    def _draw_windows(self) -> tuple[Tensor, Tensor]:
        """Return a batch for the student and one for the teacher, each (B, C, crop, crop).

        All pictures of a batch have the same window and the same flip; the pictures are random enough.
        """
        crop, size = self.phase.crop, self.student_inputs.shape[1]
        numbers = torch.randint(len(self.student_inputs), (self.phase.optim.batch,))
        top, left = torch.randint(size - crop + 1, (2,)).tolist()
        flip = bool(torch.rand(()) < 0.5)

        def cut_windows(inputs: Tensor) -> Tensor:
            windows = inputs[numbers][:, top : top + crop, left : left + crop]
            windows = windows.flip(2) if flip else windows
            if self.phase.first:
                return windows.to(self.device, choose_fast_dtype(self.device)).permute(0, 3, 1, 2)
            return to_pixels(windows.numpy(), self.vision.mean, self.vision.std, self.device)

        windows = cut_windows(self.student_inputs)
        if self.teacher_inputs is self.student_inputs:
            return windows, windows
        return windows, cut_windows(self.teacher_inputs)

    def _compute_feature_maps(self, parts: list[EncoderPart], batch: int = 50) -> Tensor:
        """Return what a chain of parts makes of every picture, (N, H, W, C) bfloat16."""
        maps, pictures = [], self.pictures
        with torch.inference_mode(), fast_autocast(self.device):
            for start in range(0, len(pictures), batch):
                x = to_pixels(pictures[start : start + batch], self.vision.mean, self.vision.std, self.device)
                for part in parts:
                    x = part(x)
                maps.append(x.permute(0, 2, 3, 1).to("cpu", torch.bfloat16))
        return torch.cat(maps).clone()


def measure_patch_error(
    student: VisionEncoder, teacher: VisionEncoder, pictures: np.ndarray, batch: int = 50
) -> float:
    """Return the error of the student's patches against the teacher's, in the units of `hint_error`.

    pictures: uint8 (N, H, W, 3).
    """
    errors = []
    config, device = student.config, student.device
    student.eval()
    with torch.inference_mode(), fast_autocast(device):
        for start in range(0, len(pictures), batch):
            pixels = to_pixels(pictures[start : start + batch], config.mean, config.std, device)
            student_map = student.backbone.forward_features(pixels)
            errors.append(hint_error(student_map, teacher.backbone.forward_features(pixels)))
    return float(torch.stack(errors).mean())


def distill(
    config: DistillConfig,
    teacher: VisionEncoder,
    pictures: np.ndarray,
    folder: Path,
    *,
    start: dict[str, Tensor] | None = None,
    only: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> VisionEncoder:
    """Run the phases in order and return the trained encoder. Each phase resumes from `folder/<phase>/`.

    pictures: uint8 (N, H, W, 3). start: the student's weights at the beginning; random when not given. only: the one
    phase to run; the other phases are not run, and their weights are read where they are there. Phases that share no
    parts may run at the same time in two processes. say: is called with lines of progress.
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
            say(
                f"Phase {phase.name}: parts {phase.first} to {phase.last - 1}, "
                f"{count_text(phase.optim.steps, 'step')}."
            )
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
    """Distil an image encoder from the shards below `data` and write `output/encoder.safetensors`.

    teacher_folder: holds the teacher's weights. only: the name of the one phase to run; the encoder is not written
    then. say: is called with lines of progress. Raises DataError for a start, a teacher or shards that are missing, and
    TrainingError for a checkpoint that was made with other settings.
    """
    start = None
    if config.start:
        if not (path := output.parent / config.start / ENCODER).is_file():
            raise DataError(
                f"There is no encoder to start from at {path}; train the recipe {config.start} first."
            )
        start = load_file(path)
    device = device_of_process()
    teacher = load_teacher(config.vision, teacher_folder).to(device)
    samples = list(read_shards(find_shards(config.pictures, data)))
    pictures, _, failures = load_pictures(samples, config.vision.image_size)
    say(f"{count_text(len(pictures), 'picture')}, {len(failures):,} unreadable.")
    student = distill(config, teacher, pictures, output, start=start, only=only, say=say)
    if only is None:
        weights = {name: weight.contiguous() for name, weight in student.state_dict().items()}
        write_file(output / ENCODER, save(weights))
        error = measure_patch_error(student, teacher, pictures[:: max(1, len(pictures) // 500)])
        say(
            f"Wrote {output / ENCODER}; its patches differ from the teacher's by {error:.3f} of the variance."
        )
