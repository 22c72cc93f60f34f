"""Results files are read and written in the official layouts, and a run continues where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.evaluation import results_files
from engine.evaluation.results_files import ANSWERS, CAPTIONS, GQA_ANSWERS, Predictions, read_predictions

RUN = {"model": "abc", "how": "5 beams"}


def write_results(path: Path, *captions: tuple[object, object]) -> Path:
    path.write_text(json.dumps([{"image_id": id_, "caption": text} for id_, text in captions]))
    return path


def test_texts_are_returned_in_the_order_of_the_ids(tmp_path: Path) -> None:
    path = write_results(tmp_path / "r.json", (73, "b"), ("42", "a"))
    assert read_predictions(path, [42, 73], CAPTIONS) == ["a", "b"]


def test_gqas_results_may_have_the_names_of_gqa_or_of_vqa(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for id_, text in (("questionId", "prediction"), ("question_id", "answer")):
        path.write_text(json.dumps([{id_: "7", text: "dog"}]))
        assert read_predictions(path, ["7"], GQA_ANSWERS) == ["dog"]
    assert read_predictions(path, [7], ANSWERS) == ["dog"]


def test_wrong_ids_are_counted_and_named(tmp_path: Path) -> None:
    path = write_results(tmp_path / "r.json", (1, "a"), (1, "b"), (8, "c"), (9, "d"))
    with pytest.raises(DataError) as error:
        read_predictions(path, [1, 2, 3, 4, 5], CAPTIONS)
    message = str(error.value)
    assert "4 photos of the set's 5 without a caption (the first are 2, 3, 4)" in message
    assert "2 photos that the set does not have (the first are 8, 9)" in message
    assert "1 photo more than once (the first is 1)" in message


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '[{"image_id": 1}]', '[{"image_id": 1, "caption": 3}]', '[{"question_id": 1}]', "[1]"],
)
def test_files_in_other_layouts_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "r.json").write_text(content)
    with pytest.raises(DataError, match=r"r\.json (is not readable JSON|should be a list of)"):
        read_predictions(tmp_path / "r.json", [1], CAPTIONS)


def test_a_run_continues_and_writes_the_official_layout(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    first = Predictions(path, RUN, CAPTIONS)
    first.add([1, "b"], ["one", "zwei ü"])
    part = tmp_path / "r.json.part"
    part.write_bytes(part.read_bytes() + b'[3, "cut of')
    second = Predictions(path, RUN, CAPTIONS)
    assert second.num_kept == 2 and second.texts == {1: "one", "b": "zwei ü"}
    second.add([3], ["three"])
    assert Predictions(path, RUN, CAPTIONS).num_kept == 3, "the cut line is gone, the line after it is whole"
    second.finish([3, "b", 1])
    assert not part.exists() and json.loads(path.read_text())[0] == {"image_id": 3, "caption": "three"}
    assert read_predictions(path, [1, "b", 3], CAPTIONS) == ["one", "zwei ü", "three"]


def test_the_file_of_another_run_and_a_damaged_file_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert not Predictions(path, RUN, CAPTIONS).replaced
    restarted = Predictions(path, RUN, CAPTIONS)
    assert not restarted.replaced, "a run that was stopped before its first batch"
    restarted.add([1], ["one"])
    other = Predictions(path, {**RUN, "how": "1 beam"}, CAPTIONS)
    assert (other.num_kept, other.replaced) == (0, True)
    (tmp_path / "r.json.part").write_bytes(b"\xff\n[1\n" + bytes(99))
    damaged = Predictions(path, RUN, CAPTIONS)
    assert (damaged.num_kept, damaged.replaced) == (0, True)


def test_nothing_is_written_without_a_path() -> None:
    predictions = Predictions(None, RUN, CAPTIONS)
    predictions.add([1], ["one"])
    predictions.finish([1])
    assert predictions.texts == {1: "one"}


def test_a_path_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
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
            continued = Predictions(path, RUN, CAPTIONS)
            assert (continued.texts, continued.replaced) == ({1: "one"}, False), (length, tail)
            continued.add([2], ["two, with a comma"])
            assert part.read_bytes() == whole


def test_the_lines_before_a_damaged_line_are_read(tmp_path: Path) -> None:
    path, part = tmp_path / "r.json", tmp_path / "r.json.part"
    Predictions(path, RUN, CAPTIONS).add([1, 2, 3], ["one", "two", "three"])
    part.write_bytes(part.read_bytes().replace(b'[2, "two"]', bytes(10)))
    assert Predictions(path, RUN, CAPTIONS).texts == {1: "one"}


def test_the_reason_for_a_replaced_file_names_the_settings_that_differ(tmp_path: Path) -> None:
    Predictions(tmp_path / "r.json", RUN, CAPTIONS).add([1], ["one"])
    other = Predictions(tmp_path / "r.json", {"model": "abc", "how": "1 beam", "dtype": "float32"}, CAPTIONS)
    assert other.why_replaced == (
        "was made with other settings (how: '5 beams' then, '1 beam' now; dtype: None then, 'float32' now)"
    )


def test_added_texts_are_on_the_disk_after_some_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions, synced = Predictions(tmp_path / "r.json", RUN, CAPTIONS), []
    monkeypatch.setattr(results_files.os, "fsync", lambda _: synced.append(predictions.part.read_bytes()))
    predictions.add([1], ["one"])
    assert not synced, "not with every batch"
    monkeypatch.setattr(results_files, "SECONDS_BETWEEN_SYNCS", 0.0)
    predictions.add([2], ["two"])
    assert len(synced) == 1 and synced[0].endswith(b'[1, "one"]\n[2, "two"]\n')
