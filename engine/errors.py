"""The one family of errors that qseek raises on purpose.

Every message says what is wrong, the value, and what to do. `ui/` prints the message alone, never a
traceback; anything that is not a `QseekError` is a bug.
"""

from __future__ import annotations


class QseekError(Exception):
    """Base class: catch this to catch everything qseek raises on purpose."""


class CheckpointError(QseekError):
    """A model folder is missing, incomplete, or holds tensors that do not fit its config."""


class IndexStateError(QseekError):
    """An index is missing, locked, of a newer schema, or was made by another model."""


class PhotoError(QseekError):
    """One picture cannot be read; the message is the reason alone, without the path."""


class QueryError(QseekError):
    """What was asked cannot be answered: an empty text, a photo that is not in the index, ..."""


class DataError(QseekError):
    """A dataset, annotation file or shard does not hold what it should."""


class TrainingError(QseekError):
    """Training cannot start or go on: settings that contradict, a loss that is not a number, ..."""
