"""Run the page without a browser, and read what it shows."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest

PAGE = Path(__file__).parents[2] / "ui" / "page" / "page.py"


def open_page(**url_parameters: str) -> AppTest:
    """Run the page once. url_parameters: what follows the question mark in its address."""
    page = AppTest.from_file(str(PAGE), default_timeout=60)
    for name, value in url_parameters.items():
        page.query_params[name] = value
    return page.run()


def list_photo_names(page: AppTest) -> list[str]:
    """Return the file names on the tiles, in the order of the page."""
    tiles = [html for html in list_html(page) if 'class="q-name"' in html]
    return [tile.split('class="q-name"')[1].split(">")[1].split("<")[0] for tile in tiles]


def list_html(page: AppTest) -> list[str]:
    """Return the content of each HTML element of the page."""
    return [element.proto.body for element in page.get("html")]


def read_page_text(page: AppTest) -> str:
    """Return all texts of the page, those of one kind of element after those of another."""
    elements = [*page.markdown, *page.caption, *page.info, *page.error, *page.warning, *page.code]
    return "\n".join([*(element.value for element in elements), *list_html(page)])


def find_button(page: AppTest, key: str):
    """Return the button with a key."""
    return next(button for button in page.button if button.key == key)
