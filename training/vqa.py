"""Questions about pictures and their answers: the official VQAv2 files, and LAVIS' lists (vqa_train.json, vg_qa.json).

Ten people answered each question of VQAv2 (arXiv:1612.00837). An answer is learned as often as it was given: one of the
ten is drawn each time. LAVIS weighs alike: each different answer has its share of the ten as weight, and its loss
counts by it (BLIP), or one is drawn by these weights (InstructBLIP); the mean over draws is that weighted loss.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import DataError
from training.benchmarks import vqa_questions
from training.data import CaptionedPicture, read_json
from training.sources import Sample, SetConfig, Source

NO_PICTURE, NO_QUESTION, NO_ANSWER = "picture is not there", "no question", "no answer"


@dataclass(frozen=True)
class QuestionConfig(SetConfig):
    """A set of questions.

    path: VQAv2's questions ("v2_OpenEnded_mscoco_train2014_questions.json") with `annotations`, its answers
    ("v2_mscoco_train2014_annotations.json"); or a list of {"image", "question", "answer"} as LAVIS has it, without.
    """

    annotations: str = ""


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
class Questions:
    """What a file asks. left_out: how many questions by reason."""

    rows: list[Question]
    left_out: dict[str, int]


def read_questions(path: Path, images: Path, annotations: Path | None = None) -> Questions:
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
    return Questions(kept, dict(left_out))


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


class QuestionShard:
    """Questions in memory, each a sample; one of its answers is drawn each time."""

    def __init__(self, rows: Sequence[Question]):
        self.rows, self.count = rows, len(rows)
        numbers = {
            picture: number for number, picture in enumerate(dict.fromkeys(row.picture for row in rows))
        }
        self.picture_ids = [numbers[row.picture] for row in rows]

    def read(self, row: int) -> Sample:
        one = self.rows[row]
        pair = CaptionedPicture(f"question {one.number} ({one.picture.name})", one.picture, one.answers)
        return Sample(pair, self.picture_ids[row], one.text)


def open_questions(config: QuestionConfig, data: Path, threads: int = 8) -> Source:
    """A set of questions as a source of a stream. Raises DataError as `read_questions`, and for one without answers."""
    path = data / config.path
    annotations = data / config.annotations if config.annotations else None
    read = read_questions(path, data / config.images if config.images else path.parent, annotations)
    rows = [row for row in read.rows if row.answers]
    if not rows:
        raise DataError(
            f"{path} has questions without answers; VQAv2's are in a file of their own: give it as annotations."
        )
    left_out = dict(read.left_out)
    if len(rows) < len(read.rows):
        left_out[NO_ANSWER] = left_out.get(NO_ANSWER, 0) + len(read.rows) - len(rows)
    return Source(config, [QuestionShard(rows)], [path.name], missing=left_out)
