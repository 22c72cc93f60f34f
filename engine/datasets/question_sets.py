"""Make training sets of questions about pictures: the official VQAv2 files, and LAVIS' lists (vqa_train.json).

Ten people answered each question of VQAv2 (arXiv:1612.00837). An answer is learned as often as it was given: one of the
ten is drawn each time. LAVIS gives the same weights: the weight of each different answer is its share of the ten, and
either its loss is multiplied by that weight (BLIP), or one answer is drawn by these weights (InstructBLIP); the mean
over draws is that weighted loss.
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
    """The settings of a set of questions.

    path: VQAv2's questions ("v2_OpenEnded_mscoco_train2014_questions.json"), or a list of {"image", "question",
    "answer"} as LAVIS has it (vqa_train.json, vg_qa.json).
    annotations: the file of VQAv2's answers ("v2_mscoco_train2014_annotations.json"); empty for a list.
    """

    annotations: str = ""


NO_PICTURE, NO_QUESTION, NO_ANSWER = "picture is not there", "no question", "no answer"
"""The reasons for which a question is left out of training."""


@dataclass(frozen=True)
class UsableQuestions:
    """The questions of a file that can be learned.

    questions: the questions whose pictures were found; a test set's have no answers.
    left_out: how many questions are left out, by reason.
    """

    questions: list[QuestionItem]
    left_out: dict[str, int]


def read_usable_questions(paths: Sequence[Path], images: Path) -> UsableQuestions:
    """Read questions (`read_questions`) and find their pictures below `images`.

    Left out and counted are questions without a text, questions whose answers are all empty, and questions whose
    picture is missing. Raise DataError in the cases of `read_questions`, and when no question is left.
    """
    asked = read_questions(paths)
    left_out: Counter[str] = Counter()
    usable = []
    pictures: dict[tuple[str, ...], Path | None] = {}
    for item in asked.questions:
        if item.names not in pictures:
            pictures[item.names] = find_picture(images, item.names)
        question = item.question.strip()
        answers = tuple(answer.strip() for answer in item.answers if answer.strip())
        if not question:
            left_out[NO_QUESTION] += 1
        elif item.answers and not answers:
            left_out[NO_ANSWER] += 1
        elif pictures[item.names] is None:
            left_out[NO_PICTURE] += 1
        else:
            usable.append(replace(item, question=question, answers=answers, picture=pictures[item.names]))
    if not usable:
        first_picture = images / asked.questions[0].names[0] if asked.questions else "none"
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "it is empty"
        raise DataError(
            f"No question of {asked.path} is left: {reasons} (the first picture: {first_picture}); check the file, and "
            "that images names the folder of the pictures."
        )
    return UsableQuestions(usable, dict(left_out))


class QuestionShard:
    """Questions in memory as samples, whose captions are the answers; training draws one of them each time.

    count: the number of samples, one for each question.
    """

    def __init__(self, questions: Sequence[QuestionItem]):
        self.questions, self.count = questions, len(questions)
        pictures = dict.fromkeys(question.picture for question in questions)
        numbers = {picture: number for number, picture in enumerate(pictures)}
        self.picture_ids = [numbers[question.picture] for question in questions]

    def read_sample(self, row: int) -> Sample:
        """Return a sample by its number, 0 to count - 1."""
        question = self.questions[row]
        assert isinstance(question.picture, Path)
        key = f"question {question.id} ({question.picture.name})"
        pair = CaptionedPicture(key, question.picture, question.answers)
        return Sample(pair, self.picture_ids[row], question.question)


def open_question_set(config: QuestionConfig, data: Path, threads: int = 8) -> TrainingSet:
    """Open a set of questions to learn from.

    data: the folder below which the set is looked for. threads: unused; `open_training_set` has the same parameters.
    Questions without answers are left out and counted. Raise DataError in the cases of `read_usable_questions`, and for
    a set without any answer.
    """
    path = data / config.path
    paths = [path, data / config.annotations] if config.annotations else [path]
    usable = read_usable_questions(paths, data / config.images if config.images else path.parent)
    answered = [question for question in usable.questions if question.answers]
    if not answered:
        raise DataError(
            f"{path} has questions without answers; the answers of VQAv2 are in a second file: give it as annotations."
        )
    left_out = dict(usable.left_out)
    if num_unanswered := len(usable.questions) - len(answered):
        left_out[NO_ANSWER] = left_out.get(NO_ANSWER, 0) + num_unanswered
    return TrainingSet(config, [QuestionShard(answered)], [path.name], left_out=left_out)
