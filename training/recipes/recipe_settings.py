"""Change settings of a recipe as `--set optim.batch=64` asks, and check each new value against the setting's type."""

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
KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
# Dataclasses inherit this from the type around them; without it pydantic drops names that it does not know.
STRICT = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


def apply_settings(config: Config, changes: Sequence[str]) -> Config:
    """Return a copy of a config (a dataclass of dataclasses) with changes of the form `setting=value`.

    setting: field names joined by dots, and numbers for the items of a list ("sources.0.weight"). "train" also means
    "optim", and "pictures" means the paths of "sources".
    value: a number, true or false, none, or a text; lists as "0.9,0.98"; lists of settings and dicts as JSON.

    Raises TrainingError for a setting that does not exist (with the nearest name) and for a value of another type.
    """
    for change in changes:
        setting, equals, text = change.partition("=")
        if not equals:
            raise TrainingError(
                f"--set {change!r} has no '='; write it as name=value, such as optim.batch=64."
            )
        setting, text = setting.strip(), text.strip()
        names = setting.split(".")
        if names[0] == "pictures" and hasattr(config, "sources"):
            names, text = _name_sources(names[1:], text, setting)
        config = _change_value(config, type(config), names, text, setting)
    return config


def _name_sources(inner_names: Sequence[str], text: str, setting: str) -> tuple[list[str], str]:
    """Translate `pictures=a.tar,b.json`, which gives sets by their paths alone, into a change of `sources`."""
    if inner_names:
        return ["sources", *inner_names, "path"], text
    paths = _parse_value(text, tuple[str, ...], setting)
    return ["sources"], json.dumps([{"path": path} for path in paths])


def _change_value(value: Any, kind: Any, names: Sequence[str], text: str, setting: str) -> Any:
    """Return `value` with the part that `names` lead to replaced by what `text` stands for.

    kind: the type of the value. setting: the whole name, for messages.
    """
    if not names:
        return _parse_value(text, kind, setting)
    name, inner_names = names[0], names[1:]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _change_field(value, name, inner_names, text, setting)
    if isinstance(value, tuple):
        if not name.isdigit() or int(name) >= len(value):
            raise TrainingError(
                f"{setting}: there is no item {name!r} in a list of {len(value)}, counted from 0."
            )
        number = int(name)
        item = _change_value(value[number], _find_inner_kind(kind, number), inner_names, text, setting)
        return (*value[:number], item, *value[number + 1 :])
    if isinstance(value, dict) and not inner_names:
        try:
            return value | {name: json.loads(text)}
        except ValueError:  # a text need not stand in quotes
            return value | {name: text}
    raise TrainingError(f"{setting}: {type(value).__name__} {value!r} has no {name!r} in it.")


def _change_field(config: Any, name: str, inner_names: Sequence[str], text: str, setting: str) -> Any:
    """Return a dataclass with one field changed, or with something changed inside that field."""
    kinds = typing.get_type_hints(type(config))
    if name not in kinds and ALIASES.get(name) in kinds:
        name = ALIASES[name]
    if name not in kinds:
        raise TrainingError(f"There is no setting {setting!r}: {_word_unknown_name(type(config), name)}")
    if inner_names and getattr(config, name) is None:
        raise TrainingError(f"{setting}: {name} is none in this recipe, so nothing in it can be set.")
    value = _change_value(getattr(config, name), kinds[name], inner_names, text, setting)
    return dataclasses.replace(config, **{name: value})


def _parse_value(text: str, kind: Any, setting: str) -> Any:
    """Return the value of type `kind` that a text stands for. Raise TrainingError if it stands for none."""
    adapter = TypeAdapter(dict[str, kind], config=STRICT)
    try:
        return adapter.validate_python({setting: _split_text(text, kind)})[setting]
    except ValidationError as error:
        raise TrainingError(_word_complaint(error, kind, text)) from None
    except ValueError as error:
        raise TrainingError(
            f"{setting} should be {_name_kind(kind)}, not {text!r}, which cannot be read as JSON: {error}."
        ) from None


