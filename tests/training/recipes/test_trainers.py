"""Test that every recipe has a trainer, and that a trainer asks by name for the folders that it needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import DataError
from training.recipes import trainers
from training.recipes.recipe_catalogue import BY_KIND
from training.recipes.trainers import TRAINERS, Request, find_trainer
from training.stages.finetuning import CaptionConfig, VqaConfig

RECIPES: dict[str, Any] = {
    f"{kind} {name}": make for kind, recipes in BY_KIND.items() for name, make in recipes.items()
}
REQUEST = Request(Path("data"), Path("runs"), Path("runs/out"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_trainer(name: str) -> None:
    assert find_trainer(RECIPES[name]()) in TRAINERS.values()


def test_questions_have_the_trainer_of_captions() -> None:
    assert VqaConfig not in TRAINERS
    assert find_trainer(RECIPES["vqa mini-vqa"]()) is TRAINERS[CaptionConfig]


@pytest.mark.parametrize(
    ("name", "words"),
    [("distill mini-encoder", "needs --teacher"), ("stage2 mini-captioner", "needs --language")],
)
def test_a_missing_folder_is_asked_for(name: str, words: str) -> None:
    recipe = RECIPES[name]()
    with pytest.raises(DataError, match=words):
        find_trainer(recipe).run(recipe, REQUEST)


def test_a_trainer_passes_the_request_on(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments: dict[str, Any] = {}

    def run(config: object, *folders: Path, **options: Any) -> None:
        arguments.update(config=config, folders=folders, **options)

    monkeypatch.setattr(trainers, "run_distill", run)
    recipe = RECIPES["distill mini-encoder"]()
    request = replace(REQUEST, teacher=Path("teacher"), phase="early")
    find_trainer(recipe).run(recipe, request)
    assert arguments["config"] == recipe and arguments["only"] == "early" and arguments["say"] is request.say
    assert arguments["folders"] == (Path("data"), Path("teacher"), Path("runs/out"))


def test_an_outline_divides_the_batch_among_torchruns_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["stage1 mini"]()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert any("96 pairs (24 a process)" in line for line in find_trainer(recipe).outline(recipe, REQUEST))
