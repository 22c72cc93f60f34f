"""Commands name the photos that are missing, and refuse to go on unless that is allowed."""

from __future__ import annotations

import pytest

from engine.errors import DataError
from ui.cli.terminal import report_missing


def test_missing_photos_are_named_and_refused(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"{number}.png" for number in range(12)]
    with pytest.raises(DataError) as error:
        report_missing(
            names, "could not be found in photos", allowed=False, total=40, consequence="That is bad."
        )
    assert str(error.value) == (
        "12 of 40 photos are missing. Add them, or leave them out with --allow-missing (the report will say so). "
        "That is bad."
    )
    lines = capsys.readouterr().err.splitlines()
    first_names = [f"  {name}" for name in names[:10]]
    assert lines == ["12 of 40 photos could not be found in photos:", *first_names, "  and 2 more"]


def test_one_missing_photo_that_may_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    report_missing(["a.png"], "could not be read", allowed=True)
    assert capsys.readouterr().err == "1 photo could not be read:\n  a.png\n"
    with pytest.raises(
        DataError, match=r"^1 photo is missing\. Add it, or leave it out with --allow-missing "
    ):
        report_missing(["a.png"], "could not be read", allowed=False)
