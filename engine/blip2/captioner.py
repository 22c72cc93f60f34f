"""The generative model of stage 2: frozen encoder, Q-Former, frozen language model (BLIP-2, section 3.3).

The Q-Former's query outputs, projected to the width of word embeddings, stand before the prompt's and are read as if
they were words: soft prompts. What was read of a photo serves every beam and, unless the Q-Former reads the prompt,
every prompt.

Shapes: B photos, P patches, V vision width, Q queries, W width of the word embeddings, T tokens that are read, U tokens
that are written, N vocabulary.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.blip2.config import CaptionerConfig
from engine.blip2.generation import GenerationOptions
from engine.blip2.language_tokens import IGNORED, LanguageBatch
from engine.blip2.qformer import QFormer
from engine.blip2.vision import VisionEncoder

REPETITION_WARNING = "Passing `repetition_penalty` with `inputs_embeds`"
"""How transformers warns that the penalty counts what was written and not what was read: qseek means it so."""
SAVED_TOKENS = (100, 2000)
"""On a CPU and on a GPU: from so many on, reading fewer copies is worth a pass of its own: OPT-2.7B's weights are read
in the time in which so many tokens are computed (a GPU's number from an H200's data sheet, not measured)."""


class Captioner(nn.Module):
    """Photos and prompts -> text. Encoder and language model are frozen and never in training mode."""

    def __init__(self, config: CaptionerConfig, language: Any):
        """language: a transformers model for causal or sequence-to-sequence language modelling."""
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        self.vision_norm = nn.LayerNorm(config.vision.num_channels, eps=config.vision_norm_eps)
        self.qformer = QFormer(config.qformer, config.vision.num_channels)
        if not config.language.reads_prompt:
            self.qformer.drop_text()
        self.projection = nn.Linear(config.qformer.width, config.language.width)
        self.language = language

    def train(self, mode: bool = True) -> Captioner:
        super().train(mode)
        self.vision.eval()
        self.language.eval()
        return self

    def encode_patches(self, pixels_B3HW: Tensor) -> Tensor:
        """Pixels -> patches (B, P, V) as the Q-Former reads them, after the trained `vision_norm` (ln_vision)."""
        return self.vision_norm(self.vision(pixels_B3HW))

    def read_photos(self, patches_BPV: Tensor) -> Tensor:
        """Patches -> soft prompts (B, Q, W)."""
        hidden, _ = self.qformer.read_photos(self.qformer.compute_photo_keys(patches_BPV))
        return self.projection(hidden)

    def read_with_prompts(self, patches_BPV: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The same of a Q-Former that reads the prompt, too: queries and prompt attend to each other, and only the
        query outputs go to the language model (InstructBLIP, arXiv:2305.06500, section 2.3).

        ids, mask: of the Q-Former's own vocabulary, with [CLS] and [SEP].
        """
        keys = self.qformer.compute_photo_keys(patches_BPV)
        return self.projection(self.qformer.read_pairs(keys, ids_BT, mask_BT, queries_only=True))

    def logits(self, soft_BQW: Tensor, texts: LanguageBatch) -> Tensor:
        """Logits of the next token (float32). A decoder: (B, T, N), column t of what precedes token t of `texts.ids`.
        An encoder-decoder: (B, U, N), column u of what precedes token u of `texts.labels`."""
        return self._logits(soft_BQW, texts, torch.arange(texts.ids.shape[1], device=texts.ids.device))

    def loss(self, soft_BQW: Tensor, texts: LanguageBatch) -> Tensor:
        """Mean cross-entropy of the labelled tokens. What precedes every label alone is not scored."""
        labels = texts.labels
        if self.config.language.encoder_decoder:
            logits = self._logits(soft_BQW, texts, None)
        else:
            columns = (labels != IGNORED).any(dim=0).nonzero()[:, 0]
            labels = labels[:, columns]
            logits = self._logits(soft_BQW, texts, columns)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def _logits(self, soft_BQW: Tensor, texts: LanguageBatch, columns: Tensor | None) -> Tensor:
        """columns: which tokens of `texts.ids` a decoder's logits are asked for."""
        embeds, mask = self._read(soft_BQW, texts.ids, texts.mask)
        if self.config.language.encoder_decoder:
            before = self.language.prepare_decoder_input_ids_from_labels(labels=texts.labels)
            found = self.language(inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=before)
        else:
            assert columns is not None
            kept = soft_BQW.shape[1] - 1 + columns  # the place before token 0 is the last query's
            found = self.language(
                inputs_embeds=embeds, attention_mask=mask, logits_to_keep=kept, use_cache=False
            )
        return found.logits.float()

    def _read(self, soft_BQW: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Queries, then tokens: embeddings (B, Q+T, W) and mask (B, Q+T) int64."""
        words = self.language.get_input_embeddings()(ids_BT)
        queries = mask_BT.new_ones(soft_BQW.shape[:2])
        return torch.cat([soft_BQW.to(words.dtype), words], dim=1), torch.cat(
            [queries, mask_BT], dim=1
        ).long()

    @torch.inference_mode()
    def generate(
        self, soft_BQW: Tensor, ids_BT: Tensor, mask_BT: Tensor, options: GenerationOptions
    ) -> Tensor:
        """Write what follows each prompt -> ids (B, U) int64: new tokens, `end_id` where a text ended, then `pad_id`.

        ids, mask: the prompts, padded at the right. With `options.num_samples` = S there are B * S rows, those of one
        prompt after each other.
        """
        embeds, mask = self._read(soft_BQW, ids_BT, mask_BT)
        if not self.config.language.encoder_decoder:
            embeds, mask = _left_padded(embeds, mask)
        config = self._generation_config(options)
        ahead: dict[str, Any] = {}
        copies = options.num_beams * options.num_samples
        num_saved = (copies - 1) * mask.numel()
        if num_saved > SAVED_TOKENS[embeds.is_cuda] and not self.config.language.encoder_decoder:
            ahead = {"past_key_values": self._read_ahead(embeds, mask, copies)}
        gpus = [embeds.device] if embeds.is_cuda else []
        with torch.random.fork_rng(gpus, enabled=config.do_sample), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=REPETITION_WARNING)
            if config.do_sample:
                torch.manual_seed(options.seed)
            written_BU = self.language.generate(
                inputs_embeds=embeds, attention_mask=mask, generation_config=config, **ahead
            )
        if self.config.language.encoder_decoder:
            written_BU = written_BU[:, 1:]  # its decoder begins with a start token
        return _cut_after_end(written_BU, self.config.language.end_id, self.config.language.pad_id)

    def _generation_config(self, options: GenerationOptions) -> Any:
        """Return transformers' GenerationConfig for our options and this language model's special tokens."""
        from transformers import GenerationConfig  # late: seconds

        language = self.config.language
        drawing: dict[str, Any] = {"do_sample": False}
        if options.top_p is not None:
            drawing = {
                "do_sample": True, "top_p": options.top_p, "temperature": options.temperature, "top_k": 0,
                "num_return_sequences": options.num_samples,
            }  # fmt: skip
        penalty = options.repetition_penalty
        return GenerationConfig(
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            num_beams=options.num_beams,
            length_penalty=options.length_penalty,
            repetition_penalty=language.repetition_penalty if penalty is None else penalty,
            eos_token_id=language.end_id,
            pad_token_id=language.pad_id,
            bos_token_id=language.start_id,
            decoder_start_token_id=getattr(self.language.config, "decoder_start_token_id", None),
            **drawing,
        )

    def _read_ahead(self, embeds_BTW: Tensor, mask_BT: Tensor, copies: int) -> Any:
        """What a decoder keeps of photo and prompt, its last token left to read: read once for all beams or samples,
        which transformers would make copies for and then read each. -> its cache, of B * copies rows.

        An encoder-decoder's encoder reads once in any case.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=self.language.config)
        positions = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        self.language(
            inputs_embeds=embeds_BTW[:, :-1], attention_mask=mask_BT[:, :-1], position_ids=positions[:, :-1],
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache.batch_repeat_interleave(copies)
        return cache


def _left_padded(embeds_BTW: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Move each row's padding before its tokens, whose order stays: a decoder writes on at the right."""
    if mask_BT.all():
        return embeds_BTW, mask_BT
    order_BT = mask_BT.argsort(dim=1, stable=True)
    return embeds_BTW.gather(1, order_BT[..., None].expand_as(embeds_BTW)), mask_BT.gather(1, order_BT)


def _cut_after_end(ids_BU: Tensor, end_id: int, pad_id: int) -> Tensor:
    """Replace what follows the first `end_id` of each row by `pad_id`.

    transformers fills up with the end instead, where the number of the padding token is 0.
    """
    is_end = ids_BU == end_id
    return ids_BU.masked_fill(is_end.cumsum(dim=1) - is_end.long() > 0, pad_id)
