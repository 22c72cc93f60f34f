"""Keep the model, the index and the answers of the page between its runs.

Streamlit runs the page's script from the top after every click; what is computed here is computed once for each state
of the index (`IndexState`).
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
    """A searcher, and the lock that lets one session at a time use it."""

    searcher: Searcher
    lock: threading.Lock


@dataclass(frozen=True)
class IndexState:
    """The state of an index; when it changes, the index is opened and searched anew.

    model: the name of the model that searches. made_ns: when the manifest was written, in nanoseconds. version: the
    version of the photo table. captions: the version of the caption table, 0 where there is none.
    """

    folder: Path
    model: str
    made_ns: int
    version: int
    num_photos: int
    num_files: int
    captions: int


@st.cache_resource(max_entries=1, show_spinner="Loading the model")
def load_model(model: str) -> RetrievalModel:
    """Load the model that searches, once for all sessions. Raises CheckpointError."""
    return session.load_model(model)


@st.cache_resource(max_entries=1, show_spinner="Opening the index")
def open_index(state: IndexState) -> OpenIndex:
    """Open an index with its model, once for each state of it. Raises IndexStateError."""
    store = session.open_store(state.folder)
    return OpenIndex(session.make_searcher(store, load_model(state.model), hold=True), threading.Lock())


@st.cache_data(max_entries=200, ttl=600, show_spinner="Searching")
def search(state: IndexState, text: str, top: int, rerank: int) -> Results:
    """Find the photos that fit a text, from memory when it was asked lately."""
    index = open_index(state)
    with index.lock:
        return index.searcher.search(text, top=top, rerank=rerank)


@st.cache_data(max_entries=200, ttl=600, show_spinner="Searching")
def search_similar(state: IndexState, path: Path, top: int) -> Results:
    """Find the photos that look like an indexed one, from memory when it was asked lately."""
    index = open_index(state)
    with index.lock:
        return index.searcher.similar(path, top=top)
