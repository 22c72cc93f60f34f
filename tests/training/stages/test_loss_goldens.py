"""Test that short training runs give the losses that were recorded when the code was proven right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from golden_losses import FILE, RUNS, run_and_read_losses

RECORDED_LOSSES = json.loads(FILE.read_text())


@pytest.mark.parametrize("name", RUNS)
def test_a_short_run_gives_the_recorded_losses(tmp_path: Path, name: str) -> None:
    losses = run_and_read_losses(name, tmp_path)
    assert losses.keys() == RECORDED_LOSSES[name].keys() and all(len(steps) == 4 for steps in losses.values())
    for phase, steps in losses.items():
        assert steps == pytest.approx(RECORDED_LOSSES[name][phase], rel=2e-4), phase
