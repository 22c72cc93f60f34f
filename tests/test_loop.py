"""The training loop: schedule, weight decay, exact resume, what stops it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from engine.errors import TrainingError
from training.loop import OptimConfig, Weights, learning_rate, make_optimizer, train

CONFIG = OptimConfig(steps=12, batch=4, lr=0.05, warmup=3, log_every=1, seed=7)


class Toy:
    """Fits noisy sums; the noise and dropout come from the step's seed."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.LayerNorm(8), nn.Linear(8, 1))

    def losses(self, step: int) -> dict[str, Tensor]:
        x = torch.randn(4, 6).to(next(self.model.parameters()).dtype)
        return {"loss": (self.model(x)[:, 0] - x.sum(1)).square().mean().float()}


class StopsAt(Toy):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.stop = step

    def losses(self, step: int) -> dict[str, Tensor]:
        if step == self.stop:
            raise KeyboardInterrupt
        return super().losses(step)


def test_schedule_by_hand() -> None:
    config = OptimConfig(steps=10, batch=1, lr=1.0, min_lr=0.2, warmup=4)
    rates = [learning_rate(step, config) for step in range(10)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[7] == pytest.approx(0.6)  # half of the cosine
    assert learning_rate(10, config) == pytest.approx(0.2)


def test_no_decay_on_vectors_and_scalars() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2))
    model.register_parameter("temperature", nn.Parameter(torch.tensor(0.07)))
    optimizer = make_optimizer(list(model.parameters()), CONFIG)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {id(p): (0.05 if p.ndim == 2 else 0.0) for p in model.parameters()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_resumes_to_the_same_losses(tmp_path: Path, dtype: str) -> None:
    config = replace(CONFIG, dtype=dtype)
    whole = Toy()
    want = [row["loss"] for row in train(whole, config, tmp_path / "whole")]
    with pytest.raises(KeyboardInterrupt):
        train(StopsAt(5), config, tmp_path / "halves")
    again = Toy()
    got = [row["loss"] for row in train(again, config, tmp_path / "halves")]
    assert got == want[5:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    logged = [json.loads(line)["step"] for line in (tmp_path / "halves/log.jsonl").read_text().splitlines()]
    assert logged == list(range(1, 13))


def test_learns_and_a_broken_pairing_does_not(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=300, batch=4, log_every=50)
    rows = train(Toy(), config, tmp_path)
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]


def test_bfloat16_keeps_float32_masters(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    weights = Weights(model, "bfloat16")
    assert model.weight.dtype == torch.bfloat16
    with torch.no_grad():
        weights.masters[0].fill_(1.0)
    for _ in range(64):  # each step is below bfloat16's resolution at 1: without masters nothing would move
        with torch.no_grad():
            weights.masters[0].add_(2**-12)
        weights.give_values()
    assert float(model.weight.detach()) == 1 + 64 * 2**-12
    weights.raise_again()
    assert model.weight.dtype == torch.float32 and float(model.weight.detach()) == 1 + 64 * 2**-12


def test_other_settings_are_named(tmp_path: Path) -> None:
    train(Toy(), CONFIG, tmp_path)
    with pytest.raises(TrainingError, match=r"lr: 0.05 then, 0.1 now"):
        train(Toy(), replace(CONFIG, lr=0.1), tmp_path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    train(Toy(), CONFIG, tmp_path)
    other = Toy()
    other.model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 1))
    with pytest.raises(TrainingError, match="holds another model"):
        train(other, CONFIG, tmp_path)


def test_a_loss_that_is_no_number_stops(tmp_path: Path) -> None:
    class Broken(Toy):
        def losses(self, step: int) -> dict[str, Tensor]:
            losses = super().losses(step)
            return {"loss": losses["loss"] * (float("nan") if step == 6 else 1.0)}

    with pytest.raises(TrainingError, match=r"nan between steps 7 and 7"):
        train(Broken(), CONFIG, tmp_path)
