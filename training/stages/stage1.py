"""Train the Q-Former behind an image encoder with ITC, ITM and ITG (stage 1; BLIP-2, section 3.2).

Retrieval fine-tuning (section 4.3) trains in the same way. Pictures are read in every step, or their patches are made
once before training; `stage1_config.py` says what either way can do.

Shapes: B pairs of this process, N pairs of all processes, P patches, V vision width, W views of a picture, H W
positions of a feature map, C channels.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from engine.blip2.retriever import Retriever
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.encoder_packages import leave_out_packaged
from engine.checkpoints.layout import write_folder
from engine.checkpoints.saving import cast_floats
from training.batches.batch_source import Batch, BatchSource
from training.batches.encoded_views import EncodedViews, cut_random_window, encode_maps, encode_views
from training.distributed.world import current_world, join_process_group
from training.distributed.wrapping import gather_full_tensors
from training.loop.optimizer import OptimConfig
from training.loop.random_draws import draw_random_share
from training.loop.run_checkpoint import is_finished
from training.loop.run_dtype import fast_autocast, resolve_config_dtypes
from training.loop.train_loop import train
from training.loop.weight_average import blend_weights
from training.losses.cached_embeddings import Stage1Inputs, backward_in_chunks, encode_images
from training.losses.itc_itm_itg import match_distillation_loss
from training.losses.stage1_losses import apply_vision_norm, compute_itc_loss, stage1_losses
from training.stages.encoder_phase import EncoderEnd
from training.stages.names_phase import NamesTask, make_source, read_named_sets, read_teachers
from training.stages.stage1_config import Stage1Config, check_stage1
from training.stages.stage_setup import (
    Say,
    collect_fixed_settings,
    copy_frozen_encoder,
    freeze_text_layers,
    open_stream,
    prepare_network,
    read_whole_sets,
    take_images,
)
from training.stages.starts import load_stage1_start

VIEWS = "views"
"""Folder beside the runs in which encoded views are kept."""


class Stage1Task:
    """Training with ITC, ITM and ITG on the batches of a source."""

    leaves_parameters_out = False

    def __init__(
        self,
        net: Retriever,
        tokenizer: TextTokenizer,
        source: BatchSource,
        config: Stage1Config,
        optim: OptimConfig | None = None,
    ):
        """Prepare the network for training. optim: the optimizer's settings in this phase; `config.optim` by
        default.
        """
        self.net = self.model = net
        self.tokenizer, self.source, self.config = tokenizer, source, config
        self.optim = optim or config.optim
        self.wrapper: nn.Module = prepare_network(net, config)
        freeze_text_layers(net, config.frozen_text_layers)
        self.settings = collect_fixed_settings(config, config.fixed_settings, source)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the losses of a step: the total under "loss", and its parts for the log."""
        return self.losses_of(step, self.optim.batch // current_world().size)

    def losses_of(self, step: int, count: int) -> dict[str, Tensor]:
        """Return the losses of the first `count` pairs of this process."""
        inputs = self._make_inputs(self.source[step], count)
        chunk, smoothing = self.config.chunk, self.config.label_smoothing
        if 0 < chunk < count:
            dec_id = self.tokenizer.dec_id
            return backward_in_chunks(self.wrapper, inputs, chunk, dec_id=dec_id, label_smoothing=smoothing)
        return self.wrapper(self._compute_losses, inputs)

    def _make_inputs(self, batch: Batch, count: int) -> Stage1Inputs:
        """Return what a step reads of the first `count` pairs of this process.

        Random numbers are drawn for the N pairs of all processes, so that the number of processes makes no difference.
        """
        world, config, draws = current_world(), self.config, batch.draws
        assert draws is not None, "stage 1 draws alike in all processes"
        device = self.net.temperature.device
        images, queries = take_images(batch, count, config.model.vision, device), None
        ids, mask, _ = self.tokenizer(list(islice(batch.captions, count)))
        if config.views:
            # A share of the patches and queries is less to read, and harder to learn by heart.
            images = self._draw_images(images, draws)
            num_queries = self.net.config.qformer.num_queries
            queries = draw_random_share(num_queries, config.query_share, draws).sort().values.to(device)
        return Stage1Inputs(
            images,
            ids.to(device),
            mask.to(device),
            picture_ids=torch.from_numpy(batch.picture_ids[:count]).to(device)
            if config.picture_ids
            else None,
            draws=torch.rand(2, count * world.size, generator=draws).to(device),
            seed=int(torch.randint(2**40, (), generator=draws)) + (world.rank << 48),
            queries=queries,
        )

    def _draw_images(self, patches_BPV: Tensor, draws: torch.Generator) -> Tensor:
        """Return a random `patch_share` of the patches, the same positions for the whole batch."""
        return patches_BPV[:, draw_random_share(patches_BPV.shape[1], self.config.patch_share, draws)]

    def _compute_losses(self, net: Retriever, inputs: Stage1Inputs) -> dict[str, Tensor]:
        losses = stage1_losses(
            net,
            apply_vision_norm(net, encode_images(net, inputs.images)),
            inputs.ids,
            inputs.mask,
            dec_id=self.tokenizer.dec_id,
            image_ids=inputs.picture_ids,
            label_smoothing=self.config.label_smoothing,
            queries=inputs.queries,
            draws_2N=inputs.draws,
            residual_match=self.config.residual_match,
        )
        loss_parts = {"itc": losses.itc, "itm": losses.itm, "itg": losses.itg}
        if not self.config.match_distillation:
            return {"loss": losses.total_loss, **loss_parts}
        distilled = match_distillation_loss(
            losses.match_logits,
            losses.similarities,
            *losses.negatives,
            current_world().rank * len(inputs.ids),
        )
        total_loss = losses.total_loss + self.config.match_distillation * distilled
        return {"loss": total_loss, **loss_parts, "distilled": distilled}


class ItcTask(Stage1Task):
    """Training with ITC alone, a fifth of the work of all losses; it first brings pictures and texts together."""

    leaves_parameters_out = True

    def _compute_losses(self, net: Retriever, inputs: Stage1Inputs) -> dict[str, Tensor]:
        loss = compute_itc_loss(
            net,
            apply_vision_norm(net, inputs.images),
            inputs.ids,
            inputs.mask,
            label_smoothing=self.config.label_smoothing,
            queries=inputs.queries,
        )
        return {"loss": loss}


class EncoderTask(ItcTask):
    """Training with ITC that also trains the encoder's parts from `config.encoder_from` on.

    It reads feature maps (B, H, W, C), which the encoder's earlier parts made before training.
    """

    def __init__(
        self,
        net: Retriever,
        tokenizer: TextTokenizer,
        source: BatchSource,
        config: Stage1Config,
        optim: OptimConfig | None = None,
    ):
        super().__init__(net, tokenizer, source, config, optim)
        self.end = EncoderEnd(net.vision, config.encoder_from)

    def _draw_images(self, maps_BHWC: Tensor, draws: torch.Generator) -> Tensor:
        return cut_random_window(maps_BHWC, draws)

    def _compute_losses(self, net: Retriever, inputs: Stage1Inputs) -> dict[str, Tensor]:
        with fast_autocast(inputs.images.device):
            return super()._compute_losses(net, replace(inputs, images=self.end.read(inputs.images)))


class TrainedModel(NamedTuple):
    """The result of a run.

    encoder: the weights of a frozen encoder as they were before training (`stage_setup.copy_frozen_encoder`), or {}.
    They replace the network's own in the checkpoint.
    """

    net: Retriever
    tokenizer: Tokenizer
    encoder: dict[str, Tensor]


def run_stage1(
    config: Stage1Config, data: Path, runs: Path, output: Path, *, say: Say = lambda line: None
) -> None:
    """Train by a config, alone or as one of torchrun's processes, and write the checkpoint folder `output/model`.

    data: the folder of the sets. runs: the folder of the runs that the config names; with patches that are made once it
    may hold sets too (see training/capfilt). say: is called with lines of progress. Raises DataError, CheckpointError
    and TrainingError for what is missing or does not fit.
    """
    check_stage1(config)
    config = resolve_config_dtypes(config)
    with join_process_group() as (world, device):
        tell = say if world.rank == 0 else (lambda line: None)
        train_on = _train_on_patches if config.views else _train_on_pictures
        trained = train_on(config, data, runs, output, device, tell)
        state = cast_floats(gather_full_tensors(trained.net.state_dict()), torch.float16)
        if world.rank == 0:
            folder, model = output / "model", trained.net.config.to_dict()
            state = leave_out_packaged({**state, **trained.encoder}, trained.net.config.vision)
            write_folder(folder, state, trained.tokenizer, model)
            tell(f"Wrote {folder}.")


def _train_on_pictures(
    config: Stage1Config, data: Path, runs: Path, output: Path, device: torch.device, tell: Say
) -> TrainedModel:
    """Train on pictures that are read in every step."""
    with open_stream(config, data, config.model.vision.image_size, current_world(), tell) as stream:
        net, tokenizer = load_stage1_start(config, data, runs)
        encoder = copy_frozen_encoder(net, config, torch.float16)
        config = replace(config, model=net.config)
        text_tokenizer = TextTokenizer(tokenizer, net.config.max_tokens)
        train(
            Stage1Task(net.to(device), text_tokenizer, stream, config), config.optim, output / "all", say=tell
        )
    return TrainedModel(net, tokenizer, encoder)


def _train_on_patches(
    config: Stage1Config, data: Path, runs: Path, output: Path, device: torch.device, tell: Say
) -> TrainedModel:
    """Train on patches that are made once, in up to three phases.

    First the end of the encoder may learn, then ITC alone trains the Q-Former, then all losses.
    """
    net, tokenizer = load_stage1_start(config, data, runs)
    net.to(device)
    config = replace(config, model=net.config)
    text_tokenizer = TextTokenizer(tokenizer, net.config.max_tokens)
    pictures, samples = read_whole_sets(config, data, runs, net.config.vision.image_size, tell)
    if (optim := config.encoder_optim) is not None:
        if is_finished(output / "encoder", optim):
            maps = torch.empty(0)  # nothing will read them
        else:
            maps = encode_maps(net, pictures, config, config.encoder_from)
        task = EncoderTask(net, text_tokenizer, EncodedViews(maps, samples, optim), config, optim)
        train(task, optim, output / "encoder", say=tell)
        del task, maps
    if config.names_optim is None and config.itc_optim is None and not config.optim.steps:
        return TrainedModel(net, tokenizer, {})
    patches = encode_views(net, pictures, config, runs / VIEWS)
    named_sets = []
    if config.names is not None:
        named_sets = read_named_sets(net, config, config.names, data, runs / VIEWS, tell)
    if (optim := config.names_optim) is not None and config.names is not None:
        source = EncodedViews(patches, samples, optim)
        taught = read_teachers(config.names, named_sets, data, runs, tell)
        names_task = NamesTask(net, text_tokenizer, source, named_sets, config, config.names, optim, *taught)
        train(names_task, optim, output / "names", say=tell)
        del names_task
    if (optim := config.itc_optim) is not None:
        source = EncodedViews(patches, samples, optim)
        train(ItcTask(net, text_tokenizer, source, config, optim), optim, output / "itc", say=tell)
    if config.optim.steps:
        weights = net.state_dict() if config.earlier_share else {}
        earlier_weights = {name: weight.clone() for name, weight in weights.items()}
        all_source = make_source(net, text_tokenizer, patches, samples, named_sets, config)
        train(Stage1Task(net, text_tokenizer, all_source, config), config.optim, output / "all", say=tell)
        blend_weights(net, earlier_weights, config.earlier_share)
    return TrainedModel(net, tokenizer, {})
