"""Make the inputs of benchmarks: many distinct JPEG files from real photographs, and a model with random weights.

This module imports no heavy library; report.py gives the reason.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

SEED = 7
MODEL_HELP = "Name or folder of a model, or random: an untrained model of mini's shape."
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
    """Write `count` distinct JPEG files into folder/photos: random windows of real photographs, half of them mirrored.

    source: a folder of photos (JPEG, PNG, WebP); None takes those that scikit-image and scikit-learn contain.
    folder: where the files are written. size: their width and height in pixels.
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
    generator = random.Random(SEED)
    opened: dict[Path, Image.Image] = {}
    for number in range(count):
        path = paths[number % len(paths)]
        if path not in opened and len(opened) < 64:
            opened[path] = Image.open(path).convert("RGB")
        picture = opened[path] if path in opened else Image.open(path).convert("RGB")
        _crop_window(picture, size, generator).save(photos / f"{number:06}.jpg", quality=90)


def _crop_window(picture: Image.Image, size: tuple[int, int], generator: random.Random) -> Image.Image:
    """Return a random window of a picture at this size, mirrored in half of the cases."""
    from PIL import Image

    share = generator.uniform(0.4, 1.0)
    width, height = share * picture.width, share * picture.height
    left, top = generator.uniform(0, picture.width - width), generator.uniform(0, picture.height - height)
    window = picture.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    return window.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if generator.random() < 0.5 else window


def random_model(folder: Path) -> Path:
    """Save a model of mini's shape with random weights, which has its speed but knows nothing; return its folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    from engine.blip2.config import mini
    from engine.blip2.retriever import Retriever
    from engine.checkpoints.saving import save_checkpoint

    words = sorted({word for text in TEXTS for word in text.split()})
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    endings = [f"##{letter}" for letter in letters]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *words, *letters, *endings]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    torch.manual_seed(SEED)
    save_checkpoint(folder, Retriever(mini()), tokenizer, dtype=torch.float16)
    return folder
