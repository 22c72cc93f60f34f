"""The settings of stage 1 and of retrieval fine-tuning, and which of them go together (BLIP-2, sections 3.2, 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.blip2.config import Blip2Config
from engine.datasets.captioned_sets import SetConfig, SourceConfig
from engine.errors import DataError, TrainingError
from training.loop.optimizer import OptimConfig
from training.stages.stage_setup import check_common, refuse_settings


@dataclass(frozen=True)
class NamesConfig:
    """The settings of learning names from a classifier (`losses/names_loss.py`).

    pictures: sets of photos, whose captions are not read; the weight of a set is its share of what is drawn. batch:
    photos of a step, over all processes, beside the captioned ones. weight: the factor of the loss. views: as in
    `Stage1Config`, for these photos. pairs: how many pairs of a batch with all losses are photos with their name as
    the caption (`named_pairs.py`). least: the least probability of a class whose name becomes a caption.
    teachers: models or runs whose mean scores are learned on these photos with captions of other photos
    (`ensemble_teachers.py`). captions: the table of these captions below the data folder, as `TextConfig` has it;
    num_captions of them are drawn once, and `texts` of these in each step.
    """

    pictures: tuple[SetConfig, ...]
    batch: int = 128
    weight: float = 1.0
    views: int = 1
    pairs: int = 0
    least: float = 0.5
    teachers: tuple[str, ...] = ()
    captions: str = ""
    num_captions: int = 40_000
    texts: int = 512

    @property
    def shares(self) -> list[float]:
        """Return the weights of the sets."""
        return [source.weight for source in self.pictures]


@dataclass(frozen=True)
class Stage1Config:
    """The settings of stage 1.

    model: the architecture. sources: the captioned sets. optim: the optimizer of the run with all losses.
    views: 0 means that pictures are read, cropped and encoded in every step. A number from 1 means that the frozen
    encoder reads so many views of each picture once, before training (the whole picture, then crops), which needs sets
    that fit into memory.
    smallest_crop: the smallest share that a crop keeps: of the picture's area with 0 views, of its side otherwise.

    A run starts in one of three ways. start: a model folder, a stage-1 run, or a model by name; it goes before text.
    encoder and text: the runs (stages/distillation.py, stages/text_half.py) on which a new Q-Former is built. encoder
    and bert: a safetensors file of the image encoder with timm's names, and a Hugging Face BERT folder, which also
    gives the Q-Former's sizes; both paths are below the data folder, or absolute. encoder is not needed where the
    model's encoder comes from a package, and bert may be the name of an installed package that holds such a folder.
    fan_in_start: whether cross-attention, projections and heads, which BERT does not have, begin with the deviation
    1 / sqrt(number of inputs) instead of BERT's 0.02, by which a narrow Q-Former learns sooner.

    Settings with 0 views. train_encoder: whether the encoder learns. recompute_encoder: its activations are computed
    again in the backward pass instead of stored (gradient checkpointing, arXiv:1604.06174). chunk: number of pairs that
    a process computes at a time (`cached_embeddings.py`), 0 for all. workers: number of threads that read and decode.

    Settings with 1 view or more. names_optim: the optimizer of a run with ITC and names on a frozen text half
    (`names_phase.py`), before all others; names: its photos. itc_optim: the optimizer of a run with ITC alone, before
    the one with all losses, which is left out when it has 0 steps. encoder_optim: the optimizer of a run before that,
    in which the parts of a convolutional encoder from number `encoder_from` on learn as well (`EncoderTask`).
    patch_share: the share of the patches that a step reads (masking patches, arXiv:2212.00794, has the same purpose).
    query_share: the share of the queries that take part in a step. match_distillation: the weight of
    `itc_itm_itg.match_distillation_loss`. residual_match: whether ITM learns what ITC gets wrong
    (`itc_itm_itg.add_itc_scores`). group: how many photos of a batch with all losses belong together because ITC
    confuses them (`hard_groups.py`), 1 for a random batch. earlier_share: how much the weights before the run with all
    losses count in the weights that are written (averaged weights forget less, arXiv:2109.01903).

    Settings with any number of views. frozen_text_layers: number of the first layers in which nothing that reads text
    learns; the word embeddings are frozen with them. 0 trains all. label_smoothing: of ITC and ITG. picture_ids:
    whether pairs of one photo share ITC's targets and are never each other's negatives (COCO fine-tuning). compile:
    whether torch.compile is used.
    """

    model: Blip2Config
    sources: tuple[SourceConfig, ...]
    optim: OptimConfig
    views: int = 0
    start: str | None = ""
    encoder: str = ""
    text: str = ""
    bert: str = ""
    fan_in_start: bool = False
    frozen_text_layers: int = 0
    picture_ids: bool = False
    group: int = 1
    residual_match: bool = False
    train_encoder: bool = False
    recompute_encoder: bool = False
    label_smoothing: float = 0.1
    smallest_crop: float = 0.5
    names: NamesConfig | None = None
    names_optim: OptimConfig | None = None
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
        """Return the names of the settings that a resumed run must share.

        The other settings are compared elsewhere, or only determine the start.
        """
        shared = ("model", "label_smoothing", "smallest_crop", "frozen_text_layers", "fan_in_start", "names")
        if self.views:
            return (
                *shared,
                "views",
                "encoder_from",
                "patch_share",
                "query_share",
                "match_distillation",
                "group",
                "residual_match",
            )
        return (*shared, "start", "encoder", "bert", "picture_ids", "train_encoder")


PICTURE_SETTINGS = ("train_encoder", "recompute_encoder", "chunk")
"""Settings that act only where pictures are read in every step."""
PATCH_SETTINGS = (
    "names",
    "names_optim",
    "itc_optim",
    "encoder_optim",
    "earlier_share",
    "group",
    "residual_match",
    "patch_share",
    "query_share",
    "match_distillation",
)
"""Settings that act only on patches that were made before training."""


def check_stage1(config: Stage1Config) -> None:
    """Check the settings of stage 1. Raises TrainingError or DataError for those that contradict each other."""
    if config.start and not config.text and (config.bert or config.encoder):
        raise TrainingError("Set either start (a whole model) or encoder and bert (its parts), not both.")
    has_encoder = bool(config.encoder or config.model.vision.package)
    if not config.start and not (has_encoder and (config.bert or config.text)):
        missing = "encoder" if config.bert else "bert" if has_encoder else "start"
        raise TrainingError(
            f"{missing} is not set: stage 1 begins from a model folder (--set start=...), or from an image encoder's "
            "safetensors file and a BERT folder (--set encoder=... --set bert=...)."
        )
    check_common(config)
    if config.group < 1:
        raise TrainingError(f"group is {config.group}; use 1 for random batches, or 2 and more.")
    if config.chunk == 1:
        raise TrainingError(f"chunk is {config.chunk}; use 2 or more pairs, or 0 for the whole batch.")
    if not 0 <= config.earlier_share <= 1:
        raise DataError(
            f"earlier_share is {config.earlier_share}; it is a share, so use a number from 0 to 1."
        )
    if not 0 <= config.frozen_text_layers <= config.model.qformer.num_layers:
        raise TrainingError(
            f"frozen_text_layers is {config.frozen_text_layers}; the Q-Former has "
            f"{config.model.qformer.num_layers} layers."
        )
    if config.views:
        refuse_settings(
            config,
            PICTURE_SETTINGS,
            "patches are made once, before training, and the encoder stays as it is.",
        )
    else:
        refuse_settings(config, PATCH_SETTINGS, "it acts on patches that are made once, before training.")
    if config.names_optim is not None and config.names is None:
        raise TrainingError("names_optim is set and names is not: say in names which photos are read.")
    if config.names is not None and config.names.teachers and not config.names.captions:
        raise TrainingError(
            "No names.captions is set for names.teachers: name the table of captions that they read."
        )
