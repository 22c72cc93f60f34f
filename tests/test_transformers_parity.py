"""Beside another implementation: transformers' Blip2ForImageTextRetrieval with random weights, carried over by name."""

import re

import pytest
import torch
from tiny import tiny_tokenizer
from torch import Tensor
from transformers import Blip2Config as TheirConfig
from transformers import Blip2ForImageTextRetrieval, Blip2QFormerConfig, Blip2VisionConfig, OPTConfig

from engine.blip2.config import Blip2Config, QFormerConfig, VisionConfig
from engine.blip2.preprocess import TextTokenizer
from engine.blip2.retriever import Retriever, itc_scores

SIZE, PATCH, V, D, Q, E = 56, 14, 88, 64, 8, 24
VOCABULARY = tiny_tokenizer().get_vocab_size()
TEXTS = ("a red dog runs in the snow", "cat", "the blue house")
ATOL = 2e-5

# transformers' names, and ours.
NAMES = (
    ("vision_model.embeddings.class_embedding", "vision.backbone.cls_token"),
    ("vision_model.embeddings.position_embedding", "vision.backbone.pos_embed"),
    ("vision_model.embeddings.patch_embedding.*", "vision.backbone.patch_embed.proj.*"),
    ("vision_model.encoder.layers.{i}.layer_norm1.*", "vision.backbone.blocks.{i}.norm1.*"),
    ("vision_model.encoder.layers.{i}.layer_norm2.*", "vision.backbone.blocks.{i}.norm2.*"),
    ("vision_model.encoder.layers.{i}.self_attn.qkv.weight", "vision.backbone.blocks.{i}.attn.qkv.weight"),
    ("vision_model.encoder.layers.{i}.self_attn.projection.*", "vision.backbone.blocks.{i}.attn.proj.*"),
    ("vision_model.encoder.layers.{i}.mlp.*", "vision.backbone.blocks.{i}.mlp.*"),
    ("vision_model.post_layernorm.*", "vision_norm.*"),
    ("embeddings.word_embeddings.weight", "qformer.words.weight"),
    ("embeddings.position_embeddings.weight", "qformer.positions.weight"),
    ("qformer.layernorm.*", "qformer.norm.*"),
    ("qformer.encoder.layer.{i}.attention.attention.*", "qformer.layers.{i}.attention.*"),
    ("qformer.encoder.layer.{i}.attention.output.dense.*", "qformer.layers.{i}.attention.out.*"),
    ("qformer.encoder.layer.{i}.attention.output.LayerNorm.*", "qformer.layers.{i}.attention.norm.*"),
    ("qformer.encoder.layer.{i}.crossattention.attention.*", "qformer.layers.{i}.cross_attention.*"),
    ("qformer.encoder.layer.{i}.crossattention.output.dense.*", "qformer.layers.{i}.cross_attention.out.*"),
    (
        "qformer.encoder.layer.{i}.crossattention.output.LayerNorm.*",
        "qformer.layers.{i}.cross_attention.norm.*",
    ),
    ("qformer.encoder.layer.{i}.intermediate.dense.*", "qformer.layers.{i}.text_mlp.up.*"),
    ("qformer.encoder.layer.{i}.output.dense.*", "qformer.layers.{i}.text_mlp.down.*"),
    ("qformer.encoder.layer.{i}.output.LayerNorm.*", "qformer.layers.{i}.text_mlp.norm.*"),
    ("qformer.encoder.layer.{i}.intermediate_query.dense.*", "qformer.layers.{i}.query_mlp.up.*"),
    ("qformer.encoder.layer.{i}.output_query.dense.*", "qformer.layers.{i}.query_mlp.down.*"),
    ("qformer.encoder.layer.{i}.output_query.LayerNorm.*", "qformer.layers.{i}.query_mlp.norm.*"),
    ("vision_projection.*", "photo_head.*"),
    ("text_projection.*", "text_head.*"),
    ("itm_head.*", "match_head.*"),
)


def our_name(key: str) -> str:
    for theirs, ours in NAMES:
        pattern = re.escape(theirs).replace(r"\{i\}", r"(\d+)").replace(r"\*", "(.+)")
        if found := re.fullmatch(pattern, key):
            for part in found.groups():
                ours = re.sub(r"\{i\}|\*", part, ours, count=1)
            return ours
    raise AssertionError(f"{key} has no place in our model")


def carried_over(state: dict[str, Tensor], ours: Retriever) -> None:
    """Every tensor of theirs has a place, every one of ours is filled but those transformers has not."""
    made = {}
    for key, tensor in state.items():
        if key == "query_tokens":
            made["qformer.queries"] = tensor[0]
        elif found := re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.bias", key):
            # EVA has no bias for the keys; in transformers it is one tensor with zeros in the middle.
            q_bias, k_bias, v_bias = tensor.chunk(3)
            assert not k_bias.any()
            block = f"vision.backbone.blocks.{found[1]}.attn"
            made[f"{block}.q_bias"], made[f"{block}.v_bias"] = q_bias, v_bias
        else:
            made[our_name(key)] = tensor
    missing, unexpected = ours.load_state_dict(made, strict=False)
    assert not unexpected
    assert all(name == "temperature" or name.startswith("caption_head.") for name in missing)


@pytest.fixture(scope="module")
def pair() -> tuple[Blip2ForImageTextRetrieval, Retriever]:
    """(theirs, ours) with the same weights."""
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
    args = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": V, "depth": 3, "num_heads": 4}
    ours = Retriever(
        Blip2Config(
            VisionConfig("eva_giant_patch14_clip_224", SIZE, V, args),
            QFormerConfig(4, D, 4, 128, Q, vocab_size=VOCABULARY, max_positions=32),
            embed_dim=E,
            max_tokens=16,
            vision_norm_eps=1e-6,
        )
    )
    carried_over(theirs.state_dict(), ours)
    return theirs, ours.eval().requires_grad_(False)


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
def test_itc_scores(pair: tuple[Blip2ForImageTextRetrieval, Retriever], batch: int) -> None:
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
def test_itm_logits(pair: tuple[Blip2ForImageTextRetrieval, Retriever], batch: int) -> None:
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


def test_padding_changes_nothing(pair: tuple[Blip2ForImageTextRetrieval, Retriever]) -> None:
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
