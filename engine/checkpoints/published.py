"""List the published checkpoints that qseek knows by name: their ids on the hub, their sizes, what they are for."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True)
class KnownModel:
    """A published checkpoint.

    image_size: side of its pictures, in pixels. num_parameters: as transformers loads it. num_bytes: size of the
    download, which is float32. note: what it is for. writes: whether it writes captions; the others search.
    """

    name: str
    hub_id: str
    image_size: int
    num_parameters: int
    num_bytes: int
    note: str
    writes: bool = False


KNOWN = (
    KnownModel(
        "blip2-itm-vit-g", "Salesforce/blip2-itm-vit-g", 224, 1_172_000_000, 4_690_000_000,
        "stage 1 alone, 129 M pairs",
    ),
    KnownModel(
        "blip2-itm-vit-g-coco", "Salesforce/blip2-itm-vit-g-coco", 364, 1_172_600_000, 4_690_000_000,
        "fine-tuned on COCO at 364 px; the published recall is this model's",
    ),
    KnownModel(
        "blip2-opt-2.7b", "Salesforce/blip2-opt-2.7b", 224, 3_744_800_000, 14_980_000_000,
        "stage 2 on OPT 2.7B: captions", writes=True,
    ),
    KnownModel(
        "blip2-opt-2.7b-coco", "Salesforce/blip2-opt-2.7b-coco", 364, 3_745_400_000, 14_980_000_000,
        "blip2-opt-2.7b fine-tuned on COCO captions", writes=True,
    ),
    KnownModel(
        "blip2-flan-t5-xl", "Salesforce/blip2-flan-t5-xl", 224, 3_942_400_000, 15_770_000_000,
        "stage 2 on Flan-T5 XL: answers and captions", writes=True,
    ),
    KnownModel(
        "blip2-flan-t5-xl-coco", "Salesforce/blip2-flan-t5-xl-coco", 364, 3_943_000_000, 15_770_000_000,
        "blip2-flan-t5-xl fine-tuned on COCO captions", writes=True,
    ),
)  # fmt: skip
PUBLISHED = (*(model.hub_id for model in KNOWN if model.writes), "Salesforce/instructblip-vicuna-7b")


def find_hub_id(name: str) -> str | None:
    """Return the Hugging Face id of a known name or of a name like owner/name, None for other names."""
    for model in KNOWN:
        if name in (model.name, model.hub_id):
            return model.hub_id
    return name if _HUB_ID.fullmatch(name) else None
