"""Write captions with the Q-Former's own text decoder, the ITG head (BLIP-2, section 3.2).

Captions are written one token at a time, by beam search (one beam is greedy search) or by sampling. The tokens that
were read stay in a cache of keys and values.

Shapes: B photos, K beams, S samples, R = B * K or B * S rows, T tokens, Q queries, W vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.blip2.layers import KeysValues
from engine.blip2.qformer import PhotoKeys
from engine.blip2.retriever import Retriever
from engine.errors import CheckpointError

NUCLEUS = 256
"""Number of likeliest words that are sorted first; they nearly always contain the whole nucleus.

Sorting the whole vocabulary takes several times as long as the pass that scored it.
"""


@torch.inference_mode()
def search_captions(
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
    """Write the best caption of each photo by beam search; return ids (B, T) int64: [DEC], the caption, [SEP], padding.

    photo_keys: see `QFormer.compute_photo_keys`. dec_id, sep_id, pad_id: the numbers of [DEC], [SEP] and the padding.
    min_length, max_length: number of ids with [DEC] and [SEP] counted, as LAVIS counts them; [SEP] does not come before
    min_length ids are written, and is missing from a caption that did not end. Of the ended captions the one with the
    largest mean log-probability of its tokens is returned; [DEC] counts as a token, as in transformers 4. Raises
    ValueError for lengths or beams out of range, CheckpointError for a model without an ITG head.
    """
    given = f"num_beams is {num_beams}"
    _check_options(net, min_length, max_length, num_beams >= 1, given, "at least one beam")
    search = BeamSearch.start(net, photo_keys, num_beams, dec_id)
    while search.length < max_length and not search.is_over:
        log_probs_BKW = search.score_words(net)
        if search.length < min_length:
            log_probs_BKW[:, :, sep_id] = float("-inf")
        search.advance(log_probs_BKW, sep_id)
    return search.write_best_captions(sep_id, pad_id)


class FinishedCaptions:
    """The best ended captions of one photo by mean log-probability, at most `num_beams` of them."""

    def __init__(self, num_beams: int):
        self.num_beams = num_beams
        self.is_final = False
        self.captions: list[tuple[float, Tensor]] = []

    def add(self, total: float, length: int, ids_T: Tensor) -> None:
        """Add a caption. total: the sum of its log-probabilities. length: the number of tokens that this is divided
        by.
        """
        self.captions.append((total / length, ids_T.clone()))
        self.captions.sort(key=lambda scored: -scored[0])
        del self.captions[self.num_beams :]

    def close_if_none_better(self, best_total: float, length: int) -> None:
        """End the search of a photo when no unfinished beam can become a better caption than the ended ones.

        A beam that goes on only loses probability, so the best unfinished beam decides. A lone beam (greedy search) is
        over when it ends. best_total: the largest sum of log-probabilities of an unfinished beam. length: its number of
        tokens.
        """
        if len(self.captions) == self.num_beams:
            self.is_final = self.num_beams == 1 or self.captions[-1][0] >= best_total / length


@dataclass
class BeamSearch:
    """A beam search in progress: K unfinished captions of each of B photos, the likeliest first.

    ids: the tokens that are written so far. scores: the log-probability of each beam. past: keys and values of all
    tokens that were read, R = B * K rows. finished: the ended captions of each photo.
    """

    ids_BKT: Tensor
    scores_BK: Tensor
    past: list[KeysValues]
    finished: list[FinishedCaptions]

    @classmethod
    def start(cls, net: Retriever, photo_keys: PhotoKeys, num_beams: int, dec_id: int) -> BeamSearch:
        """Read the photos, write [DEC] into every beam, and return the search."""
        past = _read_photos(net, photo_keys, num_beams)
        batch, device = len(past[0][0]) // num_beams, past[0][0].device
        scores_BK = torch.full((batch, num_beams), float("-inf"), device=device)
        scores_BK[:, 0] = 0.0  # The beams are equal at first, so that only one of them counts.
        ids_BKT = torch.full((batch, num_beams, 1), dec_id, device=device)
        return cls(ids_BKT, scores_BK, past, [FinishedCaptions(num_beams) for _ in range(batch)])

    @property
    def length(self) -> int:
        """Return the number of tokens in every beam, [DEC] counted."""
        return self.ids_BKT.shape[2]

    @property
    def is_over(self) -> bool:
        """Return whether no photo's captions can get better."""
        return all(captions.is_final for captions in self.finished)

    def score_words(self, net: Retriever) -> Tensor:
        """Read the last word of every beam; return the log-probabilities (B, K, W) of the words that may follow."""
        logits_RW, self.past = _score_next_word(
            net, self.past, self.ids_BKT[:, :, -1].flatten(), self.length - 1
        )
        return logits_RW.log_softmax(-1).view(*self.scores_BK.shape, -1)

    def advance(self, log_probs_BKW: Tensor, sep_id: int) -> None:
        """Choose the likeliest words over all beams of a photo, keep the captions that end, and extend the others."""
        num_beams, num_words = log_probs_BKW.shape[1:]
        # At most num_beams of the 2 * num_beams candidates end, so that num_beams of them can go on.
        scores, places = (self.scores_BK[:, :, None] + log_probs_BKW).flatten(1).topk(2 * num_beams)
        beams, words = places // num_words, places % num_words
        is_end = words == sep_id
        self._keep_ended(scores, beams, is_end)
        going_on = torch.stack([(~ends).nonzero()[:num_beams, 0] for ends in is_end])
        self._extend(scores.gather(1, going_on), beams.gather(1, going_on), words.gather(1, going_on))

    def _keep_ended(self, scores: Tensor, beams: Tensor, is_end: Tensor) -> None:
        """Keep the captions that end with this token. scores, beams, is_end: (B, 2 K), of each photo's 2 K
        candidates.
        """
        num_beams = self.scores_BK.shape[1]
        for row, captions in enumerate(self.finished):
            if captions.is_final:
                continue
            for place in is_end[row].nonzero()[:, 0].tolist():
                # An ended caption is kept only when it is among the best num_beams candidates.
                if place < num_beams:
                    ids_T = self.ids_BKT[row, beams[row, place]]
                    captions.add(float(scores[row, place]), self.length, ids_T)
            captions.close_if_none_better(float(scores[row].max()), self.length + 1)

    def _extend(self, scores_BK: Tensor, beams_BK: Tensor, words_BK: Tensor) -> None:
        """Replace the beams by `beams_BK`, each with one of `words_BK` behind it. scores: their log-probabilities."""
        batch, num_beams = beams_BK.shape
        ids_BKT = self.ids_BKT.gather(1, beams_BK[:, :, None].expand_as(self.ids_BKT))
        self.ids_BKT = torch.cat([ids_BKT, words_BK[:, :, None]], dim=2)
        self.scores_BK = scores_BK
        first_rows = torch.arange(batch, device=beams_BK.device)[:, None] * num_beams
        rows_R = (beams_BK + first_rows).flatten()
        self.past = [(k[rows_R], v[rows_R]) for k, v in self.past]

    def write_best_captions(self, sep_id: int, pad_id: int) -> Tensor:
        """Return the best caption of each photo, padded (B, T).

        Where the search stopped at the maximum length, unfinished captions are compared as they are.
        """
        best = []
        for row, captions in enumerate(self.finished):
            if not captions.is_final:
                for beam in range(captions.num_beams):
                    captions.add(float(self.scores_BK[row, beam]), self.length, self.ids_BKT[row, beam])
            ids_T = captions.captions[0][1]
            has_ended = len(ids_T) < self.length
            best.append(torch.cat([ids_T, ids_T.new_full((1,), sep_id)]) if has_ended else ids_T)
        return pad_sequence(best, batch_first=True, padding_value=pad_id)


