"""Show captions below the photos of the page, and let a person ask a question about a photo.

Captions that the index keeps are shown at once; the others come from the caption desk as they are written.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import streamlit as st

from engine.errors import PhotoError, QseekError
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
    """The settings of captions on the page.

    model, captioner: the names of the models that search and that write captions. can_answer: whether the captioner
    answers questions. are_shown: whether captions are shown below the photos.
    """

    model: str
    captioner: str
    can_answer: bool
    are_shown: bool

    def get_desk(self) -> CaptionDesk:
        """Return the desk of the captioner, which all sessions share."""
        return get_caption_desk(self.model, self.captioner)


@st.cache_resource(max_entries=2, show_spinner=False)
def get_caption_desk(model: str, captioner: str) -> CaptionDesk:
    """Keep one caption desk for each pair of a model that searches and a captioner.

    A captioner that is the searching model as well is not loaded again.
    """
    searching = load_model(model)
    return CaptionDesk(lambda: session.load_photo_captioner(captioner, searching))


def choose_caption_settings(store: Store, model: str, are_shown: bool) -> CaptionSettings | None:
    """Choose the captioner of an index. Shows why and returns None when there is no such model."""
    try:
        captioner, can_answer = session.choose_captioner(os.environ.get(CAPTIONER_VARIABLE), store, model)
    except QseekError as error:
        st.warning(f"There are no captions. {markdown_text(str(error))}")
        return None
    return CaptionSettings(model, captioner, can_answer, are_shown)


def show_captions(hits: list[Hit], places: list[DeltaGenerator], settings: CaptionSettings) -> None:
    """Show the captions of the index at once, and the others as they are written.

    places: the empty element below each photo. Streamlit ends this function when a person clicks meanwhile.
    """
    waiting = []
    for hit, place in zip(hits, places, strict=True):
        if hit.caption is not None:
            show_caption(place, hit.caption.text)
        else:
            waiting.append((hit.photo, place))
    if not waiting:
        return
    desk = settings.get_desk()
    desk.request_captions([photo for photo, _ in waiting])
    while waiting and desk.error is None:
        for photo, place in waiting:
            text = desk.get_caption(photo)
            if isinstance(text, str):
                show_caption(place, text)
        waiting = [(photo, place) for photo, place in waiting if desk.get_caption(photo) is None]
        if waiting:
            waiting[0][1].empty()  # any call of Streamlit lets it end this run after a click
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if desk.error is not None:
        st.caption(f":material/info: {markdown_text(desk.error)}")


def open_photo(settings: CaptionSettings | None, hit: Hit) -> None:
    """Open the dialog with the whole photo, its caption if there is one, and the field for questions."""
    caption = None if hit.caption is None else hit.caption.text
    if caption is None and settings is not None and settings.are_shown:
        text = settings.get_desk().get_caption(hit.photo)
        caption = text if isinstance(text, str) else None
    show_photo(hit, caption, partial(show_question, settings))


def show_question(settings: CaptionSettings | None, photo: Photo) -> None:
    """Show the field for a question about the photo and the answer, or name a captioner that answers questions."""
    if settings is None:
        return
    if not settings.can_answer:
        st.caption(
            f":material/help: {markdown_text(settings.captioner)} writes captions, but does not answer questions. "
            "A larger model answers them: `qseek app --captioner blip2-flan-t5-xl`."
        )
        return
    question = st.text_input(
        "Ask about this photo", key=f"ask-{photo.digest}", placeholder="What is the dog doing?"
    )
    if question and question.strip():
        try:
            with st.spinner("Reading the photo"):
                st.markdown(f"**{markdown_text(answer(settings, photo, question.strip()))}**")
        except PhotoError as error:
            st.warning(f"This photo cannot be read: {markdown_text(str(error))}.")
        except QseekError as error:
            st.warning(markdown_text(str(error)))


@st.cache_data(max_entries=200, ttl=600, show_spinner=False)
def answer(settings: CaptionSettings, photo: Photo, question: str) -> str:
    """Answer a question about a photo, from memory when it was asked lately.

    Raises QueryError and PhotoError as `CaptionDesk.answer` does.
    """
    return settings.get_desk().answer(photo, question)
