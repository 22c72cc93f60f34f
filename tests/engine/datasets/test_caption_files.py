"""Read the official files of evaluation sets, find their pictures, and refuse other files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.datasets.captioned_sets import read_caption_items
from engine.datasets.picture_lookup import find_pictures
from engine.datasets.question_files import read_questions, read_questions_to_score
from engine.errors import DataError

COCO = {
    "images": [
        {"id": 42, "file_name": "COCO_val2014_000000000042.jpg"},
        {"id": 73, "file_name": "COCO_val2014_000000000073.jpg"},
    ],
    "annotations": [
        {"image_id": 42, "id": 1, "caption": "a red shoe"},
        {"image_id": 73, "id": 2, "caption": "a motorcycle"},
        {"image_id": 42, "id": 3, "caption": "a dog on shoes"},
    ],
}
QUESTIONS = {
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 42, "question": "What is it?", "question_id": 42000},
        {"image_id": 42, "question": "Is it red?", "question_id": 42001},
    ],
}
ANNOTATIONS = {
    "annotations": [
        {"question_id": 42001, "answer_type": "yes/no", "answers": [{"answer": "yes", "answer_id": 1}] * 10},
        {"question_id": 42000, "answer_type": "other", "answers": [{"answer": "dog", "answer_id": 1}] * 10},
    ]
}


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_coco_pictures_have_their_numbers_and_all_of_their_captions(tmp_path: Path) -> None:
    first, second = read_caption_items(write_json(tmp_path / "captions_val2014.json", COCO))
    assert (first.id, first.references) == (42, ("a red shoe", "a dog on shoes"))
    assert (second.id, second.references) == (73, ("a motorcycle",))


def test_nocaps_has_domains_and_a_test_part_without_captions(tmp_path: Path) -> None:
    images = [
        {"id": 0, "file_name": "0013ea.jpg", "domain": "near-domain"},
        {"id": 1, "file_name": "00a.jpg"},
    ]
    first, second = read_caption_items(write_json(tmp_path / "nocaps.json", {"images": images}))
    assert (first.domain, first.names, first.references) == ("near-domain", ("0013ea.jpg",), ())
    assert second.domain == ""


def test_karpathy_and_albef_name_photos_as_coco_does(tmp_path: Path) -> None:
    name = "COCO_val2014_000000000042.jpg"
    rows = [
        {"filename": name, "filepath": "val2014", "split": part, "sentences": [{"raw": f"a {part}"}]}
        for part in ("test", "val")
    ]
    karpathy = write_json(tmp_path / "dataset_coco.json", {"images": rows})
    (item,) = read_caption_items(karpathy)
    assert (item.id, item.references) == (42, ("a test",))
    assert read_caption_items(karpathy, "val")[0].references == ("a val",)
    albef_rows = [{"image": f"val2014/{name}", "caption": ["a", "b"]}]
    assert read_caption_items(write_json(tmp_path / "coco_karpathy_test.json", albef_rows))[0].id == 42
    flickr = write_json(tmp_path / "flickr.json", [{"image": "1007129816.jpg", "caption": "a"}])
    assert read_caption_items(flickr)[0].id == "1007129816.jpg"


@pytest.mark.parametrize(
    "name",
    [
        "COCO_val2014_000000000042.jpg",
        "val2014/COCO_val2014_000000000042.jpg",
        "000000000042.jpg",
        "val2014/000000000042.jpg",
    ],
)
def test_coco_pictures_are_found_under_each_official_name(tmp_path: Path, name: str) -> None:
    picture = tmp_path / "images" / name
    picture.parent.mkdir(parents=True)
    picture.touch()
    items = read_caption_items(write_json(tmp_path / "c.json", COCO))
    items_with_pictures, missing = find_pictures(items, tmp_path / "images")
    assert [item.picture for item in items_with_pictures] == [picture]
    assert missing == ["COCO_val2014_000000000073.jpg"]
    questions = read_questions([write_json(tmp_path / "q.json", QUESTIONS)]).questions
    questions_with_pictures, _ = find_pictures(questions, tmp_path / "images")
    assert [question.picture for question in questions_with_pictures] == [picture, picture]
    picture.unlink()
    with pytest.raises(DataError, match="None of the 2 pictures is in"):
        find_pictures(items, tmp_path / "images")


def test_vqa_questions_and_answers_are_read_in_either_order(tmp_path: Path) -> None:
    questions_path = write_json(tmp_path / "q.json", QUESTIONS)
    answers_path = write_json(tmp_path / "a.json", ANNOTATIONS)
    for paths in ([questions_path, answers_path], [answers_path, questions_path]):
        questions = read_questions_to_score(paths)
        first, second = questions.questions
        assert not questions.is_gqa
        assert (first.id, first.question, first.answers) == (42000, "What is it?", ("dog",) * 10)
        assert (second.answers[0], second.kinds) == ("yes", {"answer type": "yes/no"})
    assert read_questions([questions_path]).questions[0].answers == ()


def test_a_gqa_question_has_one_answer_and_a_structure_or_neither(tmp_path: Path) -> None:
    rows = {
        "201307251": {
            "imageId": "n161313", "question": "Is it cold?", "answer": "no", "types": {"structural": "verify"}
        },
        "201640614": {"imageId": "n235859", "question": "Who wears it?"},
    }  # fmt: skip
    questions = read_questions_to_score([write_json(tmp_path / "testdev_balanced_questions.json", rows)])
    first, second = questions.questions
    assert questions.is_gqa
    assert (first.id, first.answers, first.names[0]) == ("201307251", ("no",), "n161313.jpg")
    assert first.kinds == {"structure": "verify"} and second.answers == () and second.kinds == {}


def add_rows(content: dict[str, Any], key: str, rows: list[Any]) -> dict[str, Any]:
    return {**content, key: [*content[key], *rows]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            add_rows(COCO, "annotations", [{"image_id": 9, "caption": "a"}]),
            "captions of 1 photo that it does not list .the first is 9",
        ),
        (add_rows(COCO, "annotations", [{"image_id": 42}]), "not in COCO's layout .KeyError.'caption'"),
        (add_rows(COCO, "annotations", [{"image_id": 42, "caption": 5}]), "should be a text"),
        (add_rows(COCO, "images", [{"id": [1], "file_name": "a"}]), "not in COCO's layout"),
        ({"images": [], "annotations": []}, "names no pictures"),
        ({"pictures": []}, "not in COCO's layout"),
        ([{"image": "a.jpg"}], "ALBEF"),
        ([], "names no pictures"),
        ("text", "ALBEF"),
    ],
)
def test_captions_that_do_not_fit_are_refused(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_caption_items(write_json(tmp_path / "c.json", content))


def test_files_that_are_missing_or_no_json_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    for name, problem in (
        ("broken", "is not readable JSON"),
        ("none", "cannot be read: No such file or directory"),
    ):
        with pytest.raises(DataError, match=f"{name}.json {problem}"):
            read_caption_items(tmp_path / f"{name}.json")


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ([QUESTIONS, QUESTIONS], "2 hold questions and 0 hold annotations"),
        ([ANNOTATIONS], "0 hold questions and 1 hold annotations"),
        ([add_rows(QUESTIONS, "questions", [{"question_id": 7}]), ANNOTATIONS], "not in VQA's layout .KeyError"),
        (
            [add_rows(QUESTIONS, "questions", [{"image_id": 1, "question": "Why?", "question_id": 7}]), ANNOTATIONS],
            "leaves 1 of 3 without answers .the first is 7",
        ),
        (
            [QUESTIONS, add_rows(ANNOTATIONS, "annotations", [{"question_id": 8, "answers": [{"answer": "a"}]}])],
            "answers 1 that are not asked .the first is 8",
        ),
        ([QUESTIONS, {"annotations": [{"question_id": 42000, "answers": None}]}], "not in VQA's layout"),
        ([add_rows(QUESTIONS, "questions", [QUESTIONS["questions"][0]])], "names 1 question more than once"),
        ([{"data_subtype": "val2014", "questions": []}], "has no questions"),
        (
            [{"questions": [{"image_id": 1, "question": " ", "question_id": 7}]}],
            "has 1 question without a text .the first is 7",
        ),
        ([{"1": {"question": "Why?"}}], "in neither layout"),
        ([{"1": {"imageId": "n1", "question": "Why?"}}, ANNOTATIONS], "has no questions as VQA has them"),
        ([[1]], 'question 1: a row needs "image", "question"'),
        ([[{"image": "a.jpg", "question": "Why?", "answer": "so"}]], "holds no questions to score: .* as JSON objects"),
        ([{}], "holds no questions: VQAv2, OK-VQA and GQA come as JSON objects"),
        (["text"], "holds no questions"),
    ],
)  # fmt: skip
def test_questions_that_do_not_fit_are_refused(tmp_path: Path, contents: list[Any], words: str) -> None:
    paths = [write_json(tmp_path / f"{number}.json", content) for number, content in enumerate(contents)]
    with pytest.raises(DataError, match=words):
        read_questions_to_score(paths)
