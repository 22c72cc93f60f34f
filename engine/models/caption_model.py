"""The generative model as the rest of qseek uses it: pictures and prompts in, texts out.

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

TEXTS_AT_ONCE = 16
PROMPT = "a photo of"


class CaptionModel(LoadedModel[Captioner]):
    """A loaded generative checkpoint; see `LoadedModel`.

    prompt_tokenizer: of a Q-Former that reads the prompt, None of another.
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
        return TEXTS_AT_ONCE

    def caption(
        self, photos: np.ndarray | Tensor, prompt: str = PROMPT, how: GenerationOptions = CAPTION
    ) -> list[str]:
        """One caption of each photo, without the prompt it goes on from."""
        return self.generate(photos, [prompt], how)

    def answer(
        self, photos: np.ndarray | Tensor, questions: Sequence[str], how: GenerationOptions = ANSWER
    ) -> list[str]:
        """Short answers: a question for each photo, or one for all, or many about one photo. Raises QueryError for an
        empty question, for one that is too long, and of a model that only captions."""
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
        return self.generate(photos, [template.replace("{}", q.strip()) for q in questions], how)

    @torch.inference_mode()
    def generate(
        self, photos: np.ndarray | Tensor, prompts: Sequence[str], how: GenerationOptions
    ) -> list[str]:
        """What the model writes after each prompt, N texts: as many photos as prompts, or one of either.

        photos: uint8 (B, H, W, 3) pictures of `image_size`, or what `encode_patches` made of them. Raises QueryError
        for a prompt longer than the model reads, and for an empty one where the Q-Former reads it; ValueError when
        photos and prompts do not pair. With `how.num_samples` = S they are N * S, those of a prompt after each other.
        """
        num_texts = max(len(photos), len(prompts))
        if min(len(photos), len(prompts)) not in (1, num_texts):
            raise ValueError(
                f"{len(photos)} photos and {len(prompts)} prompts do not pair: give as many, or one"
            )
        ids, mask = (t.to(self.device) for t in self.tokenizer.prompts(prompts, how.max_new_tokens))
        read = self._read_prompts(prompts)
        patches = photos if isinstance(photos, Tensor) else self.encode_patches(photos)
        soft = None if read else self._soft_prompts(patches)
        texts = []
        at_once = max(1, TEXTS_AT_ONCE // how.num_samples)
        for start in range(0, num_texts, at_once):
            rows = torch.arange(start, min(start + at_once, num_texts), device=self.device)
            photo, prompt = rows % len(photos), rows % len(prompts)
            if soft is None:
                its_ids, its_mask = (t[prompt] for t in read)
                soft_NQW = self.net.read_with_prompts(patches[photo], its_ids, its_mask)
            else:
                soft_NQW = soft[photo]
            own_draws = replace(how, seed=how.seed + start)  # not the same for each part
            written = self.net.generate(soft_NQW, ids[prompt], mask[prompt], own_draws)
            texts += self.tokenizer.decode(written)
        return texts

    def _soft_prompts(self, patches_BPV: Tensor) -> Tensor:
        """Once for each photo -> (B, Q, W)."""
        return torch.cat([self.net.read_photos(some) for some in patches_BPV.split(TEXTS_AT_ONCE)])

    def _read_prompts(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """Ids and mask for a Q-Former that reads the prompt, nothing for another."""
        if self.prompt_tokenizer is None:
            return ()
        if not all(prompt.strip() for prompt in prompts):
            raise QueryError(
                f'{self.name} reads its prompt and got an empty one; say what it should do: "{PROMPT}".'
            )
        ids, mask, cut = self.prompt_tokenizer(prompts)
        for prompt, lost in zip(prompts, cut, strict=True):
            if lost:
                raise QueryError(
                    f"The prompt {prompt[:40]!r}... is {lost:,} tokens longer than the "
                    f"{self.prompt_tokenizer.max_tokens:,} that the Q-Former reads. Shorten it."
                )
        return ids.to(self.device), mask.to(self.device)
