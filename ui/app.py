"""The page: describe a photo, see the photos. `qseek app` runs it; query and settings stand in the URL."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from engine.errors import PhotoError, QseekError
from engine.types import Photo, Results
from ui import opening
from ui.render import count_text, printable
from ui.thumbnails import thumbnail
from ui.tiles import STYLE, show_brand, show_tile

if TYPE_CHECKING:
    from engine.blip2.model import Model
    from engine.index.store import Store
    from engine.search import Searcher

EXAMPLES = ("a dog running through the snow", "people sitting at a table", "a red car in a street")
RERANKED = 128
PAGE_SIZES = (12, 24, 48, 96)
SCORES_EXPLAINED = """
**match**: how probable it is, to the part of the model that reads photo and sentence together, that the
sentence describes the photo. Comparable between queries: hide what is below a value that you trust.

**cosine**: how near photo and sentence lie to each other, between -1 and 1. It finds the candidates. Good
values differ from query to query, so only its order means something.

With *Rerank* on, the 128 nearest are put in order by both; without, by the cosine alone.
"""


@dataclass
class Opened:
    """A searcher, and the lock that lets one session at a time ask it."""

    searcher: Searcher
    lock: threading.Lock


@dataclass(frozen=True)
class Stamp:
    """The state of an index: what is cached of it is made anew when this changes."""

    folder: Path
    model: str
    made_ns: int
    version: int
    num_photos: int
    num_files: int


@st.cache_resource(max_entries=1, show_spinner="Loading the model")
def loaded(model: str) -> Model:
    return opening.load_model(model)


@st.cache_resource(max_entries=1, show_spinner="Opening the index")
def opened(stamp: Stamp) -> Opened:
    store = opening.open_store(stamp.folder)
    return Opened(opening.make_searcher(store, loaded(stamp.model), hold=True), threading.Lock())


@st.cache_data(max_entries=200, ttl=600, show_spinner="Searching")
def found(stamp: Stamp, text: str, top: int, rerank: int) -> Results:
    ready = opened(stamp)
    with ready.lock:
        return ready.searcher.search(text, top=top, rerank=rerank)


@st.cache_data(max_entries=200, ttl=600, show_spinner="Searching")
def found_like(stamp: Stamp, path: Path, top: int) -> Results:
    ready = opened(stamp)
    with ready.lock:
        return ready.searcher.similar(path, top=top)


def main() -> None:
    st.set_page_config(page_title="qseek", page_icon=":material/image_search:", layout="wide")
    st.html(STYLE)
    given = os.environ.get("QSEEK_INDEX")
    try:
        show_page(opening.index_folder(Path(given) if given else None), os.environ.get("QSEEK_MODEL"))
    except QseekError as error:
        st.error(printable(str(error)))


def show_page(folder: Path, model: str | None) -> None:
    if not opening.has_index(folder):
        show_brand("find photos by describing them")
        st.info(f"There is no index in `{printable(str(folder))}` yet. Make one from a folder of photos:")
        st.code("qseek index ~/Pictures", language="bash")
        st.caption("Then reload this page. Photos stay where they are; nothing leaves this computer.")
        return
    store = opening.open_store(folder)
    made_ns = (folder / "manifest.json").stat().st_mtime_ns
    name = model or store.manifest.model
    stamp = Stamp(folder, name, made_ns, store.version, store.num_photos, store.num_files)
    show_brand(count_text(stamp.num_photos, "photo"))
    if stamp.num_photos == 0:
        st.info("The index holds no photos yet. Fill it from a folder:")
        st.code("qseek index ~/Pictures", language="bash")
        return
    text = st.text_input(
        "What is in the photo?",
        key="q",
        placeholder="Describe the photo you look for",
        icon=":material/search:",
        label_visibility="collapsed",
        bind="query-params",
        on_change=forget_like,
    )
    top, rerank, least = show_settings()
    like = st.query_params.get("like")
    if like is not None:
        show_similar(stamp, photo_of(store, like), top)
    elif text and text.strip():
        show_found(stamp, text.strip(), top, rerank, least)
    else:
        show_examples()


def show_settings() -> tuple[int, int, float]:
    """-> how many, how many to rerank (0: none), least match probability in [0, 1]."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="settings"):
        top = st.selectbox("Photos", PAGE_SIZES, index=1, key="top", width=100, bind="query-params")
        rerank = st.toggle("Rerank", value=True, key="rerank", bind="query-params")
        least = st.slider(
            "Hide matches below",
            min_value=0,
            max_value=95,
            step=5,
            format="%d%%",
            key="least",
            width=220,
            disabled=not rerank,
            help="0% hides nothing. It needs Rerank: a cosine has no value that is good for every query.",
            bind="query-params",
        )
        with st.popover("Scores", icon=":material/help:", type="tertiary"):
            st.markdown(SCORES_EXPLAINED)
    return top, RERANKED if rerank else 0, least / 100 if rerank else 0.0


