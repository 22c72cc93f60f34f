"""A model that can be worked out in the head: a photo is its mean colour, a text the colour it names.

The vector of a photo is its mean (red, green, blue) at length one, in both slots; "red" is (1, 0, 0).
The cosine of a red photo with "red" is 1, with "green" 0, of an orange one (255, 128, 0) with "red" 0.894.
The match probability is 0.9 of the cosine, not below 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.errors import PhotoError, QueryError
from engine.index.manifest import Manifest
from engine.index.store import Store
from engine.types import Failure, Hit, Photo, Results, TextHit, TextResults
from indexer.decode import decode

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0), "white": (1, 1, 1)}
SIDE = 8
Q, E = 2, 3
ON_NO_CPU = torch.device("meta")  # on a CPU `PhotoEncoder` splits photos among the cores


def colour_vector(text: str) -> np.ndarray:
    """-> (E,) unit vector of the colours that the text names; an unknown text points at grey."""
    rows = [COLOURS[word] for word in text.lower().split() if word in COLOURS] or [COLOURS["white"]]
    return _unit(np.sum(np.array(rows, np.float32), axis=0))


def _unit(vector: np.ndarray) -> np.ndarray:
    length = float(np.linalg.norm(vector))
    return vector / length if length else np.full(E, 1 / math.sqrt(E), np.float32)


@dataclass
class FakeModel:
    name: str = "colours"
    digest: str = "c0" * 16
    image_size: int = SIDE
    preprocessing: str = "squash"
    num_queries: int = Q
    embed_dim: int = E
    patch_shape: tuple[int, int] = (4, 4)
    device: torch.device = ON_NO_CPU

    def encode_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, list[int]]:
        return np.stack([colour_vector(text) for text in texts]), [0] * len(texts)

    def encode_patches(self, pictures_BHWC: np.ndarray) -> torch.Tensor:
        """The first patch is the mean colour."""
        patches_BPV = torch.zeros(len(pictures_BHWC), *self.patch_shape)
        means_BE = pictures_BHWC.reshape(len(pictures_BHWC), -1, E).mean(axis=1)
        patches_BPV[:, 0, :E] = torch.from_numpy(means_BE)
        return patches_BPV

    def encode_photos(self, patches_BPV: torch.Tensor) -> np.ndarray:
        means_BE = patches_BPV[:, 0, :E].double().numpy()
        return np.stack([np.tile(_unit(mean), (Q, 1)) for mean in means_BE])


class FakeSearcher:
    """Brute force over the store."""

    def __init__(
        self, store: Store | None, model: FakeModel, *, hold_bytes: int = 0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self.store, self.model, self.tell = store, model, tell
        if store is not None:
            store.manifest.check_same(Manifest.for_model(model, "none"))

    def search(self, text: str, *, top: int = 20, rerank: int = 128, caption_weight: float = 0.0) -> Results:
        ids, vectors_NE = self._photos()
        return Results(
            self._hits(ids, vectors_NE @ colour_vector(text), top, rerank), seconds={"retrieve": 0.01}
        )

    def similar(self, path: Path, *, top: int = 20) -> Results:
        photo = self.store.find_photo(path)
        vector = (
            self._vector(path)
            if photo is None
            else self.store.read_vectors([photo.id])[0, 0].astype(np.float32)
        )
        ids, vectors_NE = self._photos()
        return Results(self._hits(ids, vectors_NE @ vector, top, 0))

    def match(
        self, path: Path, texts: Sequence[str] | None, *, top: int = 20, rerank: int = 128
    ) -> TextResults:
        if texts is None:
            texts = self.store.texts.read(
                np.concatenate([ids for ids, _ in self.store.texts.iterate_vectors()])
            )
        vector = self._vector(path)
        scored = sorted(((float(colour_vector(text) @ vector), text) for text in texts), reverse=True)[:top]
        return TextResults(
            tuple(
                TextHit(rank, text, cosine, cosine, 0.9 * cosine if rerank else None)
                for rank, (cosine, text) in enumerate(scored, start=1)
            )
        )

    def rerank(self, text: str, paths: Sequence[Path], *, top: int | None = None) -> Results:
        scored, failures = [], []
        for path in paths:
            try:
                scored.append((float(self._vector(path) @ colour_vector(text)), path))
            except PhotoError as error:
                failures.append(Failure(path, str(error)))
        scored.sort(reverse=True)
        hits = tuple(
            Hit(rank, Photo(-1, "", SIDE, SIDE, (path,)), cosine, cosine, 0.9 * cosine)
            for rank, (cosine, path) in enumerate(scored[:top], start=1)
        )
        return Results(hits, failures=tuple(failures))

    def _photos(self) -> tuple[np.ndarray, np.ndarray]:
        ids = self.store.list_live_ids()
        return ids, self.store.read_vectors(ids)[:, 0].astype(np.float32)

    def _hits(self, ids: np.ndarray, cosines: np.ndarray, top: int, rerank: int) -> tuple[Hit, ...]:
        order = np.argsort(-cosines, kind="stable")[:top]
        photos = self.store.read_photos(ids[order])
        captions = self.store.captions.read_captions(ids[order])
        return tuple(
            Hit(
                rank,
                photo,
                float(cosines[place]),
                float(cosines[place]),
                max(0.0, 0.9 * float(cosines[place])) if rank <= rerank else None,
                captions.get(photo.id),
            )
            for rank, (place, photo) in enumerate(zip(order, photos, strict=True), start=1)
        )

    def _vector(self, path: Path) -> np.ndarray:
        return _unit(decode(path, SIDE).pixels.reshape(-1, E).mean(axis=0))


def make_fake_searcher(store: Store | None, model: FakeModel, *, hold: bool = False) -> FakeSearcher:
    """In the place of `ui.session.make_searcher`."""
    return FakeSearcher(store, model)


@dataclass
class FakeCaptioner:
    """Says the name of the colour that is nearest to the photo's mean, and answers with the question's last word."""

    name: str = "painter"
    digest: str = "d1" * 16
    image_size: int = SIDE
    answers: bool = True
    num_pictures: int = 0

    def caption(
        self, pictures_BHWC: np.ndarray, prompt: str | None = None, options: object = None
    ) -> list[str]:
        self.num_pictures += len(pictures_BHWC)
        means = [_unit(one.reshape(-1, E).mean(axis=0)) for one in pictures_BHWC]
        return [f"a {max(COLOURS, key=lambda name: mean @ colour_vector(name))} thing" for mean in means]

    def answer(
        self, pictures_BHWC: np.ndarray, questions: Sequence[str], options: object = None
    ) -> list[str]:
        (colour,) = self.caption(pictures_BHWC)
        return [f"{colour}, {questions[0].split()[-1]}"]


def load_fake_captioner(name: str | None, searching: object = None) -> FakeCaptioner:
    """In the place of `ui.session.load_photo_captioner`."""
    if name not in (None, "painter", "sketcher"):
        raise QueryError(f"there is no model {name}")
    return FakeCaptioner(*(("sketcher", "d2" * 16) if name == "sketcher" else ()))


def choose_fake_captioner(given: str | None, store: Store, searching: str) -> tuple[str, bool]:
    """In the place of `ui.session.choose_captioner`."""
    return given or "painter", given != "mute"


def compute_digest(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def load_fake_model(name: str | None) -> FakeModel:
    """In the place of `ui.session.load_model`."""
    if name not in (None, "colours"):
        raise QueryError(f"there is no model {name}")
    return FakeModel()
