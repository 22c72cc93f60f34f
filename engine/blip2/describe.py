"""Captions from the Q-Former's own text decoder, the ITG head (BLIP-2, section 3.2).

Beam search over one token at a time; what was read stays in a cache of keys and values. One beam is greedy search.

Shapes: B photos, K beams, R = B * K rows, T tokens, Q queries, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.blip2.qformer import PhotoKeys
from engine.blip2.retriever import Retriever
from engine.errors import CheckpointError


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
    _check(net, num_beams, min_length, max_length)
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


@torch.inference_mode()
def draw(
    net: Retriever,
    photo_keys: PhotoKeys,
    *,
    dec_id: int,
    sep_id: int,
    pad_id: int = 0,
    top_p: float = 0.9,
    temperature: float = 1.0,
    seed: int = 0,
    min_length: int = 1,
    max_length: int = 30,
) -> Tensor:
    """The same by chance: each token is drawn from the likeliest that make up `top_p` of the probability, at
    `temperature` (nucleus sampling, arXiv:1904.09751). Raises as `describe` does."""
    _check(net, 1, min_length, max_length)
    _, past = net.qformer.read_photos(photo_keys)
    device = past[0][0].device
    chance = torch.Generator(device).manual_seed(seed)
    ids_BT = torch.full((len(past[0][0]), 1), dec_id, device=device)
    ended_B = torch.zeros(len(ids_BT), dtype=torch.bool, device=device)
    while ids_BT.shape[1] < max_length and not ended_B.all():
        length = ids_BT.shape[1]
        hidden, past = net.qformer.write_next(past, ids_BT[:, -1], length - 1)
        logits = net.caption_head(hidden, net.qformer.words)[:, 0].float()
        if length < min_length:
            logits[:, sep_id] = float("-inf")
        share, words = (logits / temperature).softmax(-1).sort(dim=-1, descending=True)
        share = share.masked_fill(share.cumsum(-1) - share >= top_p, 0.0)  # the likeliest always stays
        drawn = words.gather(1, torch.multinomial(share, 1, generator=chance))[:, 0]
        ids_BT = torch.cat([ids_BT, drawn.masked_fill(ended_B, pad_id)[:, None]], dim=1)
        ended_B |= drawn == sep_id
    return ids_BT


def _check(net: Retriever, num_beams: int, min_length: int, max_length: int) -> None:
    if not net.config.has_captions:
        raise CheckpointError(
            "This checkpoint has no captioning (ITG) head; transformers' folders leave it out."
        )
    most = net.config.qformer.max_positions
    if num_beams < 1 or not 1 <= min_length <= max_length <= most or max_length < 2:
        raise ValueError(
            f"num_beams {num_beams}, min_length {min_length}, max_length {max_length}: it takes at least one beam, "
            f"and 1 <= min_length <= max_length, which is 2 to {most}"
        )


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
