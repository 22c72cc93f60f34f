"""`qseek search`, `similar`, `match` and `rerank` over a real store, with the colour model of fake_model.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import paint, parse_json_lines, qseek
from fake_model import FakeSearcher

from ui import session

pytestmark = pytest.mark.usefixtures("colours")


class TestSearch:
    def test_json_in_the_order_of_the_cosine(self, indexed):
        result = qseek("search", "red", "--json")
        assert result.exit_code == 0
        found = parse_json_lines(result)
        assert [Path(one["path"]).stem for one in found[:2]] == ["red", "orange"]
        assert [one["rank"] for one in found] == [1, 2, 3, 4]
        assert [one["itc"] for one in found] == pytest.approx([1, 0.894, 0, 0], abs=2e-3)
        assert found[1]["itm"] == pytest.approx(0.9 * 0.894, abs=2e-3)
        assert set(found[0]) == {"rank", "path", "score", "itc", "itm"}

    def test_options_reach_the_search(self, indexed):
        assert [one["itm"] for one in parse_json_lines(qseek("search", "red", "--json", "--no-rerank"))] == [
            None
        ] * 4
        assert [
            one["itm"] is None for one in parse_json_lines(qseek("search", "red", "--json", "--rerank", 3))
        ] == [False] * 3 + [True]
        assert len(parse_json_lines(qseek("search", "red", "--json", "-k", 2))) == 2

    def test_words_need_no_quotes(self, indexed):
        assert "orange.png" in qseek("search", "red", "yellow", "-k", 1).stdout

    def test_paths_keep_every_byte(self, indexed):
        odd = os.fsdecode(os.fsencode(indexed) + b"/a\n'caf\xe9\".png")
        os.rename(indexed / "red.png", odd)
        assert qseek("index", indexed).exit_code == 0
        assert qseek("search", "red", "-k", 1, "--paths").stdout_bytes == os.fsencode(odd) + b"\n"
        assert qseek("search", "red", "-k", 2, "-0").stdout_bytes == (
            os.fsencode(odd) + b"\0" + os.fsencode(indexed / "orange.png") + b"\0"
        )
        table = qseek("search", "red", "-k", 1)
        assert len(table.stdout_bytes.decode("utf-8").splitlines()) == 2
        assert "a\\n'caf\\xe9\".png" in table.stdout

    def test_an_empty_or_unreadable_query(self, indexed):
        for query in ("", "  "):
            result = qseek("search", query)
            assert result.exit_code == 1
            assert "The text is empty" in result.stderr
        assert "not valid UTF-8" in qseek("search", "caf\udce9").stderr

    def test_no_index_yet(self):
        result = qseek("search", "red")
        assert result.exit_code == 1
        assert "qseek index" in result.stderr and result.stdout == ""

    def test_an_index_without_photos(self, tmp_path):
        qseek("index", "--texts", "-", stdin=b"a red thing\n")
        result = qseek("search", "red")
        assert result.exit_code == 0
        assert result.stdout == "" and "No photo was found." in result.stderr

    def test_notes_go_to_stderr(self, indexed, monkeypatch):
        class Noting(FakeSearcher):
            def search(self, *arguments, **options):
                from dataclasses import replace

                return replace(
                    super().search(*arguments, **options), notes=("the text was cut to 32 tokens",)
                )

        monkeypatch.setattr(session, "make_searcher", Noting)
        result = qseek("search", "red", "--paths")
        assert result.stderr == "Note: the text was cut to 32 tokens\n"

    def test_a_bug_is_not_hidden(self, indexed, monkeypatch):
        def broken(*_, **__):
            raise ZeroDivisionError

        monkeypatch.setattr(session, "make_searcher", broken)
        assert isinstance(qseek("search", "red").exception, ZeroDivisionError)

    def test_an_unknown_model_is_a_plain_message(self, indexed):
        result = qseek("search", "red", "--model", "none-such")
        assert (result.exit_code, result.stderr) == (1, "Error: there is no model none-such\n")


class TestSimilar:
    def test_of_an_indexed_photo(self, indexed):
        found = parse_json_lines(qseek("similar", indexed / "orange.png", "--json", "-k", 2))
        assert [Path(one["path"]).stem for one in found] == ["orange", "red"]
        assert found[1]["itc"] == pytest.approx(0.894, abs=2e-3)

    def test_of_a_photo_given_by_a_relative_path(self, indexed, tmp_path, monkeypatch):
        paint(tmp_path / "new.png", (0, 10, 250))
        monkeypatch.chdir(tmp_path)
        assert qseek("similar", "new.png", "--paths", "-k", 1).stdout == f"{indexed / 'blue.png'}\n"

    def test_an_indexed_photo_is_known_by_any_spelling_of_its_path(self, indexed, monkeypatch):
        (indexed / "sub").mkdir()
        monkeypatch.chdir(indexed / "sub")
        asked = []
        monkeypatch.setattr(FakeSearcher, "_vector", lambda self, path: asked.append(path))
        result = qseek("similar", "../orange.png", "--paths", "-k", 1)
        assert (result.stdout, asked) == (f"{indexed / 'orange.png'}\n", []), "its stored vectors answer"

    def test_of_a_file_that_is_no_photo(self, indexed, tmp_path):
        (tmp_path / "x.jpg").write_text("words")
        result = qseek("similar", tmp_path / "x.jpg")
        assert result.exit_code == 1
        assert "text file" in result.stderr


class TestMatch:
    def test_with_texts_of_a_file_or_stdin(self, indexed):
        texts = b"a blue thing\na red thing\n"
        result = qseek("match", indexed / "red.png", "--texts", "-", "--json", stdin=texts)
        found = parse_json_lines(result)
        assert [(one["rank"], one["text"]) for one in found] == [(1, "a red thing"), (2, "a blue thing")]
        assert found[0]["itm"] == pytest.approx(0.9, abs=1e-3)
        table = qseek("match", indexed / "red.png", "--texts", "-", "-k", 1, "--no-rerank", stdin=texts)
        assert table.stdout == "#  match  cosine  text\n1      -   1.000  a red thing\n"

    def test_with_the_indexed_texts(self, indexed):
        qseek("index", "--texts", "-", stdin=b"green grass\nblue sky\n")
        assert parse_json_lines(qseek("match", indexed / "blue.png", "--json"))[0]["text"] == "blue sky"

    def test_no_texts(self, indexed):
        result = qseek("match", indexed / "red.png", "--texts", "-", stdin=b"\n \n")
        assert result.exit_code == 1
        assert "holds no text" in result.stderr


class TestRerank:
    def test_paths_from_stdin_in_the_order_of_the_match(self, photos):
        stdin = b"".join(os.fsencode(photos / f"{name}.png") + b"\n" for name in ("blue", "orange", "red"))
        found = parse_json_lines(qseek("rerank", "red", "--json", stdin=stdin))
        assert [Path(one["path"]).stem for one in found] == ["red", "orange", "blue"]
        assert found[0]["itm"] == pytest.approx(0.9, abs=1e-3)
        assert qseek("rerank", "red", "--paths", "-k", 1, stdin=stdin).stdout == f"{photos / 'red.png'}\n"

    def test_nul_bytes_in_and_out(self, photos):
        odd = os.fsdecode(os.fsencode(photos) + b"/two\nlines\xff.png")
        os.rename(photos / "red.png", odd)
        stdin = os.fsencode(photos / "blue.png") + b"\0" + os.fsencode(odd)
        assert qseek("rerank", "red", "-0", stdin=stdin).stdout_bytes == (
            os.fsencode(odd) + b"\0" + os.fsencode(photos / "blue.png") + b"\0"
        )
        assert parse_json_lines(qseek("rerank", "red", "-0", "--json", stdin=stdin))[0]["path"].endswith(
            "two\nlines\\xff.png"
        )

    def test_a_file_of_relative_paths_with_windows_endings(self, photos, tmp_path, monkeypatch):
        (tmp_path / "list.txt").write_bytes(b"photos/blue.png\r\n\r\nphotos/red.png\r\n")
        monkeypatch.chdir(tmp_path)
        assert qseek("rerank", "blue", "list.txt", "--paths").stdout.splitlines()[0] == str(
            photos / "blue.png"
        )

    def test_what_cannot_be_read_is_named_and_ends_with_3(self, photos):
        result = qseek("rerank", "red", "--paths", stdin=f"{photos}/red.png\n{photos}/gone.png\n".encode())
        assert result.exit_code == 3
        assert result.stdout == f"{photos}/red.png\n"
        assert f"{photos}/gone.png: it is no longer there" in result.stderr

    def test_no_paths(self):
        result = qseek("rerank", "red", stdin=b"\n")
        assert result.exit_code == 1
        assert "names no photo" in result.stderr
