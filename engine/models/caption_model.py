"""Write captions and answers with a loaded generative model: pictures and prompts go in, texts come out.

Shapes: B photos, N texts, H W pixels, P patches, V vision width, Q queries, W width of the word embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from engine.blip2.captioner import Captioner
from engine.blip2.config import CaptionerConfig
from engine.blip2.generation import ANSWER, CAPTION, GenerationOptions
from engine.blip2.language_tokens import LanguageTokenizer
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.published import PUBLISHED
from engine.errors import QueryError
from engine.models.loaded_model import LoadedModel

CAPTION_BATCH = 16
PROMPT = "a photo of"


class CaptionModel(LoadedModel[Captioner]):
    """A loaded generative checkpoint (BLIP-2's stage 2); see `LoadedModel`.

    tokenizer: the tokenizer of the language model. prompt_tokenizer: the tokenizer of a Q-Former that reads the prompt,
    None where the Q-Former does not read it.
    """

    def __init__(
        self, net: Captioner, tokenizer: LanguageTokenizer, prompt_tokenizer: TextTokenizer | None, *,
        name: str, digest: str, folder: Path, device: torch.device, dtype: torch.dtype,
    ):  # fmt: skip
        super().__init__(net, name=name, digest=digest, folder=folder, device=device, dtype=dtype)
        self.tokenizer, self.prompt_tokenizer = tokenizer, prompt_tokenizer

    @property
    def config(self) -> CaptionerConfig:
        return self.net.config

    @property
    def vision_at_once(self) -> int:
        return CAPTION_BATCH

    def caption(
        self, photos: np.ndarray | Tensor, prompt: str = PROMPT, options: GenerationOptions = CAPTION
    ) -> list[str]:
        """Write one caption of each photo; it does not repeat the prompt. Shapes and errors: see `generate`."""
        return self.generate(photos, [prompt], options)

    def answer(
        self, photos: np.ndarray | Tensor, questions: Sequence[str], options: GenerationOptions = ANSWER
    ) -> list[str]:
        """Answer a question about each photo, one question about all photos, or many questions about one photo.

        Raises QueryError for a model that was not taught to answer, and for a question that is empty or too long.
        """
        language = self.config.language
        if language.question is None:
            raise QueryError(
                f"{self.name} captions photos and was not taught to answer questions. Those were: "
                f"{', '.join(PUBLISHED)}, and what `qseek train vqa` makes."
            )
        short = language.encoder_decoder or language.reads_prompt
        template = language.question or f"Question: {{}} {'Short answer:' if short else 'Answer:'}"
        empty = [number for number, question in enumerate(questions) if not question.strip()]
        if empty:
            raise QueryError(f"Question {empty[0] + 1} is empty; ask something about the photo.")
        return self.generate(photos, [template.replace("{}", q.strip()) for q in questions], options)

    @torch.inference_mode()
    def generate(
        self, photos: np.ndarray | Tensor, prompts: Sequence[str], options: GenerationOptions
    ) -> list[str]:
        """Return the N texts that the model writes after N prompts, one prompt for each photo, or one of either for
        all.

        photos: uint8 (B, H, W, 3) pictures of `image_size`, or their patches (B, P, V) from `encode_patches`. With
        `options.num_samples` = S the result has N * S texts, those of a prompt after each other. Raises QueryError for
        a prompt that is longer than the model reads, or empty where the Q-Former reads it; ValueError when the numbers
        of photos and prompts differ and neither is 1.
        """
        num_texts = max(len(photos), len(prompts))
        if min(len(photos), len(prompts)) not in (1, num_texts):
            raise ValueError(
                f"{len(photos)} photos and {len(prompts)} prompts do not pair: give as many of both, or one of either."
            )
        ids, mask = (
            t.to(self.device) for t in self.tokenizer.encode_prompts(prompts, options.max_new_tokens)
        )
        prompt_tokens = self._tokenize_prompts(prompts)
        patches = photos if isinstance(photos, Tensor) else self.encode_patches(photos)
        soft = None if prompt_tokens else self._compute_soft_prompts(patches)
        texts = []
        at_once = max(1, CAPTION_BATCH // options.num_samples)
        for start in range(0, num_texts, at_once):
            rows = torch.arange(start, min(start + at_once, num_texts), device=self.device)
            photo, prompt = rows % len(photos), rows % len(prompts)
            if soft is None:
                prompt_ids, prompt_mask = (t[prompt] for t in prompt_tokens)
                soft_NQW = self.net.read_with_prompts(patches[photo], prompt_ids, prompt_mask)
            else:
                soft_NQW = soft[photo]
            # Each part draws with a seed of its own; with one seed all parts would draw the same numbers.
            options_for_part = replace(options, seed=options.seed + start)
            written = self.net.generate(soft_NQW, ids[prompt], mask[prompt], options_for_part)
            texts += self.tokenizer.decode(written)
        return texts

    def _compute_soft_prompts(self, patches_BPV: Tensor) -> Tensor:
        """Compute the soft prompts (B, Q, W) of all photos, a few photos at a time."""
        return torch.cat([self.net.read_photos(patches) for patches in patches_BPV.split(CAPTION_BATCH)])

    def _tokenize_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """Return ids and mask (N, T) for a Q-Former that reads the prompt; an empty tuple where it does not read it."""
        if self.prompt_tokenizer is None:
            return ()
        if not all(prompt.strip() for prompt in prompts):
            raise QueryError(
                f'The prompt is empty, and {self.name} cannot write without one. Give one, such as "{PROMPT}".'
            )
        ids, mask, cut = self.prompt_tokenizer(prompts)
        for prompt, num_cut in zip(prompts, cut, strict=True):
            if num_cut:
                raise QueryError(
                    f"The prompt {prompt[:40]!r}... is {num_cut:,} tokens longer than the "
                    f"{self.prompt_tokenizer.max_tokens:,} that the Q-Former reads. Shorten it."
                )
        return ids.to(self.device), mask.to(self.device)
