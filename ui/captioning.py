"""Captions for what a command shows, and for every photo of an index."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.types import Caption, Results
from ui import opening
from ui.progress import shown_progress
from ui.render import count_text
from ui.terminal import say

if TYPE_CHECKING:
    from engine.index.store import Store
    from engine.models.retrieval_model import RetrievalModel
    from engine.search.searcher import Searcher
    from indexer.captions import CaptionReport


def captioned(results: Results, searcher: Searcher, captioner: str | None) -> Results:
    """Every hit with a caption: the index's own, but where another captioner is named; the others are written now."""
    from engine.models.caption_writers import is_called
    from engine.search.hit_captions import with_captions

    def keeps(caption: Caption) -> bool:
        return captioner is None or is_called(captioner, caption.writer)

    return with_captions(results, lambda: opening.load_writer(captioner, searcher.model), keeps)


def caption_index(
    store: Store, model: RetrievalModel, roots: Sequence[Path], captioner: str | None, workers: int | None
) -> CaptionReport:
    """Write what is missing of the photos beneath the roots, of all without roots.

    captioner: None = the one that wrote most of the index's captions, else what writes by default.
    """
    from indexer.captions import index_captions

    by_writer = store.caption_writers()
    writer = opening.load_writer(captioner or next(iter(by_writer), None), model)
    others = {name: count for name, count in by_writer.items() if name != writer.name}
    for name, count in others.items():
        say(f"{count_text(count, 'caption')} by {name} will be replaced by {writer.name}'s.")
    say(f"Captions by {writer.name}:")
    with shown_progress() as update:
        return index_captions(
            store, writer, model.encode_texts, roots=roots, workers=workers, on_progress=update
        )


def say_missing(store: Store) -> None:
    """Where an index has captions: how many photos have none."""
    num_missing = store.num_photos - store.num_captions if store.captions_version else 0
    if num_missing:
        say(f"{count_text(num_missing, 'photo')} without a caption; --captions writes them.")
