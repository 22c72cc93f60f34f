"""Read files of questions about pictures: VQAv2, OK-VQA and GQA as they are published, and the lists of LAVIS.

`read_questions` reads them all, for evaluation and for training; pictures are looked for later.
`read_questions_to_score` also refuses what an evaluation cannot use. question_sets.py decides what is left out of
training.
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
from engine.wording import count_text


class QuestionLayout(Enum):
    """The publisher whose layout a file of questions has."""

    VQA = "VQAv2 and OK-VQA"
    GQA = "GQA"
    LIST = "LAVIS' lists"


@dataclass(frozen=True)
class Questions:
    """The questions of a file.

    path: that file.
    questions: the questions with the answers that are known; their pictures are not looked for yet.
    """

    path: Path
    questions: list[QuestionItem]
    layout: QuestionLayout

    @property
    def is_gqa(self) -> bool:
        """Return whether each question has one answer, which is compared exactly; a question of VQA has ten."""
        return self.layout is QuestionLayout.GQA


def read_questions(paths: Sequence[Path]) -> Questions:
    """Read a file of questions and, where the answers are in a file of their own, that file; in either order.

    VQAv2 and OK-VQA: {"questions": [{"question_id", "image_id", "question"}], "data_subtype"} and {"annotations":
    [{"question_id", "answers": [{"answer"}], "answer_type"}]}; without the annotations no answers are known.
    GQA: {id: {"imageId", "question", "answer"}}.
    LAVIS: a list of {"image", "question", "answer", "question_id"}; the last two may be missing.
    Raise DataError for files in other layouts, and for annotations of other questions.
    """
    (path, content), annotations_file = _tell_apart(paths)
    if isinstance(content, list):
        if annotations_file is not None:
            raise DataError(f"{path} is a list that already holds answers; leave annotations empty.")
        return Questions(path, _parse_list(content, path), QuestionLayout.LIST)
    if "questions" not in content:
        if annotations_file is not None:
            raise DataError(
                f"{path} has no questions as VQA has them, to which {annotations_file[0]} would belong."
            )
        return Questions(path, _parse_gqa(content, path), QuestionLayout.GQA)
    questions = _parse_vqa(content, path)
    if annotations_file is not None:
        annotations_path, annotations = annotations_file
        questions = _add_answers(questions, annotations, annotations_path)
    return Questions(path, questions, QuestionLayout.VQA)


def _tell_apart(paths: Sequence[Path]) -> tuple[tuple[Path, Any], tuple[Path, Any] | None]:
    """Return path and content of the file of questions, and those of the file of annotations, None without one."""
    question_files: list[tuple[Path, Any]] = []
    annotation_files: list[tuple[Path, Any]] = []
    for path in paths:
        content = read_json(path)
        if not isinstance(content, list) and (not isinstance(content, dict) or not content):
            raise DataError(
                f"{path} holds no questions: VQAv2, OK-VQA and GQA come as JSON objects, LAVIS' as lists."
            )
        (annotation_files if "annotations" in content else question_files).append((path, content))
    if len(question_files) != 1 or len(annotation_files) > 1:
        raise DataError(
            f"Of {', '.join(map(str, paths))}, {len(question_files)} hold questions and {len(annotation_files)} hold "
            "annotations; give one file of questions, and for VQAv2 and OK-VQA the annotations that belong to it."
        )
    return question_files[0], annotation_files[0] if annotation_files else None


def read_questions_to_score(paths: Sequence[Path]) -> Questions:
    """Read questions whose answers are compared with people's: VQAv2, OK-VQA or GQA.

    Raise DataError in the cases of `read_questions`, and also for LAVIS' lists, for a file without questions, and for
    questions that are empty or occur twice.
    """
    questions = read_questions(paths)
    path, items = questions.path, questions.questions
    if questions.layout is QuestionLayout.LIST:
        raise DataError(f"{path} holds no questions to score: VQAv2, OK-VQA and GQA come as JSON objects.")
    if not items:
        raise DataError(f"{path} has no questions.")
    check_unique([item.id for item in items], "question", path)
    if empty_ids := [item.id for item in items if not item.question.strip()]:
        raise DataError(
            f"{path} has {count_text(len(empty_ids), 'question')} without a text ({name_first_few(empty_ids)})."
        )
    return questions


def _parse_vqa(content: dict[str, Any], path: Path) -> list[QuestionItem]:
    try:
        part = content.get("data_subtype", "val2014")
        return [
            QuestionItem(
                parse_id(row["question_id"]),
                list_published_names(f"COCO_{part}_{int(row['image_id']):012d}.jpg"),
                str(row["question"]),
            )
            for row in content["questions"]
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} is not in VQA's layout ({error!r}). It should hold "
            '{"data_subtype", "questions": [{"question_id", "image_id", "question"}]}.'
        ) from error


def _add_answers(questions: Sequence[QuestionItem], content: Any, path: Path) -> list[QuestionItem]:
    """Return VQA's questions with the answers and answer types of an annotations file.

    Raise DataError for a file in another layout, for answers to other questions, and for questions without answers.
    """
    try:
        answers = {
            parse_id(row["question_id"]): (
                tuple(str(answer["answer"]) for answer in row["answers"]),
                {"answer type": str(row["answer_type"])} if row.get("answer_type") else {},
            )
            for row in content["annotations"]
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is not in VQA's layout ({error!r}). It should hold "
            '{"annotations": [{"question_id", "answers": [{"answer"}]}]}.'
        ) from error
    ids = [question.id for question in questions]
    not_asked = answers.keys() - set(ids)
    not_answered = [id_ for id_ in ids if not answers.get(id_, ((), {}))[0]]
    problems = []
    if not_asked:
        problems.append(f"answers {len(not_asked):,} that are not asked ({name_first_few(not_asked)})")
    if not_answered:
        problems.append(
            f"leaves {len(not_answered):,} of {len(ids):,} without answers ({name_first_few(not_answered)})"
        )
    if problems:
        raise DataError(f"{path} is of other questions: it {' and '.join(problems)}.")
    return [
        replace(question, answers=answers[question.id][0], kinds=answers[question.id][1])
        for question in questions
    ]


def _parse_gqa(content: dict[str, Any], path: Path) -> list[QuestionItem]:
    try:
        return [_parse_gqa_question(id_, row) for id_, row in content.items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is in neither layout ({error!r}). VQA's has "
            '{"questions": [...]}, GQA\'s {id: {"imageId", "question", "answer"}}.'
        ) from error


def _parse_gqa_question(id_: str, row: dict[str, Any]) -> QuestionItem:
    image = row["imageId"]
    names = (f"{image}.jpg", f"images/{image}.jpg")
    answers = (row["answer"],) if "answer" in row else ()
    structure = (row.get("types") or {}).get("structural")
    kinds = {"structure": structure} if structure else {}
    return QuestionItem(id_, names, str(row["question"]), answers, kinds)


def _parse_list(content: Sequence[Any], path: Path) -> list[QuestionItem]:
    """Return the questions of a list of LAVIS.

    The "answer" of a row is a text or a list that may hold the same text several times; test sets have none.
    """
    questions = []
    for number, row in enumerate(content):
        if not isinstance(row, dict) or not all(
            isinstance(row.get(key), str) for key in ("image", "question")
        ):
            raise DataError(
                f'{path}, question {number + 1}: a row needs "image", "question" and "answer" (a text or a list); it '
                f"is {str(row)[:80]}."
            )
        id_ = row.get("question_id", number)
        if not isinstance(id_, int):
            raise DataError(f"{path}, question {number + 1}: question_id is {id_!r}, not a whole number.")
        answers = _parse_listed_answers(row.get("answer", []), path, id_)
        questions.append(QuestionItem(id_, list_published_names(row["image"]), row["question"], answers))
    return questions


def _parse_listed_answers(value: Any, path: Path, id_: int) -> tuple[str, ...]:
    """Return an answer or the answers of a list; each is a text, or VQAv2's {"answer": text}."""
    items = value if isinstance(value, list) else [value]
    texts: list[Any] = [item.get("answer") if isinstance(item, dict) else item for item in items]
    if not all(isinstance(text, str) for text in texts):
        raise DataError(f"{path}, question {id_}: answers should be texts, not {str(value)[:80]}.")
    return tuple(texts)
