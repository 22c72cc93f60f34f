"""Count the photos and captions of a CapFilt run that were read, drawn and kept; each shard has such a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from engine.errors import DataError
from training.capfilt.capfilt_config import CapfiltConfig
from training.capfilt.caption_candidates import CandidateCaption


@dataclass
class Tally:
    """The counts of a shard, or of several: what became of its photos and captions.

    photos: photos that belong to the shard. written: those with a caption that was kept. drawn, originals: distinct
    captions that were scored, drawn ones and the photos' own. kept_drawn, kept_originals: those of them that were kept.
    drawn_sum, originals_sum, kept_sum: sums of their scores. best: the highest score, None without any caption.
    unreadable: path or key and reason for each photo that could not be read.
    """

    photos: int = 0
    written: int = 0
    drawn: int = 0
    originals: int = 0
    kept_drawn: int = 0
    kept_originals: int = 0
    drawn_sum: float = 0.0
    originals_sum: float = 0.0
    kept_sum: float = 0.0
    best: float | None = None
    unreadable: list[list[str]] = field(default_factory=list)

    def add(self, captions: Sequence[CandidateCaption], selected: Sequence[CandidateCaption]) -> None:
        """Count the captions of a photo. selected: those of them that are kept."""
        self.written += bool(selected)
        for caption in captions:
            self.best = caption.score if self.best is None else max(self.best, caption.score)
            if caption.synthetic:
                self.drawn, self.drawn_sum = self.drawn + 1, self.drawn_sum + caption.score
            else:
                self.originals, self.originals_sum = self.originals + 1, self.originals_sum + caption.score
        self.kept_drawn += sum(caption.synthetic for caption in selected)
        self.kept_originals += sum(not caption.synthetic for caption in selected)
        self.kept_sum += sum(caption.score for caption in selected)

    def join(self, other: Tally) -> None:
        """Add the counts of another shard."""
        scores = [best for best in (self.best, other.best) if best is not None]
        for name, value in asdict(other).items():
            if name != "best":
                setattr(self, name, getattr(self, name) + value)
        self.best = max(scores, default=None)


def check_written(tally: Tally, config: CapfiltConfig) -> None:
    """Raise DataError when no photo has a caption, so that nothing could be trained on."""
    if tally.written or not tally.photos:
        return
    if len(tally.unreadable) == tally.photos:
        key, reason = tally.unreadable[0]
        raise DataError(f"None of the {tally.photos:,} photos could be read (first: {key}: {reason}).")
    if tally.best is None:
        raise DataError(
            f"None of the {tally.photos:,} photos got a caption: all captions that were drawn are empty."
        )
    raise DataError(
        f"No caption scores at least {config.least} (the best: {tally.best:.3f}); lower `least`, and use another "
        "folder for the run."
    )


def tally_text(tally: Tally) -> str:
    """Return a line that says how many photos and captions were written, and how they scored."""

    def mean(total: float, count: int) -> str:
        return f"{total / count:.2f}" if count else "-"

    kept_count = tally.kept_drawn + tally.kept_originals
    scored = f"mean score drawn {mean(tally.drawn_sum, tally.drawn)}"
    if tally.originals:
        scored += f", own {mean(tally.originals_sum, tally.originals)}"
    line = (
        f"{tally.written:,} of {tally.photos:,} photos with {kept_count:,} captions, {tally.kept_drawn:,} of them "
        f"drawn; {scored}, kept {mean(tally.kept_sum, kept_count)}"
    )
    left_out = tally.photos - tally.written - len(tally.unreadable)
    if tally.unreadable:
        line += f"; {len(tally.unreadable):,} unreadable"
    return line + (f"; {left_out:,} without a caption that is good enough" if left_out else "")
