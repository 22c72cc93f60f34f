"""The page in a real browser: what a person sees after typing a question, wide, narrow and dark.

Needs Chromium (Debian: apt-get install chromium). QSEEK_SCREENSHOTS=folder keeps the pictures.
"""

import io
import os
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from chromium import Chromium, chromium_path
from fake_model import FakeModel
from PIL import Image

from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.models.photo_encoder import PhotoEncoder
from indexer.build import build_index

HERE = Path(__file__).parent
TILES = "document.querySelectorAll('[class*=\"st-key-tile-\"] img')"
IDLE = "document.querySelector('[data-test-script-state=notRunning]') != null"
COLOURS = {
    "red": (230, 20, 20), "orange": (240, 130, 20), "yellow": (240, 230, 40), "green": (20, 200, 40),
    "blue": (20, 40, 230), "white": (250, 250, 250), "black": (6, 5, 5), "pink": (250, 120, 160),
}  # fmt: skip

pytestmark = pytest.mark.skipif(
    chromium_path() is None, reason="no Chromium on this machine: install the package `chromium` to run this"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photos of one colour each, wide and tall, with their index beside them."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "photos").mkdir()
    for number, (name, colour) in enumerate(COLOURS.items()):
        size = (640, 400) if number % 2 else (400, 640)
        Image.new("RGB", size, colour).save(folder / "photos" / f"{name}.png")
    store = Store.create(folder / "index", Manifest.for_model(FakeModel(), "none"))
    build_index([folder / "photos"], store, PhotoEncoder(FakeModel(), "none"), workers=0)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    """The page, served as `qseek app` serves it."""
    from ui.cli.commands.app_command import streamlit_command

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = streamlit_command(port, open_browser=False)
    command[4] = str(HERE / "fake_page.py")
    environment = {**os.environ, "QSEEK_INDEX": str(folder / "index")}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    try:
        _wait_until_served(f"http://localhost:{port}/_stcore/health", server, folder / "log")
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


def _wait_until_served(url: str, server: subprocess.Popen, log: Path) -> None:
    ends = time.monotonic() + 60
    while time.monotonic() < ends and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"the page is not served:\n{log.read_text()}")


@pytest.fixture(scope="module")
def browser():
    with Chromium(chromium_path()) as browser:
        yield browser


