"""The page, run without a browser; the colour model answers (tests/browser looks at the page itself)."""

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


def test_no_index_yet_names_the_command(index):
    test = open_page()
    assert not test.exception
    assert "There is no index in" in test.info[0].value and str(index) in test.info[0].value
    assert test.code[0].value == "qseek index ~/Pictures"
    assert not test.text_input


def test_an_empty_index_says_so(index):
    Store.create(index, Manifest.for_model(FakeModel(), "none"))
    test = open_page()
    assert "holds no photos yet" in test.info[0].value
    assert test.code[0].value == "qseek index ~/Pictures"


def test_without_a_query_it_offers_examples_and_one_is_asked(store):
    test = open_page()
    assert "4 photos" in read_page_text(test)
    assert not list_photo_names(test)
    examples = [one for one in test.button if (one.key or "").startswith("example-")]
    assert len(examples) == 3
    examples[2].click().run()
    assert test.text_input(key="q").value == "a red car in a street"
    assert list_photo_names(test)[:2] == ["red.png", "orange.png"]


def test_a_query_shows_photos_in_order_with_their_scores(store):
    test = open_page()
    test.text_input(key="q").set_value("red").run()
    assert not test.exception
    assert list_photo_names(test)[:2] == ["red.png", "orange.png"]
    second = next(html for html in list_html(test) if "orange.png" in html)
    assert '<span class="q-rank">2</span>' in second
    assert "80% match" in second, "0.9 of the cosine 0.894"
    assert "cosine 0.89" in second
    assert "320 × 240" in second
    assert len(test.get("image")) == 4


def test_the_query_and_settings_stand_in_the_url(store):
    test = open_page(q="blue", top="12", rerank="false")
    assert list_photo_names(test)[0] == "blue.png"
    assert test.selectbox(key="top").value == 12
    assert "match" not in "".join(html for html in list_html(test) if 'class="q-name"' in html)


def test_the_threshold_hides_and_counts(store):
    test = open_page(q="red")
    test.slider(key="least").set_value(50).run()
    assert list_photo_names(test) == ["red.png", "orange.png"]
    assert "2 hidden below 50%" in read_page_text(test)
    test.slider(key="least").set_value(95).run()
    assert list_photo_names(test) == []
    assert "No photo matches with 95% or more" in read_page_text(test)
    test.toggle(key="rerank").set_value(False).run()
    assert len(list_photo_names(test)) == 4, "without match probabilities nothing can be hidden"


def test_how_many(store):
    photos = store.read_photos(store.list_live_ids())[0].path.parent
    for number in range(20):
        Image.new("RGB", (20, 20), (number, 9, 9)).save(photos / f"dark{number}.png")
    build_index([photos], store, PhotoEncoder(FakeModel(), "none"), workers=0)
    test = open_page(q="red")
    assert len(list_photo_names(test)) == 24
    test.selectbox(key="top").set_value(12).run()
    assert len(list_photo_names(test)) == 12


def test_more_like_this_and_back(store):
    test = open_page(q="green")
    place = list_photo_names(test).index("orange.png") + 1
    find_button(test, f"like-{place}").click().run()
    assert not test.exception
    assert list_photo_names(test)[:2] == ["orange.png", "red.png"]
    assert "Photos like **orange\\.png**" in read_page_text(test)
    next(one for one in test.button if one.label == "Back").click().run()
    assert list_photo_names(test)[0] == "green.png"
    assert "like" not in test.query_params


def test_a_new_query_leaves_more_like_this(store):
    test = open_page(q="green")
    find_button(test, "like-1").click().run()
    test.text_input(key="q").set_value("blue").run()
    assert list_photo_names(test)[0] == "blue.png"
    assert "Photos like" not in read_page_text(test)


def test_a_link_to_a_photo_that_is_not_there(store):
    assert "not in the index any more" in read_page_text(open_page(like="0" * 32))


def test_open_shows_the_whole_photo_and_where_it_lies(store):
    test = open_page(q="red")
    find_button(test, "open-1").click().run()
    assert not test.exception
    assert any(code.value.endswith("/photos/red.png") for code in test.code)
    assert any("match 90% · cosine 1.000 · 320 × 240 pixels" in caption.value for caption in test.caption)


def test_a_photo_that_is_gone_is_said_so(store):
    open_page(q="red")  # its thumbnail is kept
    red, green, *_ = (path for path in sorted(store.read_files()) if path.stem in ("red", "green"))
    red.unlink()
    green.unlink()
    test = open_page(q="red green")
    assert not test.exception
    tiles = [html for html in list_html(test) if 'class="q-name"' in html]
    assert sum("gone since it was indexed" in tile for tile in tiles) == 2


def test_a_photo_gone_before_it_was_ever_shown(store):
    next(path for path in store.read_files() if path.stem == "red").unlink()
    test = open_page(q="red")
    assert "This photo is gone since it was indexed" in read_page_text(test)
    assert len(test.get("image")) == 3


def test_what_is_indexed_meanwhile_is_found(store, tmp_path):
    test = open_page(q="white")
    assert "4 photos" in read_page_text(test)
    photos = tmp_path / "photos"
    Image.new("RGB", (50, 50), "white").save(photos / "snow.png")
    build_index([photos], Store.open(store.folder), PhotoEncoder(FakeModel(), "none"), workers=0)
    test.run()
    assert list_photo_names(test)[0] == "snow.png"
    assert "5 photos" in read_page_text(test)


def test_errors_are_plain_words(store, monkeypatch):
    def refuses(*_, **__):
        raise IndexStateError("The index was made with model colours; this is model tints")

    monkeypatch.setattr(session, "make_searcher", refuses)
    test = open_page(q="red")
    assert not test.exception
    assert test.error[0].value == "The index was made with model colours; this is model tints"


def test_a_name_cannot_become_html_or_markdown(store, tmp_path):
    photos = tmp_path / "photos"
    (photos / "red.png").rename(photos / "<img src=x onerror=alert(1)> **b** $x$.png")
    build_index([photos], store, PhotoEncoder(FakeModel(), "none"), workers=0)
    test = open_page(q="red")
    tile = next(html for html in list_html(test) if 'class="q-name"' in html)
    assert "<img src=x" not in tile and "&lt;img src=x onerror=alert(1)&gt;" in tile
    find_button(test, "like-1").click().run()
    assert (
        "Photos like **\\<img src=x onerror=alert\\(1\\)\\> \\*\\*b\\*\\* \\$x\\$\\.png**"
        in read_page_text(test)
    )
