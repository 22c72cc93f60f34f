"""Hits are formatted as tables, JSON and paths; names cannot break a terminal or a JSON parser."""

from __future__ import annotations

import base64
import json
import math
import os
from pathlib import Path

import pytest

from engine.types import Failure, Hit, Photo, TextHit
from ui.reports import hit_formats, text_forms

BAD_NAME = os.fsdecode(b"/p/caf\xe9.jpg")  # Latin-1, which is not UTF-8 here


def make_hit(rank: int, path: str, itc: float, itm: float | None = None, copies: tuple[str, ...] = ()) -> Hit:
    paths = tuple(Path(name) for name in (path, *copies))
    score = itc if itm is None else math.log(itm / (1 - itm)) + itc
    return Hit(rank, Photo(rank, "00", 4, 3, paths), score, itc, itm)


def test_the_table_is_aligned_and_shows_match_and_cosine():
    hits = [make_hit(1, "/p/dog.jpg", 0.41234, 0.93), make_hit(10, "/p/a cat.png", -0.05)]
    assert hit_formats.format_hits_table(hits) == (
        " #  match  cosine  photo\n 1    93%   0.412  /p/dog.jpg\n10      -  -0.050  /p/a cat.png\n"
    )


def test_further_files_of_a_photo_are_counted():
    table = hit_formats.format_hits_table([make_hit(1, "/p/a.jpg", 0.5, copies=("/p/b.jpg", "/q/c.jpg"))])
    assert table.endswith("/p/a.jpg  (+2 copies)\n")
    assert hit_formats.format_hits_table([make_hit(1, "/p/a.jpg", 0.5, copies=("/p/b.jpg",))]).endswith(
        "(+1 copy)\n"
    )


def test_a_name_cannot_break_the_table_or_the_terminal():
    table = hit_formats.format_hits_table(
        [make_hit(1, "/p/two\nlines\x1b[31m.jpg", 0.5), make_hit(2, BAD_NAME, 0.4)]
    )
    assert len(table.splitlines()) == 3
    assert "/p/two\\nlines\\x1b[31m.jpg" in table
    assert "/p/caf\\xe9.jpg" in table
    table.encode("utf-8")


def test_printable_unicode_stays_as_it_is():
    assert text_forms.printable_text("Übung 写真 🐕.jpg") == "Übung 写真 🐕.jpg"


def test_json_lines_hold_rank_path_score_itc_and_itm():
    text = hit_formats.format_hits_json(
        [make_hit(1, "/p/dog.jpg", 0.41, 0.5), make_hit(2, '/p/"q"\n.jpg', 0.3)]
    )
    first, second = (json.loads(line) for line in text.splitlines())
    assert first == {"rank": 1, "path": "/p/dog.jpg", "score": 0.41, "itc": 0.41, "itm": 0.5}
    assert second == {"rank": 2, "path": '/p/"q"\n.jpg', "score": 0.3, "itc": 0.3, "itm": None}


def test_json_is_utf8_and_gives_the_exact_bytes_of_a_name_that_is_not():
    line = hit_formats.format_hits_json([make_hit(1, BAD_NAME, 0.5)])
    fields = json.loads(line.encode("utf-8"))
    assert fields["path"] == "/p/caf\\xe9.jpg"
    assert base64.b64decode(fields["path_base64"]) == b"/p/caf\xe9.jpg"


def test_json_refuses_a_score_that_is_not_a_number():
    with pytest.raises(ValueError, match="not JSON compliant"):
        hit_formats.format_hits_json([make_hit(1, "/p/a.jpg", math.nan)])


def test_paths_are_joined_with_the_bytes_that_the_disk_has():
    paths = [Path("/p/a b.jpg"), Path("/p/two\nlines.jpg"), Path(BAD_NAME)]
    assert hit_formats.join_paths(paths) == b"/p/a b.jpg\n/p/two\nlines.jpg\n/p/caf\xe9.jpg\n"
    assert hit_formats.join_paths(paths, b"\0").split(b"\0")[:-1] == [os.fsencode(path) for path in paths]


def test_texts_are_formatted_as_a_table_and_as_json():
    hits = [TextHit(1, "a dog", 1.5, 0.5, 0.731), TextHit(2, "two\tcats", 0.25, 0.25)]
    assert hit_formats.format_text_hits_table(hits) == (
        "#  match  cosine  text\n1    73%   0.500  a dog\n2      -   0.250  two\\tcats\n"
    )
    assert json.loads(hit_formats.format_text_hits_json(hits).splitlines()[0]) == {
        "rank": 1, "text": "a dog", "score": 1.5, "itc": 0.5, "itm": 0.731,
    }  # fmt: skip


def test_failures_are_formatted_as_lines_and_as_json():
    failures = [Failure(Path("/p/x.jpg"), "the file is empty"), Failure(Path(BAD_NAME), "truncated")]
    assert (
        hit_formats.format_failures_table(failures)
        == "/p/x.jpg: the file is empty\n/p/caf\\xe9.jpg: truncated\n"
    )
    rows = [json.loads(line) for line in hit_formats.format_failures_json(failures).splitlines()]
    assert rows[0] == {"path": "/p/x.jpg", "reason": "the file is empty"}
    assert base64.b64decode(rows[1]["path_base64"]) == b"/p/caf\xe9.jpg"


@pytest.mark.parametrize(
    ("probability", "text"),
    [(None, "-"), (0.0, "0%"), (0.0004, "0%"), (0.004, "0.4%"), (0.5, "50%"), (0.994, "99.4%"),
     (0.9973, "99.7%"), (0.99996, "100%"), (1.0, "100%")],
)  # fmt: skip
def test_a_probability_is_written_in_per_cent(probability, text):
    assert text_forms.percent_text(probability) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (16384, "16.4 KB"), (999_950, "1.0 MB"),
     (2_500_000_000, "2.5 GB"), (3 * 10**15, "3000.0 TB")],
)  # fmt: skip
def test_a_number_of_bytes_is_written_in_powers_of_1000(num_bytes, text):
    assert text_forms.size_text(num_bytes) == text
