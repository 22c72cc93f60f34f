"""Models are downloaded from a small server of our own that speaks the Hugging Face protocol, in another process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import command_line
import pytest
from random_blip2 import random_retriever, save_retriever_folder
from shard_writing import make_png, write_shard

from engine.checkpoints.published import find_hub_id

COMMIT = "c" * 40
ID = "someone/tiny-blip2"


class Hub(ThreadingHTTPServer):
    """A server that offers one public model; large files are named by their SHA-256, as git LFS does."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.ranges: list[str] = []  # what was asked for in parts: a download that goes on
        self.spoiled = False
        self.cut = 0  # bytes after which a connection drops

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET(head=True)

    def do_GET(self, head: bool = False) -> None:
        path = unquote(urlparse(self.path).path)
        files = {file.name: file.read_bytes() for file in self.server.folder.iterdir()}
        if path == f"/api/models/{ID}" or path.startswith(f"/api/models/{ID}/revision/"):
            self.json({"id": ID, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
        elif path.startswith(f"/api/models/{ID}/tree/"):
            self.json([self.entry(name, content) for name, content in files.items()])
        elif path.startswith(f"/{ID}/resolve/") and (name := path.rsplit("/", 1)[1]) in files:
            self.file(name, files[name], head)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound" if ID in path else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def entry(self, name: str, content: bytes) -> dict[str, object]:
        file = {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return file | ({"lfs": large} if name.endswith(".safetensors") else {})

    def json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def file(self, name: str, content: bytes, head: bool) -> None:
        large = name.endswith(".safetensors")
        etag = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
        start = 0
        if (asked := self.headers.get("Range")) and not head:
            self.server.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").split("-")[0])
        body = content[start:]
        if self.server.spoiled and large:
            body = body[:-4] + b"\0\1\2\3"
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not head:
            cut = self.server.cut if self.server.cut and len(body) > self.server.cut else len(body)
            self.server.cut = 0 if cut < len(body) else self.server.cut
            self.wfile.write(body[:cut])
            if cut < len(body):
                self.connection.close()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    save_retriever_folder(random_retriever(), folder)
    (folder / "README.md").write_text("not needed")
    return folder


@pytest.fixture
def server(published: Path) -> Iterator[Hub]:
    hub_server = Hub(published)
    threading.Thread(target=hub_server.serve_forever, daemon=True).start()
    yield hub_server
    hub_server.shutdown()
    hub_server.server_close()


PROGRAM = """
import runpy, sys, time
time.sleep = lambda seconds: None  # huggingface_hub waits 23 s in all before it gives up
runpy.run_module("ui.cli.main", run_name="__main__", alter_sys=True)
"""


def qseek(*args: str, home: Path, address: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, since huggingface_hub reads its settings when it is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_XET": "1", **more}
    command = [sys.executable, "-c", PROGRAM, *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_pull_then_use(server: Hub, tmp_path: Path) -> None:
    """A model is downloaded once, with the files that are needed and no others; it then works offline by its id."""
    done = qseek("models", "pull", ID, home=tmp_path, address=server.address)
    assert done.returncode == 0 and f"{ID} is here: 56 px" in done.stderr, done.stderr
    snapshot = tmp_path / "hub" / "models--someone--tiny-blip2" / "snapshots" / COMMIT
    assert {file.name for file in snapshot.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    texts = tmp_path / "texts.txt"
    texts.write_text("a red dog\nthe blue house\n")
    photo = Path(__file__).parents[3] / "ui" / "page" / "page.png"
    matched = qseek(
        "match", str(photo), "--texts", str(texts), "--model", ID, "--index", str(tmp_path / "none"), "--json",
        home=tmp_path, address="http://127.0.0.1:9", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert matched.returncode == 0, matched.stderr
    assert {json.loads(line)["text"] for line in matched.stdout.splitlines()} == {
        "a red dog",
        "the blue house",
    }


def test_a_broken_download_goes_on(server: Hub, tmp_path: Path) -> None:
    """When the connection drops after 24 of 25 MB, only the rest is asked for; huggingface_hub writes parts of 10
    MB.
    """
    server.folder = Path(shutil.copytree(server.folder, tmp_path / "large"))
    (server.folder / "more.safetensors").write_bytes(os.urandom(25_000_000))
    server.cut = 24_000_000
    first = qseek("models", "pull", ID, home=tmp_path, address=server.address)
    if first.returncode:  # huggingface_hub tries again by itself, some versions do not
        assert "What has arrived is kept" in first.stderr and "Traceback" not in first.stderr
        assert qseek("models", "pull", ID, home=tmp_path, address=server.address).returncode == 0
    assert [int(asked.removeprefix("bytes=").split("-")[0]) for asked in server.ranges] == [20 * 2**20]


def test_a_spoiled_file_is_named(server: Hub, tmp_path: Path) -> None:
    server.spoiled = True
    done = qseek("models", "pull", ID, home=tmp_path, address=server.address)
    assert done.returncode == 1 and "model.safetensors is damaged: delete" in done.stderr, done.stderr


@pytest.mark.parametrize("offline", [True, False])
def test_what_cannot_be_downloaded(tmp_path: Path, offline: bool) -> None:
    more = {"HF_HUB_OFFLINE": "1"} if offline else {}
    done = qseek("models", "pull", "blip2-itm-vit-g", home=tmp_path, address="http://127.0.0.1:9", **more)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    for word in ("Salesforce/blip2-itm-vit-g could not be downloaded", "copy", str(tmp_path / "hub")):
        assert word in done.stderr


def test_a_wrong_id(server: Hub, tmp_path: Path) -> None:
    done = qseek("models", "pull", "someone/else", home=tmp_path, address=server.address)
    assert done.returncode == 1 and "There is no model someone/else" in done.stderr, done.stderr
    refused = command_line.qseek("models", "pull", "no such name")  # before any hub is asked
    assert refused.exit_code == 1 and "blip2-itm-vit-g-coco" in refused.stderr


def test_a_model_that_was_never_pulled_says_how(tmp_path: Path) -> None:
    recall = ("recall", str(tmp_path / "none.tar"), "--model", "blip2-itm-vit-g")
    write_shard(tmp_path / "none.tar", {"red.png": make_png("red"), "red.txt": b"a red wall"})
    done = qseek(*recall, home=tmp_path, address="http://127.0.0.1:9")
    assert done.returncode == 1 and "qseek models pull Salesforce/blip2-itm-vit-g" in done.stderr, done.stderr


def test_names() -> None:
    assert (
        find_hub_id("blip2-itm-vit-g")
        == find_hub_id("Salesforce/blip2-itm-vit-g")
        == "Salesforce/blip2-itm-vit-g"
    )
    assert find_hub_id("someone/tiny") == "someone/tiny"
    assert all(find_hub_id(name) is None for name in ("mini", "./mini", "/a/b", "a/b/c", "../a", ""))
