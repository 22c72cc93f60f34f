"""The page shows and hides captions, writes missing ones after the photos, and answers questions."""

from __future__ import annotations

from fake_model import FakeCaptioner, FakeModel
from page_driver import find_button, list_html, list_photo_names, open_page, read_page_text
from streamlit.testing.v1 import AppTest

from engine.errors import IndexStateError
from engine.index.store import Store
from indexer.caption_run import index_captions
from ui import session


def read_captions(page: AppTest) -> list[str]:
    """Return the captions below the tiles, in the order of the page."""
    shown = [html for html in list_html(page) if 'class="q-says"' in html]
    return [html.split(">", 1)[1].split("<")[0] for html in shown]


def caption_all(store: Store) -> None:
    index_captions(store, FakeCaptioner(), FakeModel().encode_texts, workers=0)


def test_captions_of_the_index_are_shown_and_can_be_hidden(store, monkeypatch):
    assert read_captions(open_page(q="red")) == [], "an index without captions shows none by itself"
    caption_all(store)
    monkeypatch.setattr(session, "load_photo_captioner", None)  # Calling it would fail.
    page = open_page(q="red")
    assert read_captions(page)[:2] == ["a red thing", "a yellow thing"]
    assert not page.exception
    page.toggle(key="captions").set_value(False).run()
    assert read_captions(page) == [] and len(list_photo_names(page)) == 4


def test_missing_captions_are_written_after_the_photos(store, monkeypatch):
    captioner = FakeCaptioner()
    monkeypatch.setattr(session, "load_photo_captioner", lambda name, searching: captioner)
    (blue,) = (path for path in store.read_files() if path.stem == "blue")
    open_page(q="red")  # This keeps the thumbnail of the blue photo.
    blue.unlink()
    page = open_page(q="red", captions="true")
    assert not page.exception
    assert sorted(read_captions(page)) == ["a green thing", "a red thing", "a yellow thing"]
    assert len(list_photo_names(page)) == 4
    page.text_input(key="q").set_value("green").run()
    assert read_captions(page)[0] == "a green thing"
    assert captioner.num_pictures == 3, "each photo is captioned once"


def test_photos_are_shown_when_the_captioner_fails(store, monkeypatch):
    def refuse(*_):
        raise IndexStateError("no memory for the captioner")

    monkeypatch.setattr(session, "load_photo_captioner", refuse)
    page = open_page(q="red", captions="true")
    assert "no memory for the captioner" in read_page_text(page)
    assert list_photo_names(page)[0] == "red.png" and not page.exception
    monkeypatch.setattr(session, "choose_captioner", refuse)
    page = open_page(q="red", captions="true")
    assert "no memory" in page.warning[0].value and list_photo_names(page)[0] == "red.png"


def test_a_question_about_a_photo_is_answered(store, monkeypatch):
    page = open_page(q="blue")
    find_button(page, "open-1").click().run()
    (field,) = [field for field in page.text_input if field.label == "Ask about this photo"]
    field.set_value("what *colour*")
    # A browser runs the dialog alone after an answer was typed, AppTest runs the whole page and closes the dialog.
    find_button(page, "open-1").click().run()
    assert not page.exception
    assert "**a blue thing, \\*colour\\***" in read_page_text(page)


def test_a_captioner_that_answers_no_questions_names_one_that_does(store, monkeypatch):
    monkeypatch.setenv("QSEEK_CAPTION_MODEL", "mute")
    page = open_page(q="blue")
    find_button(page, "open-1").click().run()
    assert not [field for field in page.text_input if field.label == "Ask about this photo"]
    assert "mute writes captions, but does not answer questions" in read_page_text(page)