def _split_text(text: str, kind: Any) -> Any:
    """Return what a person typed as plain Python values: None, what JSON holds, a list of texts, or the text."""
    inner_kind = _drop_none(kind)
    if inner_kind is not kind and text.lower() == "none":
        return None
    if typing.get_origin(inner_kind) is not tuple:
        return json.loads(text) if text.startswith("{") and inner_kind is not str else text
    if text.startswith("["):
        return json.loads(text)
    if dataclasses.is_dataclass(_find_inner_kind(inner_kind, 0)):
        return text
    return [item.strip() for item in text.split(",") if item.strip()]


def _word_complaint(error: ValidationError, kind: Any, text: str) -> str:
    """Return the first of pydantic's complaints in our words; an unknown name comes before all others."""
    complaints = error.errors(include_url=False)
    complaint = next((c for c in complaints if c["type"] == "unexpected_keyword_argument"), complaints[0])
    path = complaint["loc"]
    name = path[-1]
    is_missing = complaint["type"] in ("missing", "unexpected_keyword_argument")
    inner_path = path[1:-1] if is_missing else path[1:]
    for step in inner_path:
        kind = _find_inner_kind(kind, step)
    setting = ".".join(map(str, (path[0], *inner_path)))
    if complaint["type"] == "unexpected_keyword_argument":
        return f"{setting}: {_word_unknown_name(_drop_none(kind), str(name))}"
    if complaint["type"] == "too_long" or (is_missing and isinstance(name, int)):
        num_values = len(typing.get_args(_drop_none(kind)))
        return f"{setting} should have {num_values} values, not {len(complaint['input'])} ({text!r})."
    if is_missing:
        return f"{setting}: {_drop_none(kind).__name__} needs {name!r}, which {text!r} leaves out."
    value = complaint["input"]
    shown_value = value if isinstance(value, str) else json.dumps(value)
    return f"{setting} should be {_name_kind(kind)}, not {shown_value!r}."


def _word_unknown_name(kind: type, name: str) -> str:
    """Return a sentence that says that a dataclass has no such setting, with the nearest name or with all of them."""
    names = typing.get_type_hints(kind)
    nearest = difflib.get_close_matches(name, names, n=1)
    advice = f"did you mean {nearest[0]!r}?" if nearest else f"its settings are: {', '.join(names)}."
    return f"{kind.__name__} has no {name!r}; {advice}"


def _drop_none(kind: Any) -> Any:
    """Return the type X for the type `X | None`, and any other type unchanged."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return next(inner for inner in typing.get_args(kind) if inner is not type(None))
    return kind


def _find_inner_kind(kind: Any, name: int | str) -> Any:
    """Return the type of a dataclass's field, of a tuple's item, or of a dict's values."""
    kind = _drop_none(kind)
    if dataclasses.is_dataclass(kind):
        return typing.get_type_hints(kind)[str(name)]
    inner_kinds = typing.get_args(kind)
    if typing.get_origin(kind) is dict:
        return inner_kinds[1]
    return inner_kinds[0] if inner_kinds[-1] is ... else inner_kinds[int(name)]


def _name_kind(kind: Any) -> str:
    """Return how messages call a value of a type, such as "a whole number"."""
    kind = _drop_none(kind)
    is_list = typing.get_origin(kind) is tuple
    item_kind = _drop_none(_find_inner_kind(kind, 0)) if is_list else kind
    if isinstance(item_kind, type) and dataclasses.is_dataclass(item_kind):
        example = f'{{"{dataclasses.fields(item_kind)[0].name}": ...}}'
        return f"JSON for {item_kind.__name__}, such as {f'[{example}]' if is_list else example}"
    if is_list:
        return "values with commas between them"
    return "a JSON object" if typing.get_origin(kind) is dict else KIND_NAMES.get(kind, str(kind))
