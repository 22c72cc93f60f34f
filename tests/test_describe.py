"""Captions from the ITG head: equal to a search that computes every text anew and keeps all of them."""

import itertools

import pytest
import torch

from engine.blip2.config import Blip2Config, QFormerConfig, VisionConfig
from engine.blip2.describe import describe
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
    return net, net.photo_keys(torch.randn(3, 4, 64))


def log_prob(
    net: Retriever, keys: list[tuple[torch.Tensor, torch.Tensor]], row: int, ids: list[int]
) -> float:
    """Of ids[1:], each given those before, in one pass without a cache."""
    _, past = net.qformer.read_photos([(k[row : row + 1], v[row : row + 1]) for k, v in keys])
    one = torch.tensor([ids])
    logits = net.caption_logits(past, one, torch.ones_like(one, dtype=torch.bool))
    return float(logits.log_softmax(-1)[0, :-1].gather(1, one[0, 1:, None]).sum())


def test_greedy_takes_the_likeliest_token() -> None:
    net, keys = small()
    got = describe(net, keys, dec_id=DEC, sep_id=SEP, max_length=6, min_length=3)
    for row in range(3):
        ids = [DEC]
        while len(ids) < 6 and ids[-1] != SEP:
            words = [w for w in range(7) if w != SEP or len(ids) >= 3]
            ids.append(max(words, key=lambda w: log_prob(net, keys, row, [*ids, w])))
        assert got[row].tolist() == (ids + [PAD] * 6)[: got.shape[1]]
    assert len({tuple(row) for row in got.tolist()}) > 1


def test_as_many_beams_as_texts_find_the_best_of_all() -> None:
    """With every text of two words among the beams, the answer is the best of them all."""
    net, keys = small()
    got = describe(net, keys, dec_id=DEC, sep_id=SEP, num_beams=49, max_length=3)
    for row in range(3):
        texts = [[DEC, a, b] for a, b in itertools.product(range(7), range(7)) if a != SEP]
        scored = {
            (*t,): log_prob(net, keys, row, t) / 3 if t[2] != SEP else log_prob(net, keys, row, t) / 2
            for t in texts
        }
        scored[(DEC, SEP)] = log_prob(net, keys, row, [DEC, SEP])
        best = max(scored, key=lambda t: scored[t])
        assert tuple(i for i in got[row].tolist() if i != PAD) == tuple(i for i in best if i != PAD)


def test_a_batch_gives_what_each_photo_gives_alone() -> None:
    net, keys = small()
    for beams in (1, 3):
        together = describe(net, keys, dec_id=DEC, sep_id=SEP, num_beams=beams, max_length=7)
        for row in range(3):
            one = [(k[row : row + 1], v[row : row + 1]) for k, v in keys]
            alone = describe(net, one, dec_id=DEC, sep_id=SEP, num_beams=beams, max_length=7)[0].tolist()
            assert together[row].tolist() == (alone + [PAD] * 7)[: together.shape[1]]


@pytest.mark.parametrize(
    "wrong", [{"num_beams": 0}, {"min_length": 0}, {"max_length": 9}, {"min_length": 31}]
)
def test_lengths_and_beams_out_of_range(wrong: dict[str, int]) -> None:
    net, keys = small()
    with pytest.raises(ValueError, match="takes at least one beam"):
        describe(net, keys, dec_id=DEC, sep_id=SEP, **{"max_length": 8} | wrong)
