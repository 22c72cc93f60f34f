"""Train a small OPT on captions alone; it becomes the frozen language model of a small captioner (BLIP-2, 3.3).

A document is the captions of one photo in random order, each written as `</s>caption` and a newline. So the model
learns to go on with the subject of the text before, and to begin a caption at any position. Stage 2 asks for both: its
soft prompts stand before the caption.

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
from engine.wording import count_text
from training.distributed.world import device_of_process
from training.loop.optimizer import OptimConfig
from training.loop.train_loop import train
from training.stages.text_half import TOKENIZER, read_caption_groups, word_captions

if TYPE_CHECKING:
    from transformers import OPTForCausalLM

START, PAD, UNKNOWN = "</s>", "<pad>", "<unk>"
END = "\n"
SPECIAL_TOKENS = ["<s>", PAD, START, UNKNOWN]
"""The special tokens with the ids 0 to 3, as OPT has them; the newline, which ends a text, comes next."""
HELD_OUT_EVERY = 50
"""Every photo whose number is a multiple of this is held out from training."""


@dataclass(frozen=True)
class TrainLanguageConfig:
    """The settings for training a small language model.

    captions: gzipped tables "photo id, tab, caption", below the data folder. vocab_size: size of the byte-level BPE's
    vocabulary. width, num_layers, num_heads, mlp_width, max_positions: sizes of the OPT. prompt: stands before a share
    `prompt_share` of the captions, so that the model knows stage 2's prompt.
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
    """Train a byte-level BPE tokenizer like OPT's.

    It puts `</s>` before every text, has a token for the newline alone, and knows every text.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start = tokenizer.token_to_id(START)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, start)]
    )
    return tokenizer


class LanguageTask:
    """Training to predict the next token in the documents of B photos."""

    def __init__(
        self,
        model: OPTForCausalLM,
        tokenizer: Tokenizer,
        groups: Sequence[Sequence[str]],
        config: TrainLanguageConfig,
    ):
        """Encode all captions. groups: the captions of each photo. Raises DataError if there are too few photos."""
        if len(groups) < config.optim.batch:
            raise DataError(
                f"{count_text(len(groups), 'photo')} with captions cannot fill a batch of {config.optim.batch}."
            )
        self.model, self.config = model.train(), config
        self.pad, self.end = tokenizer.token_to_id(PAD), tokenizer.encode(END, add_special_tokens=False).ids
        captions = [text for group in groups for text in group]
        prompted = [f"{config.prompt} {text}" for text in captions]
        # The token ids of every caption, first without the prompt and then with it.
        self.lines = [self._encode(tokenizer, texts) for texts in (captions, prompted)]
        # The numbers of each photo's captions.
        ends = torch.tensor([len(group) for group in groups]).cumsum(0).tolist()
        self.line_numbers = [range(end - len(group), end) for end, group in zip(ends, groups, strict=True)]

    def _encode(self, tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids + self.end for encoding in tokenizer.encode_batch(texts)]

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the mean loss per token of a step's documents under "loss"."""
        numbers = torch.randint(len(self.line_numbers), (self.config.optim.batch,)).tolist()
        loss, _ = self.document_losses([self._draw_document(number) for number in numbers])
        return {"loss": loss.mean()}

    def document_losses(self, documents: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy of every token but the first of each document, and the number of its document.

        Both are one-dimensional. documents: lists of token ids.
        """
        longest = max(map(len, documents))
        ids = torch.tensor([document + [self.pad] * (longest - len(document)) for document in documents])
        lengths = torch.tensor([len(document) for document in documents])
        mask = torch.arange(longest) < lengths[:, None]
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        labels = ids.masked_fill(~mask, IGNORED)[:, 1:].to(device)
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none"
        )
        learned = (labels != IGNORED).flatten()
        rows = torch.arange(len(documents), device=device).repeat_interleave(longest - 1)
        return losses[learned], rows[learned]

    def _draw_document(self, number: int) -> list[int]:
        """Return the token ids of a photo's captions in random order, some of them with the prompt."""
        line_numbers = self.line_numbers[number]
        document: list[int] = []
        for offset in torch.randperm(len(line_numbers)).tolist():
            is_prompted = bool(torch.rand(()) < self.config.prompt_share)
            document += self.lines[is_prompted][line_numbers[offset]]
        return document[: self.config.max_positions]


@torch.inference_mode()
def measure_held_out_loss(task: LanguageTask, batch: int = 64) -> tuple[float, float]:
    """Return the mean loss per token of the photos' second captions: alone, and after their first captions.

    The difference shows how well the model uses the text before a caption.
    """
    task.model.eval()
    alone, after = [], []
    captions = task.lines[0]
    pairs = [(captions[photo[0]], captions[photo[1]]) for photo in task.line_numbers if len(photo) > 1]
    for start in range(0, len(pairs), batch):
        pair_batch = pairs[start : start + batch]
        alone.append(task.document_losses([second for _, second in pair_batch])[0])
        losses, rows = task.document_losses([first + second for first, second in pair_batch])
        positions = torch.cat([torch.arange(len(first) + len(second) - 1) for first, second in pair_batch])
        second_starts = torch.tensor([len(first) for first, _ in pair_batch], device=rows.device)[rows]
        after.append(losses[positions.to(rows.device) >= second_starts])
    task.model.train()
    return float(torch.cat(alone).mean()), float(torch.cat(after).mean())


def make_opt(config: TrainLanguageConfig, vocab_size: int) -> OPTForCausalLM:
    """Return an OPT of the sizes in the config, with random weights; texts begin and end as in published OPTs."""
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(
        OPTConfig(
            vocab_size=vocab_size,
            hidden_size=config.width,
            word_embed_proj_dim=config.width,
            ffn_dim=config.mlp_width,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            max_position_embeddings=config.max_positions,
            dropout=config.dropout,
            activation_function="relu",
        )
    )


def run_language(
    config: TrainLanguageConfig, data: Path, output: Path, *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Train a tokenizer and an OPT; write `output/language`, a transformers folder for `qseek train stage2`.

    data: the folder of the caption tables. say: is called with lines of progress. Raises DataError for missing tables
    and too few captions.
    """
    groups = [
        [normalised for text in group if (normalised := normalise_caption(text))]
        for group in read_caption_groups(data / name for name in config.captions)
    ]
    groups = [group for group in groups if group]
    output.mkdir(parents=True, exist_ok=True)
    # A resumed run needs the same token ids.
    if not (output / TOKENIZER).exists():
        new_tokenizer = train_bpe((text for group in groups for text in group), config.vocab_size)
        write_file(output / TOKENIZER, new_tokenizer.to_str(pretty=True))
    tokenizer = Tokenizer.from_file(str(output / TOKENIZER))
    say(word_captions(groups, tokenizer))
    torch.manual_seed(config.optim.seed)
    model = make_opt(config, tokenizer.get_vocab_size())
    nn.Module.to(model, device_of_process())
    training_groups = [group for number, group in enumerate(groups, 1) if number % HELD_OUT_EVERY]
    train(LanguageTask(model, tokenizer, training_groups, config), config.optim, output, say=say)
    held_out_groups = groups[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
    if len(held_out_groups) >= config.optim.batch:
        alone, after = measure_held_out_loss(LanguageTask(model, tokenizer, held_out_groups, config))
        say(
            f"Held-out photos: the loss per token is {alone:.3f}, and {after:.3f} after another caption of the photo."
        )
    save_language(output / "language", model, tokenizer, torch.float16)
    say(f"Wrote {output / 'language'}.")
