"""Test distillation: the teacher is loaded exactly, blocks learn, phases follow one another and resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from random_teachers import write_random_teacher
from reference import draw_normal, load_golden
from safetensors.torch import load_file, save_file
from shard_writing import write_shard
from tiny import write_pictures

from engine.blip2.config import mini
from engine.blip2.vision import VisionEncoder, list_network_parts
from engine.errors import DataError
from training.loop.optimizer import OptimConfig
from training.stages import distillation
from training.stages.distillation import DistillConfig, Phase, hint_error
from training.stages.teacher import load_teacher


def test_the_teacher_equals_its_original(tmp_path: Path) -> None:
    _, expected = load_golden("i_teacher")
    pixels = draw_normal(601, (2, 3, 96, 96)).clamp(-1, 1)
    actual = load_teacher(mini().vision, write_random_teacher(tmp_path))(pixels)
    torch.testing.assert_close(
        actual[..., ::4], expected["map"].flatten(2).transpose(1, 2), atol=2e-4, rtol=1e-4
    )


def test_a_missing_teacher_and_one_that_does_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no teacher at"):
        load_teacher(mini().vision, tmp_path)
    folder = write_random_teacher(tmp_path)
    stored = dict(np.load(folder / "mobilenet_v2.npz"))
    stored["conv3.weight"] = stored["conv3.weight"][:5]
    np.savez(folder / "mobilenet_v2.npz", **stored)
    with pytest.raises(DataError, match="conv3 has the shape"):
        load_teacher(mini().vision, folder)


def test_the_chain_of_parts_is_the_whole_network() -> None:
    encoder = VisionEncoder(mini().vision).eval()
    x = torch.randn(1, 3, 64, 64)
    chained = x
    for _, part in list_network_parts(encoder):
        chained = part(chained)
    torch.testing.assert_close(chained.flatten(2).transpose(1, 2), encoder(x))
    parameters_of_parts = {id(p) for modules, _ in list_network_parts(encoder) for p in modules.parameters()}
    assert parameters_of_parts == {id(p) for p in encoder.parameters()}


def test_the_hint_error_is_the_one_computed_by_hand() -> None:
    expected = torch.randn(4, 3, 5, 5) * torch.tensor([1.0, 10.0, 100.0]).view(1, 3, 1, 1)
    assert float(hint_error(expected, expected)) == 0
    constant = expected.mean((0, 2, 3), keepdim=True).expand_as(expected)
    variance = expected.var((0, 2, 3))
    shares = variance / (variance + 0.05 * variance.mean()) * (99 / 100)
    assert float(hint_error(constant, expected)) == pytest.approx(float(shares.mean()), rel=1e-4)


def test_blocks_learn_and_a_stopped_run_goes_on(tmp_path: Path) -> None:
    teacher = load_teacher(mini().vision, write_random_teacher(tmp_path / "teacher"))
    pictures = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3), dtype=np.uint8)
    optim = OptimConfig(steps=30, batch=4, lr=5e-3, warmup=2, weight_decay=0.0, log_every=10)
    phases = (Phase("early", 0, 3, 32, 0.5, optim), Phase("late", 3, 5, 8, 1.0, optim))
    config = DistillConfig(mini().vision, (), phases)
    lines: list[str] = []
    student = distillation.distill(config, teacher, pictures, tmp_path / "run", say=lines.append)
    first = float(next(line for line in lines if "step 10/" in line).split("loss")[1].split()[0])
    last = float(next(line for line in lines if "step 30/" in line).split("loss")[1].split()[0])
    assert last < first
    # Every phase is finished, so that its weights are read.
    second = distillation.distill(config, teacher, pictures, tmp_path / "run")
    for name, value in student.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def test_everything_is_float32_without_bfloat16_in_hardware(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    teacher = load_teacher(mini().vision, write_random_teacher(tmp_path / "teacher"))
    pictures = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), dtype=np.uint8)
    optim = OptimConfig(steps=1, batch=2, lr=1e-3, weight_decay=0.0)
    dtypes = set()
    original_hint_error = distillation.hint_error

    def record_dtypes(student_BCHW: torch.Tensor, teacher_BCHW: torch.Tensor) -> torch.Tensor:
        dtypes.update((student_BCHW.dtype, teacher_BCHW.dtype))
        return original_hint_error(student_BCHW, teacher_BCHW)

    monkeypatch.setattr(distillation, "hint_error", record_dtypes)
    phases = (Phase("early", 0, 3, 32, 0.0, optim), Phase("late", 3, 5, 8, 0.0, optim, own_inputs=True))
    config = DistillConfig(mini().vision, (), phases)
    student = distillation.distill(config, teacher, pictures, tmp_path / "run")
    distillation.measure_patch_error(student, teacher, pictures)
    assert dtypes == {torch.float32}


def test_an_encoder_is_trained_further_from_another_run(tmp_path: Path) -> None:
    """After one step at a learning rate of zero the start comes out, and only the last part has an error."""
    teacher_folder, data = write_random_teacher(tmp_path / "teacher"), tmp_path / "data"
    data.mkdir()
    files = {
        path.name: path.read_bytes() for path in write_pictures(tmp_path, [f"{n}.png" for n in range(6)])
    }
    write_shard(data / "some.tar", files)
    start = VisionEncoder(mini().vision)
    optim = OptimConfig(steps=1, batch=2, lr=0.0, weight_decay=0.0, log_every=1)
    phase = Phase("whole", 0, 19, 64, 0.0, optim, hints="last")
    config = DistillConfig(mini().vision, ("some.tar",), (phase,), start="first")
    with pytest.raises(DataError, match="train the recipe first first"):
        distillation.run_distill(config, data, teacher_folder, tmp_path / "runs" / "second")
    (tmp_path / "runs" / "first").mkdir(parents=True)
    save_file(start.state_dict(), tmp_path / "runs" / "first" / distillation.ENCODER)
    distillation.run_distill(config, data, teacher_folder, tmp_path / "runs" / "second")
    actual = load_file(tmp_path / "runs" / "second" / distillation.ENCODER)
    for name, value in start.named_parameters():
        assert torch.equal(actual[name], value), name
    log = json.loads((tmp_path / "runs" / "second" / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert log["loss"] == log["last"] > 0
