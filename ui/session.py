"""Open the store, the model and the searcher that the options --index and --model name.

The command line and the page open everything through this file. Heavy libraries are imported inside the functions:
lancedb takes a second or two, torch as long again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import IndexStateError
from engine.index.manifest import has_index
from engine.types import Caption, Results

if TYPE_CHECKING:
    from engine.index.store import Store
    from engine.models.photo_captioners import PhotoCaptioner
    from engine.models.retrieval_model import RetrievalModel
    from engine.progress import Progress
    from engine.search.searcher import Searcher
    from indexer.index_run import RunReport

CAPTIONER_VARIABLE = "QSEEK_CAPTION_MODEL"
"""The environment variable that names the captioner."""


def resolve_index_folder(folder: Path | None) -> Path:
    """Return the absolute folder of an index, where `folder` is None that of the index in the user's data folder."""
    if folder is not None:
        return folder.expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("qseek", appauthor=False) / "index"


def open_store(folder: Path) -> Store:
    """Open the store of an index. Raises IndexStateError: there is none, it is damaged, or a newer qseek wrote it."""
    from engine.index.store import Store

    return Store.open(folder)


def keep_freed_memory() -> None:
    """Let the C library keep what one pass of a model frees for the next pass, which is then faster on a processor.

    It changes the whole process: the command line and the page call it when they start, nothing else does.
    """
    from engine.models.malloc import keep_freed_memory

    keep_freed_memory()


def load_model(name: str | None) -> RetrievalModel:
    """Load a retrieval model by its name or folder, the bundled one without a name. Raises CheckpointError."""
    from engine.models.loading import load_model

    return load_model(name) if name else load_model()


def load_model_on_each_gpu(name: str | None) -> list[RetrievalModel]:
    """Load a retrieval model once on every GPU, or once on the processor without a GPU. Raises CheckpointError."""
    import torch

    from engine.models.catalogue import DEFAULT
    from engine.models.loading import load_model

    devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["auto"]
    return [load_model(name or DEFAULT, device=device) for device in devices]


def load_photo_captioner(name: str | None, searching: RetrievalModel | None = None) -> PhotoCaptioner:
    """Load a captioner by its name or folder, the default one without a name. Raises CheckpointError.

    searching: a retrieval model that is loaded already; it is not loaded again when it is the captioner as well.
    """
    from engine.models.photo_captioners import load_photo_captioner

    return load_photo_captioner(name, searching)


def get_default_captioner_name(folder: Path) -> str:
    """Return the name of the captioner that is used by default beside the index in `folder`, if there is one."""
    from engine.index.manifest import Manifest
    from engine.models.photo_captioners import choose_default_captioner

    try:
        return choose_default_captioner(Manifest.load(folder).model)
    except IndexStateError:
        return choose_default_captioner()


def choose_captioner(given: str | None, store: Store, searching: str) -> tuple[str, bool]:
    """Return the name of the captioner for an index, and whether it answers questions; nothing is loaded.

    The captioner is the given one, or the one that wrote most of the index's captions, or the default beside the
    retrieval model `searching`. Raises CheckpointError.
    """
    from engine.models.photo_captioners import choose_default_captioner, is_able_to_answer

    name = (
        given or next(iter(store.captions.count_by_captioner()), None) or choose_default_captioner(searching)
    )
    return name, is_able_to_answer(name)


def make_searcher(store: Store | None, model: RetrievalModel, *, hold: bool = False) -> Searcher:
    """Make a searcher of a store and a model. Raises IndexStateError when another model made the index.

    store: None makes a searcher that knows no photos, and can still rerank and match photos that it is given.
    hold: keep what is computed of photos for one question in memory for the next; for a process that answers many.
    """
    from engine.search.searcher import HOLD_BYTES, Searcher

    return Searcher(store, model, hold_bytes=HOLD_BYTES if hold else 0)


def open_searcher(folder: Path, model: str | None, tell: Callable[[str], None] | None = None) -> Searcher:
    """Open an index with the given model, or without one with the model that made the index.

    tell: called with a line of text where an answer takes long. Raises IndexStateError when there is no index, before
    the model is loaded; raises CheckpointError when there is no such model.
    """
    store = open_store(folder)
    searcher = make_searcher(store, load_model(model or store.manifest.model))
    return _with_tell(searcher, tell)


def open_searcher_with_or_without_index(
    folder: Path, model: str | None, tell: Callable[[str], None] | None = None
) -> Searcher:
    """Open an index where there is one, as `open_searcher` does; otherwise make a searcher that knows no photos."""
    if has_index(folder):
        return open_searcher(folder, model, tell)
    return _with_tell(make_searcher(None, load_model(model)), tell)


def _with_tell(searcher: Searcher, tell: Callable[[str], None] | None) -> Searcher:
    """Return the searcher after making it call `tell`, if that is given."""
    if tell is not None:
        searcher.tell = tell
    return searcher


def open_index(folder: Path | str | None = None, *, model: str | None = None) -> Searcher:
    """Open an index, so that it can be searched.

    folder: the index, by default the one under the user's data folder. model: name or folder of the model, by default
    the one that made the index. Raises IndexStateError: there is no index, it is damaged, or another model made it.
    Raises CheckpointError: there is no such model.
    """
    return open_searcher(resolve_index_folder(None if folder is None else Path(folder)), model)


def build_index(
    photos: Iterable[Path | str],
    folder: Path | str | None = None,
    *,
    model: str | None = None,
    texts: Sequence[str] = (),
    captions: bool = False,
    captioner: str | None = None,
    workers: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> RunReport:
    """Index the photos in folders; a second run reads only the photos that have changed.

    photos: the folders. folder: the index, by default the one under the user's data folder; it is made where there is
    none. model: name or folder of the model that makes the index. texts: these are indexed as well, so that `match`
    can find them for a photo. captions: write a caption of each photo that has none. captioner: the model that writes
    captions. workers: number of processes that read photos, by default one for each processor; 0 reads them in this
    process. on_progress: called a few times a second.

    Returns what was done, with the photos that could not be read. Raises QueryError: a folder is missing or holds no
    photo. Raises IndexStateError: another model made the index, or another process is writing it. Raises
    CheckpointError: there is no such model.
    """
    from indexer.index_run import IndexRun, ProgressListener, RunRequest

    request = RunRequest(
        resolve_index_folder(None if folder is None else Path(folder)),
        [Path(root).expanduser().absolute() for root in photos],
        model,
        texts=texts,
        captions=captions,
        captioner=captioner,
        workers=workers,
    )
    return IndexRun(request, load_model, load_photo_captioner, ProgressListener(on_progress)).run()


def add_captions(results: Results, searcher: Searcher, captioner: str | None) -> Results:
    """Return the results with a caption of every hit, writing the captions that the index does not hold.

    captioner: name or folder of the captioner whose captions are shown; captions of others are written anew. None
    keeps all captions of the index.
    """
    from engine.models.photo_captioners import is_called
    from engine.search.hit_captions import add_missing_captions

    def is_kept(caption: Caption) -> bool:
        return captioner is None or is_called(captioner, caption.writer)

    return add_missing_captions(results, lambda: load_photo_captioner(captioner, searcher.model), is_kept)
