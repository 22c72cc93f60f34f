"""Format the report of `qseek recall` as Markdown and as JSON, draw its plot, and write its page of worst misses."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engine.wording import count_text
from ui.reports.text_forms import markdown_table, seconds_text

if TYPE_CHECKING:
    import numpy as np

    from engine.evaluation.recall import Evaluation

COLUMNS = ("TR@1", "TR@5", "TR@10", "IR@1", "IR@5", "IR@10")
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "flickr30k": {
        "CLIP ViT-L": (88.0, 98.7, 99.4, 68.7, 90.6, 95.2),
        "ALBEF": (94.1, 99.5, 99.7, 82.8, 96.3, 98.1),
        "BLIP": (96.7, 100.0, 100.0, 86.7, 97.3, 98.7),
        "BLIP-2 ViT-L": (96.9, 100.0, 100.0, 88.6, 97.6, 98.9),
        "BLIP-2 ViT-g": (97.6, 100.0, 100.0, 89.7, 98.1, 98.9),
    },
    "coco": {
        "BLIP-2 ViT-L": (83.5, 96.0, 98.0, 66.3, 86.5, 91.8),
        "BLIP-2 ViT-g": (85.4, 97.0, 98.5, 68.3, 87.7, 92.6),
    },
}
"""Recall in percent by the COLUMNS, as BLIP-2 publishes it in table 5, reranked.

Flickr30K: its 1,000 test photos, zero-shot with the weights that were fine-tuned on COCO. COCO: its 5,000 test photos,
fine-tuned.
"""
SIZES = {"flickr30k": 1000, "coco": 5000}
"""Number of photos for which the published numbers of a set hold."""
THUMBNAIL_SIDE = 160
"""Side in pixels of the pictures on the page of the worst misses."""


@dataclass(frozen=True)
class Facts:
    """The facts about a run that its report gives besides the numbers; the fields are keys of its JSON.

    dataset: the name of the set. model, digest, pixels, dtype: the model, and how it ran. limit: number of pictures
    used from the beginning of the set, None for all. num_absent: pictures that were left out because their files are
    missing. peak_bytes: the most memory that the process held, None where that is not known.
    """

    dataset: str
    model: str
    digest: str
    pixels: int
    dtype: str
    limit: int | None
    num_absent: int
    peak_bytes: int | None


def format_markdown(facts: Facts, evaluation: Evaluation) -> str:
    """Return the report in Markdown: a heading line, a table before and after reranking, and times."""
    report = evaluation.report
    names = list(report.before)
    rows = [["ITC alone", *(f"{report.before[name]:.1f}" for name in names)]]
    if report.after:
        rows.append([f"reranked, k = {report.k}", *(f"{report.after[name]:.1f}" for name in names)])
    for title, numbers in _get_published(facts, report.num_photos).items():
        cells = dict(zip(COLUMNS, numbers, strict=True))
        rows.append([f"{title}, published", *(str(cells.get(name, "")) for name in names)])
    lines = [_format_heading(facts, evaluation), "", *markdown_table(names, rows)]
    return "\n".join([*lines, "", _format_times(facts, evaluation)]) + "\n"


def _format_heading(facts: Facts, evaluation: Evaluation) -> str:
    report = evaluation.report
    heading = (
        f"{facts.dataset}{f' (the first {facts.limit} pictures)' if facts.limit else ''}, {facts.model} "
        f"({facts.digest[:12]}, {facts.pixels} px, {facts.dtype}): {count_text(report.num_photos, 'photo')}, "
        f"{count_text(report.num_captions, 'caption')}, percent"
    )
    left_out = facts.num_absent + report.num_missing
    if left_out:
        heading += f". **{count_text(left_out, 'photo')} left out: not comparable**"
    return heading


def _format_times(facts: Facts, evaluation: Evaluation) -> str:
    report = evaluation.report
    times = seconds_text(report.seconds)
    num_new_pairs = report.num_pairs - report.num_kept
    if num_new_pairs:
        times += f"; {report.num_pairs:,} pairs, {num_new_pairs / report.seconds['rerank']:,.0f} pairs/s"
    if report.num_kept:
        times += f"; {report.num_kept:,} pairs were kept from an earlier run"
    if facts.peak_bytes is not None:
        times += f"; {facts.peak_bytes / 2**30:.1f} GiB at the peak"
    return times


def _get_published(facts: Facts, num_photos: int) -> dict[str, tuple[float, ...]]:
    """Return the published numbers for the set, none when it has another number of photos: a smaller set is easier."""
    name = facts.dataset.lower()
    return PUBLISHED.get(name, {}) if SIZES.get(name) == num_photos else {}


def format_json(facts: Facts, evaluation: Evaluation) -> str:
    """Return the report as one JSON object on one line; recall is in percent."""
    report = evaluation.report
    values = {
        **asdict(facts),
        "unit": "percent",
        **asdict(report),
        "by_k": {str(k): recall for k, recall in evaluation.by_k.items()},
    }
    values["pairs_per_second"] = None
    num_new_pairs = report.num_pairs - report.num_kept
    if num_new_pairs and "rerank" in report.seconds:
        values["pairs_per_second"] = round(num_new_pairs / report.seconds["rerank"], 1)
    if published := _get_published(facts, report.num_photos):
        values["published"] = {
            title: dict(zip(COLUMNS, numbers, strict=True)) for title, numbers in published.items()
        }
    return json.dumps(values) + "\n"


def draw_plot(facts: Facts, evaluation: Evaluation, path: Path) -> None:
    """Draw recall against k on the left, and on the right where reranking moved the right photo of each caption.

    Raises ImportError without matplotlib, and OSError or ValueError for a path that cannot be written.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ks = sorted(evaluation.by_k)
    for name, style in (("TR@1", "C0o-"), ("IR@1", "C1o-"), ("TR@10", "C0s--"), ("IR@10", "C1s--")):
        left.plot(ks, [evaluation.by_k[k][name] for k in ks], style, label=name)
        left.axhline(evaluation.report.before[name], color=style[:2], lw=0.7, alpha=0.6)
    left.set_xscale("log", base=2)
    left.set_xticks(ks, [str(k) for k in ks])
    left.set(xlabel="candidates reranked, k (thin lines: ITC alone)", ylabel="percent", title=facts.dataset)
    left.legend()
    worst_rank = max(2, evaluation.report.num_photos)
    edges = np.unique(np.round(np.geomspace(1, worst_rank + 1, 24)).astype(int))
    counts, _, _ = np.histogram2d(evaluation.before.ir + 1, evaluation.after.ir + 1, bins=(edges, edges))
    shades = right.pcolormesh(edges, edges, np.log10(counts.T + 1), cmap="Blues", rasterized=True)
    right.plot([1, worst_rank], [1, worst_rank], "k:", lw=0.7)
    right.set(
        xscale="log", yscale="log", xlabel="rank of the right photo by ITC", ylabel="rank after reranking"
    )
    num_better = int((evaluation.after.ir < evaluation.before.ir).sum())
    num_worse = int((evaluation.after.ir > evaluation.before.ir).sum())
    right.set_title(f"{num_better:,} captions better, {num_worse:,} worse")
    figure.colorbar(shades, ax=right, label="log10(captions + 1)")
    figure.savefig(path, dpi=120)


