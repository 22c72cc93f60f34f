"""Questions about pictures and their answers: the official VQAv2 files, and LAVIS' lists (vqa_train.json, vg_qa.json).

Ten people answered each question of VQAv2 (arXiv:1612.00837). An answer is learned as often as it was given: one of the
ten is drawn each time. LAVIS weighs alike: each different answer has its share of the ten as weight, and its loss
counts by it (BLIP), or one is drawn by these weights (InstructBLIP); the mean over draws is that weighted loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.datasets.captioned_pictures import CaptionedPicture, Sample
from engine.datasets.captioned_sets import SetConfig, Source
from engine.datasets.question_files import NO_ANSWER, Question, read_question_rows
from engine.errors import DataError


@dataclass(frozen=True)
class QuestionConfig(SetConfig):
    """A set of questions.

    path: VQAv2's questions ("v2_OpenEnded_mscoco_train2014_questions.json") with `annotations`, its answers
    ("v2_mscoco_train2014_annotations.json"); or a list of {"image", "question", "answer"} as LAVIS has it, without.
    """

    annotations: str = ""


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
    read = read_question_rows(path, data / config.images if config.images else path.parent, annotations)
    rows = [row for row in read.rows if row.answers]
    if not rows:
        raise DataError(
            f"{path} has questions without answers; VQAv2's are in a file of their own: give it as annotations."
        )
    left_out = dict(read.left_out)
    if len(rows) < len(read.rows):
        left_out[NO_ANSWER] = left_out.get(NO_ANSWER, 0) + len(read.rows) - len(rows)
    return Source(config, [QuestionShard(rows)], [path.name], missing=left_out)
