"""The page run without a browser, and what can be read on it."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest

PAGE = Path(__file__).parents[2] / "ui" / "page" / "page.py"


def open_page(**query: str) -> AppTest:
    test = AppTest.from_file(str(PAGE), default_timeout=60)
    for name, value in query.items():
        test.query_params[name] = value
    return test.run()


def list_photo_names(test: AppTest) -> list[str]:
    """The file names on the tiles, in the order of the page."""
    tiles = [html for html in list_html(test) if 'class="q-name"' in html]
    return [tile.split('class="q-name"')[1].split(">")[1].split("<")[0] for tile in tiles]


def list_html(test: AppTest) -> list[str]:
    return [element.proto.body for element in test.get("html")]


def read_page_text(test: AppTest) -> str:
    shown = [*test.markdown, *test.caption, *test.info, *test.error, *test.warning, *test.code]
    return "\n".join([*(element.value for element in shown), *list_html(test)])


def find_button(test: AppTest, key: str):
    return next(one for one in test.button if one.key == key)
