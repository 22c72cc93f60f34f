"""Keep in memory which photos have a file that is not missing, and where their files are."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class LiveFiles:
    """The files that are not missing, in memory: a search must not scan the table for the paths of its hits.

    versions: of the photos' and the files' table. ids: ascending, of the photos that have a file. places: for each file
    its photo's place in the table, ascending; files: their root and path, in the same order.
    """

    versions: tuple[int, int]
    ids: np.ndarray
    places: np.ndarray
    files: pa.Table
