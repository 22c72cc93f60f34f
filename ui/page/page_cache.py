"""The model, the index and the answers that the page keeps between its runs.

Streamlit runs the page's script from the top after every click; what is computed here is computed once for each state
of the index (`Stamp`).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from engine.types import Results
from ui import session

if TYPE_CHECKING:
    from engine.models.retrieval_model import RetrievalModel
    from engine.search.searcher import Searcher


@dataclass
class OpenIndex:
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
    captions: int


@st.cache_resource(max_entries=1, show_spinner="Loading the model")
def load_model(model: str) -> RetrievalModel:
    """Load the model that searches, once for all sessions; raises CheckpointError."""
    return session.load_model(model)


@st.cache_resource(max_entries=1, show_spinner="Opening the index")
def open_index(stamp: Stamp) -> OpenIndex:
    """Open the index with its model, once for each state of it; raises IndexStateError."""
    store = session.open_store(stamp.folder)
    return OpenIndex(session.make_searcher(store, load_model(stamp.model), hold=True), threading.Lock())


@st.cache_data(max_entries=200, ttl=600, show_spinner="Searching")
def search(stamp: Stamp, text: str, top: int, rerank: int) -> Results:
    """Find the photos that fit a text; what was asked lately is remembered."""
    index = open_index(stamp)
    with index.lock:
        return index.searcher.search(text, top=top, rerank=rerank)


@st.cache_data(max_entries=200, ttl=600, show_spinner="Searching")
def search_similar(stamp: Stamp, path: Path, top: int) -> Results:
    """Find the photos that look like one of them; what was asked lately is remembered."""
    index = open_index(stamp)
    with index.lock:
        return index.searcher.similar(path, top=top)
