"""Compute the language-modelling loss that trains a captioner (BLIP-2, section 3.3).

Shapes: B pairs of this process, T tokens, P patches, V vision width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from engine.blip2.captioner import Captioner
from engine.blip2.language_tokens import IGNORED, LanguageBatch
from training.losses.cached_embeddings import encode_images
from training.losses.stage1_losses import apply_vision_norm


@dataclass(frozen=True)
class CaptionerInputs:
    """The inputs of a training step of a captioner.

    images: pixels or patches, as `encode_images` takes them. texts: what the language model reads and learns.
    prompts: token ids and mask (B, T) for a Q-Former that reads the prompts, else None.
    """

    images: Tensor
    texts: LanguageBatch
    prompts: tuple[Tensor, Tensor] | None

    @property
    def num_learned(self) -> Tensor:
        """Return the number of tokens that are learned."""
        return (self.texts.labels != IGNORED).sum()

    def select_pairs(self, rows: slice) -> CaptionerInputs:
        """Return the inputs of some of the pairs."""
        texts = LanguageBatch(self.texts.ids[rows], self.texts.mask[rows], self.texts.labels[rows])
        prompts = None if self.prompts is None else (self.prompts[0][rows], self.prompts[1][rows])
        return CaptionerInputs(self.images[rows], texts, prompts)


def compute_captioner_loss(net: Captioner, inputs: CaptionerInputs) -> Tensor:
    """Return the mean loss of the tokens that are learned, a scalar."""
    patches_BPV = apply_vision_norm(net, encode_images(net, inputs.images))
    if inputs.prompts is None:
        return net.compute_loss(net.read_photos(patches_BPV), inputs.texts)
    return net.compute_loss(net.read_with_prompts(patches_BPV, *inputs.prompts), inputs.texts)
