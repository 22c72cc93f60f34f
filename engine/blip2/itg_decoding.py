"""Captions from the Q-Former's own text decoder, the ITG head (BLIP-2, section 3.2).

One token at a time, by beam search (one beam is greedy search) or drawn by chance; what was read stays in a cache of
keys and values.

Shapes: B photos, K beams, S samples, R = B * K or B * S rows, T tokens, Q queries, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.blip2.qformer import PhotoKeys
from engine.blip2.retriever import Retriever
from engine.errors import CheckpointError

NUCLEUS = 256
"""Of the vocabulary: so many of the likeliest words nearly always hold the share that is drawn from; to put all in
order takes several times as long as the pass that scored them."""


@torch.inference_mode()
def describe(
    net: Retriever,
    photo_keys: PhotoKeys,
    *,
    dec_id: int,
    sep_id: int,
    pad_id: int = 0,
    num_beams: int = 1,
    min_length: int = 1,
    max_length: int = 30,
) -> Tensor:
    """Photos -> token ids (B, T) int64: [DEC] first, then the caption, [SEP] where it ended, padded.

    photo_keys: see `QFormer.photo_keys`. min_length, max_length: of the ids with [DEC] and [SEP] counted, as LAVIS
    counts them; [SEP] cannot come at a place before min_length. Among ended captions the one with the largest mean
    log-probability of its tokens is returned ([DEC] counted in their number, as in transformers 4).
    Raises ValueError for lengths or beams out of range, CheckpointError for a model without an ITG head.
    """
    _check(net, min_length, max_length, num_beams >= 1, f"num_beams {num_beams}", "at least one beam")
    _, past = net.qformer.read_photos(photo_keys)
    batch = len(past[0][0])
    past = [(k.repeat_interleave(num_beams, 0), v.repeat_interleave(num_beams, 0)) for k, v in past]
    device = past[0][0].device
    ids_BKT = torch.full((batch, num_beams, 1), dec_id, device=device)
    scores_BK = torch.full((batch, num_beams), float("-inf"), device=device)
    scores_BK[:, 0] = 0.0  # the beams are equal at first: only one of them counts
    ended = [_Ended(num_beams) for _ in range(batch)]
    while ids_BKT.shape[2] < max_length and not all(e.full for e in ended):
        length = ids_BKT.shape[2]
        hidden, past = net.qformer.write_next(past, ids_BKT[:, :, -1].flatten(), length - 1)
        logits = net.caption_head(hidden, net.qformer.words)[:, 0].float()
        log_probs = logits.log_softmax(-1).view(batch, num_beams, -1)
        if length < min_length:
            log_probs[:, :, sep_id] = float("-inf")
        best, places = (scores_BK[:, :, None] + log_probs).flatten(1).topk(2 * num_beams)
        beams, words = places // log_probs.shape[2], places % log_probs.shape[2]
        going = []
        for row, own in enumerate(ended):
            ends = words[row] == sep_id
            if not own.full:
                for place in ends.nonzero()[:, 0].tolist():
                    if place < num_beams:  # one that is not among the best is not kept
                        own.add(float(best[row, place]), length, ids_BKT[row, beams[row, place]])
                own.close_if_none_better(float(best[row].max()), length + 1)
            going.append((~ends).nonzero()[:num_beams, 0])
        chosen = torch.stack(going)
        scores_BK, beams, words = best.gather(1, chosen), beams.gather(1, chosen), words.gather(1, chosen)
        ids_BKT = torch.cat(
            [ids_BKT.gather(1, beams[:, :, None].expand_as(ids_BKT)), words[:, :, None]], dim=2
        )
        rows = (beams + torch.arange(batch, device=device)[:, None] * num_beams).flatten()
        past = [(k[rows], v[rows]) for k, v in past]
    return _finish(ids_BKT, scores_BK, ended, sep_id, pad_id)


class _Ended:
    """The best captions of one photo that have ended, by mean log-probability."""

    def __init__(self, num_beams: int):
        self.num_beams = num_beams
        self.full = False
        self.found: list[tuple[float, Tensor]] = []

    def add(self, total: float, length: int, ids_T: Tensor) -> None:
        self.found.append((total / length, ids_T.clone()))
        self.found.sort(key=lambda scored: -scored[0])
        del self.found[self.num_beams :]

    def close_if_none_better(self, best_total: float, length: int) -> None:
        """Beams that go on only lose probability: once the kept ones are better than the best of them, it is over.

        A lone beam (greedy search) is over when it ends.
        """
        if len(self.found) == self.num_beams:
            self.full = self.num_beams == 1 or self.found[-1][0] >= best_total / length


def _finish(ids_BKT: Tensor, scores_BK: Tensor, ended: Sequence[_Ended], sep_id: int, pad_id: int) -> Tensor:
    length = ids_BKT.shape[2]
    answers = []
    for row, own in enumerate(ended):
        if not own.full:  # out of room: what is still going on counts as it stands
            for beam in range(own.num_beams):
                own.add(float(scores_BK[row, beam]), length, ids_BKT[row, beam])
        ids = own.found[0][1]
        answers.append(torch.cat([ids, ids.new_full((1,), sep_id)]) if len(ids) < length else ids)
    result = ids_BKT.new_full((len(answers), max(map(len, answers))), pad_id)
    for row, ids in enumerate(answers):
        result[row, : len(ids)] = ids
    return result


@torch.inference_mode()
def sample(
    net: Retriever,
    photo_keys: PhotoKeys,
    generator: torch.Generator,
    *,
    dec_id: int,
    sep_id: int,
    num_samples: int,
    pad_id: int = 0,
    top_p: float = 0.9,
    temperature: float = 1.0,
    min_length: int = 1,
    max_length: int = 30,
) -> Tensor:
    """Photos -> token ids (B, S, T) int64 of S texts each, drawn by nucleus sampling (arXiv:1904.09751).

    A token is drawn from the likeliest that make up `top_p` of the probability, at `temperature`. generator: on the
    CPU; so many numbers are taken from it as `max_length` could need, so that no text changes another's. The rest is as
    for `describe`. Raises ValueError and CheckpointError as it does.
    """
    fine = num_samples >= 1 and 0 < top_p <= 1 and temperature > 0
    given = f"num_samples {num_samples}, top_p {top_p}, temperature {temperature}"
    _check(net, min_length, max_length, fine, given, "at least one sample, 0 < top_p <= 1, temperature > 0")
    _, past = net.qformer.read_photos(photo_keys)
    past = [(k.repeat_interleave(num_samples, 0), v.repeat_interleave(num_samples, 0)) for k, v in past]
    num_rows, device = len(past[0][0]), past[0][0].device
    draws_RT = torch.rand(num_rows, max_length, generator=generator).to(device)
    ids_RT = torch.full((num_rows, max_length), pad_id, device=device)
    ids_RT[:, 0] = dec_id
    going = torch.arange(num_rows, device=device)
    length = 1
    while length < max_length and len(going):
        hidden, past = net.qformer.write_next(past, ids_RT[going, length - 1], length - 1)
        logits = net.caption_head(hidden, net.qformer.words)[:, 0].float()
        if length < min_length:
            logits[:, sep_id] = float("-inf")
        words = draw_nucleus(logits / temperature, top_p, draws_RT[going, length])
        ids_RT[going, length] = words
        goes_on = words != sep_id
        if not goes_on.all():
            going, past = going[goes_on], [(k[goes_on], v[goes_on]) for k, v in past]
        length += 1
    return ids_RT[:, :length].view(-1, num_samples, length)


def draw_nucleus(logits_RW: Tensor, top_p: float, draws_R: Tensor) -> Tensor:
    """One word of each row, from the likeliest that make up `top_p` of the probability -> (R,) int64.

    draws: uniform in [0, 1); 0 gives the likeliest word.
    """
    probabilities = logits_RW.softmax(-1)
    some, words = probabilities.topk(min(NUCLEUS, logits_RW.shape[1]))
    drawn = _draw_ordered(some, words, top_p, draws_R)
    wide = some.sum(-1) < top_p
    if some.shape[1] < logits_RW.shape[1] and bool(wide.any()):
        ordered = probabilities[wide].sort(descending=True)
        drawn[wide] = _draw_ordered(ordered.values, ordered.indices, top_p, draws_R[wide])
    return drawn


def _draw_ordered(some: Tensor, words: Tensor, top_p: float, draws_R: Tensor) -> Tensor:
    """some: probabilities of these words, the largest first; a first part of them, or all."""
    some = some.masked_fill(some.cumsum(-1) - some >= top_p, 0.0)
    sums = some.cumsum(-1)
    places = torch.searchsorted(sums, draws_R[:, None] * sums[:, -1:], right=True)
    last = (some > 0).sum(-1, keepdim=True) - 1  # where a draw is rounded up to the whole
    return words.gather(1, places.minimum(last))[:, 0]


def _check(net: Retriever, min_length: int, max_length: int, fine: bool, given: str, takes: str) -> None:
    """fine: whether what was `given` beside the lengths is what it `takes`."""
    if not net.config.has_captions:
        raise CheckpointError(
            "This checkpoint has no captioning (ITG) head; transformers' folders leave it out."
        )
    most = net.config.qformer.max_positions
    if not fine or not 1 <= min_length <= max_length <= most or max_length < 2:
        raise ValueError(
            f"{given}, min_length {min_length}, max_length {max_length}: it takes {takes}, "
            f"and 1 <= min_length <= max_length, which is 2 to {most}"
        )
