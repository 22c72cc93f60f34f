"""The training loop learns, resumes exactly, names what stops it, and keeps checkpoints that are whole."""

from __future__ import annotations

import json
import signal
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy_task import CONFIG, ToyTask

from engine.errors import TrainingError
from training.loop.train_loop import train
from training.loop.trained_weights import TrainedWeights


class StopsAt(ToyTask):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.stop = step

    def losses(self, step: int) -> dict[str, Tensor]:
        if step == self.stop:
            raise KeyboardInterrupt
        return super().losses(step)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_run_repeats_the_losses_of_a_whole_run(tmp_path: Path, dtype: str) -> None:
    config = replace(CONFIG, dtype=dtype)
    whole = ToyTask()
    expected = [row["loss"] for row in train(whole, config, tmp_path / "whole")]
    with pytest.raises(KeyboardInterrupt):
        train(StopsAt(5), config, tmp_path / "halves")
    again = ToyTask()
    resumed = [row["loss"] for row in train(again, config, tmp_path / "halves")]
    assert resumed == expected[5:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    logged = [json.loads(line)["step"] for line in (tmp_path / "halves/log.jsonl").read_text().splitlines()]
    assert logged == list(range(1, 13))


def test_the_loss_falls(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=300, batch=4, log_every=50)
    rows = train(ToyTask(), config, tmp_path)
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]


def test_bfloat16_keeps_float32_masters(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    weights = TrainedWeights(model, "bfloat16")
    assert model.weight.dtype == torch.bfloat16
    with torch.no_grad():
        weights.masters[0].fill_(1.0)
    for _ in range(64):  # each step is below bfloat16's resolution at 1: without masters nothing would move
        with torch.no_grad():
            weights.masters[0].add_(2**-12)
        weights.copy_masters_to_model()
    assert float(model.weight.detach()) == 1 + 64 * 2**-12
    weights.restore_float32()
    assert model.weight.dtype == torch.float32 and float(model.weight.detach()) == 1 + 64 * 2**-12


def test_settings_that_differ_from_the_checkpoint_are_named(tmp_path: Path) -> None:
    train(ToyTask(), CONFIG, tmp_path)
    with pytest.raises(TrainingError, match=r"lr: 0.05 then, 0.1 now"):
        train(ToyTask(), replace(CONFIG, lr=0.1), tmp_path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    train(ToyTask(), CONFIG, tmp_path)
    other = ToyTask()
    other.model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 1))
    with pytest.raises(TrainingError, match="holds another model"):
        train(other, CONFIG, tmp_path)


