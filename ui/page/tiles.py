"""Draw the page: its style, a tile of the grid, and the dialog with the whole photo."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from engine.errors import PhotoError
from engine.types import Hit, Photo
from ui.page.thumbnails import is_there, read_large_picture
from ui.reports.text_forms import percent_text, printable_text, size_text

GONE = "gone since it was indexed"
STYLE = """<style>
.stMainBlockContainer { max-width: 1500px; padding-top: 2.2rem; padding-bottom: 4rem; }
.st-key-grid { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(205px, 44vw), 1fr)); }
.st-key-grid > div { width: 100%; }
[class*="st-key-tile-"] { gap: .35rem; }
[class*="st-key-tile-"] img { aspect-ratio: 1; object-fit: cover; width: 100%; border-radius: .6rem; }
[class*="st-key-tile-"] button { padding: 0 .2rem; min-height: 1.6rem; }
[class*="st-key-tile-"] button p { font-size: .82rem; }
.q-brand { font-size: 1.7rem; font-weight: 700; letter-spacing: -.03em; line-height: 1; }
.q-brand span { color: #2f8f74; }
.q-brand small { font-size: .9rem; font-weight: 400; letter-spacing: 0; opacity: .6; margin-left: .7rem; }
.q-scores { display: flex; align-items: baseline; gap: .5rem; font-size: .86rem; line-height: 1.3; }
.q-rank { font-weight: 700; font-variant-numeric: tabular-nums; min-width: 1.2em; }
.q-cosine { opacity: .6; margin-left: auto; white-space: nowrap; font-variant-numeric: tabular-nums; }
.q-bar { height: 4px; border-radius: 2px; background: rgba(128, 128, 128, .22); margin: .25rem 0 .35rem; }
.q-bar div { height: 100%; border-radius: 2px; background: #2f8f74; }
.q-name, .q-where { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; line-height: 1.35; }
.q-name { font-size: .86rem; }
.q-where { opacity: .6; font-size: .78rem; }
.q-says { font-size: .84rem; line-height: 1.35; display: -webkit-box; -webkit-box-orient: vertical;
  -webkit-line-clamp: 3; overflow: hidden; }
.q-title { font-size: 1.05rem; line-height: 1.4; }
.q-gone { display: flex; align-items: center; justify-content: center; text-align: center; aspect-ratio: 1;
  border-radius: .6rem; background: rgba(128, 128, 128, .14); padding: 1rem; font-size: .85rem; opacity: .8; }
[data-testid="stDialog"] img { max-height: 62vh; object-fit: contain; }
</style>"""


def show_brand(line: str) -> None:
    """Show the name qseek at the top of the page, and a line behind it."""
    st.html(f'<div class="q-brand"><span>q</span>seek<small>{html.escape(line)}</small></div>')


def show_tile(
    hit: Hit,
    picture: bytes | PhotoError,
    ask_for_similar: Callable[[Photo], None],
    open_photo: Callable[[Hit], None],
) -> DeltaGenerator:
    """Show one hit: picture, rank, match probability, cosine, name, size and buttons; return an empty element.

    The element is the place for the caption. picture: the error says why there is no picture.
    """
    photo = hit.photo
    with st.container(key=f"tile-{hit.rank}"):
        if isinstance(picture, PhotoError):
            st.html(f'<div class="q-gone">{html.escape(explain_missing_picture(photo, picture))}</div>')
        else:
            st.image(picture, width="stretch")
        st.html(_format_hit(hit))
        place = st.empty()
        with st.container(horizontal=True, horizontal_alignment="distribute", gap=None):
            st.button(
                "More like this",
                key=f"like-{hit.rank}",
                type="tertiary",
                icon=":material/image_search:",
                on_click=ask_for_similar,
                args=(photo,),
            )
            if st.button("Open", key=f"open-{hit.rank}", type="tertiary", icon=":material/open_in_full:"):
                open_photo(hit)
    return place


def show_caption(place: DeltaGenerator, text: str) -> None:
    """Show a caption in the place that `show_tile` returned."""
    place.html(f'<div class="q-says" title="{_escape(text)}">{_escape(text)}</div>')


def _format_hit(hit: Hit) -> str:
    """Return the HTML below the picture of a tile."""
    path = hit.photo.path
    match = "" if hit.itm is None else f"<span>{percent_text(hit.itm)} match</span>"
    bar = (
        "" if hit.itm is None else f'<div class="q-bar"><div style="width:{100 * hit.itm:.0f}%"></div></div>'
    )
    size_and_folder = f"{_format_pixels(hit.photo)} · {_escape(path.parent.name)}"
    last_line = size_and_folder if is_there(hit.photo) else GONE
    return (
        f'<div class="q-scores"><span class="q-rank">{hit.rank}</span>{match}'
        f'<span class="q-cosine">cosine {hit.itc:.2f}</span></div>{bar}'
        f'<div class="q-name" title="{_escape(path)}">{_escape(path.name)}</div>'
        f'<div class="q-where" title="{_escape(path)}">{last_line}</div>'
    )


def _escape(text: str | Path) -> str:
    return html.escape(printable_text(str(text)))


def _format_pixels(photo: Photo) -> str:
    return f"{photo.width:,} × {photo.height:,}".replace(",", "\u202f")


def explain_missing_picture(photo: Photo, error: PhotoError) -> str:
    """Return a sentence that says why a photo is not shown."""
    if not is_there(photo):
        return f"This photo is {GONE}."
    return f"This photo cannot be shown: {printable_text(str(error))}."


@st.dialog("Photo", width="large")
def show_photo(hit: Hit, caption: str | None, show_question: Callable[[Photo], None]) -> None:
    """Show the whole photo with its scores and the paths of all its files.

    caption: the photo's caption, None without one. show_question: shows the field for questions.
    """
    photo = hit.photo
    try:
        with st.spinner("Reading the photo"):
            st.image(read_large_picture(photo), width="stretch")
    except PhotoError as error:
        st.warning(explain_missing_picture(photo, error))
    if caption is not None:
        st.html(f'<div class="q-title">{_escape(caption)}</div>')
    st.caption(" · ".join(_list_facts(hit)))
    show_question(photo)
    for path in photo.paths:
        st.code(printable_text(str(path)), language=None, wrap_lines=True)


def _list_facts(hit: Hit) -> list[str]:
    facts = [f"rank {hit.rank}"]
    if hit.itm is not None:
        facts.append(f"match {percent_text(hit.itm)}")
    facts += [f"cosine {hit.itc:.3f}", f"{_format_pixels(hit.photo)} pixels"]
    try:
        facts.append(size_text(hit.photo.path.stat().st_size))
    except OSError:
        facts.append(GONE)
    return facts
