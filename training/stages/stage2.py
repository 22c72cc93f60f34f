"""Stage 2: what the queries read of a photo becomes a soft prompt of a frozen language model (BLIP-2, section 3.3).

The language-modelling loss of the caption trains queries, Q-Former, `vision_norm` and projection; image encoder and
language model stay as they are, bit for bit.

Shapes: B pictures, N of the set, W views of each, P patches, V vision width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.blip2.captioner import Captioner
from engine.blip2.config import CaptionerConfig, LanguageConfig
from engine.blip2.language_tokens import LanguageTokenizer
from engine.blip2.retriever import Retriever
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import load_net
from engine.checkpoints.filling import without_storage
from engine.checkpoints.language_folder import describe_language, make_language, read_language
from engine.checkpoints.saving import save_captioner
from engine.datasets.captioned_pictures import CaptionedPicture, plain_caption
from engine.datasets.captioned_sets import read_small_sets
from engine.datasets.picture_reading import load_pictures
from engine.errors import DataError
from engine.models.devices import DTYPES
from training.batches.encoded_views import encode_views
from training.batches.sample_order import batch_of
from training.loop.optimizer import OptimConfig
from training.loop.train_loop import train
from training.losses.stage1_losses import normed
from training.stages.starts import find_start


@dataclass(frozen=True)
class Stage2Config:
    """What stage 2 learns from, and how.

    pictures: captioned sets, see `captioned_sets.read_small_sets`. start: the stage-1 run that it builds on, or a
    retrieval model by name. prompts: one of them is drawn for each caption; "" = the caption alone. prefix_share: of
    the captions that are cut in two, the beginning for the encoder, the rest for the decoder (prefix language
    modelling, for an encoder-decoder). reads_prompt: whether the Q-Former reads the prompt, too (InstructBLIP).
    max_tokens: see `LanguageTokenizer.pairs`. views, smallest_crop: as in `Stage1Config`. question, repetition_penalty:
    see `LanguageConfig`.
    """

    pictures: tuple[str, ...]
    optim: OptimConfig
    start: str = "mini"
    prompts: tuple[str, ...] = ("a photo of",)
    prefix_share: float = 0.0
    reads_prompt: bool = False
    max_tokens: int = 32
    views: int = 1
    smallest_crop: float = 0.6
    question: str | None = ""
    repetition_penalty: float = 1.0


def from_stage1(net: Retriever, language: Any, about: LanguageConfig) -> Captioner:
    """A stage-1 model's encoder, queries and Q-Former before a frozen language model, with a new projection.

    The modules are net's own, which loses its text branch unless the Q-Former reads the prompt.
    """
    config = CaptionerConfig(net.config.vision, net.config.qformer, about, net.config.vision_norm_eps)
    with without_storage():
        made = Captioner(config, nn.Identity())
    made.vision, made.vision_norm, made.qformer = net.vision, net.vision_norm, net.qformer
    if not about.reads_prompt:
        made.qformer.drop_text()
    made.projection = nn.Linear(config.qformer.width, about.width)
    made.language = language
    return made


class Stage2Task:
    """Stage 2 on patches that the frozen encoder made once, a batch of one caption of each of B pictures."""

    def __init__(
        self, net: Captioner, tokenizer: LanguageTokenizer, prompt_tokenizer: TextTokenizer | None,
        patches_NWPV: Tensor, samples: Sequence[CaptionedPicture], config: Stage2Config,
    ):  # fmt: skip
        self.net, self.tokenizer, self.prompt_tokenizer = net, tokenizer, prompt_tokenizer
        self.patches, self.config = patches_NWPV, config
        self.samples = [replace(s, captions=_plain(s.captions)) for s in samples]
        _check(net.config.language, self.samples, config)
        net.requires_grad_(True)
        net.vision.requires_grad_(False)
        net.language.requires_grad_(False)
        self.model = net.train()

    def losses(self, step: int) -> dict[str, Tensor]:
        device = self.net.projection.weight.device
        chosen = self._pictures_of(step)
        views = torch.randint(self.patches.shape[1], (len(chosen),))
        prompts, texts = zip(*(self._pair(number) for number in chosen.tolist()), strict=True)
        batch = self.tokenizer.pairs(prompts, texts, self.config.max_tokens).to(device)
        patches = normed(self.net, self.patches[chosen, views].to(device))
        if self.prompt_tokenizer is None:
            soft = self.net.read_photos(patches)
        else:
            ids, mask, _ = self.prompt_tokenizer(prompts)
            soft = self.net.read_with_prompts(patches, ids.to(device), mask.to(device))
        return {"loss": self.net.loss(soft, batch)}

    def _pair(self, number: int) -> tuple[str, str]:
        """A prompt and one of the picture's captions, which may be cut in two at a random word."""
        captions = self.samples[number].captions
        text = captions[_any(len(captions))]
        prompt = self.config.prompts[_any(len(self.config.prompts))]
        words = text.split()
        if len(words) > 1 and float(torch.rand(())) < self.config.prefix_share:
            return cut_in_two(prompt, words, 1 + _any(len(words) - 1))
        return prompt, text

    def _pictures_of(self, step: int) -> Tensor:
        return batch_of(step, len(self.samples), self.config.optim)


