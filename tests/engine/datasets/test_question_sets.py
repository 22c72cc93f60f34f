"""Questions and answers: VQAv2's two files and LAVIS' lists; what is counted, what is refused in which words."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_writing import picture

from engine.datasets.question_sets import QuestionConfig, open_question_set, read_usable_questions
from engine.errors import DataError
from training.batches.picture_stream import Stream
from training.distributed.world import World

ANSWERS = ["red"] * 6 + ["dark red"] * 3 + ["blue"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """VQAv2's form with four questions about two pictures of train2014, one of which is not there; a list."""
    images = tmp_path / "coco" / "train2014"
    images.mkdir(parents=True)
    (images / "COCO_train2014_000000000009.jpg").write_bytes(picture("red"))
    asked = [
        {"question_id": 90, "image_id": 9, "question": "What colour is it? "},
        {"question_id": 91, "image_id": 9, "question": " "},
        {"question_id": 92, "image_id": 9, "question": "What is it?"},
        {"question_id": 250, "image_id": 25, "question": "Is it red?"},
    ]
    answered = [
        {"question_id": n, "answer_type": "other", "answers": [{"answer": a} for a in texts]}
        for n, texts in ((92, ["", " "]), (91, ANSWERS), (90, ANSWERS), (250, ["no"]))
    ]
    write(tmp_path / "q.json", {"data_subtype": "train2014", "questions": asked})
    write(tmp_path / "a.json", {"data_subtype": "train2014", "annotations": answered})
    rows = [
        {"image": "coco/train2014/COCO_train2014_000000000009.jpg", "question": "colour?", "answer": ANSWERS},
        {
            "image": "vg/COCO_train2014_000000000009.jpg",
            "question": "what?",
            "answer": "a tile",
            "dataset": "vg",
        },
        {"image": "vg/nowhere.jpg", "question": "what?", "answer": "a tile"},
    ]
    write(tmp_path / "list.json", rows)
    return tmp_path


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_the_official_files(data: Path) -> None:
    for images in (data / "coco", data / "coco" / "train2014"):
        read = read_usable_questions([data / "q.json", data / "a.json"], images)
        (one,) = read.questions
        assert (one.id, one.question, one.kinds) == (90, "What colour is it?", {"answer type": "other"})
        assert (
            one.answers == tuple(ANSWERS) and Path(str(one.picture)).name == "COCO_train2014_000000000009.jpg"
        )
        assert read.left_out == {"no question": 1, "no answer": 1, "picture is not there": 1}
    unanswered = read_usable_questions([data / "q.json"], data / "coco")  # a test set
    assert [row.id for row in unanswered.questions] == [90, 92] and not unanswered.questions[0].answers


def test_names_of_2017(data: Path) -> None:
    (data / "coco" / "train2014" / "COCO_train2014_000000000009.jpg").rename(data / "000000000009.jpg")
    found = read_usable_questions([data / "q.json", data / "a.json"], data)
    assert found.questions[0].picture == data / "000000000009.jpg"


def test_a_list(data: Path) -> None:
    first = read_usable_questions([data / "list.json"], data)
    assert [(row.id, row.answers) for row in first.questions] == [(0, tuple(ANSWERS))]
    second = read_usable_questions([data / "list.json"], data / "coco" / "train2014")
    assert [row.answers for row in second.questions] == [tuple(ANSWERS), ("a tile",)]
    assert second.left_out == {"picture is not there": 1}


def test_gqa_is_learned_from_too(data: Path) -> None:
    (data / "images").mkdir()
    (data / "images" / "n1.jpg").write_bytes(picture("red"))
    rows = {
        "201": {"imageId": "n1", "question": "Is it red?", "answer": "yes"},
        "202": {"imageId": "n2", "question": "Is it blue?", "answer": "no"},
    }
    write(data / "gqa.json", rows)
    found = read_usable_questions([data / "gqa.json"], data)
    assert [(row.id, row.answers, row.picture) for row in found.questions] == [
        ("201", ("yes",), data / "images" / "n1.jpg")
    ]
    assert found.left_out == {"picture is not there": 1}


def test_answers_are_drawn_as_often_as_they_were_given(data: Path) -> None:
    config = QuestionConfig("q.json", images="coco", annotations="a.json")
    stream = Stream(
        (config,), data, batch=400, seed=3, augment=lambda image, draws: np.zeros((1, 1, 3), np.uint8),
        here=World(0, 1), workers=2, ahead=0, opener=open_question_set,
    )  # fmt: skip
    pairs = stream[0]
    stream.close()
    assert set(pairs.questions) == {"What colour is it?"}
    drawn = Counter(pairs.captions)
    assert drawn.keys() == {"red", "dark red", "blue"}
    assert all(abs(drawn[a] / 400 - n / 10) < 0.09 for a, n in Counter(ANSWERS).items())
    assert "q.json: 1 left out, picture is not there" in stream.report()


def test_picture_ids_are_the_pictures(data: Path) -> None:
    source = open_question_set(QuestionConfig("list.json", images="coco/train2014"), data)
    samples = [source.shards[0].read_sample(row) for row in range(source.count)]
    assert [s.picture_id for s in samples] == [0, 0] and [s.question for s in samples] == ["colour?", "what?"]


BAD: dict[str, tuple[Any, Any, str]] = {
    "no json": ("text", None, "is not readable JSON"),
    "captions": ([{"image": "a.jpg", "caption": "x"}], None, 'question 1: a row needs "image", "question"'),
    "another object": ({"images": []}, None, "is in neither layout: TypeError"),
    "no object": ({}, None, "holds no questions"),
    "rows": ({"questions": 3}, None, "is not in VQA's layout: TypeError"),
    "id": ([{"image": "a", "question": "x", "question_id": "q"}], None, "question_id is 'q', not a whole number"),
    "answers": ([{"image": "a", "question": "x", "answer": [3]}], None, r"answers should be texts, not \[3\]"),
    "row": ({"questions": [{"question_id": 1, "image_id": 2}]}, None, "not in VQA's layout: KeyError"),
    "split": (
        {"questions": [{"question_id": 1, "image_id": 2, "question": "x"}]},
        {"annotations": [{"question_id": 3, "answers": []}]}, "a.json is of other questions",
    ),
    "annotations": (
        {"questions": [{"question_id": 1, "image_id": 2, "question": "x"}]}, {"annotations": [{"answers": []}]},
        "a.json is not in VQA's layout: KeyError",
    ),
    "no annotations": (
        {"questions": [{"question_id": 1, "image_id": 2, "question": "x"}]}, {"questions": []},
        "2 hold questions and 0 hold annotations",
    ),
    "list with annotations": ([], {"annotations": []}, "leave annotations empty"),
    "empty": ([], None, "it is empty"),
    "no picture": ([{"image": "a.jpg", "question": "x", "answer": "y"}], None, r"1 picture is not there .*a\.jpg"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path: Path, case: str) -> None:
    asked, answered, words = BAD[case]
    path = tmp_path / "q.json"
    path.write_text(asked if isinstance(asked, str) else json.dumps(asked))
    paths = [path] if answered is None else [path, write(tmp_path / "a.json", answered)]
    with pytest.raises(DataError, match=words):
        read_usable_questions(paths, tmp_path)


def test_questions_without_answers_teach_nothing(data: Path) -> None:
    with pytest.raises(DataError, match=r"q\.json has questions without answers; .*give it as annotations"):
        open_question_set(QuestionConfig("q.json", images="coco"), data)
