"""Questions about pictures and their answers: the official VQAv2 files, and LAVIS' lists (vqa_train.json, vg_qa.json).

Ten people answered each question of VQAv2 (arXiv:1612.00837). An answer is learned as often as it was given: one of the
ten is drawn each time. LAVIS weighs alike: each different answer has its share of the ten as weight, and its loss
counts by it (BLIP), or one is drawn by these weights (InstructBLIP); the mean over draws is that weighted loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.datasets.captioned_pictures import CaptionedPicture, QuestionItem, Sample
from engine.datasets.captioned_sets import SetConfig, TrainingSet
from engine.datasets.picture_lookup import find_picture
from engine.datasets.question_files import read_questions
from engine.errors import DataError


@dataclass(frozen=True)
class QuestionConfig(SetConfig):
    """A set of questions.

    path: VQAv2's questions ("v2_OpenEnded_mscoco_train2014_questions.json") with `annotations`, its answers
    ("v2_mscoco_train2014_annotations.json"); or a list of {"image", "question", "answer"} as LAVIS has it, without.
    """

    annotations: str = ""


NO_PICTURE, NO_QUESTION, NO_ANSWER = "picture is not there", "no question", "no answer"
"""Reasons for which a question is left out of training."""


@dataclass(frozen=True)
class UsableQuestions:
    """Questions whose pictures are there. left_out: how many of the others, by reason."""

    questions: list[QuestionItem]
    left_out: dict[str, int]


def read_usable_questions(paths: Sequence[Path], images: Path) -> UsableQuestions:
    """Read questions (`read_questions`) and find their pictures below `images`.

    Questions that are empty, that have answers of which none says something, or whose picture is not there, are
    counted. Raises DataError as `read_questions` does, and when nothing is left.
    """
    asked = read_questions(paths)
    left_out: Counter[str] = Counter()
    usable = []
    pictures: dict[tuple[str, ...], Path | None] = {}
    for task in asked.questions:
        if task.names not in pictures:
            pictures[task.names] = find_picture(images, task.names)
        question = task.question.strip()
        answers = tuple(answer.strip() for answer in task.answers if answer.strip())
        if not question:
            left_out[NO_QUESTION] += 1
        elif task.answers and not answers:
            left_out[NO_ANSWER] += 1
        elif pictures[task.names] is None:
            left_out[NO_PICTURE] += 1
        else:
            usable.append(replace(task, question=question, answers=answers, picture=pictures[task.names]))
    if not usable:
        first = images / asked.questions[0].names[0] if asked.questions else "none"
        why = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "it is empty"
        raise DataError(
            f"No question of {asked.source} is left: {why} (the first picture: {first}); check the file, and that "
            "images names the folder of the pictures."
        )
    return UsableQuestions(usable, dict(left_out))


class QuestionShard:
    """Questions in memory, each a sample; one of its answers is drawn each time."""

    def __init__(self, questions: Sequence[QuestionItem]):
        self.questions, self.count = questions, len(questions)
        pictures = dict.fromkeys(question.picture for question in questions)
        numbers = {picture: number for number, picture in enumerate(pictures)}
        self.picture_ids = [numbers[question.picture] for question in questions]

    def read_sample(self, row: int) -> Sample:
        question = self.questions[row]
        assert isinstance(question.picture, Path)
        key = f"question {question.id} ({question.picture.name})"
        pair = CaptionedPicture(key, question.picture, question.answers)
        return Sample(pair, self.picture_ids[row], question.question)


def open_question_set(config: QuestionConfig, data: Path, threads: int = 8) -> TrainingSet:
    """A set of questions as a source of a stream. Raises DataError as `find_questions`, and for one without answers."""
    path = data / config.path
    paths = [path, data / config.annotations] if config.annotations else [path]
    found = read_usable_questions(paths, data / config.images if config.images else path.parent)
    answered = [question for question in found.questions if question.answers]
    if not answered:
        raise DataError(
            f"{path} has questions without answers; VQAv2's are in a file of their own: give it as annotations."
        )
    left_out = dict(found.left_out)
    if num_bare := len(found.questions) - len(answered):
        left_out[NO_ANSWER] = left_out.get(NO_ANSWER, 0) + num_bare
    return TrainingSet(config, [QuestionShard(answered)], [path.name], left_out=left_out)