def format_errors_page(
    facts: Facts,
    evaluation: Evaluation,
    num_errors: int,
    read_pictures: Callable[[Sequence[int]], list[np.ndarray | None]],
) -> str:
    """Return an HTML page of the captions whose photo ranks worst: that photo, and what the model ranks first instead.

    num_errors: the largest number of captions on the page. read_pictures: numbers of pictures in the set -> squashed
    pictures, None for one that cannot be read.
    """
    import numpy as np

    worst_captions = np.argsort(-evaluation.after.ir, kind="stable")[:num_errors]
    worst_captions = worst_captions[evaluation.after.ir[worst_captions] > 0]
    rows = []
    for caption in worst_captions:
        photos = [int(evaluation.owner[caption]), *map(int, evaluation.after.best_photos[caption])]
        pictures = read_pictures([evaluation.readable_numbers[photo] for photo in photos])
        cells = "".join(
            f'<td class="{"right" if photo == photos[0] else "wrong"}">{_format_picture(picture)}</td>'
            for photo, picture in zip(photos, pictures, strict=True)
        )
        rank, rank_by_itc = evaluation.after.ir[caption] + 1, evaluation.before.ir[caption] + 1
        rows.append(
            f"<tr><th>{html.escape(evaluation.captions[caption])}"
            f"<small>rank {rank:,}, by ITC {rank_by_itc:,}</small></th>{cells}</tr>"
        )
    heading = html.escape(f"{facts.dataset}, {facts.model}: the {len(rows)} captions whose photo ranks worst")
    return _PAGE.format(
        heading=heading, rows="\n".join(rows) or "<tr><th>Every photo is at rank 1.</th></tr>"
    )


def _format_picture(picture: np.ndarray | None) -> str:
    from PIL import Image

    if picture is None:
        return "cannot be read"
    file = io.BytesIO()
    Image.fromarray(picture).resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE)).save(file, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{heading}</title>
<style>
  body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }}
  th {{ text-align: left; font-weight: 600; width: 22rem; padding-right: 1rem }}
  small {{ display: block; font-weight: 400; color: #666 }}
  td {{ padding: 3px }} img {{ display: block; border-radius: 4px }}
  .right img {{ outline: 3px solid #2a7d2e }}
</style>
<h1>{heading}</h1>
<p>First the caption's own photo (green), then the five that the model ranks first. Pictures are squashed to a square,
as the model reads them.</p>
<table>
{rows}
</table>
"""
