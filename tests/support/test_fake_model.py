"""The stand-ins for models and the searcher have the signatures of what they stand for.

So no test can pass by a call that the real class no longer has.
"""

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


def list_parameters(function: Callable[..., Any]) -> list[tuple[str, Any]]:
    """Return (name, kind) of the parameters of a function; the kind says whether it is given by name or position."""
    return [(name, parameter.kind) for name, parameter in inspect.signature(function).parameters.items()]


def list_public_names(class_: type) -> list[str]:
    """Return the names of the fields, properties and methods that a user of a class may use."""
    names = {*vars(class_), *getattr(class_, "__annotations__", {})}
    return sorted(name for name in names if not name.startswith("_"))


@pytest.mark.parametrize("method", ["search", "similar", "match", "rerank"])
def test_methods_of_the_fake_searcher_have_the_same_parameters_defaults_and_types(method: str) -> None:
    real, fake = (
        inspect.signature(getattr(class_, method), eval_str=True) for class_ in (Searcher, FakeSearcher)
    )
    assert fake == real


def test_the_fake_searcher_is_created_with_the_same_parameters() -> None:
    assert list_parameters(FakeSearcher) == list_parameters(Searcher)
    assert list_parameters(make_fake_searcher) == list_parameters(session.make_searcher)


def test_the_fake_searcher_has_no_public_name_that_the_searcher_lacks() -> None:
    assert {*list_public_names(FakeSearcher)} <= {*list_public_names(Searcher)}


@pytest.mark.parametrize("name", list_public_names(FakeModel))
def test_the_model_has_each_method_and_field_of_the_fake_model(name: str, tmp_path: Path) -> None:
    if inspect.isfunction(getattr(FakeModel, name, None)):
        assert list_parameters(getattr(FakeModel, name)) == list_parameters(getattr(RetrievalModel, name))
    else:
        real = getattr(tiny_model(tmp_path / "tiny"), name)
        assert type(getattr(FakeModel(), name)) is type(real)


@pytest.mark.parametrize("method", ["caption", "answer"])
def test_methods_of_the_fake_captioner_have_the_same_parameters(method: str) -> None:
    assert list_parameters(getattr(FakeCaptioner, method)) == list_parameters(getattr(PhotoCaptioner, method))


def test_fake_models_are_loaded_with_the_same_parameters() -> None:
    assert list_parameters(load_fake_model) == list_parameters(session.load_model)
    assert list_parameters(load_fake_captioner) == list_parameters(session.load_photo_captioner)
