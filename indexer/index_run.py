"""Run a whole indexing job: open or create the index, add photos, texts and captions, then write the FAISS files.

A program makes an `IndexRun` and calls `run`. Nothing is printed here: a run tells a `RunListener` what it does, so
that a terminal, a page or a server can show it in its own way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.errors import IndexStateError, QueryError
from engine.index.manifest import Manifest, has_index
from engine.index.store import Store
from engine.index.writer_lock import lock_folder
from engine.models.photo_encoder import PhotoEncoder
from engine.pictures.formats import PHOTO_SUFFIXES
from engine.progress import Progress
from engine.vectors.table_indexes import open_caption_index, open_photo_index, open_text_index
from indexer.build import BuildReport, build_index, estimate_bytes
from indexer.caption_run import CaptionReport, index_captions
from indexer.reindex import (
    Contents,
    carry_captions,
    finish_interrupted,
    open_new_store,
    read_contents,
    replace_old_index,
)
from indexer.scan import scan

if TYPE_CHECKING:
    from engine.models.photo_captioners import PhotoCaptioner
    from engine.models.retrieval_model import RetrievalModel

# "auto" keeps a photo's patches up to this size: mini's, but not the 0.72 MB of ViT-g.
AUTO_PATCH_BYTES = 150_000
TEXT_BATCH = 1024


@dataclass(frozen=True)
class RunRequest:
    """The request to a run.

    folder: the folder of the index. roots: absolute folders of photos; none where only texts or captions are added.
    model: name or folder of a model; None takes the one that made the index, or the default. features: how the patches
    of each photo are kept, "store", "int8", "none", or "auto", which keeps them where they are small. texts: texts to
    index as well. captions: whether to write a caption of each photo that has none. captioner: name or folder of the
    captioner; None takes the one that wrote most of the index's captions, or the default. workers: number of processes
    that decode, None for one on each processor. retry_failed: whether to read photos again that failed before. remake:
    whether to make the index anew, with all the folders that it knows.
    """

    folder: Path
    roots: Sequence[Path] = ()
    model: str | None = None
    features: str = "auto"
    texts: Sequence[str] = ()
    captions: bool = False
    captioner: str | None = None
    workers: int | None = None
    retry_failed: bool = False
    remake: bool = False


@dataclass(frozen=True)
class RunReport:
    """The report of a run. photos: None where no folder was given. captions: None where none were asked for."""

    photos: BuildReport | None
    captions: CaptionReport | None


class RunStopped(KeyboardInterrupt):
    """Ctrl-C came while a run filled an index. Committed work stays, and the same run goes on from there.

    num_photos: number of photos in the index that was being filled. remake: whether an old index still answers.
    """

    def __init__(self, num_photos: int, *, remake: bool) -> None:
        super().__init__()
        self.num_photos, self.remake = num_photos, remake


class RunListener(Protocol):
    """The interface of an object that hears what a run does."""

    def progress(self) -> AbstractContextManager[Callable[[Progress], None]]:
        """Return a context for one part of a run; its function is called a few times a second."""

    def photos_to_read(self, num_photos: int, num_bytes: int) -> None:
        """Hear before photos are read how many there are, and about how many bytes of disk they will take."""

    def texts_added(self, num_new: int, num_texts: int) -> None:
        """Hear after texts were added how many were new, and how many the index holds now."""

    def captioner_chosen(self, name: str, num_replaced: Mapping[str, int]) -> None:
        """Hear before captions are written which captioner writes them, and how many of each other one it replaces."""

    def captions_missing(self, num_photos: int) -> None:
        """Hear that the index has captions and that so many photos, at least 1, will stay without one."""

    def remake_begins(self) -> None:
        """Hear that an index will be made anew beside the old one."""


class ProgressListener:
    """A RunListener for programs, which hands on the progress and ignores everything else.

    on_progress: called a few times a second; None is told nothing.
    """

    def __init__(self, on_progress: Callable[[Progress], None] | None = None) -> None:
        self._on_progress = on_progress or (lambda progress: None)

    @contextmanager
    def progress(self) -> Iterator[Callable[[Progress], None]]:
        yield self._on_progress

    def photos_to_read(self, num_photos: int, num_bytes: int) -> None: ...
    def texts_added(self, num_new: int, num_texts: int) -> None: ...
    def captioner_chosen(self, name: str, num_replaced: Mapping[str, int]) -> None: ...
    def captions_missing(self, num_photos: int) -> None: ...
    def remake_begins(self) -> None: ...


@dataclass(frozen=True)
class IndexRun:
    """One run of indexing.

    load_model: loads the retrieval model of a name, None for the default. load_captioner: loads the captioner of a
    name, None for the default; it may use the retrieval model that it is given. listener: hears what the run does.
    """

    request: RunRequest
    load_model: Callable[[str | None], RetrievalModel]
    load_captioner: Callable[[str | None, RetrievalModel], PhotoCaptioner]
    listener: RunListener

    def run(self) -> RunReport:
        """Do what the request asks for.

        Raises IndexStateError when there is no index to remake or to caption, when another model made it, and when
        another process writes it; QueryError when a folder is not there or holds no photo, and when a text is empty;
        RunStopped on Ctrl-C.
        """
        request = self.request
        finish_interrupted(request.folder)
        is_there = has_index(request.folder)
        if request.remake and is_there:
            return self._remake()
        if not (request.roots or is_there) and (request.remake or request.captions):
            purpose = "to make anew" if request.remake else "to caption"
            raise IndexStateError(
                f"There is no index at {request.folder} {purpose}. Name a folder of photos."
            )
        store, model = self._open_or_create()
        return self._fill(store, model)

    def _open_or_create(self) -> tuple[Store, RetrievalModel]:
        """Open the index, or create one unless its folders are not there or hold no photo."""
        folder, roots, features = self.request.folder, self.request.roots, self.request.features
        if not has_index(folder):
            if roots and not any([next(scan(root), None) for root in roots]):
                raise no_photos_error(roots)
            model = self.load_model(self.request.model)
            return Store.create(folder, make_manifest(model, features)), model
        store = Store.open(folder)
        model = self.load_model(self.request.model or store.manifest.model)
        store.manifest.check_same(make_manifest(model, features))
        if features not in ("auto", store.manifest.features):
            raise IndexStateError(
                f"The index was made with --features {store.manifest.features}. To change it to {features}, give "
                "--reindex as well."
            )
        return store, model

    def _remake(self) -> RunReport:
        """Make the index anew beside the old one, and put it in its place."""
        folder = self.request.folder
        with lock_folder(folder):
            old = read_contents(folder, self.request.roots)
            model = self.load_model(self.request.model or old.model)
            store = open_new_store(folder, make_manifest(model, self.request.features))
            self.listener.remake_begins()
            request = replace(
                self.request, roots=old.roots, texts=[*old.texts, *self.request.texts], retry_failed=False
            )
            report = replace(self, request=request)._fill(store, model, old)
            replace_old_index(folder)
        return report

    def _fill(self, store: Store, model: RetrievalModel, old: Contents | None = None) -> RunReport:
        """Index photos, then texts, then captions. old: the contents of the index that this one will replace."""
        photos, captions = None, None
        try:
            if self.request.roots:
                photos = self._add_photos(store, model)
            if self.request.texts:
                self._add_texts(store, model)
            if old is not None:
                carry_captions(old, store, model)
            if self.request.captions:
                captions = self._write_captions(store, model)
            else:
                self._tell_missing_captions(store)
            save_indexes(store)
        except KeyboardInterrupt:
            raise RunStopped(store.num_photos, remake=old is not None) from None
        return RunReport(photos and replace(photos, disk_bytes=store.measure_disk_bytes()), captions)

    def _add_photos(self, store: Store, model: RetrievalModel) -> BuildReport:
        with PhotoEncoder(model, store.manifest.features) as encoder, self.listener.progress() as update:

            def on_progress(progress: Progress) -> None:
                if progress.done == 0:
                    self.listener.photos_to_read(
                        progress.total, estimate_bytes(progress.total, store.manifest)
                    )
                update(progress)

            return build_index(
                self.request.roots,
                store,
                encoder,
                workers=self.request.workers,
                retry_failed=self.request.retry_failed,
                on_progress=on_progress,
            )

    def _add_texts(self, store: Store, model: RetrievalModel) -> None:
        num_new = add_texts(store, model, self.request.texts)
        self.listener.texts_added(num_new, store.texts.count())

    def _write_captions(self, store: Store, model: RetrievalModel) -> CaptionReport:
        """Write the missing captions of the photos below the roots, or of all photos without roots."""
        counts = store.captions.count_by_captioner()
        captioner = self.load_captioner(self.request.captioner or next(iter(counts), None), model)
        others = {name: count for name, count in counts.items() if name != captioner.name}
        self.listener.captioner_chosen(captioner.name, others)
        with self.listener.progress() as update:
            return index_captions(
                store,
                captioner,
                model.encode_texts,
                roots=self.request.roots,
                workers=self.request.workers,
                on_progress=update,
            )

    def _tell_missing_captions(self, store: Store) -> None:
        num_missing = store.num_photos - store.num_captions if store.captions.version else 0
        if num_missing:
            self.listener.captions_missing(num_missing)


def make_manifest(model: RetrievalModel, features: str) -> Manifest:
    """Make the manifest of an index that a model will make. features: "auto" keeps the patches where they are small."""
    manifest = Manifest.for_model(model, "store" if features == "auto" else features)
    if features == "auto" and manifest.patch_bytes_per_photo > AUTO_PATCH_BYTES:
        return Manifest.for_model(model, "none")
    return manifest


def add_texts(store: Store, model: RetrievalModel, texts: Sequence[str]) -> int:
    """Index texts, so that a photo can find them, and return how many were new. Raises QueryError for an empty text."""
    num_before = store.texts.count()
    for start in range(0, len(texts), TEXT_BATCH):
        batch = [text.strip() for text in texts[start : start + TEXT_BATCH]]
        store.texts.add(batch, model.encode_texts(batch)[0].astype(np.float16))
    return store.texts.count() - num_before


def save_indexes(store: Store) -> None:
    """Write the FAISS files now, so that the first search need not."""
    open_photo_index(store).close()
    open_text_index(store).close()
    if store.captions.version:
        open_caption_index(store).close()


def no_photos_error(roots: Sequence[Path]) -> QueryError:
    """Return the error for roots that hold no photo."""
    return QueryError(
        f"There are no photos in {', '.join(map(str, roots))}. qseek looks for files that are not hidden and end in "
        f"{' '.join(sorted(PHOTO_SUFFIXES))}."
    )
