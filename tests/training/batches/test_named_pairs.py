"""Photos whose class is sure stand behind the captioned pairs of a batch, each with one of the names of its class."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from eight_pairs import CAPTIONS, make_eight_pairs, stage1_config
from torch import Tensor

from training.batches.encoded_views import EncodedViews
from training.batches.named_pairs import NamedPairs

CHURCH, TENCH = 497, 0


class FakeClassifier:
    """A classifier that reads the class of a photo, and how sure it is, from the first two values of its patches."""

    def classify(self, patches_BPV: Tensor) -> Tensor:
        probabilities = torch.full((len(patches_BPV), 1000), 1e-6)
        for row, (label, probability) in enumerate(patches_BPV[:, 0, :2].tolist()):
            probabilities[row, int(label)] = probability
        return probabilities


def named_set(*photos: tuple[int, float]) -> Tensor:
    """Return patches (N, 2, 1, 64) of photos with a class and its probability; the second view has 1 at the end."""
    patches = torch.zeros(len(photos), 2, 5, 64)
    for row, values in enumerate(photos):
        patches[row, :, :, :2] = torch.tensor(values)
        patches[row, 1, :, 63] = 1
    return patches


@pytest.fixture
def pairs() -> NamedPairs:
    config = stage1_config()
    _, _, patches, samples = make_eight_pairs(config)
    source = EncodedViews(patches.float(), samples, replace(config.optim, batch=5))
    sets = [named_set((TENCH, 0.9), (CHURCH, 0.4)), named_set((CHURCH, 0.2)), named_set((CHURCH, 0.5))]
    return NamedPairs(source, sets, [1.0, 5.0, 1.0], ["a", "b", "c"], FakeClassifier(), 3, 0.5)  # type: ignore[arg-type]


def test_named_photos_come_behind_the_captioned_ones(pairs: NamedPairs) -> None:
    seen: Counter[int] = Counter()
    views, texts = set(), set()
    for step in range(60):
        batch, plain = pairs[step], pairs.source[step]
        assert isinstance(batch.images, Tensor) and isinstance(plain.images, Tensor)
        assert batch.images.shape == (8, 5, 64) and torch.equal(batch.images[:5], plain.images)
        captions = list(batch.captions)
        assert captions[:5] == list(plain.captions) and captions[0] in sum(CAPTIONS, ())
        assert batch.picture_ids[:5].tolist() == plain.picture_ids.tolist() and len(batch.questions) == 8
        for image, caption, picture_id in zip(
            batch.images[5:], captions[5:], batch.picture_ids[5:], strict=True
        ):
            label, probability = int(image[0, 0]), float(image[0, 1])
            assert probability >= 0.5 and picture_id == -1 - label
            names = pairs.class_names.names[label] + [
                word for word, classes in pairs.class_names.broader.items() if label in classes
            ]
            assert any(name in caption for name in names)
            seen[label] += 1
            views.add(float(image[0, 63]))
            texts.add(caption)
    assert 60 < seen[TENCH] < 120 and seen[TENCH] + seen[CHURCH] == 180
    assert views == {0.0, 1.0} and len(texts) > 15


def test_a_step_is_the_same_each_time(pairs: NamedPairs) -> None:
    first, again = pairs[7], pairs[7]
    assert list(first.captions) == list(again.captions)
    assert isinstance(first.images, Tensor) and isinstance(again.images, Tensor)
    assert torch.equal(first.images, again.images)
    assert pairs.settings()["named"] == 2
