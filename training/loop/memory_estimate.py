"""Estimate the bytes that a training step needs on each process, from shapes alone.

Two things are counted: the state (weights, gradients, AdamW's moments) and the activations that are kept for the
backward pass. Attention is counted as if its scores were stored; other small buffers are left out.
"""

from __future__ import annotations

from typing import Any

from engine.blip2.config import Blip2Config, CaptionerConfig, VisionConfig


def estimate_state_bytes(trainable: int, frozen: int, dtype: str) -> int:
    """Return the bytes of weights, gradients and AdamW's two moments.

    trainable, frozen: numbers of parameters. dtype: "bfloat16", which adds float32 masters and their gradients, or
    another, which counts as float32.
    """
    if dtype == "bfloat16":
        return trainable * (2 + 2 + 4 + 4 + 8) + frozen * 2
    return trainable * (4 + 4 + 8) + frozen * 4


def estimate_retriever_bytes(
    model: Blip2Config, batch: int, num_patches: int, dtype: str, *, train_encoder: bool, recompute: bool
) -> int:
    """Return an estimate of the bytes that a step of stage 1 keeps for the backward pass of `batch` pairs.

    Texts count with the longest that the model reads. recompute: the encoder's activations are computed again in the
    backward pass.
    """
    factor = _dtype_factor(dtype)
    qformer, num_queries, num_tokens = model.qformer, model.qformer.num_queries, model.max_tokens
    # ITC reads queries and text apart, ITM three pairs, ITG the text once more.
    passes = [num_queries, num_tokens, *[num_queries + num_tokens] * 3, num_tokens]
    layers = qformer.num_layers * sum(
        estimate_layer_bytes(num_rows, qformer.width, qformer.num_heads) for num_rows in passes
    )
    num_crossing = -(-(qformer.num_layers - qformer.first_query_layer) // qformer.cross_attention_every)
    # Keys and values of the photo and of its two stand-ins, and the scores of four passes over it.
    layers += (
        num_crossing * num_patches * (3 * 2 * 2 * qformer.width + 4 * 5 * qformer.num_heads * num_queries)
    )
    caption_logits = 3 * 4 * num_tokens * qformer.vocab_size // factor  # ITG's, in float32
    encoder = estimate_encoder_bytes(model.vision, num_patches, recompute=recompute) if train_encoder else 0
    return batch * factor * (layers + caption_logits + encoder)


def estimate_captioner_bytes(
    config: CaptionerConfig, language: Any, num_patches: int, max_tokens: int, dtype: str
) -> int:
    """Return an estimate of the bytes that Q-Former and language model keep of one pair for the backward pass.

    The language model is frozen, but the gradient goes through it to the queries: its layers count as trained ones.
    language: transformers' config of the language model.
    """
    factor = _dtype_factor(dtype)
    qformer, num_queries = config.qformer, config.qformer.num_queries
    num_rows = num_queries + max_tokens
    num_qformer_rows = num_rows if config.language.reads_prompt else num_queries
    layers = qformer.num_layers * estimate_layer_bytes(num_qformer_rows, qformer.width, qformer.num_heads)
    num_crossing = -(-(qformer.num_layers - qformer.first_query_layer) // qformer.cross_attention_every)
    layers += num_crossing * num_patches * (2 * 2 * qformer.width + 5 * qformer.num_heads * num_queries)
    width, num_heads = language.hidden_size, language.num_attention_heads
    layers += language.num_hidden_layers * estimate_layer_bytes(num_rows, width, num_heads)
    if language.is_encoder_decoder:  # the decoder has layers of its own, which also read the encoder's rows
        layers += language.num_hidden_layers * (
            estimate_layer_bytes(max_tokens, width, num_heads) + max_tokens * 5 * num_heads * num_rows
        )
    logits = 3 * 4 * max_tokens * language.vocab_size // factor  # in float32
    return factor * (layers + logits)


def estimate_encoder_bytes(vision: VisionConfig, num_patches: int, *, recompute: bool) -> int:
    """Return the bytes that a trained image encoder keeps of one picture for the backward pass, in 16 bit.

    recompute: only the inputs of the layers are kept, and the activations of the one layer that is computed again.
    """
    num_heads, depth = read_heads_and_depth(vision.timm_args, vision.num_channels)
    layer = estimate_layer_bytes(num_patches, vision.num_channels, num_heads)
    layer_input = 2 * num_patches * vision.num_channels
    return depth * layer_input + layer if recompute else depth * layer


def estimate_layer_bytes(num_rows: int, width: int, num_heads: int) -> int:
    """Return the bytes that a transformer layer keeps of `num_rows` tokens or patches, in 16 bit.

    The formula is s (34 d + 5 a s) for s rows, width d and a heads (arXiv:2205.05198, section 4.1).
    """
    return num_rows * (34 * width + 5 * num_heads * num_rows)


def read_heads_and_depth(timm_args: dict[str, Any], width: int) -> tuple[int, int]:
    """Return the numbers of heads and layers of a ViT from timm's arguments.

    Without them it has 12 layers, and heads that are 64 wide (88 in ViT-g, whose width is 1408).
    """
    return timm_args.get("num_heads", width // (88 if width == 1408 else 64)), timm_args.get("depth", 12)


def _dtype_factor(dtype: str) -> int:
    """Return how often two bytes go into a number of this dtype."""
    return 1 if dtype == "bfloat16" else 2