def test_a_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    class Broken(ToyTask):
        def losses(self, step: int) -> dict[str, Tensor]:
            losses = super().losses(step)
            return {"loss": losses["loss"] * (float("nan") if step == 6 else 1.0)}

    with pytest.raises(TrainingError, match=r"nan at step 7;"):
        train(Broken(), replace(CONFIG, log_every=10), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()  # nothing is saved of what the step has spoilt
    saves_always = replace(CONFIG, log_every=10, checkpoint_minutes=0.0)
    with pytest.raises(TrainingError, match=r"nan at step 7;"):
        train(Broken(), saves_always, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt")["step"] == 6


def test_out_of_memory_names_the_largest_batch_that_fits(tmp_path: Path) -> None:
    class Large(ToyTask):
        def losses(self, step: int) -> dict[str, Tensor]:
            return self.losses_of(step, 16) if step == 2 else super().losses(step)

        def losses_of(self, step: int, count: int) -> dict[str, Tensor]:
            if count > 5:
                raise torch.OutOfMemoryError("no room\nfor it")
            return super().losses(step)

    with pytest.raises(
        TrainingError, match=r"step 3 with a batch of 16; the largest that fitted is 4.*no room\)"
    ):
        train(Large(), replace(CONFIG, batch=16), tmp_path)


def test_out_of_memory_of_a_task_with_its_own_backward_passes(tmp_path: Path) -> None:
    class Large(ToyTask):
        def losses(self, step: int) -> dict[str, Tensor]:
            return self.losses_of(step, 16)

        def losses_of(self, step: int, count: int) -> dict[str, Tensor]:
            if count > 5:
                raise torch.OutOfMemoryError("no room")
            loss = super().losses(step)["loss"]
            loss.backward()
            return {"loss": loss.detach()}

    with pytest.raises(TrainingError, match="the largest that fitted is 4"):
        train(Large(), replace(CONFIG, batch=16), tmp_path)


def test_ctrl_c_finishes_the_step(tmp_path: Path) -> None:
    """A real SIGINT in the middle of a step: the step counts, and the run goes on to the same losses."""

    class Interrupted(ToyTask):
        def losses(self, step: int) -> dict[str, Tensor]:
            if step == 5:
                signal.raise_signal(signal.SIGINT)
            return super().losses(step)

    expected = [row["loss"] for row in train(ToyTask(), CONFIG, tmp_path / "whole")]
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupted(), CONFIG, tmp_path / "halves")
    assert signal.getsignal(signal.SIGINT) is before
    assert torch.load(tmp_path / "halves/checkpoint.pt")["step"] == 6
    assert [row["loss"] for row in train(ToyTask(), CONFIG, tmp_path / "halves")] == expected[6:]


def test_the_tasks_own_settings_are_compared(tmp_path: Path) -> None:
    first, second = ToyTask(), ToyTask()
    first.settings = {"dropout": 0.3, "data": "one"}  # type: ignore[attr-defined]
    second.settings = {"dropout": 0.3, "data": "two"}  # type: ignore[attr-defined]
    train(first, CONFIG, tmp_path)
    with pytest.raises(TrainingError, match=r"settings \(data: 'one' then, 'two' now\)"):
        train(second, CONFIG, tmp_path)


def test_a_checkpoint_from_before_a_setting_was_there(tmp_path: Path) -> None:
    train(ToyTask(), CONFIG, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt")
    del state["config"]["layer_decay"], state["settings"]
    torch.save(state, tmp_path / "checkpoint.pt")
    assert train(ToyTask(), CONFIG, tmp_path) == []
    with pytest.raises(TrainingError, match=r"layer_decay: 1.0 then, 0.9 now"):
        train(ToyTask(), replace(CONFIG, layer_decay=0.9), tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"half")
    with pytest.raises(TrainingError, match=r"checkpoint\.pt is not a readable checkpoint"):
        train(ToyTask(), CONFIG, tmp_path)


def test_a_progress_line_tells_loss_speed_and_time_left(tmp_path: Path) -> None:
    lines: list[str] = []
    rows = train(ToyTask(), CONFIG, tmp_path, say=lines.append)
    assert len(lines) == 12 and lines[-1].startswith("step 12/12  loss ")
    assert "samples/s  MFU " in lines[-1] and lines[-1].endswith("0.0 min left")
    assert 0 < rows[-1]["mfu"] < 1 and rows[-1]["samples_per_second"] > 0


def test_tensorboard_gets_the_log_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, tensorboard=True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"pip install 'qseek\[tensorboard\]'"):
        train(ToyTask(), config, tmp_path / "absent")
    written: list[tuple[str, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "there")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, step))

        def close(self) -> None:
            written.append(("closed", 0))

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    train(ToyTask(), config, tmp_path / "there")
    assert ("loss", 12) in written and ("lr", 1) in written and written[-1] == ("closed", 0)


def test_frozen_parameters_compute_in_bfloat16_and_get_their_values_back() -> None:
    """A frozen layer between trained ones is cast, because rows pass through both; an image encoder is not."""
    model = nn.ModuleDict({"vision": nn.Linear(1, 1), "frozen": nn.Linear(3, 3), "trained": nn.Linear(3, 3)})
    for name in ("vision", "frozen"):
        model[name].requires_grad_(False)
    before = model["frozen"].weight.clone()
    assert not torch.equal(before, before.bfloat16().float())
    weights = TrainedWeights(model, "bfloat16")
    dtypes = {name: model[name].weight.dtype for name in model}
    assert dtypes == {"vision": torch.float32, "frozen": torch.bfloat16, "trained": torch.bfloat16}
    weights.restore_float32()
    assert torch.equal(model["frozen"].weight, before) and not model["frozen"].weight.requires_grad
