"""Test that settings of stage 1 that contradict each other are refused, and that both are named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tiny import tiny_config

from engine.datasets.captioned_sets import SetConfig, SourceConfig
from engine.errors import TrainingError
from training.loop.optimizer import OptimConfig
from training.recipes.recipe_catalogue import RETRIEVAL, STAGE1
from training.stages.stage1_config import (
    PATCH_SETTINGS,
    PICTURE_SETTINGS,
    NamesConfig,
    Stage1Config,
    check_stage1,
)

OPTIM = OptimConfig(steps=1, batch=4, lr=1e-3)
CONFIG = Stage1Config(tiny_config(), (SourceConfig("s-*.tar"),), OPTIM, start="model")
CHANGED: dict[str, Any] = {
    "train_encoder": True,
    "recompute_encoder": True,
    "chunk": 2,
    "names": NamesConfig((SetConfig("n-*.tar"),)),
    "names_optim": OPTIM,
    "itc_optim": OPTIM,
    "encoder_optim": OPTIM,
    "earlier_share": 0.5,
    "patch_share": 0.5,
    "query_share": 0.5,
    "match_distillation": 1.0,
    "group": 4,
    "residual_match": True,
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_setting_for_pictures_is_refused_with_patches_and_the_other_way_round(name: str) -> None:
    assert {*PATCH_SETTINGS, *PICTURE_SETTINGS} == CHANGED.keys()
    allowed_views, refused_views = (0, 2) if name in PICTURE_SETTINGS else (2, 0)
    needed = {"names": CHANGED["names"]} if name == "names_optim" else {}
    check_stage1(replace(CONFIG, views=allowed_views, **{name: CHANGED[name]}, **needed))
    with pytest.raises(TrainingError, match=f"^{name} is set and views is {refused_views}: .* Set views to"):
        check_stage1(replace(CONFIG, views=refused_views, **{name: CHANGED[name]}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"views": -1}, "views is -1"),
        ({"views": 2, "sources": (SourceConfig("a.tar", weight=2.0),)}, "a.tar has a weight.* views is 2"),
        ({"start": "", "encoder": "e"}, "bert is not set"),
        ({"bert": "b"}, "not both"),
        ({"group": 0}, "group is 0; use 1 for random batches"),
    ],
)
def test_contradicting_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        check_stage1(replace(CONFIG, **changes))


@pytest.mark.parametrize("name", [*STAGE1, *RETRIEVAL])
def test_every_recipe_is_allowed(name: str) -> None:
    for recipes in (STAGE1, RETRIEVAL):
        if name in recipes:
            check_stage1(recipes[name]())


def test_a_start_goes_before_the_runs_of_a_recipe() -> None:
    """A recipe that builds on two runs may be given a start with `--set start=...`."""
    check_stage1(replace(STAGE1["mini"](), start="mini"))
