"""Train the text half of a Q-Former before it sees any picture: a vocabulary, and sentence vectors from paraphrases.

Captions of one photo say the same in other words. Training pulls their vectors together (InfoNCE, arXiv:1807.03748, as
SimCSE does with labelled pairs, arXiv:2104.08821). This gives the text half a start, as BERT's weights do in BLIP-2.

Shapes: B photos, T tokens, E embedding.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from engine.atomic import write_file
from engine.blip2.config import Blip2Config
from engine.blip2.retriever import Retriever
from engine.blip2.wordpiece import TextTokenizer
from engine.errors import DataError
from engine.wording import count_text
from training.distributed.world import device_of_process
from training.loop.optimizer import OptimConfig
from training.loop.train_loop import train
from training.losses.itc_itm_itg import LEAST_TEMPERATURE

TEXT_HALF, TOKENIZER = "text.safetensors", "tokenizer.json"
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]


@dataclass(frozen=True)
class TextConfig:
    """The settings for training a text half.

    model: the model whose text half is trained. captions: gzipped tables "photo id, tab, caption", below the data
    folder.
    """

    model: Blip2Config
    captions: tuple[str, ...]
    optim: OptimConfig


def read_caption_groups(tables: Iterable[Path]) -> list[list[str]]:
    """Read .tsv.gz tables and return the captions of each photo.

    Raises DataError for a table that is missing and for a line that does not have two fields.
    """
    groups: dict[str, list[str]] = {}
    for path in tables:
        try:
            with gzip.open(path, "rt", encoding="utf-8", newline="") as table:
                for number, row in enumerate(csv.reader(table, delimiter="\t", quoting=csv.QUOTE_NONE), 1):
                    if len(row) != 2:
                        raise DataError(
                            f"{path}, line {number}: {count_text(len(row), 'field')} instead of two, photo id and "
                            "caption."
                        )
                    groups.setdefault(row[0], []).append(row[1])
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error}") from error
    return list(groups.values())


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a WordPiece tokenizer that lower-cases, with BERT's special tokens and [DEC]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=SPECIAL_TOKENS, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class TextTask:
    """Training with two captions of each of B photos: each must find the other among those of the batch."""

    def __init__(self, net: Retriever, tokenizer: TextTokenizer, groups: Sequence[Sequence[str]], batch: int):
        """Choose the photos with two captions or more. Raises DataError if they cannot fill a batch.

        groups: the captions of each photo. batch: B.
        """
        self.net, self.tokenizer, self.batch = net, tokenizer, batch
        self.groups = [group for group in groups if len(group) > 1]
        if len(self.groups) < batch:
            raise DataError(
                f"{count_text(len(self.groups), 'photo')} with two captions or more cannot fill a batch of {batch}."
            )
        self.model = select_text_half(net).train()

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the contrastive loss under "loss", and the share of captions that find the other under "right"."""
        device = self.net.temperature.device
        firsts, seconds = [], []
        for number in torch.randperm(len(self.groups))[: self.batch].tolist():
            group = self.groups[number]
            first, second = torch.randperm(len(group))[:2].tolist()
            firsts.append(group[first])
            seconds.append(group[second])
        ids, mask, _ = self.tokenizer(firsts + seconds)
        vectors = self.net.encode_texts(ids.to(device), mask.to(device))
        first_BE, second_BE = vectors[: self.batch], vectors[self.batch :]
        scores = first_BE @ second_BE.T / self.net.temperature.clamp(min=LEAST_TEMPERATURE)
        targets = torch.arange(self.batch, device=device)
        loss = (F.cross_entropy(scores, targets) + F.cross_entropy(scores.T, targets)) / 2
        return {"loss": loss, "right": (scores.argmax(1) == targets).float().mean()}


def select_text_half(net: Retriever) -> nn.ModuleDict:
    """Return the modules that read a text: embeddings, self-attention, text feed-forwards, text head, temperature."""
    layers = [nn.ModuleList([layer.attention, layer.text_mlp]) for layer in net.qformer.layers]
    parts = {
        "words": net.qformer.words,
        "positions": net.qformer.positions,
        "norm": net.qformer.norm,
        "layers": nn.ModuleList(layers),
        "head": net.text_head,
        "temperature": nn.ParameterList([net.temperature]),
    }
    return nn.ModuleDict(parts)


def run_text(
    config: TextConfig, data: Path, output: Path, *, say: Callable[[str], None] = lambda line: None
) -> None:
    """Train a tokenizer and the text half; write `output/tokenizer.json` and `output/text.safetensors`.

    data: the folder of the caption tables. say: is called with lines of progress. Raises DataError for missing tables
    and too few captions.
    """
    groups = read_caption_groups(data / name for name in config.captions)
    output.mkdir(parents=True, exist_ok=True)
    # A resumed run needs the same token ids.
    if not (output / TOKENIZER).exists():
        texts = (text for group in groups for text in group)
        new_tokenizer = train_tokenizer(texts, config.model.qformer.vocab_size)
        write_file(output / TOKENIZER, new_tokenizer.to_str(pretty=True))
    tokenizer = Tokenizer.from_file(str(output / TOKENIZER))
    say(word_captions(groups, tokenizer))
    torch.manual_seed(config.optim.seed)
    net = Retriever(config.model).to(device_of_process())
    task = TextTask(net, TextTokenizer(tokenizer, config.model.max_tokens), groups, config.optim.batch)
    train(task, config.optim, output, say=say)
    weights = {name: value.cpu().contiguous() for name, value in task.model.state_dict().items()}
    write_file(output / TEXT_HALF, save(weights))


def word_captions(groups: Sequence[Sequence[str]], tokenizer: Tokenizer) -> str:
    """Return a sentence with the numbers of captions, of photos, and of tokens in the vocabulary."""
    num_captions = sum(map(len, groups))
    return (
        f"{count_text(num_captions, 'caption')} of {count_text(len(groups), 'photo')}, "
        f"{tokenizer.get_vocab_size():,} tokens."
    )
