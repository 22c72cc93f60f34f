"""Results files in the official layouts, what does not fit them, and a run that goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.evaluation import results_files
from engine.evaluation.results_files import ANSWERS, CAPTIONS, GQA_ANSWERS, Predictions, read_predictions

RUN = {"model": "abc", "how": "5 beams"}


def rows(path: Path, *captions: tuple[object, object]) -> Path:
    path.write_text(json.dumps([{"image_id": id_, "caption": text} for id_, text in captions]))
    return path


def test_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    path = rows(tmp_path / "r.json", (73, "b"), ("42", "a"))
    assert read_predictions(path, [42, 73], CAPTIONS) == ["a", "b"]


def test_gqas_own_names_and_vqas(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for id_, text in (("questionId", "prediction"), ("question_id", "answer")):
        path.write_text(json.dumps([{id_: "7", text: "dog"}]))
        assert read_predictions(path, ["7"], GQA_ANSWERS) == ["dog"]
    assert read_predictions(path, [7], ANSWERS) == ["dog"]


def test_what_is_wrong_is_counted_and_named(tmp_path: Path) -> None:
    path = rows(tmp_path / "r.json", (1, "a"), (1, "b"), (8, "c"), (9, "d"))
    with pytest.raises(DataError) as error:
        read_predictions(path, [1, 2, 3, 4, 5], CAPTIONS)
    said = str(error.value)
    assert "4 photos of the set's 5 without a caption (the first are 2, 3, 4)" in said
    assert "2 photos that the set does not have (the first are 8, 9)" in said
    assert "1 photo more than once (the first is 1)" in said


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '[{"image_id": 1}]', '[{"image_id": 1, "caption": 3}]', '[{"question_id": 1}]', "[1]"],
)
def test_other_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(DataError, match=r"r\.json (is not readable JSON|should be a list of)"):
        read_predictions(tmp_path / "r.json", [1], CAPTIONS)


def test_a_run_goes_on_and_writes_the_official_layout(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    first = Predictions(path, RUN, CAPTIONS)
    first.add([1, "b"], ["one", "zwei ü"])
    part = tmp_path / "r.json.part"
    part.write_bytes(part.read_bytes() + b'[3, "cut of')
    second = Predictions(path, RUN, CAPTIONS)
    assert second.num_kept == 2 and second.texts == {1: "one", "b": "zwei ü"}
    second.add([3], ["three"])
    assert Predictions(path, RUN, CAPTIONS).num_kept == 3, "the cut line is gone, what came after it is whole"
    second.finish([3, "b", 1])
    assert not part.exists() and json.loads(path.read_text())[0] == {"image_id": 3, "caption": "three"}
    assert read_predictions(path, [1, "b", 3], CAPTIONS) == ["one", "zwei ü", "three"]


def test_another_run_begins_anew_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert not Predictions(path, RUN, CAPTIONS).replaced
    begun = Predictions(path, RUN, CAPTIONS)
    assert not begun.replaced, "a run that was stopped before its first batch"
    begun.add([1], ["one"])
    other = Predictions(path, {**RUN, "how": "1 beam"}, CAPTIONS)
    assert (other.num_kept, other.replaced) == (0, True)
    (tmp_path / "r.json.part").write_bytes(b"\xff\n[1\n" + bytes(99))
    damaged = Predictions(path, RUN, CAPTIONS)
    assert (damaged.num_kept, damaged.replaced) == (0, True)


def test_nothing_is_written_without_a_path() -> None:
    kept = Predictions(None, RUN, CAPTIONS)
    kept.add([1], ["one"])
    kept.finish([1])
    assert kept.texts == {1: "one"}


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        Predictions(tmp_path / "none" / "r.json", RUN, CAPTIONS)


def test_a_power_cut_in_the_middle_of_a_line_loses_that_line_alone(tmp_path: Path) -> None:
    path, part = tmp_path / "r.json", tmp_path / "r.json.part"
    Predictions(path, RUN, CAPTIONS).add([1, 2], ["one", "two, with a comma"])
    whole = part.read_bytes()
    last_line = whole.rindex(b"[2")
    for length in range(last_line, len(whole)):
        for tail in (b"", bytes(9)):  # some file systems leave zeros where nothing was written yet
            part.write_bytes(whole[:length] + tail)
            left = Predictions(path, RUN, CAPTIONS)
            assert (left.texts, left.replaced) == ({1: "one"}, False), (length, tail)
            left.add([2], ["two, with a comma"])
            assert part.read_bytes() == whole


def test_a_damaged_line_leaves_what_stands_before_it(tmp_path: Path) -> None:
    path, part = tmp_path / "r.json", tmp_path / "r.json.part"
    Predictions(path, RUN, CAPTIONS).add([1, 2, 3], ["one", "two", "three"])
    part.write_bytes(part.read_bytes().replace(b'[2, "two"]', bytes(10)))
    assert Predictions(path, RUN, CAPTIONS).texts == {1: "one"}


def test_why_another_run_begins_anew(tmp_path: Path) -> None:
    Predictions(tmp_path / "r.json", RUN, CAPTIONS).add([1], ["one"])
    other = Predictions(tmp_path / "r.json", {"model": "abc", "how": "1 beam", "dtype": "float32"}, CAPTIONS)
    assert other.why_replaced == (
        "was made with other settings (how: '5 beams' then, '1 beam' now; dtype: None then, 'float32' now)"
    )


def test_what_is_added_is_on_the_disk_after_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions, synced = Predictions(tmp_path / "r.json", RUN, CAPTIONS), []
    monkeypatch.setattr(results_files.os, "fsync", lambda _: synced.append(predictions.part.read_bytes()))
    predictions.add([1], ["one"])
    assert not synced, "not with every batch"
    monkeypatch.setattr(results_files, "SECONDS_BETWEEN_SYNCS", 0.0)
    predictions.add([2], ["two"])
    assert len(synced) == 1 and synced[0].endswith(b'[1, "one"]\n[2, "two"]\n')
