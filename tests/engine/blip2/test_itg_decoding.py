"""The ITG head writes the captions of a search that computes every text anew and keeps all of them.

Drawn captions are as frequent as the model says.
"""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from caption_logits import caption_logits

from engine.blip2.config import Blip2Config, QFormerConfig, VisionConfig
from engine.blip2.itg_decoding import draw_nucleus, sample_captions, search_captions
from engine.blip2.retriever import Retriever

DEC, SEP, PAD = 6, 5, 0


def small() -> tuple[Retriever, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(3)
    qformer = QFormerConfig(
        num_layers=2, width=16, num_heads=2, mlp_width=32, num_queries=3, vocab_size=7, max_positions=8, dropout=0.0
    )  # fmt: skip
    net = Retriever(Blip2Config(VisionConfig("test_vit", 32, 64, {"img_size": 32}), qformer, max_tokens=8))
    net = net.eval().requires_grad_(False)
    for name, value in net.named_parameters():
        if value.ndim > 1 and "vision" not in name:
            value.mul_(12)  # texts that depend on the photo and on what was written
    return net, net.compute_photo_keys(torch.randn(3, 4, 64))


def log_prob(
    net: Retriever, keys: list[tuple[torch.Tensor, torch.Tensor]], row: int, ids: list[int]
) -> float:
    """Return the log-probability of each of ids[1:] given the ids before it, in one pass without a cache."""
    _, past = net.qformer.read_photos([(k[row : row + 1], v[row : row + 1]) for k, v in keys])
    ids_BT = torch.tensor([ids])
    logits = caption_logits(net, past, ids_BT, torch.ones_like(ids_BT, dtype=torch.bool))
    return float(logits.log_softmax(-1)[0, :-1].gather(1, ids_BT[0, 1:, None]).sum())


def test_greedy_takes_the_likeliest_token() -> None:
    net, keys = small()
    actual = search_captions(net, keys, dec_id=DEC, sep_id=SEP, max_length=6, min_length=3)
    for row in range(3):
        ids = [DEC]
        while len(ids) < 6 and ids[-1] != SEP:
            words = [w for w in range(7) if w != SEP or len(ids) >= 3]
            ids.append(max(words, key=lambda w: log_prob(net, keys, row, [*ids, w])))
        assert actual[row].tolist() == (ids + [PAD] * 6)[: actual.shape[1]]
    assert len({tuple(row) for row in actual.tolist()}) > 1


def test_as_many_beams_as_texts_find_the_best_of_all() -> None:
    """When the beams hold every text of two words, the search returns the best of all texts."""
    net, keys = small()
    actual = search_captions(net, keys, dec_id=DEC, sep_id=SEP, num_beams=49, max_length=3)
    for row in range(3):
        texts = [[DEC, a, b] for a, b in itertools.product(range(7), range(7)) if a != SEP]
        scored = {
            (*t,): log_prob(net, keys, row, t) / 3 if t[2] != SEP else log_prob(net, keys, row, t) / 2
            for t in texts
        }
        scored[(DEC, SEP)] = log_prob(net, keys, row, [DEC, SEP])
        best = max(scored, key=lambda t: scored[t])
        assert tuple(i for i in actual[row].tolist() if i != PAD) == tuple(i for i in best if i != PAD)


def test_a_batch_gives_what_each_photo_gives_alone() -> None:
    net, keys = small()
    for beams in (1, 3):
        together = search_captions(net, keys, dec_id=DEC, sep_id=SEP, num_beams=beams, max_length=7)
        for row in range(3):
            keys_of_row = [(k[row : row + 1], v[row : row + 1]) for k, v in keys]
            alone = search_captions(net, keys_of_row, dec_id=DEC, sep_id=SEP, num_beams=beams, max_length=7)[
                0
            ].tolist()
            assert together[row].tolist() == (alone + [PAD] * 7)[: together.shape[1]]


@pytest.mark.parametrize(
    "wrong", [{"num_beams": 0}, {"min_length": 0}, {"max_length": 9}, {"min_length": 31}]
)
def test_lengths_and_beams_out_of_range(wrong: dict[str, int]) -> None:
    net, keys = small()
    with pytest.raises(ValueError, match="allowed are at least one beam"):
        search_captions(net, keys, dec_id=DEC, sep_id=SEP, **{"max_length": 8} | wrong)


Keys = list[tuple[torch.Tensor, torch.Tensor]]


def drawn(net: Retriever, keys: Keys, seed: int = 0, **options: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sample_captions(
        net, keys, generator, dec_id=DEC, sep_id=SEP, **{"num_samples": 4, "max_length": 7} | options
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("certain", [{"top_p": 1e-9}, {"top_p": 1.0, "temperature": 1e-6}])
def test_without_chance_all_samples_are_greedys(certain: dict[str, float]) -> None:
    net, keys = small()
    for min_length in (1, 5):
        greedy = search_captions(net, keys, dec_id=DEC, sep_id=SEP, max_length=7, min_length=min_length)
        actual = drawn(net, keys, min_length=min_length, **certain)
        assert actual.shape == (3, 4, greedy.shape[1])
        assert (actual == greedy[:, None]).all() and len(greedy.unique(dim=0)) > 1


def truncated(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return the nucleus computed by hand: the fewest likeliest words that reach the share, scaled to sum to 1."""
    nucleus = torch.zeros_like(probabilities)
    for word in probabilities.argsort(descending=True).tolist():
        if float(nucleus.sum()) >= top_p:
            break
        nucleus[word] = probabilities[word]
    return nucleus / nucleus.sum()


@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (0.6, 1.0), (0.9, 2.5)])
def test_first_words_come_as_often_as_the_model_says(top_p: float, temperature: float) -> None:
    """First words come as often as their probability says, and so do second words after the likeliest first word."""
    net, keys = small()
    count = 5000
    actual = drawn(net, keys, num_samples=count, max_length=3, top_p=top_p, temperature=temperature)

    def expected(row: int, ids: list[int]) -> torch.Tensor:
        every = torch.tensor([log_prob(net, keys, row, [*ids, word]) for word in range(7)])
        base = log_prob(net, keys, row, ids) if len(ids) > 1 else 0.0
        return truncated(((every - base) / temperature).softmax(-1), top_p)

    def is_close(words: torch.Tensor, want: torch.Tensor) -> bool:
        share = words.bincount(minlength=7) / len(words)
        # words outside the nucleus never come: their share may be off by nothing
        return bool(((share - want).abs() < 5 * (want * (1 - want) / len(words)).sqrt() + 1e-9).all())

    for row in range(3):
        want = expected(row, [DEC])
        assert is_close(actual[row, :, 1], want)
        first = int(want.masked_fill(torch.arange(7) == SEP, 0).argmax())
        assert is_close(actual[row, actual[row, :, 1] == first, 2], expected(row, [DEC, first]))
    other = expected(1, [DEC])
    assert not all(is_close(actual[row, :, 1], other) for row in range(3))  # the photo decides


def test_a_nucleus_larger_than_what_is_ordered_first() -> None:
    """All of 1,000 equally likely words are drawn, and only 3 where the others are a thousand times less likely."""
    draws = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    flat = torch.zeros(1, 1000).expand(len(draws), -1)
    assert len(draw_nucleus(flat, 1.0, draws).unique()) > 950
    steep = flat.clone()
    steep[:, 7:10] = 20.0
    assert Counter(draw_nucleus(steep, 0.9, draws).tolist()).keys() == {7, 8, 9}
    assert draw_nucleus(steep, 1.0, torch.full((len(steep),), 1 - 2**-24)).max() < 1000


def test_samples_are_a_function_of_the_seed() -> None:
    net, keys = small()
    first = drawn(net, keys, num_samples=30)
    assert torch.equal(first, drawn(net, keys, num_samples=30))
    assert not torch.equal(first, drawn(net, keys, seed=1, num_samples=30))
    assert len(first[0].unique(dim=0)) > 5


def test_samples_are_as_long_as_they_may() -> None:
    net, keys = small()
    ends = [
        drawn(net, keys, num_samples=200, min_length=low, max_length=high, top_p=1.0)
        for low, high in ((1, 7), (5, 7), (1, 4))
    ]
    for actual, (low, high) in zip(ends, ((1, 7), (5, 7), (1, 4)), strict=True):
        assert actual.shape[2] <= high and (actual[:, :, 0] == DEC).all()
        is_end = actual == SEP
        places = is_end.long().argmax(dim=2)[is_end.any(dim=2)]
        assert len(places) and int(places.min()) == low  # so early that one more word would be asked for
        after = is_end.long().cumsum(dim=2) - is_end.long() > 0
        assert (actual[after] == PAD).all()


@pytest.mark.parametrize(
    "wrong", [{"num_samples": 0}, {"top_p": 0.0}, {"top_p": 1.1}, {"temperature": 0.0}, {"max_length": 9}]
)
def test_draws_out_of_range(wrong: dict[str, float]) -> None:
    net, keys = small()
    with pytest.raises(ValueError, match="allowed are at least one sample"):
        drawn(net, keys, **wrong)
