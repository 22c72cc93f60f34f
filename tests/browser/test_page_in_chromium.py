"""The page looks right in a real browser: in a wide and a narrow window, dark, with captions and dialogs.

Needs Chromium (Debian: apt-get install chromium). QSEEK_SCREENSHOTS=folder keeps the pictures.
"""

from __future__ import annotations

import io
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_model import FakeModel
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

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

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
Open = Callable[..., Page]
"""Takes an address, width, height and whether it is dark; returns a page of that size that begins to load."""

pytestmark = pytest.mark.xdist_group("processes")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: install the package `chromium` to run this"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make photos of one colour each, wide and tall, with their index beside them."""
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
    """Serve the page as `qseek app` does; yield its address."""
    from ui.cli.commands.app_command import build_streamlit_command

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = build_streamlit_command(port, open_browser=False)
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
def browser() -> Iterator[Browser]:
    """Start the system's Chromium. Playwright's own browsers are neither needed nor downloaded."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    """Return a function that opens an address in a new window."""
    contexts = []

    def open_address(address: str, width: int, height: int, dark: bool = False) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.goto(address)
        return page

    yield open_address
    for context in contexts:
        context.close()


@pytest.fixture
def screenshot(tmp_path: Path) -> Callable[[Page, str], np.ndarray]:
    """Return a function that takes a screenshot, saves it under a name, and returns it as an array (H, W, 3)."""
    folder = Path(os.environ.get("QSEEK_SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)

    def take(page: Page, name: str) -> np.ndarray:
        data = page.screenshot(path=folder / f"{name}.png")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    return take


def wait_for_tiles(page: Page, number: int) -> None:
    loaded = f"Array.from({TILES}).every(picture => picture.complete && picture.naturalWidth)"
    page.wait_for_function(f"{IDLE} && {TILES}.length == {number} && {loaded}")


def measure_pictures(page: Page) -> list[tuple[int, ...]]:
    """Return (left, top, width, height) of each picture, rounded, in the order of the page."""
    boxes = page.evaluate(
        f"Array.from({TILES}).map(picture => picture.getBoundingClientRect())"
        ".map(box => [box.left, box.top, box.width, box.height].map(Math.round))"
    )
    return [tuple(box) for box in boxes]


def get_middle_colour(picture: np.ndarray, box: tuple[int, ...]) -> tuple[int, ...]:
    left, top, width, height = box
    return tuple(int(value) for value in picture[top + height // 2, left + width // 2])


def is_near(colour: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(colour, other, strict=True)) < 12


@needs_chromium
def test_a_typed_text_shows_the_photos_in_order(address, open_page, screenshot):
    page = open_page(address, 1280, 900)
    page.locator(".st-key-q input").fill("red")
    page.locator(".st-key-q input").press("Enter")
    wait_for_tiles(page, len(COLOURS))
    picture = screenshot(page, "wide")
    boxes = measure_pictures(page)
    assert is_near(get_middle_colour(picture, boxes[0]), COLOURS["red"])
    assert is_near(get_middle_colour(picture, boxes[1]), COLOURS["orange"])
    assert len({(width, height) for _, _, width, height in boxes}) == 1, (
        "tall and wide photos make equal tiles"
    )
    assert boxes[0][2] == boxes[0][3] > 190
    assert len({top for _, top, _, _ in boxes[:5]}) == 1, "five in the first row"
    assert page.evaluate("location.search") == "?q=red"
    words = page.inner_text("body")
    assert "89% match" in words and "cosine 0.99" in words and "red.png" in words


@needs_chromium
def test_a_narrow_window_keeps_two_columns_and_does_not_scroll_sideways(address, open_page, screenshot):
    page = open_page(f"{address}/?q=green", 400, 800)
    wait_for_tiles(page, len(COLOURS))
    picture = screenshot(page, "narrow")
    boxes = measure_pictures(page)
    assert boxes[0][1] == boxes[1][1] < boxes[2][1]
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert picture.shape[1] == 400


@needs_chromium
def test_the_page_is_dark_on_a_dark_desktop(address, open_page, screenshot):
    page = open_page(f"{address}/?q=blue", 1000, 700, dark=True)
    wait_for_tiles(page, len(COLOURS))
    assert screenshot(page, "dark")[5, 5].max() < 60


@needs_chromium
def test_similar_photos_and_then_the_whole_photo_are_shown(address, open_page, screenshot):
    page = open_page(f"{address}/?q=yellow", 1280, 900)
    wait_for_tiles(page, len(COLOURS))
    page.locator(".st-key-like-2 button").click()
    page.wait_for_function("document.body.innerText.includes('Photos like')")
    wait_for_tiles(page, len(COLOURS))
    assert "like=" in page.evaluate("location.search")
    page.locator(".st-key-open-1 button").click()
    page.wait_for_function("document.querySelector('[role=dialog] img')?.naturalWidth > 0")
    screenshot(page, "dialog")
    height = page.evaluate("document.querySelector('[role=dialog] img').getBoundingClientRect().height")
    assert 300 < height <= 0.62 * 900 + 1, "the whole photo fits the window"


@needs_chromium
def test_captions_are_shown_below_the_photos_and_a_question_is_answered(address, open_page, screenshot):
    page = open_page(f"{address}/?q=green", 1280, 900)
    wait_for_tiles(page, len(COLOURS))
    captions = page.locator(".q-says")
    assert captions.all_inner_texts() == [], "off until they are asked for, where the index has none"
    page.locator(".st-key-captions label").click()
    page.wait_for_function(f"{IDLE} && document.querySelectorAll('.q-says').length == {len(COLOURS)}")
    screenshot(page, "captions")
    assert captions.all_inner_texts()[0] == "a green thing"
    top, bottom = page.evaluate(
        "(([says, name]) => [name.bottom, says.top])(['.q-says', '.q-name']"
        ".map(selector => document.querySelector(selector).getBoundingClientRect()))"
    )
    assert top <= bottom, "below the name, not on it"
    page.locator(".st-key-open-1 button").click()
    field = page.locator('[role=dialog] input[placeholder^="What is the dog"]')
    field.wait_for()
    assert "a green thing" in page.inner_text("[role=dialog]")
    field.fill("which colour")
    field.press("Enter")
    page.wait_for_function(
        "document.querySelector('[role=dialog]').innerText.includes('a green thing, colour')"
    )
    screenshot(page, "question")


def test_only_this_computer_can_reach_the_page(address):
    port = int(address.rsplit(":", 1)[1])
    others = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)]
    for other in (name for name in others if not name.startswith("127.")):
        with pytest.raises(OSError), socket.create_connection((other, port), timeout=5):
            pass
    with socket.create_connection(("localhost", port), timeout=5):
        pass


def test_a_request_to_another_name_of_this_computer_is_refused(address):
    """Refuse DNS rebinding: a request must name localhost as its host."""
    port = int(address.rsplit(":", 1)[1])
    for host, status in (("localhost", b"101"), ("evil.example", b"403")):
        with socket.create_connection(("localhost", port), timeout=10) as connection:
            connection.sendall(
                f"GET /_stcore/stream HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\n"
                "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            assert connection.recv(64).split()[1] == status
