"""Batches of patches that were computed once: equal for any number of processes, captions beside their pictures."""

from __future__ import annotations

import pytest
import torch

from engine.datasets.captioned_pictures import CaptionedPicture
from engine.errors import DataError
from training.batches.encoded_views import EncodedViews
from training.distributed.world import World
from training.loop.optimizer import OptimConfig

OPTIM = OptimConfig(steps=4, batch=4, lr=1e-3, seed=3)
SAMPLES = [CaptionedPicture(str(n), b"", (f"{n} a", f"{n} b", f"{n} c")) for n in range(8)]
VIEWS = torch.arange(16.0).view(8, 2, 1, 1)
"""The two views of picture n are the numbers 2n and 2n + 1."""


def test_a_step_gives_the_same_batch_in_any_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = EncodedViews(VIEWS, SAMPLES, OPTIM)[5]
    parts = []
    for rank in range(2):
        monkeypatch.setattr("training.batches.encoded_views.current_world", lambda rank=rank: World(rank, 2))
        parts.append(EncodedViews(VIEWS, SAMPLES, OPTIM)[5])
    assert isinstance(whole.images, torch.Tensor) and whole.draws is not None
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)  # type: ignore[misc]
    assert [caption for part in parts for caption in part.captions] == list(whole.captions)
    assert [int(n) for part in parts for n in part.picture_ids] == whole.picture_ids.tolist()
    draws = {float(torch.rand((), generator=batch.draws)) for batch in (whole, *parts)}
    assert len(draws) == 1, "the next random number must be equal in all processes"


@pytest.mark.parametrize("draws_from_torch", [False, True])
def test_views_and_captions_belong_to_their_pictures(draws_from_torch: bool) -> None:
    source = EncodedViews(VIEWS, SAMPLES, OPTIM, draws_from_torch=draws_from_torch)
    torch.manual_seed(0)
    seen = set()
    for step in range(40):
        batch = source[step]
        assert isinstance(batch.images, torch.Tensor)
        views = batch.images.flatten().int().tolist()
        for number, view, caption in zip(batch.picture_ids.tolist(), views, batch.captions, strict=True):
            assert view // 2 == number and caption.split()[0] == str(number)
            seen.add((view % 2, caption.split()[1]))
    assert len(seen) == 6


def test_captions_of_a_single_process_are_drawn_while_they_are_iterated() -> None:
    """The random numbers that a task draws for a pair come right after the pair's caption."""
    source = EncodedViews(VIEWS, SAMPLES, OPTIM, draws_from_torch=True)
    torch.manual_seed(0)
    batch = source[0]
    assert batch.draws is None
    expected = torch.get_rng_state()
    captions = iter(batch.captions)
    assert torch.equal(torch.get_rng_state(), expected)
    first = next(captions)
    torch.set_rng_state(expected)
    assert first.split()[1] == "abc"[int(torch.randint(3, ()))]


def test_missing_captions_and_small_sets_are_refused() -> None:
    with pytest.raises(DataError, match=r"1 pictures have no caption \(first: bare\)"):
        EncodedViews(VIEWS, [*SAMPLES[:7], CaptionedPicture("bare", b"")], OPTIM)
    with pytest.raises(DataError, match="3 pictures are fewer than a batch of 4"):
        EncodedViews(VIEWS, SAMPLES[:3], OPTIM)


def test_settings_change_with_a_caption() -> None:
    changed = [*SAMPLES[:7], CaptionedPicture("7", b"", ("another",))]
    assert EncodedViews(VIEWS, SAMPLES, OPTIM).settings() != EncodedViews(VIEWS, changed, OPTIM).settings()