@torch.inference_mode()
def sample_captions(
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
    """Draw `num_samples` = S captions of each photo by nucleus sampling (arXiv:1904.09751); return ids (B, S, T) int64.

    A token is drawn from the likeliest ones that make up `top_p` of the probability, at `temperature`. generator: a
    generator on the CPU; it gives as many numbers as `max_length` could need, so that the length of one text does not
    change the draws of another. The other parameters, the ids and the errors: see `search_captions`.
    """
    is_in_range = num_samples >= 1 and 0 < top_p <= 1 and temperature > 0
    given = f"num_samples is {num_samples}, top_p {top_p}, temperature {temperature}"
    allowed = "at least one sample, 0 < top_p <= 1, temperature > 0"
    _check_options(net, min_length, max_length, is_in_range, given, allowed)
    past = _read_photos(net, photo_keys, num_samples)
    num_rows, device = len(past[0][0]), past[0][0].device
    draws_RT = torch.rand(num_rows, max_length, generator=generator).to(device)
    ids_RT = torch.full((num_rows, max_length), pad_id, device=device)
    ids_RT[:, 0] = dec_id
    unfinished = torch.arange(num_rows, device=device)
    length = 1
    while length < max_length and len(unfinished):
        logits, past = _score_next_word(net, past, ids_RT[unfinished, length - 1], length - 1)
        if length < min_length:
            logits[:, sep_id] = float("-inf")
        words = draw_nucleus(logits / temperature, top_p, draws_RT[unfinished, length])
        ids_RT[unfinished, length] = words
        goes_on = words != sep_id
        if not goes_on.all():
            unfinished, past = unfinished[goes_on], [(k[goes_on], v[goes_on]) for k, v in past]
        length += 1
    return ids_RT[:, :length].view(-1, num_samples, length)


def _read_photos(net: Retriever, photo_keys: PhotoKeys, copies: int) -> list[KeysValues]:
    """Return the self-attention keys and values of the queries that read each photo, `copies` times after each
    other.
    """
    _, past = net.qformer.read_photos(photo_keys)
    return [(k.repeat_interleave(copies, 0), v.repeat_interleave(copies, 0)) for k, v in past]


def _score_next_word(
    net: Retriever, past: Sequence[KeysValues], words_R: Tensor, place: int
) -> tuple[Tensor, list[KeysValues]]:
    """Read one more word of each text; return the logits (R, W) float32 of the next word, and the past with this
    word.
    """
    hidden, past = net.qformer.write_next(past, words_R, place)
    return net.caption_head(hidden, net.qformer.words)[:, 0].float(), past


def draw_nucleus(logits_RW: Tensor, top_p: float, draws_R: Tensor) -> Tensor:
    """Draw one word (R,) int64 of each row from the likeliest words that make up `top_p` of the probability.

    draws: uniform numbers in [0, 1); 0 gives the likeliest word.
    """
    probabilities = logits_RW.softmax(-1)
    largest, words = probabilities.topk(min(NUCLEUS, logits_RW.shape[1]))
    drawn = _draw_ordered(largest, words, top_p, draws_R)
    is_wider = largest.sum(-1) < top_p
    if largest.shape[1] < logits_RW.shape[1] and bool(is_wider.any()):
        ordered = probabilities[is_wider].sort(descending=True)
        drawn[is_wider] = _draw_ordered(ordered.values, ordered.indices, top_p, draws_R[is_wider])
    return drawn


def _draw_ordered(probabilities: Tensor, words: Tensor, top_p: float, draws_R: Tensor) -> Tensor:
    """Draw one word of each row from the words in the nucleus.

    probabilities: of `words`, the largest first. They may be only the largest ones of a row, if these hold the nucleus.
    """
    nucleus = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities >= top_p, 0.0)
    sums = nucleus.cumsum(-1)
    places = torch.searchsorted(sums, draws_R[:, None] * sums[:, -1:], right=True)
    last = (nucleus > 0).sum(-1, keepdim=True) - 1  # A draw may be rounded up to the whole sum.
    return words.gather(1, places.minimum(last))[:, 0]


def _check_options(
    net: Retriever, min_length: int, max_length: int, is_in_range: bool, given: str, allowed: str
) -> None:
    """Raise CheckpointError for a network without an ITG head, ValueError for an option out of range.

    is_in_range: whether the options beside the lengths are. given: these options in words. allowed: their range in
    words.
    """
    if not net.config.has_captions:
        raise CheckpointError(
            "This checkpoint has no captioning (ITG) head; transformers' folders leave it out."
        )
    most = net.config.qformer.max_positions
    if not is_in_range or not 1 <= min_length <= max_length <= most or max_length < 2:
        raise ValueError(
            f"{given}, min_length {min_length}, max_length {max_length}; allowed are {allowed}, "
            f"and 1 <= min_length <= max_length, with max_length from 2 to {most}."
        )
