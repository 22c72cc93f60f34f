"""Training a model that writes on a stream: stage 2 on sets of any size, captions, questions (BLIP-2, 3.3, 4.2, 4.3).

The language-modelling loss trains queries, Q-Former, `vision_norm` and projection, and where it is asked for the image
encoder; the language model stays as it is, bit for bit. What it starts from: `stage2_stream.py`, `finetuning.py`.

Shapes: B pairs of this process, N of all, T tokens, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.blip2.captioner import Captioner
from engine.blip2.config import QFormerConfig, VisionConfig
from engine.blip2.language_tokens import IGNORED, LanguageBatch, LanguageTokenizer
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import make_captioner
from engine.checkpoints.checkpoint_sources import CaptionerSource
from engine.checkpoints.saving import own_state, save_trained
from engine.datasets.captioned_pictures import plain_caption
from engine.datasets.captioned_sets import SetConfig, open_source
from engine.errors import DataError, TrainingError
from engine.models.devices import DTYPES
from training.batches.batch_source import Batch as Pairs
from training.batches.picture_stream import NO_CAPTION, TOO_LONG, Opener, Stream
from training.distributed.gathering import mean_weight
from training.distributed.world import joined, world
from training.distributed.wrapping import average_gradients, full_tensors
from training.loop.optimizer import OptimConfig
from training.loop.random_draws import shared_draws
from training.loop.train_loop import train
from training.losses.cached_embeddings import encode
from training.losses.stage1_losses import normed
from training.stages.stage2 import cut_in_two
from training.stages.stage_setup import (
    Say,
    check_common,
    images_of,
    kept_settings,
    open_stream,
    prepare_network,
)
from training.stages.starts import same_encoder


@dataclass(frozen=True)
class Architecture:
    """Of a recipe's model: what a start must be, and what a dry run counts. language: of its config.json."""

    vision: VisionConfig
    qformer: QFormerConfig
    language: Mapping[str, Any]


@dataclass(frozen=True)
class GenerativeConfig:
    """What a model that writes learns from, and how.

    start: a model folder, run or known name. model: what it must be; none = whatever it is. image_size: pixels that
    are read, the start's when 0. prompts: one of them is drawn for each text, and a question takes the place of its
    "{}"; "" = the text alone. Captions are learned as `plain_caption` writes them, answers as they are. prefix_share:
    see `Stage2Config`. max_tokens: see `LanguageTokenizer.pairs`; a question that does not fit with its answer is
    replaced. reads_prompt: whether the Q-Former reads the prompt, too. chunk: pairs of a process that are computed at a
    time, their gradients added up, 0 = all. Others: see `PretrainConfig`.
    """

    sources: tuple[SetConfig, ...]
    optim: OptimConfig
    start: str
    model: Architecture | None = None
    image_size: int = 0
    prompts: tuple[str, ...] = ("a photo of",)
    prefix_share: float = 0.0
    max_tokens: int = 32
    reads_prompt: bool = False
    train_encoder: bool = False
    recompute_encoder: bool = False
    smallest_crop: float = 0.5
    chunk: int = 0
    compile: bool = False
    workers: int = 8

    @property
    def views(self) -> int:
        """Pictures are read in every step."""
        return 0

    @property
    def asks(self) -> bool:
        """Whether its sources hold questions."""
        return False


FREE = {"optim", "sources", "recompute_encoder", "compile", "workers", "chunk", "model"}
"""What a resumed run may change, or what is compared elsewhere."""


@dataclass(frozen=True)
class Batch:
    """What a step reads. pixels (B, 3, H, W). prompts: ids and mask (B, T) for a Q-Former that reads them."""

    pixels: Tensor
    texts: LanguageBatch
    prompts: tuple[Tensor, Tensor] | None

    @property
    def num_learned(self) -> Tensor:
        """Tokens that are learned."""
        return (self.texts.labels != IGNORED).sum()

    def part(self, rows: slice) -> Batch:
        texts = LanguageBatch(self.texts.ids[rows], self.texts.mask[rows], self.texts.labels[rows])
        prompts = None if self.prompts is None else (self.prompts[0][rows], self.prompts[1][rows])
        return Batch(self.pixels[rows], texts, prompts)