@pytest.fixture
def screenshot(browser, tmp_path):
    """Take one; as an array (height, width, 3)."""
    folder = Path(os.environ.get("QSEEK_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> np.ndarray:
        data = browser.screenshot(folder / f"{name}.png")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    return take


def wait_for_tiles(browser: Chromium, number: int) -> None:
    loaded = f"Array.from({TILES}).every(picture => picture.complete && picture.naturalWidth)"
    browser.wait_for(f"{IDLE} && {TILES}.length == {number} && {loaded}")


def boxes(browser: Chromium) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) of each picture, rounded, in the order of the page."""
    return [
        tuple(box)
        for box in browser.run(
            f"Array.from({TILES}).map(picture => picture.getBoundingClientRect())"
            ".map(box => [box.left, box.top, box.width, box.height].map(Math.round))"
        )
    ]


def colour_in(picture: np.ndarray, box: tuple[int, int, int, int]) -> tuple[int, ...]:
    left, top, width, height = box
    return tuple(int(value) for value in picture[top + height // 2, left + width // 2])


def is_near(colour: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) < 12


def test_a_typed_question_shows_the_photos_in_order(browser, address, screenshot):
    browser.resize(1280, 900)
    browser.open(address)
    browser.wait_for("document.querySelector('.st-key-q input') != null")
    browser.run("document.querySelector('.st-key-q input').focus()")
    browser.type("red")
    wait_for_tiles(browser, len(COLOURS))
    picture = screenshot("wide")
    found = boxes(browser)
    assert is_near(colour_in(picture, found[0]), COLOURS["red"])
    assert is_near(colour_in(picture, found[1]), COLOURS["orange"])
    assert len({(width, height) for _, _, width, height in found}) == 1, (
        "tall and wide photos make equal tiles"
    )
    assert found[0][2] == found[0][3] > 190
    assert len({top for _, top, _, _ in found[:5]}) == 1, "five in the first row"
    assert browser.run("location.search") == "?q=red"
    words = browser.run("document.body.innerText")
    assert "89% match" in words and "cosine 0.99" in words and "red.png" in words


def test_a_narrow_window_keeps_two_columns_and_does_not_scroll_sideways(browser, address, screenshot):
    browser.resize(400, 800)
    browser.open(f"{address}/?q=green")
    wait_for_tiles(browser, len(COLOURS))
    picture = screenshot("narrow")
    found = boxes(browser)
    assert found[0][1] == found[1][1] < found[2][1]
    assert browser.run("document.documentElement.scrollWidth") <= 400
    assert picture.shape[1] == 400


def test_it_follows_a_dark_desktop(browser, address, screenshot):
    browser.resize(1000, 700, dark=True)
    browser.open(f"{address}/?q=blue")
    wait_for_tiles(browser, len(COLOURS))
    assert screenshot("dark")[5, 5].max() < 60


def test_more_like_this_then_the_whole_photo(browser, address, screenshot):
    browser.resize(1280, 900)
    browser.open(f"{address}/?q=yellow")
    wait_for_tiles(browser, len(COLOURS))
    browser.click(".st-key-like-2 button")
    browser.wait_for("document.body.innerText.includes('Photos like')")
    wait_for_tiles(browser, len(COLOURS))
    assert "like=" in browser.run("location.search")
    browser.click(".st-key-open-1 button")
    browser.wait_for("document.querySelector('[role=dialog] img')?.naturalWidth > 0")
    screenshot("dialog")
    height = browser.run("document.querySelector('[role=dialog] img').getBoundingClientRect().height")
    assert 300 < height <= 0.62 * 900 + 1, "the whole photo fits the window"


def test_captions_come_below_the_photos_and_a_question_is_answered(browser, address, screenshot):
    browser.resize(1280, 900)
    browser.open(f"{address}/?q=green")
    wait_for_tiles(browser, len(COLOURS))
    says = "Array.from(document.querySelectorAll('.q-says')).map(one => one.innerText)"
    assert browser.run(says) == [], "off until they are asked for, where the index has none"
    browser.click(".st-key-captions input")
    browser.wait_for(f"{IDLE} && {says}.length == {len(COLOURS)}")
    screenshot("captions")
    assert browser.run(says)[0] == "a green thing"
    top, bottom = browser.run(
        "(([says, name]) => [name.bottom, says.top])(['.q-says', '.q-name']"
        ".map(one => document.querySelector(one).getBoundingClientRect()))"
    )
    assert top <= bottom, "below the name, not on it"
    browser.click(".st-key-open-1 button")
    field = '[role=dialog] input[placeholder^="What is the dog"]'
    browser.wait_for(f"document.querySelector('{field}') != null")
    assert "a green thing" in browser.run("document.querySelector('[role=dialog]').innerText")
    browser.run(f"document.querySelector('{field}').focus()")
    browser.type("which colour")
    browser.wait_for("document.querySelector('[role=dialog]').innerText.includes('a green thing, colour')")
    screenshot("question")


def test_only_this_computer_can_reach_it(address):
    port = int(address.rsplit(":", 1)[1])
    others = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)]
    for other in (name for name in others if not name.startswith("127.")):
        with pytest.raises(OSError), socket.create_connection((other, port), timeout=5):
            pass
    with socket.create_connection(("localhost", port), timeout=5):
        pass


def test_a_foreign_name_for_this_computer_is_refused(address):
    """Against DNS rebinding: the question must come to localhost by name."""
    port = int(address.rsplit(":", 1)[1])
    for host, status in (("localhost", b"101"), ("evil.example", b"403")):
        with socket.create_connection(("localhost", port), timeout=10) as connection:
            connection.sendall(
                f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\n"
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            assert connection.recv(64).split()[1] == status
