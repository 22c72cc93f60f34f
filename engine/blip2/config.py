"""What a model is made of, as frozen dataclasses that map one to one onto `config.json`.

The presets are the published shapes (BLIP-2, section 4; sizes from the released checkpoints) and the small
one that ships.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from engine.errors import CheckpointError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVA = "eva_giant_patch14_clip_224"
"""timm's name of BLIP-2's ViT-g."""
EVA_MLP_RATIO = 4.3637
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class VisionConfig:
    """A frozen image encoder: any timm model.

    timm_name: a timm architecture. timm_args: keyword arguments for `timm.create_model` (depth, pad_type, ...).
    image_size: pixels of the square it reads. num_channels: V, width of a patch. class_token: whether the class
    token is kept among the patches (BLIP-2 keeps it). final_norm: whether the encoder's own last norm is applied
    (BLIP-2: no, the Q-Former side has `ln_vision`). mean, std: per channel, of values in [0, 1].
    """

    timm_name: str
    image_size: int
    num_channels: int
    timm_args: dict[str, Any] = field(default_factory=dict)
    class_token: bool = True
    final_norm: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD


@dataclass(frozen=True)
class QFormerConfig:
    """The Q-Former: BERT with queries (BLIP-2, section 3.1).

    width: D. num_queries: Q. mlp_width: inner width of both feed-forwards. cross_attention_every: layers
    0, n, 2n, ... read the patches. norm_eps: of every LayerNorm inside. dropout: training only.
    """

    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    mlp_width: int = 3072
    num_queries: int = 32
    cross_attention_every: int = 2
    vocab_size: int = 30523
    max_positions: int = 512
    norm_eps: float = 1e-12
    dropout: float = 0.1


@dataclass(frozen=True)
class Blip2Config:
    """The retrieval model: encoder, Q-Former, ITC width E, the longest text it reads (with [CLS] and [SEP]).

    match_ready: whether the ITM head puts photos in a better order than ITC. A checkpoint whose training did not
    get there says so, and search keeps ITC's order.
    """

    vision: VisionConfig
    qformer: QFormerConfig = field(default_factory=QFormerConfig)
    embed_dim: int = 256
    max_tokens: int = 32
    vision_norm_eps: float = 1e-5
    match_ready: bool = True
    match_weight: float = 1.0
    has_captions: bool = True

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Blip2Config:
        """The inverse of `to_dict`. Raises CheckpointError naming the missing or unknown keys."""
        return _build(cls, values, "config.json")


@dataclass(frozen=True)
class LanguageConfig:
    """The frozen language model of stage 2 (BLIP-2, section 3.3); its own files lie in `language/`.

    encoder_decoder: an encoder reads the prompt, a decoder writes (Flan-T5); else one decoder does both (OPT, LLaMA).
    width: W, of its word embeddings. max_positions: the most tokens it reads and writes, queries counted. start_id:
    stands before a decoder's text, None = nothing does. end_id: ends what is written (BLIP-2 ends OPT's captions with a
    newline), and the text that an encoder reads. pad_id: fills up rows; masked everywhere. reads_prompt: whether the
    Q-Former reads the prompt, too (InstructBLIP, arXiv:2305.06500, section 2.3). question: what a question stands in,
    at its "{}", where the model was trained to answer; empty: see `CaptionModel.answer`; None: it only captions, its
    language model being too small to answer what nobody taught it. repetition_penalty: with which it captions, where
    nobody asks for another, see `GenerationOptions`.
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
    """The generative model of stage 2: encoder, Q-Former, language model. Its Q-Former has no text branch, unless it
    reads the prompt.

    encoder: the model folder beside its own whose image encoder it shares instead of holding one; encoder_digest: of
    that encoder's weights (`filling.digest_of_tensors`), since no other will do. Both are empty for one that is whole.
    """

    vision: VisionConfig
    qformer: QFormerConfig
    language: LanguageConfig
    vision_norm_eps: float = 1e-5
    encoder: str = ""
    encoder_digest: str = ""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaptionerConfig:
        """The inverse of `to_dict`. Raises CheckpointError naming the missing or unknown keys."""
        return _build(cls, values, "config.json")


def _build(cls: Any, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise CheckpointError(f"{where} should hold a JSON object, not {values!r}.")
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
            f"{where}: missing {missing or 'nothing'}, unknown {unknown or 'nothing'}; "
            "was the file written by another version of qseek?"
        )
    made = {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _build(hints[name], value, f"{where} ({name})")
        made[name] = tuple(value) if isinstance(value, list) else value
    return cls(**made)


def vit_g(image_size: int = 224) -> Blip2Config:
    """BLIP-2 with EVA-CLIP ViT-g/14, 39 of its 40 blocks (224 px; 364 px for the COCO fine-tuned weights)."""
    args = {"depth": 39, "img_size": image_size}
    return Blip2Config(VisionConfig(EVA, image_size, 1408, args))


def vit_l(image_size: int = 224) -> Blip2Config:
    """BLIP-2 with CLIP ViT-L/14, 23 of its 24 blocks."""
    args = {"depth": 23, "img_size": image_size}
    return Blip2Config(VisionConfig("vit_large_patch14_clip_quickgelu_224", image_size, 1024, args))


def mini(vocab_size: int = 8192) -> Blip2Config:
    """The model that ships: a MobileNetV2 of our own (distilled here) and a small Q-Former with all 32 queries."""
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
    # Its ITM imitates ITC's scores over the temperature, 0.039: a logit, half a margin, is worth 2 * 0.039 of a cosine.
    return Blip2Config(vision, qformer, match_weight=0.08)
