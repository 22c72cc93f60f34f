"""Stage 2: what the queries read of a photo becomes a soft prompt of a frozen language model (BLIP-2, section 3.3).

The language-modelling loss trains queries, Q-Former, `vision_norm` and projection, and where it is asked for the image
encoder; the language model stays as it is, bit for bit. Fine-tuning (`finetuning.py`) trains in the same way.

Shapes: B pairs of this process, N of all, T tokens, P patches, V vision width, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.blip2.captioner import Captioner
from engine.blip2.language_tokens import IGNORED, LanguageBatch, LanguageTokenizer
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import make_captioner
from engine.checkpoints.checkpoint_sources import CaptionerSource
from engine.checkpoints.language_folder import describe_language, read_language
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.saving import own_state, save_trained
from engine.datasets.captioned_pictures import CaptionedPicture, normalise_caption
from engine.datasets.captioned_sets import open_training_set
from engine.errors import DataError, TrainingError
from engine.models.devices import DTYPES
from training.batches.batch_source import Batch, BatchSource
from training.batches.encoded_views import EncodedViews, encode_views
from training.batches.pair_draws import PairDraws, RowDraws, TorchDraws
from training.batches.picture_stream import NO_CAPTION, TOO_LONG, CheckCaption, Opener
from training.distributed.gathering import mean_weight
from training.distributed.world import current_world, join_process_group
from training.distributed.wrapping import average_gradients, gather_full_tensors
from training.loop.run_dtype import resolve_config_dtypes
from training.loop.train_loop import train
from training.losses.cached_embeddings import encode_images
from training.losses.stage1_losses import apply_vision_norm
from training.stages.stage2_config import Stage2Config, WritingConfig, check_start, check_writing
from training.stages.stage_setup import (
    Say,
    collect_fixed_settings,
    open_stream,
    prepare_network,
    read_whole_sets,
    take_images,
)
from training.stages.starts import build_captioner_source, find_start, resize_source


@dataclass(frozen=True)
class WritingInputs:
    """What a step reads. images: what `encode_images` takes. prompts: ids and mask (B, T) for a Q-Former that reads
    them."""

    images: Tensor
    texts: LanguageBatch
    prompts: tuple[Tensor, Tensor] | None

    @property
    def num_learned(self) -> Tensor:
        """Tokens that are learned."""
        return (self.texts.labels != IGNORED).sum()

    def select_pairs(self, rows: slice) -> WritingInputs:
        texts = LanguageBatch(self.texts.ids[rows], self.texts.mask[rows], self.texts.labels[rows])
        prompts = None if self.prompts is None else (self.prompts[0][rows], self.prompts[1][rows])
        return WritingInputs(self.images[rows], texts, prompts)


class Stage2Task:
    """The language-modelling loss on the batches of a source: the mean over the tokens of the joined batch."""

    def __init__(
        self, net: Captioner, tokenizer: LanguageTokenizer, prompt_tokenizer: TextTokenizer | None,
        source: BatchSource, config: WritingConfig,
    ):  # fmt: skip
        self.tokenizer, self.prompt_tokenizer = tokenizer, prompt_tokenizer
        self.source, self.config = source, config
        self.net = self.model = net
        self.wrapper: nn.Module = prepare_network(net, config)
        if prompt_tokenizer is not None and not config.views:
            # Nobody reads what the last layer makes of the prompt, and DDP wants a gradient of all that is trained.
            # Checkpoints of runs on patches hold these weights as trained ones, without a gradient.
            net.qformer.layers[-1].text_mlp.requires_grad_(False)
        self.settings = (
            collect_fixed_settings(config, config.fixed_settings, source) if config.fixed_settings else {}
        )

    def losses(self, step: int) -> dict[str, Tensor]:
        return self.losses_of(step, self.config.optim.batch // current_world().size)

    def losses_of(self, step: int, count: int) -> dict[str, Tensor]:
        """Return the loss of the first `count` pairs of this process."""
        inputs = self._inputs(self.source[step], count)
        weight = mean_weight(inputs.num_learned)
        chunk = self.config.chunk
        if 0 < chunk < count:
            return {"loss": self._in_chunks(inputs, chunk, weight)}
        return {"loss": self.wrapper(_loss, inputs) * weight}

    def _in_chunks(self, inputs: WritingInputs, chunk: int, weight: Tensor | float) -> Tensor:
        """The backward passes too: the loss is a sum over pairs, so gradients of parts add up."""
        quiet: Callable[[], AbstractContextManager[Any]] = getattr(self.wrapper, "no_sync", nullcontext)
        losses = []
        with quiet():
            for first in range(0, len(inputs.images), chunk):
                part = inputs.select_pairs(slice(first, first + chunk))
                loss = self.wrapper(_loss, part) * (part.num_learned / inputs.num_learned * weight)
                loss.backward()
                losses.append(loss.detach())
        average_gradients(self.wrapper)
        return torch.stack(losses).sum()

    def _inputs(self, batch: Batch, count: int) -> WritingInputs:
        device = self.net.projection.weight.device
        rows = zip(batch.questions[:count], batch.captions, self._draws(batch), strict=False)
        prompts, texts = zip(*(self._pair(*row) for row in rows), strict=True)
        read = None
        if self.prompt_tokenizer is not None:
            ids, mask, _ = self.prompt_tokenizer(prompts)
            read = ids.to(device), mask.to(device)
        return WritingInputs(
            take_images(batch, count, self.net.config.vision, device),
            self.tokenizer.encode_pairs(prompts, texts, self.config.max_tokens).to(device),
            read,
        )

    def _draws(self, batch: Batch) -> Iterable[PairDraws]:
        """Draws for each pair; where they are shared, all N pairs have theirs, for any number of processes."""
        if batch.draws is None:
            return repeat(TorchDraws())
        rows = torch.rand(self.config.optim.batch, 3, generator=batch.draws)
        return [RowDraws(row) for row in current_world().select_share(rows).tolist()]

    def _pair(self, question: str, text: str, draws: PairDraws) -> tuple[str, str]:
        """A prompt and the text that follows it, which may be cut in two at a random word."""
        prompts = self.config.prompts
        prompt = prompts[draws.draw_integer(len(prompts))].replace("{}", question)
        if not self.config.has_questions:
            text = normalise_caption(text)
        words = text.split()
        if len(words) > 1 and draws.draw_fraction() < self.config.prefix_share:
            return cut_in_two(prompt, words, 1 + draws.draw_integer(len(words) - 1))
        return prompt, text


def cut_in_two(prompt: str, words: Sequence[str], place: int) -> tuple[str, str]:
    """Prefix language modelling: the first words go to the prompt, the others are learned."""
    return " ".join([prompt, *words[:place]]).strip(), " ".join(words[place:])


def _loss(net: Captioner, inputs: WritingInputs) -> Tensor:
    patches = apply_vision_norm(net, encode_images(net, inputs.images))
    if inputs.prompts is None:
        return net.compute_loss(net.read_photos(patches), inputs.texts)
    return net.compute_loss(net.read_with_prompts(patches, *inputs.prompts), inputs.texts)


def run_stage2(
    config: Stage2Config, data: Path, runs: Path, language_folder: Path, output: Path, *,
    say: Say = lambda line: None,
) -> None:  # fmt: skip
    """Train by `config` from a stage-1 model and a language model; see `train_writing`.

    language_folder: a transformers folder with a tokenizer.
    """
    train_writing(
        config, lambda: open_stage2_start(config, data, runs, language_folder), data, runs, output, say=say
    )


def open_stage2_start(
    config: Stage2Config, data: Path, runs: Path, language_folder: Path
) -> tuple[CaptionerSource, Path]:
    """Return what stage 2 starts from, and where its stage-1 model lies. Raises DataError and CheckpointError."""
    where = find_start(config.start, data, runs)
    source = read_folder(where)
    if config.image_size:
        source = resize_source(source, where, config.image_size)
    torch.manual_seed(config.optim.seed)
    language = read_language(language_folder)
    about = describe_language(
        language.config, language.tokenizer, language_folder, reads_prompt=config.reads_prompt
    )
    about = replace(about, question=config.question, repetition_penalty=config.repetition_penalty)
    return build_captioner_source(source, language, about), where


def train_writing(
    config: WritingConfig, opened: Callable[[], tuple[CaptionerSource, Path]], data: Path, runs: Path, output: Path,
    *, opener: Opener = open_training_set, say: Say = lambda line: None,
) -> None:  # fmt: skip
    """Train what `opened` gives, alone or as one of torchrun's processes; write the checkpoint folder `output/model`.

    opened: the start and where it lies, already at the recipe's pixels. data: holds the sets; with patches made once,
    runs may hold them too. Raises DataError, CheckpointError and TrainingError saying what is missing or does not fit.
    """
    check_writing(config)
    config = resolve_config_dtypes(config)
    torch.manual_seed(config.optim.seed)
    with join_process_group() as (world, device):
        if config.views and world.size > 1:
            raise TrainingError(
                f"views is {config.views} and {world.size} processes share the batch: a model that writes trains on "
                "patches in one process. Start it without torchrun, or set views to 0."
            )
        tell = say if world.rank == 0 else (lambda line: None)
        source, where = opened()
        check_start(config, source, where)
        former = source.config.qformer
        tokenizer = LanguageTokenizer(source.language.tokenizer, source.config.language, former.num_queries)
        prompts = None if source.tokenizer is None else TextTokenizer(source.tokenizer, former.max_positions)
        net = make_captioner(source, where, torch.float32, DTYPES[config.optim.dtype]).to(device)
        check_caption = Learnable(config, tokenizer, prompts)
        with _batches(config, net, data, runs, check_caption, opener, tell) as batches:
            task = Stage2Task(net, tokenizer, prompts, batches, config)
            train(task, config.optim, output if config.views else output / "all", say=tell)
        own = own_state(net)
        if not config.train_encoder:
            own = {name: value for name, value in own.items() if not name.startswith("vision.")}
        state = gather_full_tensors(own)
        if world.rank == 0:
            save_trained(output / "model", source, state, dtype=torch.float16)
            tell(f"wrote {output / 'model'}")


@contextmanager
def _batches(
    config: WritingConfig,
    net: Captioner,
    data: Path,
    runs: Path,
    check_caption: CheckCaption,
    opener: Opener,
    tell: Say,
) -> Iterator[BatchSource]:
    """Open the sets as the config asks: pictures that are read in every step, or patches that are made now."""
    size = net.config.vision.image_size
    if config.views:
        pictures, samples = read_whole_sets(config, data, runs, size, tell)
        yield EncodedViews(
            encode_views(net, pictures, config),
            normalise_samples(samples),
            config.optim,
            draws_from_torch=True,
        )
        return
    with open_stream(
        config, data, size, current_world(), tell, opener=opener, check_caption=check_caption
    ) as stream:
        yield stream


def normalise_samples(samples: Sequence[CaptionedPicture]) -> list[CaptionedPicture]:
    """Return the samples with plain captions, without those captions of which nothing is left."""
    return [
        replace(
            sample, captions=tuple(plain for text in sample.captions if (plain := normalise_caption(text)))
        )
        for sample in samples
    ]


@dataclass(frozen=True)
class Learnable:
    """Raises DataError for a question and a text that cannot be learned; a stream then takes the next sample."""

    config: WritingConfig
    tokenizer: LanguageTokenizer
    prompt_tokenizer: TextTokenizer | None

    def __call__(self, question: str, text: str) -> None:
        config = self.config
        if not config.has_questions and not normalise_caption(text):
            raise DataError(f"its caption is {text!r}: {NO_CAPTION}")
        if not question:
            return
        asked = [prompt.replace("{}", question) for prompt in config.prompts]
        if not all(self.tokenizer.fits(prompt, text, config.max_tokens) for prompt in asked):
            raise DataError(f"with its answer it has more than {config.max_tokens} tokens: {TOO_LONG}")
        if self.prompt_tokenizer is not None and any(self.prompt_tokenizer(asked)[2]):
            most = self.prompt_tokenizer.max_tokens
            raise DataError(f"it has more than the {most} tokens that the Q-Former reads: {TOO_LONG}")