def show_examples() -> None:
    st.caption("For example")
    with st.container(horizontal=True):
        for example in EXAMPLES:
            st.button(example, key=f"example-{example}", on_click=ask, args=(example,))


def ask(text: str) -> None:
    st.session_state["q"] = text
    forget_like()


def forget_like() -> None:
    st.query_params.pop("like", None)


def more_like(photo: Photo) -> None:
    st.query_params["like"] = photo.digest


def photo_of(store: Store, digest: str) -> Photo | None:
    """The photo of the link, where it is still in the index."""
    id_ = store.photo_ids().get(digest)
    photo = None if id_ is None else store.photos([id_])[0]
    return photo if photo is not None and photo.paths else None


def show_found(stamp: Stamp, text: str, top: int, rerank: int, least: float) -> None:
    results = found(stamp, text, top, rerank)
    kept = [hit for hit in results.hits if hit.itm is None or hit.itm >= least]
    num_hidden = len(results.hits) - len(kept)
    line = f"{count_text(len(kept), 'photo')}, {sum(results.seconds.values()):.2f} s"
    if num_hidden:
        line += f" · {num_hidden:,} hidden below {least:.0%}"
    show_results(results, line, kept, stamp.folder)
    if not kept and num_hidden:
        st.info(f"No photo matches with {least:.0%} or more: move the slider to the left to see the nearest.")


def show_similar(stamp: Stamp, photo: Photo | None, top: int) -> None:
    if photo is None:
        st.info("The photo of this link is not in the index any more.")
        st.button("Back", icon=":material/arrow_back:", type="tertiary", on_click=forget_like)
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"Photos like **{_markdown(photo.path.name)}**")
        st.button("Back", icon=":material/arrow_back:", type="tertiary", on_click=forget_like)
    results = found_like(stamp, photo.path, top)
    show_results(results, count_text(len(results.hits), "photo"), list(results.hits), stamp.folder)


def _markdown(name: str) -> str:
    """A file name as plain text in Markdown."""
    return "".join(
        f"\\{letter}" if letter in r"\`*_{}[]()<>#+-.!|~$:" else letter for letter in printable(name)
    )


def show_results(results: Results, line: str, hits: list, folder: Path) -> None:
    st.caption(line)
    for note in results.notes:
        st.caption(f":material/info: {_markdown(note)}")
    if results.failures:
        unread = count_text(len(results.failures), "photo")
        st.caption(f":material/info: {unread} could not be read any more and stand behind the others.")
    with ThreadPoolExecutor(max_workers=4) as pool:  # Pillow decodes without holding the interpreter's lock
        pictures = list(pool.map(lambda hit: picture_of(hit.photo, folder), hits))
    with st.container(key="grid"):
        for hit, picture in zip(hits, pictures, strict=True):
            show_tile(hit, picture, more_like)


def picture_of(photo: Photo, folder: Path) -> bytes | PhotoError:
    try:
        return thumbnail(photo, folder)
    except PhotoError as error:
        return error


if __name__ == "__main__":
    main()
