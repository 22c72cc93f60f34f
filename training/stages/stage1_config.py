"""The settings of stage 1 and of retrieval fine-tuning, and which of them go together (BLIP-2, sections 3.2, 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.blip2.config import Blip2Config
from engine.datasets.captioned_sets import SourceConfig
from engine.errors import DataError, TrainingError
from training.loop.optimizer import OptimConfig
from training.stages.stage_setup import check_common, refuse_settings


@dataclass(frozen=True)
class Stage1Config:
    """What stage 1 learns from, and how.

    model: the architecture. sources: captioned sets. optim: of the run with all losses.
    views: 0 = pictures are read, cropped and encoded in every step. 1 or more = the frozen encoder reads so many crops
    of each picture once, before training (1 = the whole picture alone), for sets that fit into memory.
    smallest_crop: least share that a crop keeps, of the picture's area with 0 views, else of its side.

    It starts from one of these. start: a model folder, a stage-1 run, or a model by name; it goes before text. encoder
    and text: the runs (stages/distillation.py, stages/text_half.py) that a new Q-Former is built on. encoder and bert:
    a safetensors file of the image encoder under timm's names, and a Hugging Face BERT folder that also gives the
    Q-Former's sizes; both below the data folder, or absolute.

    With 0 views. train_encoder: whether it learns too. recompute_encoder: its activations are computed anew in the
    backward pass instead of kept (gradient checkpointing, arXiv:1604.06174). chunk: pairs of a process that are
    computed at a time (`cached_embeddings.py`), 0 = all. workers: threads that read and decode.

    With more. itc_optim: of a run with ITC alone before the one with all losses, which there is none of at 0 steps.
    encoder_optim: of one before that, in which the parts of a convolutional encoder from `encoder_from` on learn, too
    (`EncoderTask`). patch_share: of the patches that are read in a step (arXiv:2212.00794 masks patches to the same
    ends). query_share: of the queries that take part in it. match_distillation: weight of
    `itc_itm_itg.match_distillation_loss`. earlier_share: of the weights as they were before the run with all losses in
    the weights that are written (averaged weights forget less, arXiv:2109.01903).

    With both. label_smoothing: of ITC and ITG. picture_ids: whether pairs of one photo share ITC's targets and are
    never each other's negatives (COCO fine-tuning). compile: torch.compile.
    """

    model: Blip2Config
    sources: tuple[SourceConfig, ...]
    optim: OptimConfig
    views: int = 0
    start: str | None = ""
    encoder: str = ""
    text: str = ""
    bert: str = ""
    picture_ids: bool = False
    train_encoder: bool = False
    recompute_encoder: bool = False
    label_smoothing: float = 0.1
    smallest_crop: float = 0.5
    itc_optim: OptimConfig | None = None
    encoder_optim: OptimConfig | None = None
    encoder_from: int = 0
    earlier_share: float = 0.0
    patch_share: float = 1.0
    query_share: float = 1.0
    match_distillation: float = 0.0
    chunk: int = 0
    compile: bool = False
    workers: int = 8

    @property
    def fixed_settings(self) -> Sequence[str]:
        """The settings that a resumed run must share; others are compared elsewhere, or only give the start."""
        shared = ("model", "label_smoothing", "smallest_crop")
        if self.views:
            return (*shared, "views", "encoder_from", "patch_share", "query_share", "match_distillation")
        return (*shared, "start", "encoder", "bert", "picture_ids", "train_encoder")


PICTURE_SETTINGS = ("train_encoder", "recompute_encoder", "chunk")
"""Settings that act where pictures are read in every step."""
PATCH_SETTINGS = (
    "itc_optim", "encoder_optim", "earlier_share", "patch_share", "query_share", "match_distillation"
)  # fmt: skip
"""Settings that act on patches that were made once."""


def check_stage1(config: Stage1Config) -> None:
    """Raises TrainingError or DataError for settings that contradict each other."""
    if config.start and not config.text and (config.bert or config.encoder):
        raise TrainingError("Set either start (a whole model) or encoder and bert (its parts), not both.")
    if not config.start and not (config.encoder and (config.bert or config.text)):
        missing = "encoder" if config.bert else "bert" if config.encoder else "start"
        raise TrainingError(
            f"{missing} is not set: stage 1 begins from a model folder (--set start=...), or from an image encoder's "
            "safetensors file and a BERT folder (--set encoder=... --set bert=...)."
        )
    check_common(config)
    if config.chunk == 1:
        raise TrainingError("chunk is 1; use 2 or more pairs, or 0 for the whole batch.")
    if not 0 <= config.earlier_share <= 1:
        raise DataError(f"earlier_share is {config.earlier_share}; it is a share, 0 to 1.")
    if config.views:
        refuse_settings(
            config,
            PICTURE_SETTINGS,
            "patches are made once, before training, and the encoder stays as it is.",
        )
    else:
        refuse_settings(config, PATCH_SETTINGS, "it acts on patches that are made once, before training.")
