"""Stage 1: ITC + ITM + ITG over a frozen image encoder (BLIP-2, section 3.2).

Every pass of a batch reads the same photos, so their cross-attention keys and values are made once.
Shapes: B pairs, P patches, V vision width, Q queries, T tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from engine.blip2.captioner import Captioner
from engine.blip2.checkpoint import fast_dtype, load_net, save_checkpoint
from engine.blip2.config import Blip2Config
from engine.blip2.layers import KeysValues
from engine.blip2.preprocess import TextTokenizer, to_pixels
from engine.blip2.qformer import PhotoKeys
from engine.blip2.retriever import Retriever
from engine.blip2.vision import folded
from engine.errors import DataError, TrainingError
from training.data import CaptionedPicture, find_shards, load_pictures, read_shards
from training.distill import ENCODER
from training.loop import OptimConfig, train
from training.losses import (
    Similarities,
    draw_negatives,
    itc_loss,
    itc_similarities,
    itg_loss,
    itm_loss,
    match_distillation_loss,
)
from training.text import TEXT_HALF, TOKENIZER, text_half

LENGTH_GROUPS = 4

Negatives = tuple[Tensor, Tensor]
"""For each text the number of a photo that does not fit, for each photo that of such a text; (B,) int64 each."""


@dataclass(frozen=True)
class Stage1Losses:
    """The three losses (equal weights in BLIP-2) and what they were made from."""

    itc: Tensor
    itm: Tensor
    itg: Tensor
    match_logits: Tensor
    negatives: Negatives
    similarities: Similarities

    @property
    def total(self) -> Tensor:
        return self.itc + self.itm + self.itg


def stage1_losses(
    model: Retriever, patches_BPV: Tensor, ids_BT: Tensor, mask_BT: Tensor, *, dec_id: int,
    image_ids: Tensor | None = None, negatives: Negatives | None = None, label_smoothing: float = 0.1,
    queries: Tensor | None = None,
) -> Stage1Losses:  # fmt: skip
    """All three losses of a batch of matching pairs.

    patches: after `vision_norm`. ids, mask: [CLS] ... [SEP], padded. dec_id: takes the place of [CLS] for ITG.
    image_ids (B,): pairs with equal ids show the same photo (soft targets, never each other's negatives).
    negatives: forced ones, for tests; drawn when not given. queries: numbers of those that take part, all when not
    given. Raises TrainingError for a batch of one photo.
    """
    batch = len(ids_BT)
    if batch < 2:
        raise TrainingError(f"A batch of {batch} pair has no negatives; use at least 2.")
    keys = model.photo_keys(patches_BPV)
    hidden, past = model.qformer.read_photos(keys, queries)
    similarities = _similarities(model, hidden, ids_BT, mask_BT)
    own = torch.eye(batch, dtype=torch.bool, device=ids_BT.device)
    same = own if image_ids is None else image_ids[:, None] == image_ids[None, :]
    itc = itc_loss(
        similarities, label_smoothing=label_smoothing, same_photo_BN=None if image_ids is None else same
    )
    if negatives is None:
        negatives = (
            draw_negatives(similarities.text_to_photo, same),
            draw_negatives(similarities.photo_to_text, same),
        )
    logits = _match_with_negatives(model, keys, ids_BT, mask_BT, negatives, queries)
    itg = _caption_loss(model, past, ids_BT, mask_BT, dec_id, label_smoothing)
    return Stage1Losses(itc, itm_loss(logits, batch), itg, logits, negatives, similarities)


def itc_alone(
    model: Retriever, patches_BPV: Tensor, ids_BT: Tensor, mask_BT: Tensor, *, label_smoothing: float = 0.1,
    queries: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The contrastive loss of `stage1_losses` without the passes of the other two."""
    hidden, _ = model.qformer.read_photos(model.photo_keys(patches_BPV), queries)
    return itc_loss(_similarities(model, hidden, ids_BT, mask_BT), label_smoothing=label_smoothing)


def _similarities(model: Retriever, hidden_BQD: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Similarities:
    photos, texts = model.project_photos(hidden_BQD), model.encode_texts(ids_BT, mask_BT)
    return itc_similarities(photos, texts, photos, texts, model.temperature)


def _match_with_negatives(
    model: Retriever, keys: PhotoKeys, ids_BT: Tensor, mask_BT: Tensor, negatives: Negatives,
    queries: Tensor | None,
) -> Tensor:  # fmt: skip
    """Match logits (3B, 2): the pairs, each text with a wrong photo, each photo with a wrong text.

    Pairs go in groups of like length: half of a batch padded to its longest text is padding.
    """
    photo_for_text, text_for_photo = negatives
    own = torch.arange(len(ids_BT), device=ids_BT.device)
    photos = torch.cat([own, photo_for_text, own])
    texts = torch.cat([own, own, text_for_photo])
    lengths = mask_BT.sum(1)[texts]
    by_length = lengths.argsort()
    logits = []
    for some in by_length.chunk(LENGTH_GROUPS):
        longest = int(lengths[some[-1]])
        pairs = [(k[photos[some]], v[photos[some]]) for k, v in keys]
        ids, mask = ids_BT[texts[some], :longest], mask_BT[texts[some], :longest]
        logits.append(model.match(pairs, ids, mask, queries))
    return torch.cat(logits)[by_length.argsort()]


def _caption_loss(
    model: Retriever, past: Sequence[KeysValues], ids_BT: Tensor, mask_BT: Tensor, dec_id: int,
    label_smoothing: float,
) -> Tensor:  # fmt: skip
    """Every token predicts the next one; the vocabulary is scored for those alone that have one."""
    read_BT = torch.cat([torch.full_like(ids_BT[:, :1], dec_id), ids_BT[:, 1:]], dim=1)
    hidden_BTD = model.qformer.write_texts(past, read_BT, mask_BT)
    followed_BT = mask_BT[:, 1:]
    logits = model.caption_head(hidden_BTD[:, :-1][followed_BT], model.qformer.words)
    return itg_loss(logits, read_BT[:, 1:][followed_BT], label_smoothing)


@dataclass(frozen=True)
class Stage1Config:
    """What stage 1 learns from, and how.

    model: the architecture. pictures: captioned shards, names below the data folder. optim: of the run with all
    losses; itc_optim: of a run with ITC alone before it. encoder, text: the runs (`training.distill`, `training.text`)
    that it builds on; start: a stage-1 run whose model is trained on instead. views: how many crops of each picture
    the frozen encoder reads once, before training (1 = the whole picture alone); smallest_crop: their least share of
    the side. patch_share: of the patches that are read in a step (arXiv:2212.00794 masks patches to the same ends);
    query_share: of the queries that take part in it. match_distillation: weight of
    `losses.match_distillation_loss`. label_smoothing: of ITC and ITG.
    """

    model: Blip2Config
    pictures: tuple[str, ...]
    optim: OptimConfig
    encoder: str = "mini-encoder"
    text: str = "mini-text"
    views: int = 1
    label_smoothing: float = 0.1
    smallest_crop: float = 0.6
    itc_optim: OptimConfig | None = None
    patch_share: float = 1.0
    query_share: float = 1.0
    match_distillation: float = 0.0
    start: str | None = None


class Stage1Task:
    """Stage 1 on patches that the frozen encoder made once, a batch of one caption of each of B pictures."""

    def __init__(
        self, net: Retriever, tokenizer: TextTokenizer, patches_NWPV: Tensor,
        samples: Sequence[CaptionedPicture], config: Stage1Config, optim: OptimConfig | None = None,
    ):  # fmt: skip
        self.net, self.tokenizer, self.patches, self.config = net, tokenizer, patches_NWPV, config
        self.samples, self.optim = samples, optim or config.optim
        uncaptioned = [s.key for s in samples if not s.captions]
        if uncaptioned:
            raise DataError(f"{len(uncaptioned)} pictures have no caption (first: {uncaptioned[0]}).")
        net.requires_grad_(True)
        net.vision.requires_grad_(False)
        self.model = net.train()
        net.vision.eval()
        self.steps_an_epoch = len(samples) // self.optim.batch
        if not self.steps_an_epoch:
            raise DataError(f"{len(samples)} pictures are fewer than a batch of {self.optim.batch}.")

    def losses(self, step: int) -> dict[str, Tensor]:
        device = self.net.temperature.device
        chosen = self._pictures_of(step)
        views = torch.randint(self.patches.shape[1], (len(chosen),))
        captions = []
        for number in chosen.tolist():
            texts = self.samples[number].captions
            captions.append(texts[int(torch.randint(len(texts), ()))])
        ids, mask, _ = self.tokenizer(captions)
        patches = self._some_patches(
            self.patches[chosen, views].to(device, self.net.vision_norm.weight.dtype)
        )
        patches = self.net.vision_norm(patches)
        return self._losses(patches, ids.to(device), mask.to(device), self._some_queries().to(device))

    def _losses(
        self, patches_BPV: Tensor, ids_BT: Tensor, mask_BT: Tensor, queries: Tensor
    ) -> dict[str, Tensor]:
        losses = stage1_losses(
            self.net, patches_BPV, ids_BT, mask_BT,
            dec_id=self.tokenizer.dec_id, label_smoothing=self.config.label_smoothing, queries=queries,
        )  # fmt: skip
        parts = {"itc": losses.itc, "itm": losses.itm, "itg": losses.itg}
        if not self.config.match_distillation:
            return {"loss": losses.total, **parts}
        parts["distilled"] = match_distillation_loss(
            losses.match_logits, losses.similarities, *losses.negatives
        )
        return {"loss": losses.total + self.config.match_distillation * parts["distilled"], **parts}

    def _some_patches(self, patches_BPV: Tensor) -> Tensor:
        """A random `patch_share` of the patches, the same for the batch: less to read, harder to learn by heart."""
        return patches_BPV[:, _drawn(patches_BPV.shape[1], self.config.patch_share)]

    def _some_queries(self) -> Tensor:
        """A random `query_share` of the queries, likewise: ITM's rows are mostly theirs."""
        return _drawn(self.net.config.qformer.num_queries, self.config.query_share).sort().values

    def _pictures_of(self, step: int) -> Tensor:
        """Every picture once an epoch, in an order that depends on (seed, epoch)."""
        return batch_of(step, len(self.samples), self.optim)


def batch_of(step: int, num_samples: int, optim: OptimConfig) -> Tensor:
    """Numbers of a step's samples: each once an epoch, what does not fill a batch left out."""
    epoch, number = divmod(step, num_samples // optim.batch)
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed((optim.seed << 20) + epoch))
    return order[number * optim.batch : (number + 1) * optim.batch]


def _drawn(count: int, share: float) -> Tensor:
    """A random share of the numbers below count, one at least."""
    return torch.randperm(count)[: max(1, round(share * count))]


class ItcTask(Stage1Task):
    """The same with the contrastive loss alone, a fifth of the work: it brings the two sides together first."""

    def _losses(
        self, patches_BPV: Tensor, ids_BT: Tensor, mask_BT: Tensor, queries: Tensor
    ) -> dict[str, Tensor]:
        loss = itc_alone(
            self.net,
            patches_BPV,
            ids_BT,
            mask_BT,
            label_smoothing=self.config.label_smoothing,
            queries=queries,
        )
        return {"loss": loss}


class Views(Protocol):
    """What `encode_views` asks of a config; see `Stage1Config`."""

    @property
    def views(self) -> int: ...
    @property
    def smallest_crop(self) -> float: ...
    @property
    def optim(self) -> OptimConfig: ...


def encode_views(net: Retriever | Captioner, pictures: np.ndarray, config: Views, batch: int = 50) -> Tensor:
    """The frozen encoder's patches of every picture, whole and (views - 1) times cropped -> (N, W, P, V) bfloat16.

    Crops are squares of `smallest_crop` to 1 of the side, half of them mirrored; drawn from the seed.
    """
    size = pictures.shape[1]
    device = net.vision.device
    dtype = fast_dtype(device)
    vision = folded(net.vision.eval()).to(dtype)  # frozen: batch norms neither learn nor see the batch
    generator = torch.Generator().manual_seed(config.optim.seed)
    rows = []
    with torch.inference_mode():
        for start in range(0, len(pictures), batch):
            whole = to_pixels(pictures[start : start + batch], vision.config.mean, vision.config.std, device)
            views = [vision(whole.to(dtype))]
            for _ in range(config.views - 1):
                views.append(vision(_random_crop(whole, size, config.smallest_crop, generator).to(dtype)))
            rows.append(torch.stack(views, dim=1).to("cpu", torch.bfloat16))
    return torch.cat(rows).clone()


def _random_crop(pixels_B3HW: Tensor, size: int, smallest: float, generator: torch.Generator) -> Tensor:
    """One window and flip for the whole batch, resized back to the full side."""
    share, y, x, flip = torch.rand(4, generator=generator).tolist()
    side = round(size * (smallest + (1 - smallest) * share))
    top, left = round(y * (size - side)), round(x * (size - side))
    window = pixels_B3HW[:, :, top : top + side, left : left + side]
    window = F.interpolate(window, size=(size, size), mode="bicubic", antialias=True)
    return window.flip(3) if flip < 0.5 else window


def run_stage1(
    config: Stage1Config,
    data: Path,
    runs: Path,
    output: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Stage 1 from the runs it builds on; writes the checkpoint folder `output/model`.

    data: holds the shards. runs: holds the folders `config.encoder` (its encoder.safetensors) and `config.text`
    (its tokenizer and text half). Raises DataError naming what is missing.
    """
    net, tokenizer = _start(config, runs)
    net.to("cuda" if torch.cuda.is_available() else "cpu")
    samples = list(read_shards(find_shards(config.pictures, data)))
    pictures, samples, failures = load_pictures(samples, config.model.vision.image_size)
    say(f"{len(pictures)} pictures, {len(failures)} unreadable; encoding {config.views} views of each")
    patches = encode_views(net, pictures, config)
    parts = net, tokenizer, patches, samples, config
    if config.itc_optim is not None:
        train(ItcTask(*parts, config.itc_optim), config.itc_optim, output / "itc", say=say)
    train(Stage1Task(*parts), config.optim, output / "all", say=say)
    save_checkpoint(output / "model", net, tokenizer.tokenizer, dtype=torch.float16)
    say(f"wrote {output / 'model'}")


def _start(config: Stage1Config, runs: Path) -> tuple[Retriever, TextTokenizer]:
    """The network as training finds it: a new Q-Former around what runs before it taught, or another run's model."""
    torch.manual_seed(config.optim.seed)
    if config.start is not None:
        net, tokenizer = load_net(runs / config.start / "model")
        if net.config != config.model:
            raise DataError(f"{runs / config.start / 'model'} is another architecture than the recipe's.")
        return net, tokenizer
    for needed in (runs / config.encoder / ENCODER, runs / config.text / TEXT_HALF):
        if not needed.is_file():
            raise DataError(
                f"{needed} is not there; train it first (`qseek train distill`, `qseek train text`)."
            )
    net = Retriever(config.model)
    net.vision.load_state_dict(load_file(runs / config.encoder / ENCODER))
    text_half(net).load_state_dict(load_file(runs / config.text / TEXT_HALF))
    for layer in net.qformer.layers:  # the queries' feed-forwards start as the text's (BLIP-2, section 3.1)
        layer.query_mlp.load_state_dict(layer.text_mlp.state_dict())
    words = Tokenizer.from_file(str(runs / config.text / TOKENIZER))
    return net, TextTokenizer(words, config.model.max_tokens)
