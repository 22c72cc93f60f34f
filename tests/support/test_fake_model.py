"""What stands in for the model and the searcher offers what they offer: no test passes by a call that is gone."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_model import (
    FakeCaptioner,
    FakeModel,
    FakeSearcher,
    load_fake_captioner,
    load_fake_model,
    make_fake_searcher,
)
from tiny import tiny_model

from engine.models.photo_captioners import PhotoCaptioner
from engine.models.retrieval_model import RetrievalModel
from engine.search.searcher import Searcher
from ui import session


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Names in their order, each with how it may be given."""
    return [(name, found.kind) for name, found in inspect.signature(function).parameters.items()]


def public_names(class_: type) -> list[str]:
    """Fields, properties and methods that a user of the class may name."""
    names = {*vars(class_), *getattr(class_, "__annotations__", {})}
    return sorted(name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("method", ["search", "similar", "match", "rerank"])
def test_the_searcher_is_asked_in_the_same_way(method: str) -> None:
    """Names, order, defaults and types are equal."""
    real, fake = (
        inspect.signature(getattr(class_, method), eval_str=True) for class_ in (Searcher, FakeSearcher)
    )
    assert fake == real


def test_the_searcher_is_made_in_the_same_way() -> None:
    assert parameters(FakeSearcher) == parameters(Searcher)
    assert parameters(make_fake_searcher) == parameters(session.make_searcher)


def test_the_searcher_offers_nothing_that_is_not_there() -> None:
    assert {*public_names(FakeSearcher)} <= {*public_names(Searcher)}


@pytest.mark.parametrize("name", public_names(FakeModel))
def test_the_model_has_what_it_stands_in_for(name: str, tmp_path: Path) -> None:
    if inspect.isfunction(getattr(FakeModel, name, None)):
        assert parameters(getattr(FakeModel, name)) == parameters(getattr(RetrievalModel, name))
    else:
        real = getattr(tiny_model(tmp_path / "tiny"), name)
        assert type(getattr(FakeModel(), name)) is type(real)


@pytest.mark.parametrize("method", ["caption", "answer"])
def test_the_writer_is_asked_in_the_same_way(method: str) -> None:
    assert parameters(getattr(FakeCaptioner, method)) == parameters(getattr(PhotoCaptioner, method))


def test_models_are_loaded_in_the_same_way() -> None:
    assert parameters(load_fake_model) == parameters(session.load_model)
    assert parameters(load_fake_captioner) == parameters(session.load_photo_captioner)