def _plain(captions: Sequence[str]) -> tuple[str, ...]:
    return tuple(plain for text in captions if (plain := plain_caption(text)))


def cut_in_two(prompt: str, words: Sequence[str], place: int) -> tuple[str, str]:
    """Prefix language modelling: the first words go to the prompt, the others are learned."""
    return " ".join([prompt, *words[:place]]).strip(), " ".join(words[place:])


def _any(count: int) -> int:
    return int(torch.randint(count, ()))


def _check(language: LanguageConfig, samples: Sequence[CaptionedPicture], config: Stage2Config) -> None:
    """Raises DataError for pictures and settings that stage 2 cannot learn from."""
    uncaptioned = [s.key for s in samples if not s.captions]
    if uncaptioned:
        raise DataError(f"{len(uncaptioned)} pictures have no caption (first: {uncaptioned[0]}).")
    if len(samples) < config.optim.batch:
        raise DataError(f"{len(samples)} pictures are fewer than a batch of {config.optim.batch}.")
    if not config.prompts:
        raise DataError('The recipe has no prompts; ("",) is none before any caption.')
    if language.reads_prompt and not all(prompt.strip() for prompt in config.prompts):
        raise DataError("The Q-Former reads the prompt, and one of the recipe's prompts is empty.")
    if config.prefix_share and not language.encoder_decoder:
        raise DataError(
            f"prefix_share is {config.prefix_share}, but the language model is a decoder, which learns whole captions; "
            "leave it at 0."
        )


def run_stage2(
    config: Stage2Config,
    data: Path,
    runs: Path,
    language_folder: Path,
    output: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Stage 2 from a stage-1 model and a language model; writes the checkpoint folder `output/model`.

    data: holds the shards, or runs does (see training/capfilt). runs: where the run `config.start` is looked for.
    language_folder: a transformers folder with a tokenizer. Raises CheckpointError and DataError for what is
    missing or does not fit.
    """
    torch.manual_seed(config.optim.seed)
    source = read_language(language_folder)
    about = describe_language(
        source.config, source.tokenizer, language_folder, reads_prompt=config.reads_prompt
    )
    about = replace(about, question=config.question, repetition_penalty=config.repetition_penalty)
    retriever, words = load_net(find_start(config.start, data, runs))
    language = make_language(source.config, source.tensors, language_folder, DTYPES[config.optim.dtype])
    net = from_stage1(retriever, language, about).to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = LanguageTokenizer(source.tokenizer, about, net.config.qformer.num_queries)
    prompts = (
        TextTokenizer(words.tokenizer, net.config.qformer.max_positions) if config.reads_prompt else None
    )
    samples = read_small_sets(config.pictures, data, runs)
    pictures, samples, failures = load_pictures(samples, net.config.vision.image_size)
    say(f"{len(pictures)} pictures, {len(failures)} unreadable; encoding {config.views} views of each")
    patches = encode_views(net, pictures, config)
    train(Stage2Task(net, tokenizer, prompts, patches, samples, config), config.optim, output, say=say)
    save_captioner(
        output / "model", net, source.tokenizer, None if prompts is None else prompts.tokenizer,
        dtype=torch.float16, language_files=source.files,
    )  # fmt: skip
    say(f"wrote {output / 'model'}")
