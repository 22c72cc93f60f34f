"""`qseek search`, `similar`, `match` and `rerank` answer from a real store with the colour model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import paint, parse_json_lines, qseek
from fake_model import FakeSearcher

from ui import session

pytestmark = pytest.mark.usefixtures("colours")


class TestSearch:
    def test_hits_are_printed_as_json_in_the_order_of_the_cosine(self, indexed):
        result = qseek("search", "red", "--json")
        assert result.exit_code == 0
        rows = parse_json_lines(result)
        assert [Path(row["path"]).stem for row in rows[:2]] == ["red", "orange"]
        assert [row["rank"] for row in rows] == [1, 2, 3, 4]
        assert [row["itc"] for row in rows] == pytest.approx([1, 0.894, 0, 0], abs=2e-3)
        assert rows[1]["itm"] == pytest.approx(0.9 * 0.894, abs=2e-3)
        assert set(rows[0]) == {"rank", "path", "score", "itc", "itm"}

    def test_options_reach_the_search(self, indexed):
        assert [row["itm"] for row in parse_json_lines(qseek("search", "red", "--json", "--no-rerank"))] == [
            None
        ] * 4
        assert [
            row["itm"] is None for row in parse_json_lines(qseek("search", "red", "--json", "--rerank", 3))
        ] == [False] * 3 + [True]
        assert len(parse_json_lines(qseek("search", "red", "--json", "-k", 2))) == 2

    def test_several_words_need_no_quotes(self, indexed):
        assert "orange.png" in qseek("search", "red", "yellow", "-k", 1).stdout

    def test_paths_are_printed_with_every_byte(self, indexed):
        odd_path = os.fsdecode(os.fsencode(indexed) + b"/a\n'caf\xe9\".png")
        os.rename(indexed / "red.png", odd_path)
        assert qseek("index", indexed).exit_code == 0
        assert qseek("search", "red", "-k", 1, "--paths").stdout_bytes == os.fsencode(odd_path) + b"\n"
        assert qseek("search", "red", "-k", 2, "-0").stdout_bytes == (
            os.fsencode(odd_path) + b"\0" + os.fsencode(indexed / "orange.png") + b"\0"
        )
        table = qseek("search", "red", "-k", 1)
        assert len(table.stdout_bytes.decode("utf-8").splitlines()) == 2
        assert "a\\n'caf\\xe9\".png" in table.stdout

    def test_an_empty_text_and_one_that_is_not_utf8_are_refused(self, indexed):
        for text in ("", "  "):
            result = qseek("search", text)
            assert result.exit_code == 1
            assert "The text is empty" in result.stderr
        assert "not valid UTF-8" in qseek("search", "caf\udce9").stderr

    def test_without_an_index_the_error_names_the_command_that_makes_one(self):
        result = qseek("search", "red")
        assert result.exit_code == 1
        assert "qseek index" in result.stderr and result.stdout == ""

    def test_an_index_without_photos_finds_none(self, tmp_path):
        qseek("index", "--texts", "-", stdin=b"a red thing\n")
        result = qseek("search", "red")
        assert result.exit_code == 0
        assert result.stdout == "" and "No photo was found." in result.stderr

    def test_notes_are_printed_on_stderr(self, indexed, monkeypatch):
        class SearcherWithNote(FakeSearcher):
            def search(self, *arguments, **options):
                from dataclasses import replace

                return replace(
                    super().search(*arguments, **options), notes=("the text was cut to 32 tokens",)
                )

        monkeypatch.setattr(session, "make_searcher", SearcherWithNote)
        result = qseek("search", "red", "--paths")
        assert result.stderr == "Note: the text was cut to 32 tokens\n"

    def test_an_error_that_is_not_meant_for_a_person_is_not_hidden(self, indexed, monkeypatch):
        def divide_by_zero(*_, **__):
            raise ZeroDivisionError

        monkeypatch.setattr(session, "make_searcher", divide_by_zero)
        assert isinstance(qseek("search", "red").exception, ZeroDivisionError)

    def test_an_unknown_model_is_named_in_a_plain_message(self, indexed):
        result = qseek("search", "red", "--model", "none-such")
        assert (result.exit_code, result.stderr) == (1, "Error: there is no model none-such\n")


class TestSimilar:
    def test_an_indexed_photo_finds_photos_like_it(self, indexed):
        rows = parse_json_lines(qseek("similar", indexed / "orange.png", "--json", "-k", 2))
        assert [Path(row["path"]).stem for row in rows] == ["orange", "red"]
        assert rows[1]["itc"] == pytest.approx(0.894, abs=2e-3)

    def test_a_photo_outside_the_index_is_given_by_a_relative_path(self, indexed, tmp_path, monkeypatch):
        paint(tmp_path / "new.png", (0, 10, 250))
        monkeypatch.chdir(tmp_path)
        assert qseek("similar", "new.png", "--paths", "-k", 1).stdout == f"{indexed / 'blue.png'}\n"

    def test_an_indexed_photo_is_known_by_any_spelling_of_its_path(self, indexed, monkeypatch):
        (indexed / "sub").mkdir()
        monkeypatch.chdir(indexed / "sub")
        encoded_paths = []
        monkeypatch.setattr(FakeSearcher, "_encode_file", lambda self, path: encoded_paths.append(path))
        result = qseek("similar", "../orange.png", "--paths", "-k", 1)
        assert (result.stdout, encoded_paths) == (f"{indexed / 'orange.png'}\n", []), (
            "its stored vectors answer"
        )

    def test_a_file_that_is_not_a_photo_is_refused(self, indexed, tmp_path):
        (tmp_path / "x.jpg").write_text("words")
        result = qseek("similar", tmp_path / "x.jpg")
        assert result.exit_code == 1
        assert "text file" in result.stderr


class TestMatch:
    def test_texts_from_stdin_are_ordered_by_how_well_they_fit(self, indexed):
        texts = b"a blue thing\na red thing\n"
        result = qseek("match", indexed / "red.png", "--texts", "-", "--json", stdin=texts)
        rows = parse_json_lines(result)
        assert [(row["rank"], row["text"]) for row in rows] == [(1, "a red thing"), (2, "a blue thing")]
        assert rows[0]["itm"] == pytest.approx(0.9, abs=1e-3)
        table = qseek("match", indexed / "red.png", "--texts", "-", "-k", 1, "--no-rerank", stdin=texts)
        assert table.stdout == "#  match  cosine  text\n1      -   1.000  a red thing\n"

    def test_the_indexed_texts_are_the_default(self, indexed):
        qseek("index", "--texts", "-", stdin=b"green grass\nblue sky\n")
        assert parse_json_lines(qseek("match", indexed / "blue.png", "--json"))[0]["text"] == "blue sky"

    def test_a_file_without_texts_is_refused(self, indexed):
        result = qseek("match", indexed / "red.png", "--texts", "-", stdin=b"\n \n")
        assert result.exit_code == 1
        assert "holds no text" in result.stderr


class TestRerank:
    def test_photos_from_stdin_are_ordered_by_how_well_they_fit(self, photos):
        stdin = b"".join(os.fsencode(photos / f"{name}.png") + b"\n" for name in ("blue", "orange", "red"))
        rows = parse_json_lines(qseek("rerank", "red", "--json", stdin=stdin))
        assert [Path(row["path"]).stem for row in rows] == ["red", "orange", "blue"]
        assert rows[0]["itm"] == pytest.approx(0.9, abs=1e-3)
        assert qseek("rerank", "red", "--paths", "-k", 1, stdin=stdin).stdout == f"{photos / 'red.png'}\n"

    def test_paths_may_end_with_nul_bytes_in_the_input_and_output(self, photos):
        odd_path = os.fsdecode(os.fsencode(photos) + b"/two\nlines\xff.png")
        os.rename(photos / "red.png", odd_path)
        stdin = os.fsencode(photos / "blue.png") + b"\0" + os.fsencode(odd_path)
        assert qseek("rerank", "red", "-0", stdin=stdin).stdout_bytes == (
            os.fsencode(odd_path) + b"\0" + os.fsencode(photos / "blue.png") + b"\0"
        )
        assert parse_json_lines(qseek("rerank", "red", "-0", "--json", stdin=stdin))[0]["path"].endswith(
            "two\nlines\\xff.png"
        )

    def test_a_file_may_hold_relative_paths_with_windows_line_endings(self, photos, tmp_path, monkeypatch):
        (tmp_path / "list.txt").write_bytes(b"photos/blue.png\r\n\r\nphotos/red.png\r\n")
        monkeypatch.chdir(tmp_path)
        assert qseek("rerank", "blue", "list.txt", "--paths").stdout.splitlines()[0] == str(
            photos / "blue.png"
        )

    def test_a_photo_that_cannot_be_read_is_named_and_ends_with_exit_code_3(self, photos):
        result = qseek("rerank", "red", "--paths", stdin=f"{photos}/red.png\n{photos}/gone.png\n".encode())
        assert result.exit_code == 3
        assert result.stdout == f"{photos}/red.png\n"
        assert f"{photos}/gone.png: it is no longer there" in result.stderr

    def test_an_input_without_paths_is_refused(self):
        result = qseek("rerank", "red", stdin=b"\n")
        assert result.exit_code == 1
        assert "names no photo" in result.stderr
