"""The command line over a real store, with the colour model of fake_model.py, whose answers are plain."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from fake_model import FakeModel, FakeSearcher, load_fake
from PIL import Image

from engine.errors import QueryError
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.index.writer_lock import locked
from ui import session
from ui.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[3]
RED, GREEN, BLUE, ORANGE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 128, 0)


@pytest.fixture(autouse=True)
def colours(monkeypatch, tmp_path):
    """The colour model in the place of BLIP-2, the index in a folder of its own."""
    monkeypatch.setattr(session, "load_model", load_fake)
    monkeypatch.setattr(session, "make_searcher", FakeSearcher)
    monkeypatch.setenv("QSEEK_INDEX", str(tmp_path / "index"))
    monkeypatch.delenv("QSEEK_MODEL", raising=False)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in {"red": RED, "green": GREEN, "blue": BLUE, "orange": ORANGE}.items():
        paint(folder / f"{name}.png", colour)
    return folder


@pytest.fixture
def indexed(photos):
    assert qseek("index", photos).exit_code == 0
    return photos


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (32, 24)) -> Path:
    Image.new("RGB", size, colour).save(path, "PNG")
    return path


def qseek(*arguments: object, stdin: bytes | None = None):
    return CliRunner().invoke(
        main, [os.fspath(one) if isinstance(one, Path) else str(one) for one in arguments], stdin
    )


def lines(result) -> list[dict]:
    return [json.loads(line) for line in result.stdout.splitlines()]


class TestHelp:
    def test_each_command_explains_itself(self):
        result = qseek("--help")
        assert result.exit_code == 0
        for name in COMMANDS:
            assert f"\n  {name} " in result.stdout
            assert qseek(name, "--help").exit_code == 0

    def test_nothing_heavy_is_loaded_for_it(self):
        heavy = ("torch", "lancedb", "lance", "faiss", "streamlit", "rich", "numpy", "pyarrow", "PIL", "timm")
        asked = (["--help"], ["search", "--help"], ["index", "--help"], ["app", "--help"], ["index"])
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
            "from click.testing import CliRunner; from ui.cli.main import main\n"
            f"for arguments in {asked}: CliRunner().invoke(main, arguments)\n"
            f"print([name for name in {heavy} if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
        assert done.stdout.decode().strip() == "[]"

    def test_import_time_names_nothing_heavy(self):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "ui.cli.main", "--help"],
            cwd=ROOT, capture_output=True, timeout=60, check=True, text=True,
        )  # fmt: skip
        loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if "|" in line}
        assert "click" in loaded
        assert not {"torch", "lancedb", "faiss", "streamlit", "rich"} & {
            name.split(".")[0] for name in loaded
        }

    @pytest.mark.parametrize(
        "arguments",
        [["nonsense"], ["search"], ["index"], ["search", "dog", "-k", "0"], ["search", "--json", "-0", "x"]],
    )
    def test_wrong_usage_ends_with_2(self, arguments):
        result = qseek(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Usage:" in result.stderr


class TestIndex:
    def test_report_and_second_run(self, photos):
        first = qseek("index", photos)
        assert first.exit_code == 0
        assert first.stdout.startswith(
            "4 added, 0 changed, 0 moved, 0 removed, 0 unchanged, 0 failed\n4 photos in the index, "
        )
        (photos / "red.png").rename(photos / "scarlet.png")
        paint(photos / "blue.png", (255, 255, 0))
        second = qseek("index", photos, "--json")
        report = lines(second)[0]
        expected = {
            "added": 0,
            "changed": 1,
            "moved": 1,
            "removed": 0,
            "unchanged": 2,
            "failed": 0,
            "photos": 4,
        }
        assert {name: report[name] for name in expected} == expected

    def test_faiss_files_are_there_for_the_first_search(self, tmp_path, photos):
        report = lines(qseek("index", photos, "--texts", "-", "--json", stdin=b"a red thing\n"))[0]
        faiss = tmp_path / "index" / "faiss"
        assert any((faiss / "photos").iterdir()) and any((faiss / "texts").iterdir())
        assert report["disk_bytes"] > sum(path.stat().st_size for path in faiss.rglob("*") if path.is_file())

    def test_progress_is_plain_lines_on_stderr(self, photos):
        result = qseek("index", photos)
        assert "4 of 4 photos" in result.stderr
        assert "\x1b" not in result.stderr

    def test_unreadable_photos_are_listed_and_end_with_3(self, photos):
        (photos / "words.jpg").write_text("not a picture")
        (photos / "empty.jpg").touch()
        result = qseek("index", photos)
        assert result.exit_code == 3
        assert "4 added" in result.stdout and "2 failed" in result.stdout
        assert "2 photos could not be read:" in result.stderr
        assert "words.jpg: it is a text file" in result.stderr
        listed = qseek("failures", "--json")
        assert listed.exit_code == 0
        assert [Path(one["path"]).name for one in lines(listed)] == ["empty.jpg", "words.jpg"]
        assert qseek("failures", "-0").stdout_bytes == b"".join(
            os.fsencode(photos / name) + b"\0" for name in ("empty.jpg", "words.jpg")
        )
        assert qseek("index", photos).exit_code == 3, "they are still unreadable"

    def test_many_failures_are_cut_and_the_list_is_named(self, photos):
        for number in range(13):
            (photos / f"{number:02d}.jpg").touch()
        result = qseek("index", photos)
        assert "09.jpg" in result.stderr and "10.jpg" not in result.stderr
        assert "and 3 more; `qseek failures` lists them." in result.stderr

    def test_a_folder_that_is_not_there_makes_no_index(self, tmp_path):
        result = qseek("index", tmp_path / "nowhere")
        assert result.exit_code == 1
        assert str(tmp_path / "nowhere") in result.stderr
        assert not (tmp_path / "index").exists()

    def test_one_of_two_folders_is_not_there(self, tmp_path, photos):
        assert qseek("index", photos, tmp_path / "nowhere").exit_code == 1
        assert not (tmp_path / "index").exists()

    def test_what_failed_is_read_again_when_asked(self, tmp_path, photos):
        (photos / "late.jpg").write_text("x" * 500)
        assert qseek("index", photos).exit_code == 3
        before = (photos / "late.jpg").stat()
        paint(photos / "late.jpg", BLUE, (40, 30))
        size = (photos / "late.jpg").stat().st_size
        with open(
            photos / "late.jpg", "ab"
        ) as file:  # the same size and time as before: only --retry looks again
            file.write(b"\0" * (before.st_size - size))
        os.utime(photos / "late.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert qseek("index", photos).exit_code == 3
        result = qseek("index", photos, "--retry")
        assert (result.exit_code, result.stdout[:8]) == (0, "1 added,")

    def test_a_folder_without_photos(self, tmp_path, indexed):
        (tmp_path / "empty").mkdir()
        for index in (tmp_path / "index", tmp_path / "fresh"):
            result = qseek("index", tmp_path / "empty", "--index", index)
            assert result.exit_code == 1
            assert "no photos in " in result.stderr and str(tmp_path / "empty") in result.stderr
        assert not (tmp_path / "fresh").exists()

    def test_two_at_once(self, tmp_path, indexed):
        with locked(tmp_path / "index"):
            result = qseek("index", indexed)
        assert result.exit_code == 1
        assert f"another qseek (process {os.getpid()}) is writing" in result.stderr

    def test_texts(self, tmp_path, photos):
        (tmp_path / "captions.txt").write_bytes("\ufeffa red thing\n\nblue sky\r\n".encode())
        result = qseek("index", photos, "--texts", tmp_path / "captions.txt")
        assert "2 texts added, 2 in the index." in result.stderr
        found = lines(qseek("match", photos / "red.png", "--json"))
        assert [one["text"] for one in found] == ["a red thing", "blue sky"]
        again = qseek("index", "--texts", "-", stdin=b"blue sky\ngreen grass\n")
        assert again.exit_code == 0
        assert "1 text added, 3 in the index." in again.stderr

    def test_texts_that_are_no_text(self, tmp_path, photos):
        (tmp_path / "captions.txt").write_bytes(b"fine\ncaf\xe9\n")
        result = qseek("index", photos, "--texts", tmp_path / "captions.txt")
        assert result.exit_code == 1
        assert "Line 2 of" in result.stderr and "not UTF-8" in result.stderr

    def test_features_are_kept_as_begun(self, tmp_path, photos):
        assert qseek("index", photos).exit_code == 0
        assert Manifest.load(tmp_path / "index").features == "store", "4 x 4 fp16 are small"
        result = qseek("index", photos, "--features", "none")
        assert result.exit_code == 1
        assert "--features store" in result.stderr and "--reindex" in result.stderr

    def test_ctrl_c_says_what_is_kept(self, photos, monkeypatch):
        for number in range(12):
            paint(photos / f"x{number}.png", (number, 9, 9))

        calls = []

        class Interrupted(FakeModel):
            def encode_patches(self, pictures):
                calls.append(len(pictures))
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return super().encode_patches(pictures)

        monkeypatch.setattr("ui.session.load_model", lambda name: Interrupted())
        import indexer.build

        def in_eights(*arguments, **options):
            return real_build(*arguments, **options, batch_size=8)

        real_build = indexer.build.build_index
        monkeypatch.setattr("indexer.index_run.build_index", in_eights)
        result = qseek("index", photos)
        assert result.exit_code == 130
        assert "Stopped. The index holds 8 photos; the same command goes on from there." in result.stderr
        assert "Traceback" not in result.output

    def test_a_full_disk_is_one_plain_message(self, photos, monkeypatch):
        def full(*_, **__):
            raise OSError(28, "No space left on device", "/full/disk")

        monkeypatch.setattr("indexer.index_run.build_index", full)
        result = qseek("index", photos)
        assert result.exit_code == 1
        assert result.stderr.endswith("Error: No space left on device: /full/disk\n")


class TestReindex:
    def other_model(self, monkeypatch):
        monkeypatch.setattr("ui.session.load_model", lambda name: FakeModel("tints", "77" * 16))

    def test_another_model_is_refused_and_reindexes_everything_known(self, tmp_path, indexed, monkeypatch):
        (tmp_path / "more").mkdir()
        paint(tmp_path / "more" / "yellow.png", (255, 255, 0))
        qseek("index", tmp_path / "more", "--texts", "-", stdin=b"a red thing\n")
        self.other_model(monkeypatch)
        refused = qseek("index", indexed, "--model", "tints")
        assert refused.exit_code == 1
        assert "colours" in refused.stderr and "tints" in refused.stderr and "--reindex" in refused.stderr
        done = qseek("index", "--reindex", "--model", "tints")
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("5 added")
        store = Store.open(tmp_path / "index")
        assert (store.manifest.model, store.num_photos, store.num_texts) == ("tints", 5, 1)
        assert not (tmp_path / "index" / "reindex").exists()

    def test_the_old_index_stays_until_the_new_one_is_complete(self, tmp_path, indexed, monkeypatch):
        def stopped(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("indexer.index_run.build_index", stopped)
        result = qseek("index", "--reindex")
        assert result.exit_code == 130
        assert "The old index still answers; the new one holds 0 photos" in result.stderr
        assert lines(qseek("search", "red", "--json", "-k", 1))[0]["itc"] == pytest.approx(1, abs=1e-3)

    def test_a_replacement_that_was_cut_off_is_finished(self, tmp_path, indexed):
        index = tmp_path / "index"
        (index / "reindex").mkdir()
        for part in ("tables", "manifest.json"):
            shutil.move(index / part, index / "reindex" / part)
        result = qseek("index", indexed)
        assert result.exit_code == 0, result.output
        assert "4 unchanged" in result.stdout

    def test_a_known_folder_that_is_away_is_not_lost(self, tmp_path, indexed):
        indexed.rename(tmp_path / "away")
        result = qseek("index", "--reindex")
        assert result.exit_code == 1
        assert "its 4 photos would be lost" in result.stderr
        assert Store.open(tmp_path / "index").num_photos == 4

    def test_a_damaged_index_is_made_anew_from_the_folders_given(self, tmp_path, indexed):
        (tmp_path / "index" / "manifest.json").write_text("{")
        assert "damaged" in qseek("search", "red").stderr
        assert qseek("index", "--reindex").exit_code == 1
        assert qseek("index", "--reindex", indexed).exit_code == 0
        assert Store.open(tmp_path / "index").num_photos == 4

    def test_without_an_index_there_is_nothing_to_make_anew(self, tmp_path):
        result = qseek("index", "--reindex")
        assert result.exit_code == 1
        assert "there is no index" in result.stderr
        assert not (tmp_path / "index").exists()


class TestSearch:
    def test_json_in_the_order_of_the_cosine(self, indexed):
        result = qseek("search", "red", "--json")
        assert result.exit_code == 0
        found = lines(result)
        assert [Path(one["path"]).stem for one in found[:2]] == ["red", "orange"]
        assert [one["rank"] for one in found] == [1, 2, 3, 4]
        assert [one["itc"] for one in found] == pytest.approx([1, 0.894, 0, 0], abs=2e-3)
        assert found[1]["itm"] == pytest.approx(0.9 * 0.894, abs=2e-3)
        assert set(found[0]) == {"rank", "path", "score", "itc", "itm"}

    def test_options_reach_the_search(self, indexed):
        assert [one["itm"] for one in lines(qseek("search", "red", "--json", "--no-rerank"))] == [None] * 4
        assert [one["itm"] is None for one in lines(qseek("search", "red", "--json", "--rerank", 3))] == [
            False
        ] * 3 + [True]
        assert len(lines(qseek("search", "red", "--json", "-k", 2))) == 2

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
        found = lines(qseek("similar", indexed / "orange.png", "--json", "-k", 2))
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
        found = lines(result)
        assert [(one["rank"], one["text"]) for one in found] == [(1, "a red thing"), (2, "a blue thing")]
        assert found[0]["itm"] == pytest.approx(0.9, abs=1e-3)
        table = qseek("match", indexed / "red.png", "--texts", "-", "-k", 1, "--no-rerank", stdin=texts)
        assert table.stdout == "#  match  cosine  text\n1      -   1.000  a red thing\n"

    def test_with_the_indexed_texts(self, indexed):
        qseek("index", "--texts", "-", stdin=b"green grass\nblue sky\n")
        assert lines(qseek("match", indexed / "blue.png", "--json"))[0]["text"] == "blue sky"

    def test_no_texts(self, indexed):
        result = qseek("match", indexed / "red.png", "--texts", "-", stdin=b"\n \n")
        assert result.exit_code == 1
        assert "holds no text" in result.stderr


class TestRerank:
    def test_paths_from_stdin_in_the_order_of_the_match(self, photos):
        stdin = b"".join(os.fsencode(photos / f"{name}.png") + b"\n" for name in ("blue", "orange", "red"))
        found = lines(qseek("rerank", "red", "--json", stdin=stdin))
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
        assert lines(qseek("rerank", "red", "-0", "--json", stdin=stdin))[0]["path"].endswith(
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


def test_prune_forgets_what_is_gone(indexed):
    (indexed / "red.png").unlink()
    assert "1 removed" in qseek("index", indexed).stdout
    result = qseek("prune")
    assert result.exit_code == 0
    assert result.stdout.startswith("1 forgotten, 3 photos in the index, ")
    assert qseek("failures").stderr == "No photo failed.\n"


def test_models_lists_what_is_there(monkeypatch):
    from engine.models import catalogue

    one = catalogue.ModelInfo(
        name="mini",
        folder=Path("/m/mini"),
        digest="ab" * 16,
        num_parameters=19_400_000,
        num_bytes=38_800_000,
        image_size=160,
        writes=False,
    )
    monkeypatch.setattr(catalogue, "list_models", lambda: [one])
    table = [row.split() for row in qseek("models").stdout.splitlines()]
    assert table[1] == ["mini", "search", "19.4", "M", "38.8", "MB", "160", "px", "abababababab", "/m/mini"]
    assert [row[:2] for row in table[2:5]] == [
        ["blip2-itm-vit-g", "search"],
        ["blip2-itm-vit-g-coco", "search"],
        ["blip2-opt-2.7b", "captions"],
    ]
    assert all("not here" in " ".join(row) for row in table[2:])
    assert lines(qseek("models", "--json"))[0]["digest"] == "ab" * 16


def test_convert_both_ways(tmp_path):
    """A transformers folder becomes ours and goes back; what cannot be is said, and nothing is written over."""
    from safetensors.torch import load_file
    from test_retriever_parity import random_theirs, save_theirs

    save_theirs(random_theirs(), tmp_path / "theirs")
    assert qseek("models", "convert", tmp_path / "theirs", tmp_path / "ours").exit_code == 0
    assert (
        qseek("models", "convert", tmp_path / "ours", tmp_path / "back", "--to", "transformers").exit_code
        == 0
    )
    first, last = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    assert first.keys() == last.keys() and all(first[name].equal(last[name]) for name in first)
    full = qseek("models", "convert", tmp_path / "theirs", tmp_path / "ours")
    assert full.exit_code == 1 and "is not empty" in full.stderr
    (tmp_path / "text.pth").write_text("no checkpoint")
    words = tmp_path / "theirs" / "tokenizer.json"
    bad = qseek("models", "convert", tmp_path / "text.pth", tmp_path / "new", "--vocabulary", words)
    assert bad.exit_code == 1 and "was refused" in bad.stderr and not (tmp_path / "new").exists()
    assert qseek("models", "convert", tmp_path / "theirs", tmp_path / "new", "--pixels", 364).exit_code == 2


def test_app_listens_on_this_computer_alone(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(os, "execve", lambda *arguments: started.append(arguments))
    assert qseek("app", "--index", tmp_path / "other", "--model", "colours", "--port", 9000).exit_code == 0
    (program, command, environment) = started[0]
    assert program == sys.executable
    assert command[1:4] == ["-m", "streamlit", "run"] and Path(command[4]) == ROOT / "ui" / "page" / "page.py"
    for flag in (
        "--server.address=localhost",
        "--browser.gatherUsageStats=false",
        "--server.headless=true",
        "--server.port=9000",
    ):
        assert flag in command
    assert environment["QSEEK_INDEX"] == str(tmp_path / "other")
    assert environment["QSEEK_MODEL"] == "colours"
    qseek("app", "--open")
    assert "--server.headless=false" in started[1][1]


def test_a_reader_that_leaves_is_no_error(indexed, tmp_path):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.Popen(
        [sys.executable, "-c", _MAIN_WITH_COLOURS, "search", "red"], stdout=write_end, stderr=subprocess.PIPE
    )
    os.close(write_end)
    stderr = done.communicate(timeout=120)[1]
    assert (done.returncode, stderr) == (141, b"")


_MAIN_WITH_COLOURS = (
    f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests' / 'support')!r}]\n"
    "import fake_model, ui.session as opening\n"
    "opening.load_model, opening.make_searcher = fake_model.load_fake, fake_model.FakeSearcher\n"
    "from ui.cli.main import main; main(prog_name='qseek')"
)


def test_ctrl_c_elsewhere_ends_with_130(indexed, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "make_searcher", stopped)
    result = qseek("search", "red")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "Stopped.\n")


def test_an_error_cannot_command_the_terminal(indexed, monkeypatch):
    def raises(*_):
        raise QueryError("no photo at '/p/\x1b[2J.jpg'")

    monkeypatch.setattr(session, "make_searcher", raises)
    assert qseek("search", "red").stderr == "Error: no photo at '/p/\\x1b[2J.jpg'\n"
