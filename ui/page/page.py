"""The page: describe a photo, see the photos. `qseek app` runs it; query and settings stand in the URL."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from engine.errors import PhotoError, QseekError
from engine.index.manifest import FILE_NAME
from engine.types import RERANKED, Hit, Photo, Results
from engine.wording import count_text
from ui import session
from ui.page.page_cache import Stamp, search, search_similar
from ui.page.page_captions import CaptionSettings, choose_caption_settings, open_photo, show_captions
from ui.page.thumbnails import get_thumbnail
from ui.page.tiles import STYLE, show_brand, show_tile
from ui.reports.text_forms import markdown_text, printable_text

if TYPE_CHECKING:
    from engine.index.store import Store

EXAMPLES = ("a dog running through the snow", "people sitting at a table", "a red car in a street")
PAGE_SIZES = (12, 24, 48, 96)
SCORES_EXPLAINED = f"""
**match**: how probable it is, to the part of the model that reads photo and sentence together, that the
sentence describes the photo. Comparable between queries: hide what is below a value that you trust.

**cosine**: how near photo and sentence lie to each other, between -1 and 1. It finds the candidates. Good
values differ from query to query, so only its order means something.

With *Rerank* on, the {RERANKED} nearest are put in order by both; without, by the cosine alone.
"""


def main() -> None:
    st.set_page_config(page_title="qseek", page_icon=":material/image_search:", layout="wide")
    st.html(STYLE)
    session.keep_freed_memory()
    given = os.environ.get("QSEEK_INDEX")
    try:
        show_page(session.resolve_index_folder(Path(given) if given else None), os.environ.get("QSEEK_MODEL"))
    except QseekError as error:
        st.error(printable_text(str(error)))


def show_page(folder: Path, model: str | None) -> None:
    if not session.has_index(folder):
        show_brand("find photos by describing them")
        st.info(
            f"There is no index in `{printable_text(str(folder))}` yet. Make one from a folder of photos:"
        )
        st.code("qseek index ~/Pictures", language="bash")
        st.caption("Then reload this page. Photos stay where they are; nothing leaves this computer.")
        return
    store = session.open_store(folder)
    made_ns = (folder / FILE_NAME).stat().st_mtime_ns
    name = model or store.manifest.model
    has_captions = store.captions.version
    stamp = Stamp(folder, name, made_ns, store.version, store.num_photos, store.num_files, has_captions)
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
    top, rerank, least, shown = show_settings(bool(has_captions))
    like = st.query_params.get("like")
    if like is not None:
        show_similar(
            stamp, find_photo_by_digest(store, like), top, choose_caption_settings(store, name, shown)
        )
    elif text and text.strip():
        show_found(stamp, text.strip(), top, rerank, least, choose_caption_settings(store, name, shown))
    else:
        show_examples()


def show_settings(has_captions: bool) -> tuple[int, int, float, bool]:
    """-> how many, how many to rerank (0: none), least match probability in [0, 1], whether captions are shown."""
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
        captions = st.toggle(
            "Captions",
            value=has_captions,
            key="captions",
            help="What each photo shows, as a model says it. Those that the index keeps are there at once (`qseek "
            "index --captions`), others are written after the photos are shown.",
            bind="query-params",
        )
        with st.popover("Scores", icon=":material/help:", type="tertiary"):
            st.markdown(SCORES_EXPLAINED)
    return top, RERANKED if rerank else 0, least / 100 if rerank else 0.0, captions


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


def find_photo_by_digest(store: Store, digest: str) -> Photo | None:
    """The photo of the link, where it is still in the index."""
    id_ = store.map_ids_by_digest().get(digest)
    photo = None if id_ is None else store.read_photos([id_])[0]
    return photo if photo is not None and photo.paths else None


def show_found(
    stamp: Stamp, text: str, top: int, rerank: int, least: float, captions: CaptionSettings | None
) -> None:
    results = search(stamp, text, top, rerank)
    kept = [hit for hit in results.hits if hit.itm is None or hit.itm >= least]
    num_hidden = len(results.hits) - len(kept)
    line = f"{count_text(len(kept), 'photo')}, {sum(results.seconds.values()):.2f} s"
    if num_hidden:
        line += f" · {num_hidden:,} hidden below {least:.0%}"
    if not kept and num_hidden:
        st.info(f"No photo matches with {least:.0%} or more: move the slider to the left to see the nearest.")
    show_results(results, line, kept, stamp.folder, captions)


def show_similar(stamp: Stamp, photo: Photo | None, top: int, captions: CaptionSettings | None) -> None:
    if photo is None:
        st.info("The photo of this link is not in the index any more.")
        st.button("Back", icon=":material/arrow_back:", type="tertiary", on_click=forget_like)
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"Photos like **{markdown_text(photo.path.name)}**")
        st.button("Back", icon=":material/arrow_back:", type="tertiary", on_click=forget_like)
    results = search_similar(stamp, photo.path, top)
    line = count_text(len(results.hits), "photo")
    show_results(results, line, list(results.hits), stamp.folder, captions)


def show_results(
    results: Results, line: str, hits: list[Hit], folder: Path, captions: CaptionSettings | None
) -> None:
    st.caption(line)
    for note in results.notes:
        st.caption(f":material/info: {markdown_text(note)}")
    if results.failures:
        unread = count_text(len(results.failures), "photo")
        st.caption(f":material/info: {unread} could not be read any more and stand behind the others.")
    with ThreadPoolExecutor(max_workers=4) as pool:  # Pillow decodes without holding the interpreter's lock
        pictures = list(pool.map(lambda hit: read_tile_picture(hit.photo, folder), hits))
    with st.container(key="grid"):
        places = [
            show_tile(hit, picture, more_like, partial(open_photo, captions))
            for hit, picture in zip(hits, pictures, strict=True)
        ]
    if captions is not None and captions.shown:
        show_captions(hits, places, captions)


def read_tile_picture(photo: Photo, folder: Path) -> bytes | PhotoError:
    try:
        return get_thumbnail(photo, folder)
    except PhotoError as error:
        return error


if __name__ == "__main__":
    main()
