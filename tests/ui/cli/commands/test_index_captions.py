"""`qseek index --captions` writes captions, and `search` and `similar` show them; the colour model answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from command_line import BLUE, GREEN, RED, paint, parse_json_lines, qseek
from fake_model import FakeCaptioner, FakeModel, load_fake_captioner, load_fake_model, make_fake_searcher

from engine.errors import QueryError
from engine.index.store import Store
from engine.models import photo_captioners
from ui import session
from ui.cli.commands.index_command import index


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(session, "load_model", load_fake_model)
    monkeypatch.setattr(session, "make_searcher", make_fake_searcher)
    monkeypatch.setattr(session, "load_photo_captioner", load_fake_captioner)
    monkeypatch.setattr(photo_captioners, "is_called", lambda name, writer: name == writer)
    monkeypatch.setenv("QSEEK_INDEX", str(tmp_path / "index"))
    monkeypatch.delenv("QSEEK_MODEL", raising=False)
    monkeypatch.delenv("QSEEK_CAPTION_MODEL", raising=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in {"red": RED, "green": GREEN, "blue": BLUE}.items():
        paint(folder / f"{name}.png", colour)
    return folder


def read_captions(result: Result) -> dict[str, str | None]:
    return {Path(row["path"]).stem: row.get("caption") for row in parse_json_lines(result)}


def refuse_captioners(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> FakeCaptioner:
        raise QueryError("no captioner should be loaded")

    monkeypatch.setattr(session, "load_photo_captioner", refuses)


def test_index_writes_captions_and_searches_show_them(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = qseek("index", photos, "--captions")
    assert first.exit_code == 0, first.output
    assert "3 captions written, 0 kept, 0 failed" in first.stdout
    assert "Captions by painter:" in first.stderr and "3 of 3 photos" in first.stderr
    second = parse_json_lines(qseek("index", photos, "--captions", "--json"))[0]
    assert {name: second[name] for name in second if "captions" in name} == {
        "captions_written": 0,
        "captions_kept": 3,
        "captions_failed": 0,
    }
    refuse_captioners(monkeypatch)
    expected = {name: f"a {name} thing" for name in ("red", "green", "blue")}
    assert read_captions(qseek("search", "red", "--json")) == expected
    assert read_captions(qseek("search", "red", "--json", "--captions", "--captioner", "painter")) == expected
    table = qseek("search", "red", "-k", 1, "--captions").stdout.splitlines()
    assert table[2] == " " * table[0].index("photo") + "a red thing" and len(table) == 3
    assert "thing" not in qseek("search", "red").stdout
    assert qseek("search", "red", "--captions", "--captioner", "sketcher").exit_code == 1


def test_captions_are_written_for_an_index_without_naming_folders(photos: Path) -> None:
    without_index = qseek("index", "--captions")
    assert (
        without_index.exit_code == 1
        and "There is no index" in without_index.stderr
        and "Traceback" not in without_index.output
    )
    qseek("index", photos)
    report = qseek("index", "--captions", "--json")
    assert parse_json_lines(report) == [{"captions_written": 3, "captions_kept": 0, "captions_failed": 0}]
    paint(photos / "white.png", (255, 255, 255))
    assert (
        "1 photo has no caption. `qseek index --captions` writes captions." in qseek("index", photos).stderr
    )


def test_captions_of_another_captioner_are_replaced_only_when_it_is_named(photos: Path) -> None:
    qseek("index", photos, "--captions", "--captioner", "sketcher")
    second = qseek("index", "--captions")
    assert "0 captions written, 3 kept" in second.stdout, "the captioner of the index is the default"
    changed = qseek("index", "--captions", "--captioner", "painter")
    assert "3 captions by sketcher will be replaced by captions by painter." in changed.stderr
    assert "3 captions written, 0 kept" in changed.stdout
    assert qseek("index", "--captions", "--captioner", "nobody").exit_code == 1


def test_a_photo_that_cannot_be_read_gets_no_caption(photos: Path) -> None:
    qseek("index", photos)
    (photos / "red.png").write_text("words")
    result = qseek("index", "--captions")
    assert result.exit_code == 3
    assert "2 captions written, 0 kept, 1 failed" in result.stdout
    assert "red.png: it is a text file, not a picture" in result.stderr


def test_captions_of_hits_are_written_where_the_index_has_none(photos: Path) -> None:
    qseek("index", photos)
    assert read_captions(qseek("search", "red", "--json")) == dict.fromkeys(("red", "green", "blue"))
    (photos / "blue.png").unlink()
    result = qseek("search", "red", "--json", "--captions")
    assert result.exit_code == 3 and "blue.png: it is no longer there" in result.stderr
    assert read_captions(result) == {"red": "a red thing", "green": "a green thing", "blue": None}
    alike = qseek("similar", photos / "red.png", "--json", "--captions", "-k", 1)
    assert read_captions(alike)["red"] == "a red thing"


def test_reindexing_keeps_captions(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qseek("index", photos, "--captions")
    (photos / "red.png").unlink()
    refuse_captioners(monkeypatch)
    result = qseek("index", "--reindex")
    assert result.exit_code == 0, result.output
    assert read_captions(qseek("search", "blue", "--json")) == {
        "blue": "a blue thing",
        "green": "a green thing",
    }
    store = Store.open(tmp_path / "index")
    ids, owners = store.captions.list_ids_and_photos()
    for vector, photo in zip(store.captions.read_vectors(ids), owners, strict=True):
        text = store.captions.read_captions([photo])[int(photo)].text
        assert FakeModel().encode_texts([text])[0][0] == pytest.approx(vector.astype(float), abs=1e-3)


def test_ctrl_c_while_captions_are_written_says_how_to_go_on(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(FakeCaptioner):
        def caption(self, pictures_BHWC: object, *_: object) -> list[str]:
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "load_photo_captioner", lambda *_: Stopped())
    result = qseek("index", photos, "--captions")
    assert result.exit_code == 130 and "The same command goes on from here." in result.stderr
    monkeypatch.setattr(session, "load_photo_captioner", load_fake_captioner)
    assert "3 captions written" in qseek("index", photos, "--captions").stdout


def test_help_names_the_options_and_the_variable_of_captioners() -> None:
    assert {"--captions", "--captioner"} <= {name for option in index.params for name in option.opts}
    assert "QSEEK_CAPTION_MODEL" in qseek("search", "--help").stdout
    assert json.dumps(qseek("caption", "--help").stdout).count("QSEEK_CAPTION_MODEL") == 1
