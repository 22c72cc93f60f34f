"""Define the errors that qseek raises on purpose.

    QseekError
        CheckpointError    a model folder
        IndexStateError    an index
        PhotoError         a photo
        QueryError         a question
        DataError          a dataset
        TrainingError      a training run

Every message says what is wrong, the value, and what to do. The command line and the page print the message alone and
never a traceback; an error that is no `QseekError` is a bug.
"""

from __future__ import annotations


class QseekError(Exception):
    """Base class of all errors that qseek raises on purpose."""


class CheckpointError(QseekError):
    """A model folder is missing, incomplete, or holds tensors that do not fit its config."""


class IndexStateError(QseekError):
    """An index is missing, locked, of a newer schema, or was made by another model."""


class PhotoError(QseekError):
    """A picture cannot be read; the message is the reason alone, without the path."""


class QueryError(QseekError):
    """A question cannot be answered: an empty text, a photo that is not in the index, ..."""


class DataError(QseekError):
    """A dataset, annotation file or shard is missing or does not hold what it should."""


class TrainingError(QseekError):
    """Training cannot start or go on: settings that contradict each other, a loss that is not a number, ..."""
