"""`--set optim.batch=64`: a recipe with some of its settings changed, each checked against its type."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from engine.errors import TrainingError

Config = TypeVar("Config")
ALIASES = {"train": "optim"}


def with_settings(config: Config, changes: Sequence[str]) -> Config:
    """A copy of a config (a dataclass of dataclasses) with `path=value` changes.

    path: field names joined by dots, numbers for places in a row ("sources.0.weight"); "train" also means "optim".
    value: a number, true or false, none, a text; rows as "0.9,0.98"; rows of settings and dicts as JSON. Raises
    TrainingError for a name that is not there (with the nearest one) and for a value of another kind.
    """
    for change in changes:
        path, found, text = change.partition("=")
        if not found:
            raise TrainingError(
                f"--set {change!r} has no '='; write it as name=value, such as optim.batch=64."
            )
        config = _changed(config, type(config), path.strip().split("."), text.strip(), path.strip())
    return config


def _changed(value: Any, kind: Any, path: Sequence[str], text: str, whole: str) -> Any:
    if not path:
        return _parsed(text, kind, whole)
    name, rest = path[0], path[1:]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        if name not in hints and ALIASES.get(name) in hints:
            name = ALIASES[name]
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            raise TrainingError(
                f"There is no setting {whole!r}: {type(value).__name__} has no {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else f", it has: {', '.join(hints)}.")
            )
        if rest and getattr(value, name) is None:
            raise TrainingError(f"{whole}: {name} is none in this recipe, so nothing in it can be set.")
        changed = _changed(getattr(value, name), hints[name], rest, text, whole)
        return dataclasses.replace(value, **{name: changed})
    if isinstance(value, tuple):
        if not name.isdigit() or int(name) >= len(value):
            raise TrainingError(f"{whole}: {name!r} is no place in a row of {len(value)} (from 0).")
        inner = typing.get_args(_plain(kind))
        item = inner[0] if len(inner) == 2 and inner[1] is ... else inner[int(name)]
        new = _changed(value[int(name)], item, rest, text, whole)
        return (*value[: int(name)], new, *value[int(name) + 1 :])
    if isinstance(value, dict) and not rest:
        return value | {name: _json(text)}
    raise TrainingError(f"{whole}: {type(value).__name__} {value!r} has no {name!r} in it.")


def _plain(kind: Any) -> Any:
    """`X` of `X | None`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(one for one in typing.get_args(kind) if one is not type(None))
    return kind


def _parsed(text: str, kind: Any, whole: str) -> Any:
    if kind is not _plain(kind) and text.lower() == "none":
        return None
    kind = _plain(kind)
    try:
        if typing.get_origin(kind) is tuple:
            return _row(text, typing.get_args(kind), whole)
        if dataclasses.is_dataclass(kind):
            return _built(_json(text), kind, whole)
        if typing.get_origin(kind) is dict:
            return _checked(_json(text), dict)
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        return text if kind is str else kind(text)
    except (ValueError, KeyError, TypeError):
        raise TrainingError(f"{whole} should be {_named(kind)}, not {text!r}.") from None


def _row(text: str, inner: tuple[Any, ...], whole: str) -> tuple[Any, ...]:
    if dataclasses.is_dataclass(inner[0]):
        return tuple(_built(one, inner[0], whole) for one in _checked(_json(text), list))
    is_json = text.startswith("[")
    items = (
        [str(one) for one in json.loads(text)]
        if is_json
        else [one.strip() for one in text.split(",") if one.strip()]
    )
    if inner[-1] is ...:
        return tuple(_parsed(one, inner[0], whole) for one in items)
    if len(items) != len(inner):
        raise TrainingError(f"{whole} should have {len(inner)} values, not {len(items)} ({text!r}).")
    return tuple(_parsed(one, kind, whole) for one, kind in zip(items, inner, strict=True))


def _built(values: Any, kind: Any, whole: str) -> Any:
    """A dataclass from JSON, name by name."""
    hints = typing.get_type_hints(kind)
    unknown = [name for name in _checked(values, dict) if name not in hints]
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        raise TrainingError(
            f"{whole}: {kind.__name__} has no {unknown[0]!r}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
        )
    parsed = {
        name: _parsed(value if isinstance(value, str) else json.dumps(value), hints[name], f"{whole}.{name}")
        for name, value in values.items()
    }
    return kind(**parsed)


def _json(text: str) -> Any:
    return json.loads(text)


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError
    return value


def _named(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(kind, str(kind).replace("typing.", ""))
