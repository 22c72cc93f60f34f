"""`--set optim.batch=64`: a recipe with some of its settings changed, each checked against its type."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from engine.errors import TrainingError

Config = TypeVar("Config")
ALIASES = {"train": "optim"}
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
# Dataclasses inherit this from the type around them; by itself pydantic drops names that it does not know.
READING = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


def apply_settings(config: Config, changes: Sequence[str]) -> Config:
    """A copy of a config (a dataclass of dataclasses) with `path=value` changes.

    path: field names joined by dots, numbers for places in a row ("sources.0.weight"); "train" also means "optim", and
    "pictures" the paths of "sources".
    value: a number, true or false, none, a text; rows as "0.9,0.98"; rows of settings and dicts as JSON. Raises
    TrainingError for a name that is not there (with the nearest one) and for a value of another kind.
    """
    for change in changes:
        path, found, text = change.partition("=")
        if not found:
            raise TrainingError(
                f"--set {change!r} has no '='; write it as name=value, such as optim.batch=64."
            )
        path, text = path.strip(), text.strip()
        names = path.split(".")
        if names[0] == "pictures" and hasattr(config, "sources"):
            names, text = _sources_by_path(names[1:], text, path)
        config = _changed(config, type(config), names, text, path)
    return config


def _sources_by_path(place: Sequence[str], text: str, whole: str) -> tuple[list[str], str]:
    """Return `pictures=a.tar,b.json`, which gives sets by their paths alone, as a change of `sources`."""
    if place:
        return ["sources", *place, "path"], text
    return ["sources"], json.dumps([{"path": path} for path in _parsed(text, tuple[str, ...], whole)])


def _changed(value: Any, kind: Any, path: Sequence[str], text: str, whole: str) -> Any:
    if not path:
        return _parsed(text, kind, whole)
    name, rest = path[0], path[1:]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = typing.get_type_hints(type(value))
        if name not in names and ALIASES.get(name) in names:
            name = ALIASES[name]
        if name not in names:
            raise TrainingError(f"There is no setting {whole!r}: {_no_such_name(type(value), name)}")
        if rest and getattr(value, name) is None:
            raise TrainingError(f"{whole}: {name} is none in this recipe, so nothing in it can be set.")
        changed = _changed(getattr(value, name), names[name], rest, text, whole)
        return dataclasses.replace(value, **{name: changed})
    if isinstance(value, tuple):
        if not name.isdigit() or int(name) >= len(value):
            raise TrainingError(f"{whole}: {name!r} is no place in a row of {len(value)} (from 0).")
        new = _changed(value[int(name)], _kind_inside(kind, int(name)), rest, text, whole)
        return (*value[: int(name)], new, *value[int(name) + 1 :])
    if isinstance(value, dict) and not rest:
        try:
            return value | {name: json.loads(text)}
        except ValueError:  # a text need not stand in quotes
            return value | {name: text}
    raise TrainingError(f"{whole}: {type(value).__name__} {value!r} has no {name!r} in it.")


def _parsed(text: str, kind: Any, whole: str) -> Any:
    """Return the value of a setting of this kind. Raise TrainingError for a text that stands for none."""
    adapter = TypeAdapter(dict[str, kind], config=READING)
    try:
        return adapter.validate_python({whole: _from_text(text, kind)})[whole]
    except ValidationError as error:
        raise TrainingError(_explained(error, kind, text)) from None
    except ValueError as error:
        raise TrainingError(
            f"{whole} should be {_named(kind)}, not {text!r}, which is no readable JSON: {error}."
        ) from None


def _from_text(text: str, kind: Any) -> Any:
    """Return what a person typed as plain values: "none", JSON, or a row with commas between its values."""
    inside = _plain(kind)
    if inside is not kind and text.lower() == "none":
        return None
    if typing.get_origin(inside) is not tuple:
        return json.loads(text) if text.startswith("{") and inside is not str else text
    if text.startswith("["):
        return json.loads(text)
    if dataclasses.is_dataclass(_kind_inside(inside, 0)):
        return text
    return [item.strip() for item in text.split(",") if item.strip()]


def _explained(error: ValidationError, kind: Any, text: str) -> str:
    """Return the first of pydantic's complaints in our words; a name that nothing has comes before all others."""
    complaints = error.errors(include_url=False)
    complaint = next((c for c in complaints if c["type"] == "unexpected_keyword_argument"), complaints[0])
    path = complaint["loc"]
    name = path[-1]
    missing = complaint["type"] in ("missing", "unexpected_keyword_argument")
    inside = path[1:-1] if missing else path[1:]
    for place in inside:
        kind = _kind_inside(kind, place)
    where = ".".join(map(str, (path[0], *inside)))
    if complaint["type"] == "unexpected_keyword_argument":
        return f"{where}: {_no_such_name(_plain(kind), str(name))}"
    if complaint["type"] == "too_long" or (missing and isinstance(name, int)):
        wanted = len(typing.get_args(_plain(kind)))
        return f"{where} should have {wanted} values, not {len(complaint['input'])} ({text!r})."
    if missing:
        return f"{where}: {_plain(kind).__name__} needs {name!r}, which {text!r} leaves out."
    value = complaint["input"]
    return (
        f"{where} should be {_named(kind)}, not {value if isinstance(value, str) else json.dumps(value)!r}."
    )


def _no_such_name(kind: type, name: str) -> str:
    names = typing.get_type_hints(kind)
    near = difflib.get_close_matches(name, names, n=1)
    advice = f"; did you mean {near[0]!r}?" if near else f", it has: {', '.join(names)}."
    return f"{kind.__name__} has no {name!r}{advice}"


def _plain(kind: Any) -> Any:
    """Return `X` of `X | None`."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(inner for inner in typing.get_args(kind) if inner is not type(None))
    return kind


def _kind_inside(kind: Any, place: int | str) -> Any:
    """Return the kind of a field, of a place in a row, or of a name in a dict."""
    kind = _plain(kind)
    if dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind)[str(place)]
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is dict:
        return inner[1]
    return inner[0] if inner[-1] is ... else inner[int(place)]


def _named(kind: Any) -> str:
    """Return what a value of this kind is called in a message."""
    kind = _plain(kind)
    is_row = typing.get_origin(kind) is tuple
    item = _plain(_kind_inside(kind, 0)) if is_row else kind
    if isinstance(item, type) and dataclasses.is_dataclass(item):
        example = f'{{"{dataclasses.fields(item)[0].name}": ...}}'
        return f"JSON for {item.__name__}, such as {f'[{example}]' if is_row else example}"
    if is_row:
        return "values with commas between them"
    return "a JSON object" if typing.get_origin(kind) is dict else NAMES.get(kind, str(kind))
