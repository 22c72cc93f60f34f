"""Every recipe has a trainer, and what a trainer needs beside it is asked for by name."""

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
    f"{what} {name}": make for what, made in BY_KIND.items() for name, make in made.items()
}
REQUEST = Request(Path("data"), Path("runs"), Path("runs/out"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_trainer(name: str) -> None:
    assert find_trainer(RECIPES[name]()) in TRAINERS.values()


def test_questions_are_trained_as_captions_are() -> None:
    assert VqaConfig not in TRAINERS
    assert find_trainer(RECIPES["vqa mini-vqa"]()) is TRAINERS[CaptionConfig]


@pytest.mark.parametrize(
    ("name", "words"),
    [("distill mini-encoder", "needs --teacher"), ("stage2 mini-captioner", "needs --language")],
)
def test_a_folder_that_is_not_given_is_asked_for(name: str, words: str) -> None:
    recipe = RECIPES[name]()
    with pytest.raises(DataError, match=words):
        find_trainer(recipe).run(recipe, REQUEST)


def test_a_run_is_given_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def run(config: object, *places: Path, **options: Any) -> None:
        given.update(config=config, places=places, **options)

    monkeypatch.setattr(trainers, "run_distill", run)
    recipe = RECIPES["distill mini-encoder"]()
    request = replace(REQUEST, teacher=Path("teacher"), phase="early")
    find_trainer(recipe).run(recipe, request)
    assert given["config"] == recipe and given["only"] == "early" and given["say"] is request.say
    assert given["places"] == (Path("data"), Path("teacher"), Path("runs/out"))


def test_an_outline_counts_torchruns_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES["stage1 mini"]()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert any("96 pairs (24 a process)" in line for line in find_trainer(recipe).outline(recipe, REQUEST))
