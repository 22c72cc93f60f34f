"""Train a captioner: the queries' view of a photo becomes a soft prompt of a frozen language model (BLIP-2, 3.3).

The language-modelling loss trains queries, Q-Former, `vision_norm` and projection, and the image encoder where
`train_encoder` is set; the language model stays as it is, bit for bit. This is stage 2; fine-tuning (`finetuning.py`)
trains in the same way.

Shapes: B pairs of this process, N pairs of all processes, T tokens, P patches, V vision width, H W pixels.
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
from engine.blip2.language_tokens import LanguageTokenizer
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import make_captioner
from engine.checkpoints.checkpoint_sources import CaptionerSource
from engine.checkpoints.saving import collect_own_tensors, save_trained
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
from training.losses.captioner_loss import CaptionerInputs, compute_captioner_loss
from training.stages.stage2_config import Stage2Config, WritingConfig, check_writing
from training.stages.stage_setup import (
    Say,
    collect_fixed_settings,
    open_stream,
    prepare_network,
    read_whole_sets,
    take_images,
)
from training.stages.starts import check_start, open_stage2_start


class Stage2Task:
    """Training with the language-modelling loss: its mean over the tokens of the batch of all processes."""

    def __init__(
        self,
        net: Captioner,
        tokenizer: LanguageTokenizer,
        prompt_tokenizer: TextTokenizer | None,
        source: BatchSource,
        config: WritingConfig,
    ):
        """Prepare the network for training. prompt_tokenizer: for a Q-Former that reads the prompts, else None."""
        self.tokenizer, self.prompt_tokenizer = tokenizer, prompt_tokenizer
        self.source, self.config = source, config
        self.net = self.model = net
        self.wrapper: nn.Module = prepare_network(net, config)
        if prompt_tokenizer is not None and not config.views:
            # Nothing reads what the last layer makes of the prompt, and DDP wants a gradient of all that is trained.
            # Checkpoints of runs on patches hold these weights as trained ones, without a gradient.
            net.qformer.layers[-1].text_mlp.requires_grad_(False)
        names = config.fixed_settings
        self.settings = collect_fixed_settings(config, names, source) if names else {}

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the loss of a step under "loss"."""
        return self.losses_of(step, self.config.optim.batch // current_world().size)

    def losses_of(self, step: int, count: int) -> dict[str, Tensor]:
        """Return the loss of the first `count` pairs of this process."""
        inputs = self._make_inputs(self.source[step], count)
        weight = mean_weight(inputs.num_learned)
        chunk = self.config.chunk
        if 0 < chunk < count:
            return {"loss": self._backward_in_chunks(inputs, chunk, weight)}
        return {"loss": self.wrapper(compute_captioner_loss, inputs) * weight}

    def _backward_in_chunks(self, inputs: CaptionerInputs, chunk: int, weight: Tensor | float) -> Tensor:
        """Run the forward and backward passes in chunks of pairs, and return the loss without gradient.

        The loss is a sum over pairs, so that the gradients of the chunks add up.
        """
        postpone_averaging: Callable[[], AbstractContextManager[Any]] = getattr(
            self.wrapper, "no_sync", nullcontext
        )
        losses = []
        with postpone_averaging():
            for first in range(0, len(inputs.images), chunk):
                pairs = inputs.select_pairs(slice(first, first + chunk))
                chunk_weight = pairs.num_learned / inputs.num_learned * weight
                loss = self.wrapper(compute_captioner_loss, pairs) * chunk_weight
                loss.backward()
                losses.append(loss.detach())
        average_gradients(self.wrapper)
        return torch.stack(losses).sum()

    def _make_inputs(self, batch: Batch, count: int) -> CaptionerInputs:
        """Return what a step reads of the first `count` pairs of this process."""
        device = self.net.projection.weight.device
        pairs = zip(batch.questions[:count], batch.captions, self._make_draws(batch), strict=False)
        prompts, texts = zip(*(self._choose_prompt_and_text(*pair) for pair in pairs), strict=True)
        prompt_tokens = None
        if self.prompt_tokenizer is not None:
            ids, mask, _ = self.prompt_tokenizer(prompts)
            prompt_tokens = ids.to(device), mask.to(device)
        return CaptionerInputs(
            take_images(batch, count, self.net.config.vision, device),
            self.tokenizer.encode_pairs(prompts, texts, self.config.max_tokens).to(device),
            prompt_tokens,
        )

    def _make_draws(self, batch: Batch) -> Iterable[PairDraws]:
        """Return the random numbers of each pair of this process.

        Where all processes draw alike, numbers are drawn for all N pairs, so that the number of processes makes no
        difference.
        """
        if batch.draws is None:
            return repeat(TorchDraws())
        rows = torch.rand(self.config.optim.batch, 3, generator=batch.draws)
        return [RowDraws(row) for row in current_world().select_share(rows).tolist()]

    def _choose_prompt_and_text(self, question: str, text: str, draws: PairDraws) -> tuple[str, str]:
        """Return a prompt and the text that follows it; the text may be cut in two at a random word."""
        prompts = self.config.prompts
        prompt = prompts[draws.draw_integer(len(prompts))].replace("{}", question)
        if not self.config.has_questions:
            text = normalise_caption(text)
        words = text.split()
        if len(words) > 1 and draws.draw_fraction() < self.config.prefix_share:
            return cut_in_two(prompt, words, 1 + draws.draw_integer(len(words) - 1))
        return prompt, text


def cut_in_two(prompt: str, words: Sequence[str], num_prefix_words: int) -> tuple[str, str]:
    """Return a prompt that ends with the first words of a text, and the words that are left to be learned.

    This is prefix language modelling (BLIP-2, section 3.3).
    """
    prefix, suffix = words[:num_prefix_words], words[num_prefix_words:]
    return " ".join([prompt, *prefix]).strip(), " ".join(suffix)


def run_stage2(
    config: Stage2Config,
    data: Path,
    runs: Path,
    language_folder: Path,
    output: Path,
    *,
    say: Say = lambda line: None,
) -> None:
    """Run stage 2 by a config: train a captioner from a stage-1 model and a language model.

    language_folder: a transformers folder of the language model, with its tokenizer. `train_captioner` explains the
    other parameters, the files that are written and the errors.
    """

    def open_start() -> tuple[CaptionerSource, Path]:
        return open_stage2_start(config, data, runs, language_folder)

    train_captioner(config, open_start, data, runs, output, say=say)


def train_captioner(
    config: WritingConfig,
    open_start: Callable[[], tuple[CaptionerSource, Path]],
    data: Path,
    runs: Path,
    output: Path,
    *,
    opener: Opener = open_training_set,
    say: Say = lambda line: None,
) -> None:
    """Train a captioner, alone or as one of torchrun's processes, and write the checkpoint folder `output/model`.

    open_start: returns what training starts from, already at the recipe's pixels, and its folder. data: the folder of
    the sets. runs: the folder of runs, which may hold sets too where patches are made once. opener: opens a set. say:
    is called with lines of progress. Raises DataError, CheckpointError and TrainingError for what is missing or does
    not fit.
    """
    check_writing(config)
    config = resolve_config_dtypes(config)
    torch.manual_seed(config.optim.seed)
    with join_process_group() as (world, device):
        if config.views and world.size > 1:
            raise TrainingError(
                f"views is {config.views} and {world.size} processes share the batch: a captioner trains on patches in "
                "one process. Start it without torchrun, or set views to 0."
            )
        tell = say if world.rank == 0 else (lambda line: None)
        source, folder = open_start()
        check_start(config, source, folder)
        tokenizer, prompt_tokenizer = _make_tokenizers(source)
        net = make_captioner(source, folder, torch.float32, DTYPES[config.optim.dtype]).to(device)
        checker = PairChecker(config, tokenizer, prompt_tokenizer)
        with _open_batches(config, net, data, runs, checker, opener, tell) as batches:
            task = Stage2Task(net, tokenizer, prompt_tokenizer, batches, config)
            train(task, config.optim, output if config.views else output / "all", say=tell)
        weights = gather_full_tensors(_select_saved_weights(net, config))
        if world.rank == 0:
            save_trained(output / "model", source, weights, dtype=torch.float16)
            tell(f"Wrote {output / 'model'}.")


def _make_tokenizers(source: CaptionerSource) -> tuple[LanguageTokenizer, TextTokenizer | None]:
    """Return the tokenizer of the language model, and that of a Q-Former that reads the prompt."""
    qformer = source.config.qformer
    tokenizer = LanguageTokenizer(source.language.tokenizer, source.config.language, qformer.num_queries)
    if source.tokenizer is None:
        return tokenizer, None
    return tokenizer, TextTokenizer(source.tokenizer, qformer.max_positions)


def _select_saved_weights(net: Captioner, config: WritingConfig) -> dict[str, Tensor]:
    """Return the weights that are saved anew: all but the language model's and those of a frozen encoder."""
    weights = collect_own_tensors(net)
    if config.train_encoder:
        return weights
    return {name: weight for name, weight in weights.items() if not name.startswith("vision.")}


@contextmanager
def _open_batches(
    config: WritingConfig,
    net: Captioner,
    data: Path,
    runs: Path,
    check_caption: CheckCaption,
    opener: Opener,
    tell: Say,
) -> Iterator[BatchSource]:
    """Open the sets of a config: pictures that are read in every step, or patches that are made now."""
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
    """Return the samples with normalised captions, without the captions of which nothing is left."""
    return [
        replace(
            sample,
            captions=tuple(normalised for text in sample.captions if (normalised := normalise_caption(text))),
        )
        for sample in samples
    ]


@dataclass(frozen=True)
class PairChecker:
    """Refuses questions and texts that cannot be learned; a stream of pictures then takes the next sample.

    Calling it raises DataError for such a pair. The message is a reason, which is shown after the sample's path.
    """

    config: WritingConfig
    tokenizer: LanguageTokenizer
    prompt_tokenizer: TextTokenizer | None

    def __call__(self, question: str, text: str) -> None:
        config = self.config
        if not config.has_questions and not normalise_caption(text):
            raise DataError(f"its caption is {text!r}: {NO_CAPTION}")
        if not question:
            return
        prompts = [prompt.replace("{}", question) for prompt in config.prompts]
        if not all(self.tokenizer.fits(prompt, text, config.max_tokens) for prompt in prompts):
            raise DataError(f"with its answer it has more than {config.max_tokens} tokens: {TOO_LONG}")
        if self.prompt_tokenizer is not None and any(self.prompt_tokenizer(prompts)[2]):
            max_tokens = self.prompt_tokenizer.max_tokens
            raise DataError(f"it has more than the {max_tokens} tokens that the Q-Former reads: {TOO_LONG}")
