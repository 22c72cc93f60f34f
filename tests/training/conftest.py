"""Fixtures that the tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetuning_inputs import write_finetuning_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the data of `write_finetuning_data` once for the tests of a file, which only read it."""
    return write_finetuning_data(tmp_path_factory.mktemp("data"))
