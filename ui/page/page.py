"""Show the page on which a person types a text and sees photos. `qseek app` runs it.

The text and the settings stand in the address, so that a link leads to the same photos.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from engine.errors import PhotoError, QseekError
from engine.index.manifest import FILE_NAME, has_index
from engine.types import RERANKED, Hit, Photo, Results
from engine.wording import count_text
from ui import session
from ui.page.page_cache import IndexState, search, search_similar
from ui.page.page_captions import CaptionSettings, choose_caption_settings, open_photo, show_captions
from ui.page.thumbnails import get_thumbnail
from ui.page.tiles import STYLE, show_brand, show_tile
from ui.reports.text_forms import markdown_text, printable_text

if TYPE_CHECKING:
    from engine.index.store import Store

EXAMPLES = ("a dog running through the snow", "people sitting at a table", "a red car in a street")
PAGE_SIZES = (12, 24, 48, 96)
SCORES_HELP = f"""
**match** says how probable it is that the text describes the photo, to the part of the model that reads both
together. It can be compared between texts: hide the photos below a value that you trust.

**cosine** says how near photo and text lie to each other, between -1 and 1. It finds the candidates. Good values
differ from text to text, so only its order means something.

With *Rerank* on, the {RERANKED} nearest photos are put in order by both; without it, by the cosine alone.
"""


def main() -> None:
    """Show the whole page; Streamlit calls it after every click."""
    st.set_page_config(page_title="qseek", page_icon=":material/image_search:", layout="wide")
    st.html(STYLE)
    session.keep_freed_memory()
    index = os.environ.get("QSEEK_INDEX")
    try:
        show_page(session.resolve_index_folder(Path(index) if index else None), os.environ.get("QSEEK_MODEL"))
    except QseekError as error:
        st.error(printable_text(str(error)))


def show_page(folder: Path, model: str | None) -> None:
    """Show the page of an index, or how to make one. model: a name or folder, None for the model of the index."""
    if not has_index(folder):
        show_brand("find photos by describing them")
        st.info(f"There is no index at `{printable_text(str(folder))}`. Make one from a folder of photos:")
        st.code("qseek index ~/Pictures", language="bash")
        st.caption("Then reload this page. Photos stay where they are, and nothing leaves this computer.")
        return
    store = session.open_store(folder)
    model = model or store.manifest.model
    state = read_index_state(store, folder, model)
    show_brand(count_text(state.num_photos, "photo"))
    if state.num_photos == 0:
        st.info("The index holds no photos. Add a folder of photos:")
        st.code("qseek index ~/Pictures", language="bash")
        return
    text = st.text_input(
        "What is in the photo?",
        key="q",
        placeholder="Describe the photo you look for",
        icon=":material/search:",
        label_visibility="collapsed",
        bind="query-params",
        on_change=forget_similar,
    )
    top, rerank, least_match, are_captions_shown = show_settings(bool(state.captions))
    digest = st.query_params.get("like")
    if digest is not None:
        photo = find_photo_by_digest(store, digest)
        show_similar(state, photo, top, choose_caption_settings(store, model, are_captions_shown))
    elif text and text.strip():
        captions = choose_caption_settings(store, model, are_captions_shown)
        show_search(state, text.strip(), top, rerank, least_match, captions)
    else:
        show_examples()


def read_index_state(store: Store, folder: Path, model: str) -> IndexState:
    """Read the state of an index that was just opened."""
    return IndexState(
        folder=folder,
        model=model,
        made_ns=(folder / FILE_NAME).stat().st_mtime_ns,
        version=store.version,
        num_photos=store.num_photos,
        num_files=store.num_files,
        captions=store.captions.version,
    )


def show_settings(has_captions: bool) -> tuple[int, int, float, bool]:
    """Show the settings, and return how a person set them.

    has_captions: whether the index keeps captions; they are then shown unless a person hides them.
    Returns how many photos to show, how many to rerank (0 for none), the least match probability in [0, 1] of a photo
    that is shown, and whether captions are shown.
    """
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="settings"):
        top = st.selectbox("Photos", PAGE_SIZES, index=1, key="top", width=100, bind="query-params")
        rerank = st.toggle("Rerank", value=True, key="rerank", bind="query-params")
        least_match = st.slider(
            "Hide matches below",
            min_value=0,
            max_value=95,
            step=5,
            format="%d%%",
            key="least",
            width=220,
            disabled=not rerank,
            help="0% hides nothing. Hiding needs Rerank, since no value of the cosine is good for every text.",
            bind="query-params",
        )
        captions = st.toggle(
            "Captions",
            value=has_captions,
            key="captions",
            help="Show a caption below each photo. Captions of the index are shown at once (`qseek index --captions` "
            "writes them), the others are written after the photos are shown.",
            bind="query-params",
        )
        with st.popover("Scores", icon=":material/help:", type="tertiary"):
            st.markdown(SCORES_HELP)
    return top, RERANKED if rerank else 0, least_match / 100 if rerank else 0.0, captions


def show_examples() -> None:
    """Show texts that a person can search with by a click."""
    st.caption("For example")
    with st.container(horizontal=True):
        for example in EXAMPLES:
            st.button(example, key=f"example-{example}", on_click=ask_for_text, args=(example,))


def ask_for_text(text: str) -> None:
    """Make the page search with a text from its next run on."""
    st.session_state["q"] = text
    forget_similar()


def ask_for_similar(photo: Photo) -> None:
    """Make the page show photos like this one from its next run on."""
    st.query_params["like"] = photo.digest


def forget_similar() -> None:
    """Make the page search with the text again."""
    st.query_params.pop("like", None)


def find_photo_by_digest(store: Store, digest: str) -> Photo | None:
    """Return the photo of a link, None when it is not in the index or all its files are gone."""
    id_ = store.map_ids_by_digest().get(digest)
    photo = None if id_ is None else store.read_photos([id_])[0]
    return photo if photo is not None and photo.paths else None


def show_search(
    state: IndexState, text: str, top: int, rerank: int, least_match: float, captions: CaptionSettings | None
) -> None:
    """Show the photos that fit a text. least_match: the match probability below which photos are hidden."""
    results = search(state, text, top, rerank)
    shown_hits = [hit for hit in results.hits if hit.itm is None or hit.itm >= least_match]
    num_hidden = len(results.hits) - len(shown_hits)
    line = f"{count_text(len(shown_hits), 'photo')}, {sum(results.seconds.values()):.2f} s"
    if num_hidden:
        line += f" · {num_hidden:,} hidden below {least_match:.0%}"
    if not shown_hits and num_hidden:
        st.info(
            f"No photo matches with {least_match:.0%} or more. Move the slider to the left to see the nearest photos."
        )
    show_results(results, line, shown_hits, state.folder, captions)


def show_similar(state: IndexState, photo: Photo | None, top: int, captions: CaptionSettings | None) -> None:
    """Show the photos that look like one of them. photo: None when the photo of the link is gone."""
    if photo is None:
        st.info("The photo of this link is no longer in the index.")
        show_back_button()
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"Photos like **{markdown_text(photo.path.name)}**")
        show_back_button()
    results = search_similar(state, photo.path, top)
    line = count_text(len(results.hits), "photo")
    show_results(results, line, list(results.hits), state.folder, captions)


def show_back_button() -> None:
    """Show the button that leads back to the search with a text."""
    st.button("Back", icon=":material/arrow_back:", type="tertiary", on_click=forget_similar)


def show_results(
    results: Results, line: str, hits: list[Hit], folder: Path, captions: CaptionSettings | None
) -> None:
    """Show a line, the notes of a search and the tiles of its hits. folder: the index, where thumbnails are kept."""
    st.caption(line)
    for note in results.notes:
        st.caption(f":material/info: {markdown_text(note)}")
    if results.failures:
        failed_photos = count_text(len(results.failures), "photo")
        stand = "stands" if len(results.failures) == 1 else "stand"
        st.caption(f":material/info: {failed_photos} could not be read, and {stand} behind the others.")
    with ThreadPoolExecutor(max_workers=4) as pool:  # Pillow decodes without holding the interpreter's lock
        pictures = list(pool.map(lambda hit: read_tile_picture(hit.photo, folder), hits))
    with st.container(key="grid"):
        places = [
            show_tile(hit, picture, ask_for_similar, partial(open_photo, captions))
            for hit, picture in zip(hits, pictures, strict=True)
        ]
    if captions is not None and captions.are_shown:
        show_captions(hits, places, captions)


def read_tile_picture(photo: Photo, folder: Path) -> bytes | PhotoError:
    """Return the thumbnail of a photo, or the error that says why there is none."""
    try:
        return get_thumbnail(photo, folder)
    except PhotoError as error:
        return error


if __name__ == "__main__":
    main()
