"""Evaluation sets in their official files: captions of COCO and NoCaps, questions of VQAv2, OK-VQA and GQA.

The files name pictures, which are found in a folder by the names they are published under.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import DataError
from engine.predictions import Id, first_few
from training.data import captions_of, find_shards, parse_captions, read_json, read_shards
from training.sources import read_picture_folder

COCO_NAME = re.compile(r"COCO_([a-z]+\d{4})_(\d{12})\.jpg")


@dataclass(frozen=True)
class CaptionTask:
    """A picture of a set. id: what the set calls it in its results. names: where it may lie below the folder of
    pictures. references: people's captions, none of a set whose captions are kept back. domain: NoCaps'."""

    id: Id
    names: tuple[str, ...]
    references: tuple[str, ...] = ()
    domain: str = ""
    picture: bytes | Path | None = None


@dataclass(frozen=True)
class QuestionTask:
    """A question about a picture. answers: people's, none where they are kept back. kinds: of question and answer, by
    which accuracy is told apart. The rest as of `CaptionTask`."""

    id: Id
    names: tuple[str, ...]
    question: str
    answers: tuple[str, ...] = ()
    kinds: dict[str, str] = field(default_factory=dict)
    picture: bytes | Path | None = None


@dataclass(frozen=True)
class Questions:
    """is_gqa: one answer each, compared exactly; else ten, for VQA's accuracy."""

    questions: list[QuestionTask]
    is_gqa: bool


def read_caption_tasks(data: Path, split: str = "test") -> list[CaptionTask]:
    """A captioned set, its pictures not looked for yet (those of shards and folders are there).

    data: tar shards by a pattern; a folder with metadata (`read_picture_folder`); a JSON file as COCO and NoCaps have
    it ({"images": [{"id", "file_name", "domain"}], "annotations": [{"image_id", "caption"}]}), as Karpathy has it, of
    which `split` is taken, or ALBEF/LAVIS. Raises DataError for a file that is none of these, or whose captions are
    of other photos.
    """
    if data.suffix == ".tar":
        read = read_shards(find_shards([data.name], data.parent))
        tasks = [CaptionTask(one.key, (one.key,), one.captions, picture=one.picture) for one in read]
    elif data.is_dir():
        tasks = [
            CaptionTask(p.key, (p.key,), p.captions, picture=p.picture) for p in read_picture_folder(data)[0]
        ]
    else:
        content = read_json(data)
        if isinstance(content, dict) and not _is_karpathy(content):
            tasks = _coco_tasks(content, data)
        else:
            captions = captions_of(content, data, split)
            tasks = [CaptionTask(_image_id(name), _names(name), texts) for name, texts in captions.items()]
    if not tasks:
        raise DataError(f"{data} names no pictures.")
    _check_once([task.id for task in tasks], "photo", data)
    return tasks


def _is_karpathy(content: dict[str, Any]) -> bool:
    images = content.get("images")
    return isinstance(images, list) and any(isinstance(one, dict) and "sentences" in one for one in images)


def _coco_tasks(content: dict[str, Any], source: Path) -> list[CaptionTask]:
    texts: dict[Id, tuple[str, ...]] = {}
    try:
        images = {
            _id(one["id"]): (str(one["file_name"]), str(one.get("domain") or "")) for one in content["images"]
        }
        for one in content.get("annotations", ()):
            texts[_id(one["image_id"])] = texts.get(one["image_id"], ()) + parse_captions(
                one["caption"], source
            )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{source} is not in COCO's layout: {error!r} where it should not be. It takes "
            '{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.'
        ) from error
    if strangers := texts.keys() - images.keys():
        raise DataError(
            f"{source} has captions of {len(strangers):,} photos that it does not list ({first_few(strangers)}); are "
            "its images and its annotations of one set?"
        )
    return [
        CaptionTask(id_, _names(name), texts.get(id_, ()), domain) for id_, (name, domain) in images.items()
    ]


def _image_id(name: str) -> Id:
    """COCO's number where the name has it, as its results do; else the name."""
    found = COCO_NAME.fullmatch(Path(name).name)
    return int(found[2]) if found else name


def _names(name: str) -> tuple[str, ...]:
    """As it is, without its folders, and COCO's in the folder of its part and as 2017 spells it."""
    last = Path(name).name
    names = [name, last]
    if found := COCO_NAME.fullmatch(last):
        names += [f"{found[1]}/{last}", f"{found[2]}.jpg", f"{found[1]}/{found[2]}.jpg"]
    return tuple(dict.fromkeys(names))


