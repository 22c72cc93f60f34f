"""A run's log counts the operations of the first step, and says the rate and the time that is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from engine.blip2.config import QFormerConfig
from engine.blip2.layers import Attention
from training.loop.optimizer import OptimConfig
from training.loop.run_log import RunLog

CONFIG = OptimConfig(steps=3, batch=4, lr=0.1)


def count_operations(folder: Path, work: Callable[[], object], step: int = 0) -> int:
    """Return the number of operations that the log of a run counts in a step that does this work."""
    log = RunLog(folder, CONFIG, 0, print, torch.device("cpu"))
    with log.count_operations(step):
        work()
    return log.operations


def test_a_linear_layer_and_its_backward_pass_are_counted(tmp_path: Path) -> None:
    layer = nn.Linear(6, 8)
    x = torch.randn(4, 6, requires_grad=True)
    product = 2 * 4 * 6 * 8  # a multiplication and an addition for each of 4 x 8 numbers and 6 inputs
    assert count_operations(tmp_path, lambda: layer(x)) == product
    # The backward pass has a product for the weight's gradient and one for the input's.
    assert count_operations(tmp_path, lambda: layer(x).sum().backward()) == 3 * product


def test_only_the_first_step_is_counted(tmp_path: Path) -> None:
    layer = nn.Linear(6, 8)
    assert count_operations(tmp_path, lambda: layer(torch.randn(4, 6)), step=1) == 0


def test_an_attention_layer_is_counted(tmp_path: Path) -> None:
    rows, sources, width, source_width, heads = 5, 7, 8, 6, 2
    layer = Attention(QFormerConfig(width=width, num_heads=heads), source_width)
    hidden = torch.randn(3, rows, width, requires_grad=True)
    patches = torch.randn(3, sources, source_width)

    def read() -> None:
        layer(hidden, layer.compute_keys_values(patches), None)

    projections = 2 * 3 * (2 * rows * width * width + 2 * sources * source_width * width)
    products = 2 * (2 * 3 * heads * rows * sources * (width // heads))  # scores, and the values they mix
    assert count_operations(tmp_path, read) == projections + products


def test_the_first_row_has_no_rate_and_no_time_left(tmp_path: Path) -> None:
    """The first step is not timed."""
    lines: list[str] = []
    log = RunLog(tmp_path, CONFIG, 0, lines.append, torch.device("cpu"))
    with log.count_operations(0):
        pass
    for step in (1, 2, 3):
        log.add(step, {"loss": torch.tensor(1.0)})
        log.write_row(step)
    assert math.isnan(log.rows[0]["samples_per_second"]) and lines[0] == "step 1/3  loss 1.0000"
    assert log.rows[1]["samples_per_second"] > 0 and "min left" in lines[1]
    assert lines[2].endswith("0.0 min left")
