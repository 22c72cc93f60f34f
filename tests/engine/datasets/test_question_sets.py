"""Make training sets of VQAv2's two files, of GQA and of LAVIS' lists; count what is left out, refuse other files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_writing import make_png

from engine.datasets.question_sets import QuestionConfig, open_question_set, read_usable_questions
from engine.errors import DataError
from training.batches.picture_stream import PictureStream
from training.distributed.world import World

ANSWERS = ["red"] * 6 + ["dark red"] * 3 + ["blue"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Write four questions of VQAv2 about two pictures of train2014, of which one is missing, and a list of LAVIS."""
    images = tmp_path / "coco" / "train2014"
    images.mkdir(parents=True)
    (images / "COCO_train2014_000000000009.jpg").write_bytes(make_png("red"))
    questions = [
        {"question_id": 90, "image_id": 9, "question": "What colour is it? "},
        {"question_id": 91, "image_id": 9, "question": " "},
        {"question_id": 92, "image_id": 9, "question": "What is it?"},
        {"question_id": 250, "image_id": 25, "question": "Is it red?"},
    ]
    annotations = [
        {"question_id": id_, "answer_type": "other", "answers": [{"answer": answer} for answer in answers]}
        for id_, answers in ((92, ["", " "]), (91, ANSWERS), (90, ANSWERS), (250, ["no"]))
    ]
    write_json(tmp_path / "q.json", {"data_subtype": "train2014", "questions": questions})
    write_json(tmp_path / "a.json", {"data_subtype": "train2014", "annotations": annotations})
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
    write_json(tmp_path / "list.json", rows)
    return tmp_path


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_the_usable_questions_of_vqa_are_read_and_the_others_counted(data: Path) -> None:
    for images in (data / "coco", data / "coco" / "train2014"):
        usable = read_usable_questions([data / "q.json", data / "a.json"], images)
        (question,) = usable.questions
        assert (question.id, question.question) == (90, "What colour is it?")
        assert (question.answers, question.kinds) == (tuple(ANSWERS), {"answer type": "other"})
        assert Path(str(question.picture)).name == "COCO_train2014_000000000009.jpg"
        assert usable.left_out == {"no question": 1, "no answer": 1, "picture is not there": 1}


def test_questions_of_a_test_set_are_usable_without_answers(data: Path) -> None:
    usable = read_usable_questions([data / "q.json"], data / "coco")
    assert [question.id for question in usable.questions] == [90, 92]
    assert not usable.questions[0].answers


def test_pictures_are_found_under_their_names_of_2017(data: Path) -> None:
    (data / "coco" / "train2014" / "COCO_train2014_000000000009.jpg").rename(data / "000000000009.jpg")
    usable = read_usable_questions([data / "q.json", data / "a.json"], data)
    assert usable.questions[0].picture == data / "000000000009.jpg"


def test_a_list_of_lavis_numbers_its_questions_and_has_one_answer_or_several(data: Path) -> None:
    below_data = read_usable_questions([data / "list.json"], data)
    assert [(question.id, question.answers) for question in below_data.questions] == [(0, tuple(ANSWERS))]
    below_train2014 = read_usable_questions([data / "list.json"], data / "coco" / "train2014")
    assert [question.answers for question in below_train2014.questions] == [tuple(ANSWERS), ("a tile",)]
    assert below_train2014.left_out == {"picture is not there": 1}


def test_gqa_is_learned_from_too(data: Path) -> None:
    (data / "images").mkdir()
    (data / "images" / "n1.jpg").write_bytes(make_png("red"))
    rows = {
        "201": {"imageId": "n1", "question": "Is it red?", "answer": "yes"},
        "202": {"imageId": "n2", "question": "Is it blue?", "answer": "no"},
    }
    write_json(data / "gqa.json", rows)
    usable = read_usable_questions([data / "gqa.json"], data)
    assert [(question.id, question.answers, question.picture) for question in usable.questions] == [
        ("201", ("yes",), data / "images" / "n1.jpg")
    ]
    assert usable.left_out == {"picture is not there": 1}


def test_answers_are_drawn_as_often_as_they_were_given(data: Path) -> None:
    config = QuestionConfig("q.json", images="coco", annotations="a.json")
    stream = PictureStream(
        (config,),
        data,
        batch=400,
        seed=3,
        augment=lambda image, draws: np.zeros((1, 1, 3), np.uint8),
        world=World(0, 1),
        workers=2,
        ahead=0,
        opener=open_question_set,
    )
    pairs = stream[0]
    stream.close()
    assert set(pairs.questions) == {"What colour is it?"}
    counts = Counter(pairs.captions)
    assert counts.keys() == {"red", "dark red", "blue"}
    assert all(abs(counts[answer] / 400 - given / 10) < 0.09 for answer, given in Counter(ANSWERS).items())
    assert "q.json: 1 left out, picture is not there" in stream.report()


def test_questions_about_one_picture_have_one_picture_id(data: Path) -> None:
    training_set = open_question_set(QuestionConfig("list.json", images="coco/train2014"), data)
    samples = [training_set.shards[0].read_sample(row) for row in range(training_set.count)]
    assert [sample.picture_id for sample in samples] == [0, 0]
    assert [sample.question for sample in samples] == ["colour?", "what?"]


BAD_FILES: dict[str, tuple[Any, Any, str]] = {
    "no json": ("text", None, "is not readable JSON"),
    "captions": ([{"image": "a.jpg", "caption": "x"}], None, 'question 1: a row needs "image", "question"'),
    "another object": ({"images": []}, None, "is in neither layout .TypeError"),
    "no object": ({}, None, "holds no questions"),
    "rows": ({"questions": 3}, None, "is not in VQA's layout .TypeError"),
    "id": (
        [{"image": "a", "question": "x", "question_id": "q"}],
        None,
        "question_id is 'q', not a whole number",
    ),
    "answers": (
        [{"image": "a", "question": "x", "answer": [3]}],
        None,
        r"answers should be texts, not \[3\]",
    ),
    "row": ({"questions": [{"question_id": 1, "image_id": 2}]}, None, "not in VQA's layout .KeyError"),
    "split": (
        {"questions": [{"question_id": 1, "image_id": 2, "question": "x"}]},
        {"annotations": [{"question_id": 3, "answers": []}]},
        "a.json is of other questions",
    ),
    "annotations": (
        {"questions": [{"question_id": 1, "image_id": 2, "question": "x"}]},
        {"annotations": [{"answers": []}]},
        "a.json is not in VQA's layout .KeyError",
    ),
    "no annotations": (
        {"questions": [{"question_id": 1, "image_id": 2, "question": "x"}]},
        {"questions": []},
        "2 hold questions and 0 hold annotations",
    ),
    "list with annotations": ([], {"annotations": []}, "leave annotations empty"),
    "empty": ([], None, "it is empty"),
    "no picture": (
        [{"image": "a.jpg", "question": "x", "answer": "y"}],
        None,
        r"1 picture is not there .*a\.jpg",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused(tmp_path: Path, case: str) -> None:
    questions, annotations, words = BAD_FILES[case]
    path = tmp_path / "q.json"
    path.write_text(questions if isinstance(questions, str) else json.dumps(questions))
    paths = [path] if annotations is None else [path, write_json(tmp_path / "a.json", annotations)]
    with pytest.raises(DataError, match=words):
        read_usable_questions(paths, tmp_path)


def test_a_training_set_of_questions_without_answers_is_refused(data: Path) -> None:
    with pytest.raises(DataError, match=r"q\.json has questions without answers; .*give it as annotations"):
        open_question_set(QuestionConfig("q.json", images="coco"), data)
