"""Read files of questions about pictures: VQAv2, OK-VQA and GQA as they are published, and the lists of LAVIS.

`read_questions` returns the tasks of an evaluation, whose pictures are looked for later. `read_question_rows` returns
questions to learn from, with their pictures, and counts those that it leaves out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.datasets.captioned_pictures import QuestionTask, check_once, first_few
from engine.datasets.json_files import parse_id, read_json
from engine.datasets.picture_lookup import published_names
from engine.errors import DataError


@dataclass(frozen=True)
class Questions:
    """is_gqa: one answer each, compared exactly; else ten, for VQA's accuracy."""

    questions: list[QuestionTask]
    is_gqa: bool


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
    check_once([question.id for question in found.questions], "question", source)
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
                parse_id(one["question_id"]),
                published_names(f"COCO_{part}_{int(one['image_id']):012d}.jpg"),
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
            parse_id(one["question_id"]): (
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


NO_PICTURE, NO_QUESTION, NO_ANSWER = "picture is not there", "no question", "no answer"


@dataclass(frozen=True)
class Question:
    """One question about one picture. number: the file's question_id, else its place. answers: as often as given, none
    where the file has none (VQAv2's test sets). kind: VQAv2's answer_type ("yes/no", "number", "other"), or empty."""

    number: int
    picture: Path
    text: str
    answers: tuple[str, ...] = ()
    kind: str = ""


@dataclass(frozen=True)
class QuestionRows:
    """What a file asks. left_out: how many questions by reason."""

    rows: list[Question]
    left_out: dict[str, int]


def read_question_rows(path: Path, images: Path, annotations: Path | None = None) -> QuestionRows:
    """The questions of VQAv2's files, or of a list as LAVIS has it.

    annotations: VQAv2's answers; without, its questions have none. A picture is looked for below `images` by its name,
    VQAv2's by COCO's (COCO_train2014_000000000009.jpg, or 000000000009.jpg), also below a folder called as the split.
    Questions that are empty, that have answers in the file but none that says something, or whose picture is not there,
    are counted. Raises DataError for a file of another form, answers without their question or the reverse, and when
    nothing is left.
    """
    content = read_json(path)
    if isinstance(content, list):
        if annotations is not None:
            raise DataError(f"{path} is a list with answers of its own; leave annotations empty.")
        rows = _listed(content, path, images)
    else:
        rows = _official(content, path, images, annotations)
    left_out: Counter[str] = Counter()
    kept = []
    pictures: dict[tuple[str, ...], Path | None] = {}
    for places, row, answered in rows:
        names = tuple(map(str, places))
        if names not in pictures:
            pictures[names] = next((place for place in places if place.is_file()), None)
        found = pictures[names]
        if not row.text.strip():
            left_out[NO_QUESTION] += 1
        elif answered and not row.answers:
            left_out[NO_ANSWER] += 1
        elif found is None:
            left_out[NO_PICTURE] += 1
        else:
            kept.append(Question(row.number, found, row.text.strip(), row.answers, row.kind))
    if not kept:
        first = next(iter(pictures), ("none",))[0]
        why = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "it is empty"
        raise DataError(
            f"No question of {path} is left: {why} (the first picture: {first}); check the file, and that images names "
            "the folder of the pictures."
        )
    return QuestionRows(kept, dict(left_out))


_Row = tuple[list[Path], Question, bool]
"""Where the picture may lie, the question with no picture yet, whether the file has answers at all."""


def _listed(content: Sequence[Any], path: Path, images: Path) -> Iterable[_Row]:
    """LAVIS: "answer" is a text or a list with repeats; without the key (a test set) nothing is known of it."""
    for place, row in enumerate(content):
        if not isinstance(row, dict) or not all(isinstance(row.get(n), str) for n in ("image", "question")):
            raise DataError(
                f'{path}, question {place + 1}: a row needs "image", "question" and "answer" (a text or a list); it is '
                f"{str(row)[:80]}."
            )
        number = row.get("question_id", place)
        if not isinstance(number, int):
            raise DataError(f"{path}, question {place + 1}: question_id is {number!r}, not a whole number.")
        answers = _answers(row.get("answer", []), path, number)
        name = row["image"]
        question = Question(number, Path(), row["question"], answers)
        yield [images / name, images / Path(name).name], question, "answer" in row


def _official(content: Any, path: Path, images: Path, annotations: Path | None) -> Iterable[_Row]:
    answered = None if annotations is None else read_json(annotations)
    for one in vqa_questions(content, path, answered, annotations or path):
        if not isinstance(one.id, int):
            raise DataError(f"{path}: question_id is {one.id!r}, not a whole number.")
        answers = tuple(text.strip() for text in one.answers if text.strip())
        question = Question(one.id, Path(), one.question, answers, one.kinds.get("answer type", ""))
        yield [images / name for name in one.names], question, annotations is not None


def _answers(value: Any, path: Path, number: int) -> tuple[str, ...]:
    """VQAv2's {"answer": text} or texts alone; empty ones are left out."""
    items = value if isinstance(value, list) else [value]
    texts: list[Any] = [one.get("answer") if isinstance(one, dict) else one for one in items]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}, question {number}: answers should be texts, not {str(value)[:80]}.")
    return tuple(text.strip() for text in texts if text.strip())
