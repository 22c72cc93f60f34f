"""Read files of questions about pictures: VQAv2, OK-VQA and GQA as they are published, and the lists of LAVIS.

`read_questions` reads them all, for evaluation and for training; pictures are looked for later. `questions_to_score`
also refuses what an evaluation cannot use. What is left out of training is decided in question_sets.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from engine.datasets.captioned_pictures import QuestionItem, check_unique, name_first_few
from engine.datasets.json_files import parse_id, read_json
from engine.datasets.picture_lookup import list_published_names
from engine.errors import DataError


class QuestionLayout(Enum):
    """Whose files the questions come from."""

    VQA = "VQAv2 and OK-VQA"
    GQA = "GQA"
    LIST = "LAVIS' lists"


@dataclass(frozen=True)
class Questions:
    """What a file asks. source: that file. questions: with the answers that are known; none of their pictures is
    looked for yet."""

    source: Path
    questions: list[QuestionItem]
    layout: QuestionLayout

    @property
    def is_gqa(self) -> bool:
        """Whether each question has one answer, compared exactly; else ten, for VQA's accuracy."""
        return self.layout is QuestionLayout.GQA


def read_questions(paths: Sequence[Path]) -> Questions:
    """Read questions and, where they are in a file of their own, the annotations with their answers, in either order.

    VQAv2 and OK-VQA: {"questions": [{"question_id", "image_id", "question"}], "data_subtype"} and {"annotations":
    [{"question_id", "answers": [{"answer"}], "answer_type"}]}; without the latter no answers are known. GQA: {id:
    {"imageId", "question", "answer"}}. LAVIS: a list of {"image", "question", "answer", "question_id"}, the last two
    not needed. Raises DataError for other files, and for annotations of other questions.
    """
    asked, annotated = _by_content(paths)
    source, content = asked
    if isinstance(content, list):
        if annotated is not None:
            raise DataError(f"{source} is a list with answers of its own; leave annotations empty.")
        return Questions(source, _listed_questions(content, source), QuestionLayout.LIST)
    if "questions" not in content:
        if annotated is not None:
            raise DataError(
                f"{source} has no questions as VQA has them, which {annotated[0]} would belong to."
            )
        return Questions(source, _gqa_questions(content, source), QuestionLayout.GQA)
    questions = _vqa_questions(content, source)
    if annotated is not None:
        path, annotations = annotated
        questions = _with_answers(questions, annotations, path)
    return Questions(source, questions, QuestionLayout.VQA)


def _by_content(paths: Sequence[Path]) -> tuple[tuple[Path, Any], tuple[Path, Any] | None]:
    """Return the file of questions with what it holds, and that of annotations where there is one."""
    asked: list[tuple[Path, Any]] = []
    annotated: list[tuple[Path, Any]] = []
    for path in paths:
        content = read_json(path)
        if not isinstance(content, list) and (not isinstance(content, dict) or not content):
            raise DataError(
                f"{path} holds no questions: VQAv2, OK-VQA and GQA come as JSON objects, LAVIS' as lists."
            )
        (annotated if "annotations" in content else asked).append((path, content))
    if len(asked) != 1 or len(annotated) > 1:
        raise DataError(
            f"Of {', '.join(map(str, paths))}, {len(asked)} hold questions and {len(annotated)} hold annotations; it "
            "takes one of questions, and for VQAv2 and OK-VQA the annotations that belong to it."
        )
    return asked[0], annotated[0] if annotated else None


def read_questions_to_score(paths: Sequence[Path]) -> Questions:
    """Read questions whose answers are compared with people's: VQAv2, OK-VQA or GQA; see `read_questions`.

    Raises DataError also for LAVIS' lists, for a file without questions, and for questions that are empty or there
    twice.
    """
    read = read_questions(paths)
    source = read.source
    if read.layout is QuestionLayout.LIST:
        raise DataError(f"{source} holds no questions to score: VQAv2, OK-VQA and GQA come as JSON objects.")
    if not read.questions:
        raise DataError(f"{source} has no questions.")
    check_unique([question.id for question in read.questions], "question", source)
    if empty := [question.id for question in read.questions if not question.question.strip()]:
        raise DataError(f"{source}: {len(empty):,} questions are empty ({name_first_few(empty)}).")
    return read


def _vqa_questions(content: dict[str, Any], source: Path) -> list[QuestionItem]:
    try:
        part = content.get("data_subtype", "val2014")
        return [
            QuestionItem(
                parse_id(one["question_id"]),
                list_published_names(f"COCO_{part}_{int(one['image_id']):012d}.jpg"),
                str(one["question"]),
            )
            for one in content["questions"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{source} is not in VQA's layout: {error!r} where it should not be. It takes "
            '{"data_subtype", "questions": [{"question_id", "image_id", "question"}]}.'
        ) from error


def _with_answers(questions: Sequence[QuestionItem], content: Any, source: Path) -> list[QuestionItem]:
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
            [f"answers {len(strangers):,} that are not asked ({name_first_few(strangers)})"]
            if strangers
            else []
        )
        parts += (
            [f"leaves {len(bare):,} of {len(asked):,} without answers ({name_first_few(bare)})"]
            if bare
            else []
        )
        raise DataError(f"{source} is of other questions: it {' and '.join(parts)}.")
    return [replace(one, answers=answers[one.id][0], kinds=answers[one.id][1]) for one in questions]


def _gqa_questions(content: dict[str, Any], source: Path) -> list[QuestionItem]:
    try:
        return [
            QuestionItem(
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


def _listed_questions(content: Sequence[Any], source: Path) -> list[QuestionItem]:
    """Read LAVIS' rows: "answer" is a text or a list with repeats, and is missing in test sets."""
    questions = []
    for number, row in enumerate(content):
        if not isinstance(row, dict) or not all(isinstance(row.get(n), str) for n in ("image", "question")):
            raise DataError(
                f'{source}, question {number + 1}: a row needs "image", "question" and "answer" (a text or a list); it '
                f"is {str(row)[:80]}."
            )
        id_ = row.get("question_id", number)
        if not isinstance(id_, int):
            raise DataError(f"{source}, question {number + 1}: question_id is {id_!r}, not a whole number.")
        answers = _listed_answers(row.get("answer", []), source, id_)
        questions.append(QuestionItem(id_, list_published_names(row["image"]), row["question"], answers))
    return questions


def _listed_answers(value: Any, source: Path, id_: int) -> tuple[str, ...]:
    """Read one answer or a list of them, each a text or VQAv2's {"answer": text}."""
    items = value if isinstance(value, list) else [value]
    texts: list[Any] = [item.get("answer") if isinstance(item, dict) else item for item in items]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{source}, question {id_}: answers should be texts, not {str(value)[:80]}.")
    return tuple(texts)
