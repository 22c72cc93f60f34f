"""What the benchmarks read: many distinct JPEG files made of real photographs, and a model with random weights.

Imports nothing heavy; see report.py.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SEED = 7
TEXTS = (
    "a dog running through the snow",
    "two children playing in a fountain",
    "a man climbing a steep rock wall",
    "a red bus in a city street at night",
    "a bowl of soup on a wooden table",
    "a brown horse in a green field",
    "people sitting at the beach under an umbrella",
    "a black cat sleeping on a chair",
    "a girl in a yellow raincoat jumping into a puddle",
    "a boat on a calm lake in front of mountains",
)


def make_photos(source: Path | None, folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> None:
    """Write `count` distinct JPEG files of `size` pixels: random windows, half of them mirrored, of real photographs.

    source: a folder of photos (JPEG, PNG, WebP); None: those that scikit-image and scikit-learn carry.
    """
    from PIL import Image

    originals = folder / "originals"
    if source is None:
        sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))
        from demo_photos import write_photos

        write_photos(originals)
        source = originals
    suffixes = {".jpg", ".jpeg", ".png", ".webp"}
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in suffixes)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    draw = random.Random(SEED)
    kept: dict[Path, Image.Image] = {}
    for number in range(count):
        path = paths[number % len(paths)]
        if path not in kept and len(kept) < 64:
            kept[path] = Image.open(path).convert("RGB")
        picture = kept[path] if path in kept else Image.open(path).convert("RGB")
        _window(picture, size, draw).save(photos / f"{number:06}.jpg", quality=90)


def _window(picture: Image.Image, size: tuple[int, int], draw: random.Random) -> Image.Image:
    from PIL import Image

    share = draw.uniform(0.4, 1.0)
    width, height = share * picture.width, share * picture.height
    left, top = draw.uniform(0, picture.width - width), draw.uniform(0, picture.height - height)
    made = picture.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    return made.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else made


def random_model(folder: Path) -> Path:
    """A checkpoint of mini's shape with random weights: its speed without its knowledge. Returns its folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    from engine.blip2.config import mini
    from engine.blip2.retriever import Retriever
    from engine.checkpoints.saving import save_checkpoint

    words = sorted({word for text in TEXTS for word in text.split()})
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *words, *letters, *(f"##{one}" for one in letters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    torch.manual_seed(SEED)
    save_checkpoint(folder, Retriever(mini()), tokenizer, dtype=torch.float16)
    return folder
