"""The manifest refuses what would mix vectors that cannot be compared, and says what to do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from engine.errors import IndexStateError
from engine.index.manifest import SCHEMA, Manifest

MINI = Manifest(
    model="mini",
    model_digest="aa11",
    image_size=160,
    preprocessing="squash-bicubic-160 mean=0.5 std=0.5",
    num_queries=32,
    embed_dim=256,
    patch_shape=(25, 1280),
    features="store",
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    MINI.save(tmp_path)
    assert Manifest.load(tmp_path) == MINI
    assert Manifest.load(tmp_path).patch_shape == (25, 1280)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("change", "mine", "theirs"),
    [
        (
            {"model": "large", "model_digest": "bb22"},
            "model mini, digest 'aa11'",
            "model large, digest 'bb22'",
        ),
        ({"preprocessing": "crop-224"}, "'squash-bicubic-160 mean=0.5 std=0.5'", "'crop-224'"),
        ({"image_size": 224}, "image size 160", "image size 224"),
        ({"embed_dim": 128}, "embed dim 256", "embed dim 128"),
        ({"patch_shape": (50, 1280)}, "patch shape (25, 1280)", "patch shape (50, 1280)"),
    ],
)
def test_another_model_is_refused_and_both_are_named(
    change: dict[str, object], mine: str, theirs: str
) -> None:
    other = dataclasses.replace(MINI, **change)  # type: ignore[arg-type]
    with pytest.raises(IndexStateError) as error:
        MINI.check_same(other)
    message = str(error.value)
    assert mine in message and theirs in message
    assert "qseek index --reindex" in message and "--index" in message


def test_the_same_model_may_keep_its_features_or_not() -> None:
    MINI.check_same(dataclasses.replace(MINI, features="none"))
    MINI.check_same(dataclasses.replace(MINI, model="mini, under another name"))


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    dataclasses.replace(MINI, schema=SCHEMA + 1).save(tmp_path)
    with pytest.raises(
        IndexStateError, match=f"newer qseek: its schema is {SCHEMA + 1}, and this qseek reads {SCHEMA}"
    ):
        Manifest.load(tmp_path)


def test_a_newer_schema_is_refused_even_when_its_fields_are_unknown(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": 7, "models": ["a", "b"]}))
    with pytest.raises(IndexStateError, match="schema is 7"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"model": "mi',
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"schema": 1}',
        json.dumps({**dataclasses.asdict(MINI), "image_size": "big"}).encode(),
        json.dumps({**dataclasses.asdict(MINI), "patch_shape": 25}).encode(),
        json.dumps({**dataclasses.asdict(MINI), "more": 1}).encode(),
        json.dumps({**dataclasses.asdict(MINI), "schema": "one"}).encode(),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(IndexStateError, match=r"manifest\.json is damaged") as error:
        Manifest.load(tmp_path)
    assert "--reindex" in str(error.value)


def test_no_index_says_how_to_make_one(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(IndexStateError, match=r"There is no index at .*qseek index FOLDER"):
            Manifest.load(folder)


def test_a_failed_save_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MINI.save(tmp_path)

    def no_replace(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.atomic.os.replace", no_replace)
    with pytest.raises(IndexStateError, match="cannot be written: No space left on device"):
        dataclasses.replace(MINI, model="other").save(tmp_path)
    assert Manifest.load(tmp_path) == MINI
