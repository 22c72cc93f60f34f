"""Captions for what a command shows, and for every photo of an index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.types import Caption, Results
from ui import opening

if TYPE_CHECKING:
    from engine.search.searcher import Searcher


def captioned(results: Results, searcher: Searcher, captioner: str | None) -> Results:
    """Every hit with a caption: the index's own, but where another captioner is named; the others are written now."""
    from engine.models.caption_writers import is_called
    from engine.search.hit_captions import with_captions

    def keeps(caption: Caption) -> bool:
        return captioner is None or is_called(captioner, caption.writer)

    return with_captions(results, lambda: opening.load_writer(captioner, searcher.model), keeps)
