"""Count what became of a shard's photos and captions, and say it: the report beside each shard of a CapFilt run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from engine.errors import DataError
from training.capfilt.capfilt_config import CapfiltConfig
from training.capfilt.caption_candidates import CandidateCaption


@dataclass
class Tally:
    """What became of a shard's photos. drawn: distinct captions. Sums of scores: of all that were scored, by origin."""

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

    def add(self, captions: Sequence[CandidateCaption], kept: Sequence[CandidateCaption]) -> None:
        self.written += bool(kept)
        for one in captions:
            self.best = one.score if self.best is None else max(self.best, one.score)
            if one.synthetic:
                self.drawn, self.drawn_sum = self.drawn + 1, self.drawn_sum + one.score
            else:
                self.originals, self.originals_sum = self.originals + 1, self.originals_sum + one.score
        self.kept_drawn += sum(one.synthetic for one in kept)
        self.kept_originals += sum(not one.synthetic for one in kept)
        self.kept_sum += sum(one.score for one in kept)

    def join(self, other: Tally) -> None:
        scores = [best for best in (self.best, other.best) if best is not None]
        for name, value in asdict(other).items():
            if name != "best":
                setattr(self, name, getattr(self, name) + value)
        self.best = max(scores, default=None)


def check_written(tally: Tally, config: CapfiltConfig) -> None:
    """Raises DataError when no photo has a caption: nothing could be trained on."""
    if tally.written or not tally.photos:
        return
    if len(tally.unreadable) == tally.photos:
        key, reason = tally.unreadable[0]
        raise DataError(f"None of the {tally.photos:,} photos could be read (first: {key}: {reason}).")
    if tally.best is None:
        raise DataError(
            f"None of the {tally.photos:,} photos got a caption: nothing but empty ones were drawn."
        )
    raise DataError(
        f"No caption scores at least {config.least} (the best: {tally.best:.3f}); lower `least`, and use another "
        "folder for the run."
    )


def tally_text(tally: Tally) -> str:
    """Return a tally as one line."""

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