class GenerativeTask:
    """The language-modelling loss on a stream's batches: the mean over the tokens of the joined batch."""

    def __init__(
        self, net: Captioner, tokenizer: LanguageTokenizer, prompt_tokenizer: TextTokenizer | None,
        stream: Stream, config: GenerativeConfig,
    ):  # fmt: skip
        self.tokenizer, self.prompt_tokenizer = tokenizer, prompt_tokenizer
        self.stream, self.config = stream, config
        self.net = self.model = net
        self.through: nn.Module = prepare_network(net, config)
        if prompt_tokenizer is not None:  # nobody reads what the last layer makes of the prompt
            net.qformer.layers[-1].text_mlp.requires_grad_(False)
        names = [field.name for field in fields(config) if field.name not in FREE]
        self.settings: Mapping[str, Any] = kept_settings(config, names, stream)

    def losses(self, step: int) -> dict[str, Tensor]:
        return self.losses_of(step, self.config.optim.batch // world().size)

    def losses_of(self, step: int, count: int) -> dict[str, Tensor]:
        """Of the first `count` pairs of this process."""
        batch = self._batch(self.stream[step], step, count)
        weight = mean_weight(batch.num_learned)
        chunk = self.config.chunk
        if 0 < chunk < count:
            return {"loss": self._in_chunks(batch, chunk, weight)}
        return {"loss": self.through(_loss, batch) * weight}

    def _in_chunks(self, batch: Batch, chunk: int, weight: Tensor | float) -> Tensor:
        """The backward passes too: the loss is a sum over pairs, so gradients of parts add up."""
        quiet: Callable[[], AbstractContextManager[Any]] = getattr(self.through, "no_sync", nullcontext)
        losses = []
        with quiet():
            for first in range(0, len(batch.pixels), chunk):
                part = batch.part(slice(first, first + chunk))
                loss = self.through(_loss, part) * (part.num_learned / batch.num_learned * weight)
                loss.backward()
                losses.append(loss.detach())
        average_gradients(self.through)
        return torch.stack(losses).sum()

    def _batch(self, pairs: Pairs, step: int, count: int) -> Batch:
        """All that is drawn is drawn for the N pairs: any number of processes trains on the same."""
        vision, device = self.net.config.vision, self.net.projection.weight.device
        draws = torch.rand(self.config.optim.batch, 3, generator=shared_draws(self.config.optim.seed, step))
        rows = zip(
            pairs.questions[:count],
            list(pairs.captions)[:count],
            world().share(draws)[:count].tolist(),
            strict=True,
        )
        prompts, texts = zip(*(self._pair(*row) for row in rows), strict=True)
        read = None
        if self.prompt_tokenizer is not None:
            ids, mask, _ = self.prompt_tokenizer(prompts)
            read = ids.to(device), mask.to(device)
        return Batch(
            images_of(pairs, count, vision, device),
            self.tokenizer.pairs(prompts, texts, self.config.max_tokens).to(device),
            read,
        )

    def _pair(self, question: str, text: str, draws: Sequence[float]) -> tuple[str, str]:
        """A prompt and the text that follows it, which may be cut in two at a random word."""
        prompts = self.config.prompts
        prompt = prompts[int(draws[0] * len(prompts))].replace("{}", question)
        if not self.config.asks:
            text = plain_caption(text)
        words = text.split()
        if len(words) > 1 and draws[1] < self.config.prefix_share:
            return cut_in_two(prompt, words, 1 + int(draws[2] * (len(words) - 1)))
        return prompt, text


def _loss(net: Captioner, batch: Batch) -> Tensor:
    patches = normed(net, encode(net, batch.pixels))
    if batch.prompts is None:
        return net.loss(net.read_photos(patches), batch.texts)
    return net.loss(net.read_with_prompts(patches, *batch.prompts), batch.texts)


def check(config: GenerativeConfig) -> None:
    """Raises TrainingError for settings that contradict each other."""
    check_common(config)
    if config.optim.dtype not in DTYPES:
        raise TrainingError(f"optim.dtype is {config.optim.dtype!r}; it must be one of {', '.join(DTYPES)}.")
    if not config.prompts:
        raise TrainingError('The recipe has no prompts; ("",) is none before any text.')
    if config.chunk < 0:
        raise TrainingError(f"chunk is {config.chunk}; use a number of pairs, or 0 for the whole batch.")
    for prompt in config.prompts:
        if ("{}" in prompt) != config.asks:
            says = 'has no "{}" for the question' if config.asks else 'has a "{}", but nothing is asked'
            raise TrainingError(f"The prompt {prompt!r} {says}.")


def check_start(config: GenerativeConfig, source: CaptionerSource, where: Path) -> None:
    """Raises DataError for a start that is another model than the recipe's, TrainingError for one that cannot learn
    so."""
    language = source.config.language
    if language.reads_prompt and not all(prompt.strip() for prompt in config.prompts):
        raise TrainingError("The Q-Former reads the prompt, and one of the recipe's prompts is empty.")
    if config.prefix_share and not language.encoder_decoder:
        raise TrainingError(
            f"prefix_share is {config.prefix_share}, but the language model is a decoder, which learns whole texts; "
            "leave it at 0."
        )
    if config.model is None:
        return
    wanted, found = config.model, source.config
    size = found.vision.image_size
    former = replace(
        wanted.qformer, vocab_size=found.qformer.vocab_size, max_positions=found.qformer.max_positions
    )
    differing = (
        [] if same_encoder(at_pixels(found.vision, size), at_pixels(wanted.vision, size)) else ["vision"]
    )
    differing += [] if found.qformer == former else ["qformer"]
    theirs = source.language.config
    differing += [
        f"the language model's {name} ({getattr(theirs, name, None)}, not {value})"
        for name, value in wanted.language.items()
        if getattr(theirs, name, None) != value
    ]
    if differing:
        raise DataError(
            f"{where} is another architecture than the recipe's: {', '.join(differing)}. `--set model=none` takes it "
            "as it is."
        )


def at_pixels(vision: VisionConfig, image_size: int) -> VisionConfig:
    """The same encoder at other pixels."""
    return replace(vision, image_size=image_size, timm_args=vision.timm_args | {"img_size": image_size})


def train_generative(
    config: GenerativeConfig, opened: Callable[[], tuple[CaptionerSource, Path]], data: Path, output: Path,
    *, opener: Opener = open_source, say: Say = lambda line: None,
) -> None:  # fmt: skip
    """Train what `opened` gives, alone or as one of torchrun's processes; write the checkpoint folder `output/model`.

    opened: the start and where it lies, already at the recipe's pixels. Raises DataError, CheckpointError and
    TrainingError saying what is missing or does not fit.
    """
    check(config)
    torch.manual_seed(config.optim.seed)
    with joined() as (here, device):
        tell = say if here.rank == 0 else (lambda line: None)
        source, where = opened()
        check_start(config, source, where)
        former = source.config.qformer
        tokenizer = LanguageTokenizer(source.language.tokenizer, source.config.language, former.num_queries)
        prompts = None if source.tokenizer is None else TextTokenizer(source.tokenizer, former.max_positions)

        def usable(question: str, text: str) -> None:
            if not config.asks and not plain_caption(text):
                raise DataError(f"its caption is {text!r}: {NO_CAPTION}")
            asked = [prompt.replace("{}", question) for prompt in config.prompts]
            if question and not all(tokenizer.fits(prompt, text, config.max_tokens) for prompt in asked):
                raise DataError(f"with its answer it has more than {config.max_tokens} tokens: {TOO_LONG}")
            if question and prompts is not None and any(prompts(asked)[2]):
                most = prompts.max_tokens
                raise DataError(f"it has more than the {most} tokens that the Q-Former reads: {TOO_LONG}")

        size = source.config.vision.image_size
        with open_stream(config, data, size, here, tell, opener=opener, usable=usable) as stream:
            net = make_captioner(source, where, torch.float32, DTYPES[config.optim.dtype]).to(device)
            task = GenerativeTask(net, tokenizer, prompts, stream, config)
            train(task, config.optim, output / "all", say=tell)
        own = own_state(net)
        if not config.train_encoder:
            own = {name: value for name, value in own.items() if not name.startswith("vision.")}
        state = full_tensors(own)
        if here.rank == 0:
            save_trained(output / "model", source, state, dtype=torch.float16)
            tell(f"wrote {output / 'model'}")
