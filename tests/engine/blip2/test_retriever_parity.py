"""Beside another implementation: transformers' Blip2ForImageTextRetrieval with random weights, saved and read by us."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_tokenizer
from torch import Tensor
from transformers import Blip2Config as TheirConfig
from transformers import Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig

from engine.blip2.retriever import Retriever, itc_scores
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import load_net

SIZE, PATCH, V, D, Q, E = 56, 14, 88, 64, 8, 24
VOCABULARY = tiny_tokenizer().get_vocab_size()
TEXTS = ("a red dog runs in the snow", "cat", "the blue house")
ATOL = 2e-5
Pair = tuple[Blip2ForImageTextRetrieval, Retriever]


def random_theirs() -> Blip2ForImageTextRetrieval:
    """A small model of theirs whose weights say different things of different photos."""
    qformer = Blip2QFormerConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=32,
        encoder_hidden_size=V,
        use_qformer_text_input=True,
    )
    # 4.3637 is EVA's ratio of the inner width, which timm takes from the architecture.
    inner = int(V * 4.3637)
    vision = Blip2VisionConfig(
        hidden_size=V,
        intermediate_size=inner,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        layer_norm_eps=1e-6,
    )
    text = OPTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, ffn_dim=16, vocab_size=20)
    config = TheirConfig(
        vision_config=vision,
        qformer_config=qformer,
        text_config=text,
        num_query_tokens=Q,
        image_text_hidden_size=E,
    )
    theirs = Blip2ForImageTextRetrieval(config).eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if parameter.ndim == 1:
            parameter.copy_(0.1 * noise + float(name.endswith("weight")))
            if name.endswith("qkv.bias"):
                parameter.view(3, -1)[1] = 0
        else:
            parameter.copy_(noise * (1.5 / parameter[0].numel() ** 0.5))
    return theirs


@pytest.fixture(scope="module", params=["one file", "shards", "bin"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """(theirs, ours) with the same weights, ours read from what theirs saved."""
    theirs, folder = random_theirs(), tmp_path_factory.mktemp("theirs")
    save_theirs(theirs, folder, request.param)
    return theirs, load_net(folder)[0].eval().requires_grad_(False)


def save_theirs(theirs: Blip2ForImageTextRetrieval, folder: Path, layout: str = "one file") -> None:
    """As people publish it: config, weights in one safetensors file or many, or a .bin; and a tokenizer."""
    theirs.save_pretrained(folder, max_shard_size="300KB" if layout == "shards" else "5GB")
    assert (len(list(folder.glob("*.safetensors"))) > 2) == (layout == "shards")
    if layout == "bin":
        (folder / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))


def asked(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """pixels, ids, mask of so many photos and texts; in a batch of three two texts are padded."""
    pixels = torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(batch))
    ids, mask, _ = TextTokenizer(tiny_tokenizer(), 16)(TEXTS[:batch])
    assert batch == 1 or not mask.all()
    return pixels, ids, mask


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, atol=ATOL, rtol=0)


@pytest.mark.parametrize("batch", [1, 3])
def test_itc_scores(pair: Pair, batch: int) -> None:
    theirs, ours = pair
    pixels, ids, mask = asked(batch)
    want = theirs(pixel_values=pixels, input_ids=ids, attention_mask=mask.long())
    patches = ours.encode_patches(pixels)
    close(patches, want.vision_model_output.last_hidden_state)
    photos, texts = ours.encode_photos(ours.photo_keys(patches)), ours.encode_texts(ids, mask)
    close(photos, want.image_embeds)
    close(texts, want.text_embeds)
    close(itc_scores(photos, texts), want.logits_per_image)
    if batch > 1:  # weights that say the same of everything would prove nothing
        assert want.logits_per_image.std() > 0.05


@pytest.mark.parametrize("batch", [1, 3])
def test_itm_logits(pair: Pair, batch: int) -> None:
    theirs, ours = pair
    pixels, ids, mask = asked(batch)
    keys = ours.photo_keys(ours.encode_patches(pixels))
    for turn in range(batch):  # every photo with every text
        texts = torch.arange(batch).roll(turn)
        want = theirs(
            pixel_values=pixels,
            input_ids=ids[texts],
            attention_mask=mask[texts].long(),
            use_image_text_matching_head=True,
        ).logits_per_image
        close(ours.match(keys, ids[texts], mask[texts]), want)
        assert batch == 1 or want.std(dim=0).min() > 0.05


def test_padding_changes_nothing(pair: Pair) -> None:
    """A text alone, and the same text padded beside a longer one."""
    _, ours = pair
    pixels, ids, mask = asked(3)
    keys = ours.photo_keys(ours.encode_patches(pixels))
    together, vectors = ours.match(keys, ids, mask), ours.encode_texts(ids, mask)
    for row in range(3):
        length = int(mask[row].sum())
        own = [(k[row : row + 1], v[row : row + 1]) for k, v in keys]
        alone = ids[row : row + 1, :length], mask[row : row + 1, :length]
        close(ours.match(own, *alone), together[row : row + 1])
        close(ours.encode_texts(*alone), vectors[row : row + 1])
