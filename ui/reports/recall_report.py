"""A recall report as Markdown, JSON, a picture and a page of errors."""

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
"""As published in BLIP-2, table 5: percent, reranked; Flickr30K's 1,000 test photos zero-shot with the weights that
were fine-tuned on COCO, COCO's 5,000 test photos fine-tuned."""
SIZES = {"flickr30k": 1000, "coco": 5000}
THUMBNAIL = 160


@dataclass(frozen=True)
class Facts:
    """What a report says of a run besides its numbers. limit: only so many pictures, None for all.
    num_absent: pictures left out for their files are not there. peak_bytes: of memory, None where it is not known."""

    dataset: str
    model: str
    digest: str
    pixels: int
    dtype: str
    limit: int | None
    num_absent: int
    peak_bytes: int | None


def format_markdown(facts: Facts, result: Evaluation) -> str:
    report = result.report
    names = list(report.before)
    rows = [["ITC alone", *(f"{report.before[name]:.1f}" for name in names)]]
    if report.after:
        rows.append([f"reranked, k = {report.k}", *(f"{report.after[name]:.1f}" for name in names)])
    for title, numbers in _published(facts, report.num_photos).items():
        cells = dict(zip(COLUMNS, numbers, strict=True))
        rows.append([f"{title}, published", *(str(cells.get(name, "")) for name in names)])
    left_out = facts.num_absent + report.num_missing
    lines = [
        f"{facts.dataset}{f' (the first {facts.limit} pictures)' if facts.limit else ''}, {facts.model} "
        f"({facts.digest[:12]}, {facts.pixels} px, {facts.dtype}): {report.num_photos:,} photos, "
        f"{report.num_captions:,} captions, percent"
        + (f". **{count_text(left_out, 'photo')} left out: not comparable**" if left_out else ""),
        "",
        *markdown_table(names, rows),
    ]
    seconds = seconds_text(report.seconds)
    pairs = report.num_pairs - report.num_kept
    if pairs:
        seconds += f"; {report.num_pairs:,} pairs, {pairs / report.seconds['rerank']:,.0f} pairs/s"
    if report.num_kept:
        seconds += f"; {report.num_kept:,} pairs were kept from an earlier run"
    if facts.peak_bytes is not None:
        seconds += f"; {facts.peak_bytes / 2**30:.1f} GiB at the peak"
    return "\n".join([*lines, "", seconds]) + "\n"


def _published(facts: Facts, num_photos: int) -> dict[str, tuple[float, ...]]:
    """Only beside the same gallery: a smaller one is easier."""
    name = facts.dataset.lower()
    return PUBLISHED.get(name, {}) if SIZES.get(name) == num_photos else {}


def format_json(facts: Facts, result: Evaluation) -> str:
    """One object; recall is in percent."""
    report = asdict(result.report)
    values = {
        **asdict(facts),
        "unit": "percent",
        **report,
        "by_k": {str(k): v for k, v in result.by_k.items()},
    }
    values["pairs_per_second"] = None
    if (pairs := result.report.num_pairs - result.report.num_kept) and "rerank" in result.report.seconds:
        values["pairs_per_second"] = round(pairs / result.report.seconds["rerank"], 1)
    if known := _published(facts, result.report.num_photos):
        values["published"] = {
            title: dict(zip(COLUMNS, numbers, strict=True)) for title, numbers in known.items()
        }
    return json.dumps(values) + "\n"


def draw_plot(facts: Facts, result: Evaluation, path: Path) -> None:
    """Left: recall against k. Right: where reranking moved the right photo of each caption. Raises ImportError
    without matplotlib, OSError and ValueError for a path that cannot be written."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ks = sorted(result.by_k)
    for name, style in (("TR@1", "C0o-"), ("IR@1", "C1o-"), ("TR@10", "C0s--"), ("IR@10", "C1s--")):
        left.plot(ks, [result.by_k[k][name] for k in ks], style, label=name)
        left.axhline(result.report.before[name], color=style[:2], lw=0.7, alpha=0.6)
    left.set_xscale("log", base=2)
    left.set_xticks(ks, [str(k) for k in ks])
    left.set(xlabel="candidates reranked, k (thin lines: ITC alone)", ylabel="percent", title=facts.dataset)
    left.legend()
    most = max(2, result.report.num_photos)
    edges = np.unique(np.round(np.geomspace(1, most + 1, 24)).astype(int))
    counts, _, _ = np.histogram2d(result.before.ir + 1, result.after.ir + 1, bins=(edges, edges))
    shades = right.pcolormesh(edges, edges, np.log10(counts.T + 1), cmap="Blues", rasterized=True)
    right.plot([1, most], [1, most], "k:", lw=0.7)
    right.set(xscale="log", yscale="log", xlabel="rank of the right photo by ITC", ylabel="after reranking")
    better = int((result.after.ir < result.before.ir).sum())
    worse = int((result.after.ir > result.before.ir).sum())
    right.set_title(f"{better:,} captions better, {worse:,} worse")
    figure.colorbar(shades, ax=right, label="log10(captions + 1)")
    figure.savefig(path, dpi=120)


def format_errors_page(
    facts: Facts, result: Evaluation, count: int, read: Callable[[Sequence[int]], list[np.ndarray | None]]
) -> str:
    """HTML: the captions whose photo ranks worst, that photo, and what came first instead.

    read: numbers of pictures in the set -> squashed pictures.
    """
    import numpy as np

    worst = np.argsort(-result.after.ir, kind="stable")[:count]
    worst = worst[result.after.ir[worst] > 0]
    rows = []
    for caption in worst:
        photos = [int(result.owner[caption]), *map(int, result.after.best_photos[caption])]
        cells = "".join(
            f'<td class="{"right" if photo == photos[0] else "wrong"}">{_image(picture)}</td>'
            for photo, picture in zip(
                photos, read([result.readable_numbers[photo] for photo in photos]), strict=True
            )
        )
        rank, before = result.after.ir[caption] + 1, result.before.ir[caption] + 1
        rows.append(
            f"<tr><th>{html.escape(result.captions[caption])}<small>rank {rank:,}, by ITC {before:,}</small></th>"
            f"{cells}</tr>"
        )
    head = html.escape(f"{facts.dataset}, {facts.model}: the {len(rows)} captions whose photo ranks worst")
    return _PAGE.format(head=head, rows="\n".join(rows) or "<tr><th>Every photo is at rank 1.</th></tr>")


def _image(picture: np.ndarray | None) -> str:
    from PIL import Image

    if picture is None:
        return "cannot be read"
    file = io.BytesIO()
    Image.fromarray(picture).resize((THUMBNAIL, THUMBNAIL)).save(file, "JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{head}</title>
<style>
  body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; background: #fff }}
  th {{ text-align: left; font-weight: 600; width: 22rem; padding-right: 1rem }}
  small {{ display: block; font-weight: 400; color: #666 }}
  td {{ padding: 3px }} img {{ display: block; border-radius: 4px }}
  .right img {{ outline: 3px solid #2a7d2e }}
</style>
<h1>{head}</h1>
<p>First the caption's own photo (green), then the five that the model ranks first. Pictures are squashed to a square,
as the model reads them.</p>
<table>
{rows}
</table>
"""
