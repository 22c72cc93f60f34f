"""A small OPT from captions alone: the frozen language model of a small generative model (BLIP-2, section 3.3).

A document is one photo's captions, each `</s>caption` and a newline, in random order. So the model learns to write what
the text before it speaks of, and every place of a document is one where a caption may begin: what stage 2's soft
prompts, which stand there, ask of it.

Shapes: B documents, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from engine.atomic import write_file
from engine.blip2.language_tokens import IGNORED
from engine.checkpoints.language_folder import save_language
from engine.datasets.captioned_pictures import normalise_caption
from engine.errors import DataError
from training.distributed.world import device_of_process
from training.loop.optimizer import OptimConfig
from training.loop.train_loop import train
from training.stages.text_half import TOKENIZER, read_caption_groups

if TYPE_CHECKING:
    from transformers import OPTForCausalLM

START, PAD, UNKNOWN = "</s>", "<pad>", "<unk>"
END = "\n"
SPECIAL = ["<s>", PAD, START, UNKNOWN]
"""At OPT's places, 0 to 3; the newline, which ends a text, comes next."""
EVALUATED = 50
"""One photo of so many is held out."""


@dataclass(frozen=True)
class TrainLanguageConfig:
    """captions: gzipped tables "photo id, tab, caption", below the data folder. vocab_size: of the byte-level BPE.

    width, num_layers, num_heads, mlp_width, max_positions: of the OPT. prompt: stands before `prompt_share` of the
    captions, so that stage 2's is no news.
    """

    captions: tuple[str, ...]
    optim: OptimConfig
    vocab_size: int = 4096
    width: int = 256
    num_layers: int = 3
    num_heads: int = 4
    mlp_width: int = 1024
    max_positions: int = 128
    dropout: float = 0.1
    prompt: str = "a photo of"
    prompt_share: float = 0.5


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE as OPT's: `</s>` before every text, a newline is a token of its own, nothing is unknown."""
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=SPECIAL, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    start = tokenizer.token_to_id(START)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, start)]
    )
    return tokenizer


class LanguageTask:
    """Next tokens of B photos' documents."""

    def __init__(
        self,
        model: OPTForCausalLM,
        tokenizer: Tokenizer,
        groups: Sequence[Sequence[str]],
        config: TrainLanguageConfig,
    ):
        if len(groups) < config.optim.batch:
            raise DataError(
                f"{len(groups)} photos with captions are fewer than a batch of {config.optim.batch}."
            )
        self.model, self.config = model.train(), config
        self.pad, self.end = tokenizer.token_to_id(PAD), tokenizer.encode(END, add_special_tokens=False).ids
        plain = [text for group in groups for text in group]
        prompted = [f"{config.prompt} {text}" for text in plain]
        self.lines = [self._encoded(tokenizer, texts) for texts in (plain, prompted)]
        ends = torch.tensor([len(group) for group in groups]).cumsum(0).tolist()
        self.places = [range(end - len(group), end) for end, group in zip(ends, groups, strict=True)]

    def _encoded(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids + self.end for encoding in tokenizer.encode_batch(texts)]

    def losses(self, step: int) -> dict[str, Tensor]:
        chosen = torch.randint(len(self.places), (self.config.optim.batch,)).tolist()
        loss, _ = self.document_losses([self._document(number) for number in chosen])
        return {"loss": loss.mean()}

    def document_losses(self, documents: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Cross-entropy of every token but the first of each document, and which document it is of."""
        longest = max(map(len, documents))
        ids = torch.tensor([d + [self.pad] * (longest - len(d)) for d in documents])
        mask = torch.arange(longest) < torch.tensor([len(d) for d in documents])[:, None]
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        wanted = ids.masked_fill(~mask, IGNORED)[:, 1:].to(device)
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), wanted.flatten(), ignore_index=IGNORED, reduction="none"
        )
        learned = (wanted != IGNORED).flatten()
        rows = torch.arange(len(documents), device=device).repeat_interleave(longest - 1)
        return losses[learned], rows[learned]

    def _document(self, number: int) -> list[int]:
        place = self.places[number]
        document: list[int] = []
        for offset in torch.randperm(len(place)).tolist():
            prompted = bool(torch.rand(()) < self.config.prompt_share)
            document += self.lines[prompted][place[offset]]
        return document[: self.config.max_positions]


@torch.inference_mode()
def measure_held_out_loss(task: LanguageTask, batch: int = 64) -> tuple[float, float]:
    """Mean loss a token of a photo's first caption alone, and of its second after the first: how much less the second
    is, is what the model makes of its context."""
    task.model.eval()
    alone, after = [], []
    documents = [(task.lines[0][p[0]], task.lines[0][p[1]]) for p in task.places if len(p) > 1]
    for start in range(0, len(documents), batch):
        some = documents[start : start + batch]
        alone.append(task.document_losses([second for _, second in some])[0])
        losses, rows = task.document_losses([first + second for first, second in some])
        place = torch.cat([torch.arange(len(a) + len(b) - 1) for a, b in some]).to(rows.device)
        begins = torch.tensor([len(first) for first, _ in some], device=rows.device)[rows]
        after.append(losses[place >= begins])
    task.model.train()
    return float(torch.cat(alone).mean()), float(torch.cat(after).mean())


def make_opt(config: TrainLanguageConfig, vocab_size: int) -> OPTForCausalLM:
    """A random OPT of that size, which begins and ends a text as published ones do."""
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            vocab_size=vocab_size, hidden_size=config.width, word_embed_proj_dim=config.width,
            ffn_dim=config.mlp_width, num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_positions, dropout=config.dropout, activation_function="relu",
        )
    )  # fmt: skip


def run_language(
    config: TrainLanguageConfig, data: Path, output: Path, *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Train a tokenizer and an OPT; write `output/language`, a transformers folder for `qseek train stage2`.

    Raises DataError for missing tables and too few captions.
    """
    groups = [
        [plain for text in group if (plain := normalise_caption(text))]
        for group in read_caption_groups(data / name for name in config.captions)
    ]
    groups = [group for group in groups if group]
    output.mkdir(parents=True, exist_ok=True)
    if not (output / TOKENIZER).exists():  # a resumed run keeps its token numbers
        words = train_bpe((text for group in groups for text in group), config.vocab_size)
        write_file(output / TOKENIZER, words.to_str(pretty=True))
    tokenizer = Tokenizer.from_file(str(output / TOKENIZER))
    say(f"{sum(map(len, groups))} captions of {len(groups)} photos, {tokenizer.get_vocab_size()} tokens")
    torch.manual_seed(config.optim.seed)
    model = make_opt(config, tokenizer.get_vocab_size())
    nn.Module.to(model, device_of_process())
    learned = [group for number, group in enumerate(groups, 1) if number % EVALUATED]
    train(LanguageTask(model, tokenizer, learned, config), config.optim, output, say=say)
    kept_out = groups[EVALUATED - 1 :: EVALUATED]
    if len(kept_out) >= config.optim.batch:
        alone, after = measure_held_out_loss(LanguageTask(model, tokenizer, kept_out, config))
        say(f"held-out photos: loss a token {alone:.3f}, {after:.3f} after another caption of the photo")
    save_language(output / "language", model, tokenizer, torch.float16)
    say(f"wrote {output / 'language'}")
