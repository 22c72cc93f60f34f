"""The generative model of stage 2: frozen encoder, Q-Former, frozen language model (BLIP-2, section 3.3).

The outputs of the Q-Former's queries are projected to the width of word embeddings and put before the embeddings of the
prompt: the language model reads these *soft prompts* as if they were words. The soft prompts of a photo serve every
beam and every prompt, unless the Q-Former reads the prompt.

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
from engine.blip2.layers import PatchNorm
from engine.blip2.qformer import QFormer
from engine.blip2.vision import VisionEncoder

REPETITION_WARNING = "Passing `repetition_penalty` with `inputs_embeds`"
"""Beginning of a warning of transformers: the penalty counts written tokens and not the prompt. qseek wants it so."""
SAVED_TOKENS = (100, 2000)
"""Number of saved tokens (CPU, GPU) from which a separate pass that reads each photo and prompt once is faster.

In the time that it takes to compute so many tokens, the weights of OPT-2.7B are read once. The number of the GPU comes
from the data sheet of an H200 and was not measured.
"""


class Captioner(nn.Module):
    """A network that writes a text about a photo, going on from a prompt.

    Image encoder and language model are frozen and never in training mode. language: a transformers model for causal or
    sequence-to-sequence language modelling.
    """

    def __init__(self, config: CaptionerConfig, language: Any):
        super().__init__()
        self.config = config
        self.vision = VisionEncoder(config.vision)
        vision_width, patch_width = config.vision.num_channels, config.qformer.patch_width
        self.vision_norm = PatchNorm(vision_width, patch_width, config.vision_norm_eps)
        self.qformer = QFormer(config.qformer, patch_width or vision_width)
        if not config.language.reads_prompt:
            self.qformer.drop_text()
        self.projection = nn.Linear(config.qformer.width, config.language.width)
        self.language = language

    def train(self, mode: bool = True) -> Captioner:
        """Set the training mode of the trained parts; image encoder and language model stay in evaluation mode."""
        super().train(mode)
        self.vision.eval()
        self.language.eval()
        return self

    def encode_patches(self, pixels_B3HW: Tensor) -> Tensor:
        """Encode pixels as patches (B, P, V), after the trained `vision_norm` (LAVIS: ln_vision)."""
        return self.vision_norm(self.vision(pixels_B3HW))

    def read_photos(self, patches_BPV: Tensor) -> Tensor:
        """Compute the soft prompts (B, Q, W) of photos from their patches."""
        hidden, _ = self.qformer.read_photos(self.qformer.compute_photo_keys(patches_BPV))
        return self.projection(hidden)

    def read_with_prompts(self, patches_BPV: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """Compute the soft prompts (B, Q, W) of photos with a Q-Former that also reads the prompt.

        Queries and prompt attend to each other, and only the outputs of the queries go to the language model
        (InstructBLIP, arXiv:2305.06500, section 2.3). ids, mask: the prompts in the vocabulary of the Q-Former, with
        [CLS] and [SEP].
        """
        keys = self.qformer.compute_photo_keys(patches_BPV)
        return self.projection(self.qformer.read_pairs(keys, ids_BT, mask_BT, queries_only=True))

    def compute_logits(self, soft_BQW: Tensor, texts: LanguageBatch) -> Tensor:
        """Compute the logits of every next token in float32, given the tokens before it.

        For a decoder they are (B, T, N), and column t predicts token t of `texts.ids`. For an encoder-decoder they are
        (B, U, N), and column u predicts token u of `texts.labels`.
        """
        return self._compute_logits(
            soft_BQW, texts, torch.arange(texts.ids.shape[1], device=texts.ids.device)
        )

    def compute_loss(self, soft_BQW: Tensor, texts: LanguageBatch) -> Tensor:
        """Return the mean cross-entropy of the labelled tokens (BLIP-2, section 3.3).

        Logits are computed only for the columns in which some text has a label.
        """
        labels = texts.labels
        if self.config.language.encoder_decoder:
            logits = self._compute_logits(soft_BQW, texts, None)
        else:
            columns = (labels != IGNORED).any(dim=0).nonzero()[:, 0]
            labels = labels[:, columns]
            logits = self._compute_logits(soft_BQW, texts, columns)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)

    def _compute_logits(self, soft_BQW: Tensor, texts: LanguageBatch, columns: Tensor | None) -> Tensor:
        """Compute the logits of `compute_logits`; columns: the columns of `texts.ids` that a decoder is asked for."""
        embeds, mask = self._embed(soft_BQW, texts.ids, texts.mask)
        if self.config.language.encoder_decoder:
            shifted_labels = self.language.prepare_decoder_input_ids_from_labels(labels=texts.labels)
            output = self.language(
                inputs_embeds=embeds, attention_mask=mask, decoder_input_ids=shifted_labels
            )
        else:
            assert columns is not None
            columns_to_score = soft_BQW.shape[1] - 1 + columns  # The last query stands before token 0.
            output = self.language(
                inputs_embeds=embeds, attention_mask=mask, logits_to_keep=columns_to_score, use_cache=False
            )
        return output.logits.float()

    def _embed(self, soft_BQW: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings (B, Q+T, W) of soft prompts and tokens, and their mask (B, Q+T) int64."""
        words = self.language.get_input_embeddings()(ids_BT)
        queries = mask_BT.new_ones(soft_BQW.shape[:2])
        return torch.cat([soft_BQW.to(words.dtype), words], dim=1), torch.cat(
            [queries, mask_BT], dim=1
        ).long()

    @torch.inference_mode()
    def generate(
        self, soft_BQW: Tensor, ids_BT: Tensor, mask_BT: Tensor, options: GenerationOptions
    ) -> Tensor:
        """Write on from each prompt and return the new tokens (B, U) int64.

        Where a text ended, `end_id` follows and then `pad_id`. ids, mask: the prompts, padded at the right. With
        `options.num_samples` = S there are B * S rows, those of a prompt after each other.
        """
        embeds, mask = self._embed(soft_BQW, ids_BT, mask_BT)
        if not self.config.language.encoder_decoder:
            embeds, mask = _pad_left(embeds, mask)
        config = self._make_generation_config(options)
        cache_options: dict[str, Any] = {}
        copies = options.num_beams * options.num_samples
        num_saved = (copies - 1) * mask.numel()
        if num_saved > SAVED_TOKENS[embeds.is_cuda] and not self.config.language.encoder_decoder:
            cache_options = {"past_key_values": self._read_ahead(embeds, mask, copies)}
        gpus = [embeds.device] if embeds.is_cuda else []
        with torch.random.fork_rng(gpus, enabled=config.do_sample), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=REPETITION_WARNING)
            if config.do_sample:
                torch.manual_seed(options.seed)
            written_BU = self.language.generate(
                inputs_embeds=embeds, attention_mask=mask, generation_config=config, **cache_options
            )
        if self.config.language.encoder_decoder:
            written_BU = written_BU[:, 1:]  # The decoder begins with a start token.
        return _cut_after_end(written_BU, self.config.language.end_id, self.config.language.pad_id)

    def _make_generation_config(self, options: GenerationOptions) -> Any:
        """Return transformers' GenerationConfig for our options and this language model's special tokens."""
        from transformers import GenerationConfig  # This import takes seconds.

        language = self.config.language
        sampling_options: dict[str, Any] = {"do_sample": False}
        if options.top_p is not None:
            sampling_options = {
                "do_sample": True,
                "top_p": options.top_p,
                "temperature": options.temperature,
                "top_k": 0,
                "num_return_sequences": options.num_samples,
            }
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
            **sampling_options,
        )

    def _read_ahead(self, embeds_BTW: Tensor, mask_BT: Tensor, copies: int) -> Any:
        """Let a decoder read photo and prompt once for all beams or samples, and return its cache of B * copies rows.

        The last token of each prompt is left to be read. Without this cache transformers would copy the embeddings for
        every beam and read each copy. The encoder of an encoder-decoder reads once in any case.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=self.language.config)
        positions = (mask_BT.cumsum(dim=1) - 1).clamp(min=0)
        self.language(
            inputs_embeds=embeds_BTW[:, :-1],
            attention_mask=mask_BT[:, :-1],
            position_ids=positions[:, :-1],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache.batch_repeat_interleave(copies)
        return cache


def _pad_left(embeds_BTW: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Move each row's padding before its tokens, whose order stays, because a decoder writes on at the right."""
    if mask_BT.all():
        return embeds_BTW, mask_BT
    order_BT = mask_BT.argsort(dim=1, stable=True)
    return embeds_BTW.gather(1, order_BT[..., None].expand_as(embeds_BTW)), mask_BT.gather(1, order_BT)


def _cut_after_end(ids_BU: Tensor, end_id: int, pad_id: int) -> Tensor:
    """Replace every token after the first `end_id` of a row by `pad_id`.

    Where the number of the padding token is 0, transformers fills the row with the end token instead.
    """
    is_end = ids_BU == end_id
    return ids_BU.masked_fill(is_end.cumsum(dim=1) - is_end.long() > 0, pad_id)
