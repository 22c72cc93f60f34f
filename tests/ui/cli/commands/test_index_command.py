"""`qseek index`, `prune` and `failures` fill a real store with the colour model and report what they did."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from command_line import BLUE, paint, parse_json_lines, qseek
from fake_model import FakeModel

from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.index.writer_lock import lock_folder

pytestmark = pytest.mark.usefixtures("colours")


class TestIndex:
    def test_a_first_and_a_second_run_report_what_they_did(self, photos):
        first = qseek("index", photos)
        assert first.exit_code == 0
        assert first.stdout.startswith(
            "4 added, 0 changed, 0 moved, 0 removed, 0 unchanged, 0 failed\n4 photos in the index, "
        )
        (photos / "red.png").rename(photos / "scarlet.png")
        paint(photos / "blue.png", (255, 255, 0))
        second = qseek("index", photos, "--json")
        report = parse_json_lines(second)[0]
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
        report = parse_json_lines(qseek("index", photos, "--texts", "-", "--json", stdin=b"a red thing\n"))[0]
        faiss = tmp_path / "index" / "faiss"
        assert any((faiss / "photos").iterdir()) and any((faiss / "texts").iterdir())
        assert report["disk_bytes"] > sum(path.stat().st_size for path in faiss.rglob("*") if path.is_file())

    def test_progress_is_shown_as_plain_lines_on_stderr(self, photos):
        result = qseek("index", photos)
        assert "4 of 4 photos" in result.stderr
        assert "\x1b" not in result.stderr

    def test_unreadable_photos_are_listed_and_end_with_exit_code_3(self, photos):
        (photos / "words.jpg").write_text("not a picture")
        (photos / "empty.jpg").touch()
        result = qseek("index", photos)
        assert result.exit_code == 3
        assert "4 added" in result.stdout and "2 failed" in result.stdout
        assert "2 photos could not be read:" in result.stderr
        assert "words.jpg: it is a text file" in result.stderr
        listed = qseek("failures", "--json")
        assert listed.exit_code == 0
        assert [Path(row["path"]).name for row in parse_json_lines(listed)] == ["empty.jpg", "words.jpg"]
        assert qseek("failures", "-0").stdout_bytes == b"".join(
            os.fsencode(photos / name) + b"\0" for name in ("empty.jpg", "words.jpg")
        )
        assert qseek("index", photos).exit_code == 3, "they are still unreadable"

    def test_only_the_first_failures_are_shown_with_the_command_that_lists_all(self, photos):
        for number in range(13):
            (photos / f"{number:02d}.jpg").touch()
        result = qseek("index", photos)
        assert "09.jpg" in result.stderr and "10.jpg" not in result.stderr
        assert "and 3 more; `qseek failures` lists them." in result.stderr

    def test_no_index_is_made_for_a_folder_that_is_missing(self, tmp_path):
        result = qseek("index", tmp_path / "nowhere")
        assert result.exit_code == 1
        assert str(tmp_path / "nowhere") in result.stderr
        assert not (tmp_path / "index").exists()

    def test_no_index_is_made_when_one_of_two_folders_is_missing(self, tmp_path, photos):
        assert qseek("index", photos, tmp_path / "nowhere").exit_code == 1
        assert not (tmp_path / "index").exists()

    def test_retry_reads_a_photo_again_that_failed_before(self, tmp_path, photos):
        (photos / "late.jpg").write_text("x" * 500)
        assert qseek("index", photos).exit_code == 3
        before = (photos / "late.jpg").stat()
        paint(photos / "late.jpg", BLUE, (40, 30))
        size = (photos / "late.jpg").stat().st_size
        # The file keeps its size and time, so that only --retry reads it again.
        with open(photos / "late.jpg", "ab") as file:
            file.write(b"\0" * (before.st_size - size))
        os.utime(photos / "late.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert qseek("index", photos).exit_code == 3
        result = qseek("index", photos, "--retry")
        assert (result.exit_code, result.stdout[:8]) == (0, "1 added,")

    def test_a_folder_without_photos_is_refused(self, tmp_path, indexed):
        (tmp_path / "empty").mkdir()
        for index in (tmp_path / "index", tmp_path / "fresh"):
            result = qseek("index", tmp_path / "empty", "--index", index)
            assert result.exit_code == 1
            assert "There are no photos in " in result.stderr and str(tmp_path / "empty") in result.stderr
        assert not (tmp_path / "fresh").exists()

    def test_a_second_process_that_writes_the_index_is_refused(self, tmp_path, indexed):
        with lock_folder(tmp_path / "index"):
            result = qseek("index", indexed)
        assert result.exit_code == 1
        assert f"Another qseek (process {os.getpid()}) is writing" in result.stderr

    def test_texts_of_a_file_and_of_stdin_are_indexed_once(self, tmp_path, photos):
        (tmp_path / "captions.txt").write_bytes("\ufeffa red thing\n\nblue sky\r\n".encode())
        result = qseek("index", photos, "--texts", tmp_path / "captions.txt")
        assert "2 texts added, 2 in the index." in result.stderr
        rows = parse_json_lines(qseek("match", photos / "red.png", "--json"))
        assert [row["text"] for row in rows] == ["a red thing", "blue sky"]
        second = qseek("index", "--texts", "-", stdin=b"blue sky\ngreen grass\n")
        assert second.exit_code == 0
        assert "1 text added, 3 in the index." in second.stderr

    def test_a_file_of_texts_that_is_not_utf8_is_refused(self, tmp_path, photos):
        (tmp_path / "captions.txt").write_bytes(b"fine\ncaf\xe9\n")
        result = qseek("index", photos, "--texts", tmp_path / "captions.txt")
        assert result.exit_code == 1
        assert "Line 2 of" in result.stderr and "is not valid UTF-8" in result.stderr

    def test_features_cannot_be_changed_without_reindex(self, tmp_path, photos):
        assert qseek("index", photos).exit_code == 0
        assert Manifest.load(tmp_path / "index").features == "store", "4 x 4 fp16 are small"
        result = qseek("index", photos, "--features", "none")
        assert result.exit_code == 1
        assert "--features store" in result.stderr and "--reindex" in result.stderr

    def test_ctrl_c_says_how_many_photos_the_index_holds(self, photos, monkeypatch):
        for number in range(12):
            paint(photos / f"x{number}.png", (number, 9, 9))

        calls = []

        class InterruptedModel(FakeModel):
            def encode_patches(self, pictures):
                calls.append(len(pictures))
                if len(calls) == 2:
                    raise KeyboardInterrupt
                return super().encode_patches(pictures)

        monkeypatch.setattr("ui.session.load_model", lambda name: InterruptedModel())
        import indexer.build

        def build_in_batches_of_eight(*arguments, **options):
            return real_build(*arguments, **options, batch_size=8)

        real_build = indexer.build.build_index
        monkeypatch.setattr("indexer.index_run.build_index", build_in_batches_of_eight)
        result = qseek("index", photos)
        assert result.exit_code == 130
        assert "Stopped. The index holds 8 photos. The same command goes on from here." in result.stderr
        assert "Traceback" not in result.output

    def test_a_full_disk_is_one_plain_message(self, photos, monkeypatch):
        def fail_on_full_disk(*_, **__):
            raise OSError(28, "No space left on device", "/full/disk")

        monkeypatch.setattr("indexer.index_run.build_index", fail_on_full_disk)
        result = qseek("index", photos)
        assert result.exit_code == 1
        assert result.stderr.endswith("Error: No space left on device: /full/disk\n")


class TestReindex:
    def use_another_model(self, monkeypatch):
        monkeypatch.setattr("ui.session.load_model", lambda name: FakeModel("tints", "77" * 16))

    def test_another_model_is_refused_and_reindexes_everything_known(self, tmp_path, indexed, monkeypatch):
        (tmp_path / "more").mkdir()
        paint(tmp_path / "more" / "yellow.png", (255, 255, 0))
        qseek("index", tmp_path / "more", "--texts", "-", stdin=b"a red thing\n")
        self.use_another_model(monkeypatch)
        refused = qseek("index", indexed, "--model", "tints")
        assert refused.exit_code == 1
        assert "colours" in refused.stderr and "tints" in refused.stderr and "--reindex" in refused.stderr
        done = qseek("index", "--reindex", "--model", "tints")
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("5 added")
        store = Store.open(tmp_path / "index")
        assert (store.manifest.model, store.num_photos, store.texts.count()) == ("tints", 5, 1)
        assert not (tmp_path / "index" / "reindex").exists()

    def test_the_old_index_stays_until_the_new_one_is_complete(self, tmp_path, indexed, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr("indexer.index_run.build_index", interrupt)
        result = qseek("index", "--reindex")
        assert result.exit_code == 130
        assert "The old index still answers, and the new one holds 0 photos." in result.stderr
        assert parse_json_lines(qseek("search", "red", "--json", "-k", 1))[0]["itc"] == pytest.approx(
            1, abs=1e-3
        )

    def test_a_replacement_that_was_interrupted_is_finished(self, tmp_path, indexed):
        index = tmp_path / "index"
        (index / "reindex").mkdir()
        for part in ("tables", "manifest.json"):
            shutil.move(index / part, index / "reindex" / part)
        result = qseek("index", indexed)
        assert result.exit_code == 0, result.output
        assert "4 unchanged" in result.stdout

    def test_reindexing_is_refused_while_a_known_folder_is_missing(self, tmp_path, indexed):
        indexed.rename(tmp_path / "away")
        result = qseek("index", "--reindex")
        assert result.exit_code == 1
        assert "its 4 photos would be lost" in result.stderr
        assert Store.open(tmp_path / "index").num_photos == 4

    def test_a_damaged_index_is_made_anew_from_the_folders_that_are_given(self, tmp_path, indexed):
        (tmp_path / "index" / "manifest.json").write_text("{")
        assert "damaged" in qseek("search", "red").stderr
        assert qseek("index", "--reindex").exit_code == 1
        assert qseek("index", "--reindex", indexed).exit_code == 0
        assert Store.open(tmp_path / "index").num_photos == 4

    def test_reindexing_without_an_index_is_refused(self, tmp_path):
        result = qseek("index", "--reindex")
        assert result.exit_code == 1
        assert "There is no index" in result.stderr
        assert not (tmp_path / "index").exists()


def test_prune_forgets_photos_whose_files_are_gone(indexed):
    (indexed / "red.png").unlink()
    assert "1 removed" in qseek("index", indexed).stdout
    result = qseek("prune")
    assert result.exit_code == 0
    assert result.stdout.startswith("1 forgotten, 3 photos in the index, ")
    assert qseek("failures").stderr == "Every photo could be read.\n"
