"""The page shows photos, scores and notes. It runs without a browser here; tests/browser runs it in Chromium."""

from __future__ import annotations

from fake_model import FakeModel
from page_driver import find_button, list_html, list_photo_names, open_page, read_page_text
from PIL import Image

from engine.errors import IndexStateError
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.models.photo_encoder import PhotoEncoder
from indexer.build import build_index
from ui import session


def test_without_an_index_the_page_names_the_command_that_makes_one(index):
    page = open_page()
    assert not page.exception
    assert "There is no index at" in page.info[0].value and str(index) in page.info[0].value
    assert page.code[0].value == "qseek index ~/Pictures"
    assert not page.text_input


def test_an_empty_index_is_said_to_hold_no_photos(index):
    Store.create(index, Manifest.for_model(FakeModel(), "none"))
    page = open_page()
    assert "The index holds no photos." in page.info[0].value
    assert page.code[0].value == "qseek index ~/Pictures"


def test_without_a_text_the_page_offers_examples_that_a_click_searches(store):
    page = open_page()
    assert "4 photos" in read_page_text(page)
    assert not list_photo_names(page)
    examples = [button for button in page.button if (button.key or "").startswith("example-")]
    assert len(examples) == 3
    examples[2].click().run()
    assert page.text_input(key="q").value == "a red car in a street"
    assert list_photo_names(page)[:2] == ["red.png", "orange.png"]


def test_a_text_shows_photos_in_order_with_their_scores(store):
    page = open_page()
    page.text_input(key="q").set_value("red").run()
    assert not page.exception
    assert list_photo_names(page)[:2] == ["red.png", "orange.png"]
    second = next(html for html in list_html(page) if "orange.png" in html)
    assert '<span class="q-rank">2</span>' in second
    assert "80% match" in second, "0.9 of the cosine 0.894"
    assert "cosine 0.89" in second
    assert "320 × 240" in second
    assert len(page.get("image")) == 4


def test_the_text_and_the_settings_are_read_from_the_address(store):
    page = open_page(q="blue", top="12", rerank="false")
    assert list_photo_names(page)[0] == "blue.png"
    assert page.selectbox(key="top").value == 12
    assert "match" not in "".join(html for html in list_html(page) if 'class="q-name"' in html)


def test_the_slider_hides_photos_below_a_match_and_counts_them(store):
    page = open_page(q="red")
    page.slider(key="least").set_value(50).run()
    assert list_photo_names(page) == ["red.png", "orange.png"]
    assert "2 hidden below 50%" in read_page_text(page)
    page.slider(key="least").set_value(95).run()
    assert list_photo_names(page) == []
    assert "No photo matches with 95% or more" in read_page_text(page)
    page.toggle(key="rerank").set_value(False).run()
    assert len(list_photo_names(page)) == 4, "without match probabilities nothing can be hidden"


def test_the_number_of_photos_can_be_chosen(store):
    photos = store.read_photos(store.list_live_ids())[0].path.parent
    for number in range(20):
        Image.new("RGB", (20, 20), (number, 9, 9)).save(photos / f"dark{number}.png")
    build_index([photos], store, PhotoEncoder(FakeModel(), "none"), workers=0)
    page = open_page(q="red")
    assert len(list_photo_names(page)) == 24
    page.selectbox(key="top").set_value(12).run()
    assert len(list_photo_names(page)) == 12


def test_more_like_this_shows_similar_photos_and_back_the_text_again(store):
    page = open_page(q="green")
    rank = list_photo_names(page).index("orange.png") + 1
    find_button(page, f"like-{rank}").click().run()
    assert not page.exception
    assert list_photo_names(page)[:2] == ["orange.png", "red.png"]
    assert "Photos like **orange\\.png**" in read_page_text(page)
    next(button for button in page.button if button.label == "Back").click().run()
    assert list_photo_names(page)[0] == "green.png"
    assert "like" not in page.query_params


def test_a_new_text_ends_more_like_this(store):
    page = open_page(q="green")
    find_button(page, "like-1").click().run()
    page.text_input(key="q").set_value("blue").run()
    assert list_photo_names(page)[0] == "blue.png"
    assert "Photos like" not in read_page_text(page)


def test_a_link_to_a_photo_that_is_gone_says_so(store):
    assert "The photo of this link is no longer in the index." in read_page_text(open_page(like="0" * 32))


def test_open_shows_the_whole_photo_its_scores_and_its_path(store):
    page = open_page(q="red")
    find_button(page, "open-1").click().run()
    assert not page.exception
    assert any(code.value.endswith("/photos/red.png") for code in page.code)
    assert any("match 90% · cosine 1.000 · 320 × 240 pixels" in caption.value for caption in page.caption)


def test_tiles_say_that_photos_are_gone(store):
    open_page(q="red")  # This keeps the thumbnail of the red photo.
    red, green, *_ = (path for path in sorted(store.read_files()) if path.stem in ("red", "green"))
    red.unlink()
    green.unlink()
    page = open_page(q="red green")
    assert not page.exception
    tiles = [html for html in list_html(page) if 'class="q-name"' in html]
    assert sum("gone since it was indexed" in tile for tile in tiles) == 2


def test_a_photo_that_went_before_it_was_shown_has_no_picture(store):
    next(path for path in store.read_files() if path.stem == "red").unlink()
    page = open_page(q="red")
    assert "This photo is gone since it was indexed." in read_page_text(page)
    assert len(page.get("image")) == 3


def test_photos_that_are_indexed_meanwhile_are_found(store, tmp_path):
    page = open_page(q="white")
    assert "4 photos" in read_page_text(page)
    photos = tmp_path / "photos"
    Image.new("RGB", (50, 50), "white").save(photos / "snow.png")
    build_index([photos], Store.open(store.folder), PhotoEncoder(FakeModel(), "none"), workers=0)
    page.run()
    assert list_photo_names(page)[0] == "snow.png"
    assert "5 photos" in read_page_text(page)


def test_an_error_is_shown_in_plain_words(store, monkeypatch):
    def refuse(*_, **__):
        raise IndexStateError("The index was made with model colours; this is model tints")

    monkeypatch.setattr(session, "make_searcher", refuse)
    page = open_page(q="red")
    assert not page.exception
    assert page.error[0].value == "The index was made with model colours; this is model tints"


def test_a_name_cannot_become_html_or_markdown(store, tmp_path):
    photos = tmp_path / "photos"
    (photos / "red.png").rename(photos / "<img src=x onerror=alert(1)> **b** $x$.png")
    build_index([photos], store, PhotoEncoder(FakeModel(), "none"), workers=0)
    page = open_page(q="red")
    tile = next(html for html in list_html(page) if 'class="q-name"' in html)
    assert "<img src=x" not in tile and "&lt;img src=x onerror=alert(1)&gt;" in tile
    find_button(page, "like-1").click().run()
    assert (
        "Photos like **\\<img src=x onerror=alert\\(1\\)\\> \\*\\*b\\*\\* \\$x\\$\\.png**"
        in read_page_text(page)
    )
