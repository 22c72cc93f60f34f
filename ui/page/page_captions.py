"""Captions below the photos of the page, and the place where a person asks about one photo.

Captions that the index keeps are shown at once; the others come from the caption desk as they are written.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import streamlit as st

from engine.errors import QseekError
from engine.types import Hit, Photo
from ui import session
from ui.page.caption_desk import CaptionDesk
from ui.page.page_cache import load_model
from ui.page.tiles import show_caption, show_photo
from ui.reports.text_forms import markdown_text
from ui.session import CAPTIONER_VARIABLE

if TYPE_CHECKING:
    from streamlit.delta_generator import DeltaGenerator

    from engine.index.store import Store

SECONDS_BETWEEN_LOOKS = 0.1


@dataclass(frozen=True)
class CaptionSettings:
    """What writes them beside a searching model, whether it answers questions, and whether they are shown."""

    model: str
    writer: str
    answers: bool
    shown: bool

    def get_desk(self) -> CaptionDesk:
        return get_caption_desk(self.model, self.writer)


@st.cache_resource(max_entries=2, show_spinner=False)
def get_caption_desk(model: str, writer: str) -> CaptionDesk:
    """Keep one desk for each captioner beside a searching model, which it does not load again."""
    searching = load_model(model)
    return CaptionDesk(lambda: session.load_photo_captioner(writer, searching))


def choose_caption_settings(store: Store, model: str, shown: bool) -> CaptionSettings | None:
    """None, and a line that says why, where nothing can write them."""
    try:
        return CaptionSettings(
            model, *session.choose_captioner(os.environ.get(CAPTIONER_VARIABLE), store, model), shown
        )
    except QseekError as error:
        st.warning(f"No captions: {markdown_text(str(error))}")
        return None


def show_captions(hits: list[Hit], places: list[DeltaGenerator], captions: CaptionSettings) -> None:
    """The index's at once, the others as they come. Whatever a person does meanwhile ends this."""
    waiting = []
    for hit, place in zip(hits, places, strict=True):
        if hit.caption is not None:
            show_caption(place, hit.caption.text)
        else:
            waiting.append((hit.photo, place))
    if not waiting:
        return
    desk = captions.get_desk()
    desk.request_captions([photo for photo, _ in waiting])
    while waiting and desk.error is None:
        for photo, place in waiting:
            text = desk.get_caption(photo)
            if isinstance(text, str):
                show_caption(place, text)
        waiting = [(photo, place) for photo, place in waiting if desk.get_caption(photo) is None]
        if waiting:
            waiting[0][1].empty()  # gives way to what was clicked
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if desk.error is not None:
        st.caption(f":material/info: {markdown_text(desk.error)}")


def open_photo(captions: CaptionSettings | None, hit: Hit) -> None:
    says = None if hit.caption is None else hit.caption.text
    if says is None and captions is not None and captions.shown:
        known = captions.get_desk().get_caption(hit.photo)
        says = known if isinstance(known, str) else None
    show_photo(hit, says, partial(show_question, captions))


def show_question(captions: CaptionSettings | None, photo: Photo) -> None:
    """Where a person asks about the photo; who could answer, where the captioner cannot."""
    if captions is None:
        return
    if not captions.answers:
        st.caption(
            f":material/help: {markdown_text(captions.writer)} captions photos and answers no questions; a larger "
            "model does: `qseek app --captioner blip2-flan-t5-xl`."
        )
        return
    question = st.text_input(
        "Ask about this photo", key=f"ask-{photo.digest}", placeholder="What is the dog doing?"
    )
    if question and question.strip():
        try:
            with st.spinner("Reading the photo"):
                st.markdown(f"**{markdown_text(answer(captions, photo, question.strip()))}**")
        except QseekError as error:
            st.warning(markdown_text(str(error)))


@st.cache_data(max_entries=200, ttl=600, show_spinner=False)
def answer(captions: CaptionSettings, photo: Photo, question: str) -> str:
    """Answer a question about a photo; raises QueryError and PhotoError as `CaptionDesk.answer` does."""
    return captions.get_desk().answer(photo, question)