def read_questions(paths: Sequence[Path]) -> Questions:
    """VQAv2 or OK-VQA from its questions and its annotations, GQA from its one file, pictures not looked for yet.

    VQA: {"questions": [{"question_id", "image_id", "question"}], "data_subtype"} and {"annotations": [{"question_id",
    "answers": [{"answer"}], "answer_type"}]}, the latter not needed to answer alone. GQA: {id: {"imageId", "question",
    "answer"}}. Raises DataError for other files, and for annotations of other questions.
    """
    asked: list[tuple[Path, dict[str, Any]]] = []
    annotated: list[tuple[Path, dict[str, Any]]] = []
    for path in paths:
        content = read_json(path)
        if not isinstance(content, dict) or not content:
            raise DataError(f"{path} holds no questions: VQAv2, OK-VQA and GQA come as JSON objects.")
        (annotated if "annotations" in content else asked).append((path, content))
    if len(asked) != 1 or len(annotated) > 1:
        raise DataError(
            f"Of {', '.join(map(str, paths))}, {len(asked)} hold questions and {len(annotated)} hold annotations; it "
            "takes one of questions, and for VQAv2 and OK-VQA the annotations that belong to it."
        )
    source, content = asked[0]
    if "questions" not in content:
        if annotated:
            raise DataError(
                f"{source} has no questions as VQA has them, which {annotated[0][0]} would belong to."
            )
        found = Questions(_gqa_questions(content, source), is_gqa=True)
    else:
        path, answers = annotated[0] if annotated else (source, None)
        found = Questions(vqa_questions(content, source, answers, path), is_gqa=False)
    if not found.questions:
        raise DataError(f"{source} has no questions.")
    _check_once([question.id for question in found.questions], "question", source)
    if empty := [question.id for question in found.questions if not question.question.strip()]:
        raise DataError(f"{source}: {len(empty):,} questions are empty ({first_few(empty)}).")
    return found


def vqa_questions(content: Any, source: Path, annotations: Any, annotated: Path) -> list[QuestionTask]:
    """What VQA's questions file holds, with its annotations file where there is one (else None); no picture looked for.

    Raises DataError for another layout, and for annotations of other questions.
    """
    try:
        part = content.get("data_subtype", "val2014")
        questions = [
            QuestionTask(
                _id(one["question_id"]),
                _names(f"COCO_{part}_{int(one['image_id']):012d}.jpg"),
                str(one["question"]),
            )
            for one in content["questions"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{source} is not in VQA's layout: {error!r} where it should not be. It takes "
            '{"data_subtype", "questions": [{"question_id", "image_id", "question"}]}.'
        ) from error
    return questions if annotations is None else _with_answers(questions, annotations, annotated)


def _with_answers(questions: Sequence[QuestionTask], content: Any, source: Path) -> list[QuestionTask]:
    try:
        answers = {
            _id(one["question_id"]): (
                tuple(str(answer["answer"]) for answer in one["answers"]),
                {"answer type": str(one["answer_type"])} if one.get("answer_type") else {},
            )
            for one in content["annotations"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{source} is not in VQA's layout: {error!r} where it should not be. It takes "
            '{"annotations": [{"question_id", "answers": [{"answer"}]}]}.'
        ) from error
    asked = [question.id for question in questions]
    strangers, bare = answers.keys() - set(asked), [id_ for id_ in asked if not answers.get(id_, ((), {}))[0]]
    if strangers or bare:
        parts = (
            [f"answers {len(strangers):,} that are not asked ({first_few(strangers)})"] if strangers else []
        )
        parts += (
            [f"leaves {len(bare):,} of {len(asked):,} without answers ({first_few(bare)})"] if bare else []
        )
        raise DataError(f"{source} is of other questions: it {' and '.join(parts)}.")
    return [replace(one, answers=answers[one.id][0], kinds=answers[one.id][1]) for one in questions]


def _gqa_questions(content: dict[str, Any], source: Path) -> list[QuestionTask]:
    try:
        return [
            QuestionTask(
                id_, (f"{one['imageId']}.jpg", f"images/{one['imageId']}.jpg"), str(one["question"]),
                (one["answer"],) if "answer" in one else (),
                {"structure": one["types"]["structural"]} if (one.get("types") or {}).get("structural") else {},
            )
            for id_, one in content.items()
        ]  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{source} is in neither layout: {error!r} where it should not be. VQA's has "
            '{"questions": [...]}, GQA\'s {id: {"imageId", "question", "answer"}}.'
        ) from error


def _id(value: object) -> Id:
    if not isinstance(value, int | str):
        raise TypeError(f"an id is {value!r}")
    return value


def _check_once(ids: Sequence[Id], what: str, source: Path) -> None:
    if twice := [id_ for id_, count in Counter(ids).items() if count > 1]:
        raise DataError(f"{source} names {len(twice):,} {what}s more than once ({first_few(twice)}).")


Task = TypeVar("Task", CaptionTask, QuestionTask)


def find_pictures(tasks: Sequence[Task], images: Path) -> tuple[list[Task], list[str]]:
    """The tasks with their pictures below `images`, and the names of the pictures that are not there, each once.

    Raises DataError when none is there.
    """
    places: dict[tuple[str, ...], Path | None] = {}
    for names in {task.names: None for task in tasks if task.picture is None}:
        places[names] = next((path for name in names if (path := images / name).is_file()), None)
    missing = [names[0] for names, place in places.items() if place is None]
    found = [
        task if task.picture is not None else replace(task, picture=places[task.names])
        for task in tasks
        if task.picture is not None or places[task.names] is not None
    ]
    if not found:
        raise DataError(
            f"None of the {len(missing):,} pictures is in {images} (the first is {missing[0]}): --images should name "
            "the folder that holds them."
        )
    return found, missing
