"""Stage 1: ITC + ITM + ITG train the Q-Former behind an image encoder (BLIP-2, section 3.2). So does fine-tuning (4.3).

Pictures are read in every step, or their patches are made once before training; `stage1_config.py` says what either
way can do. Shapes: B pairs of this process, N of all, P patches, V vision width, H W places of a feature map.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from engine.blip2.retriever import Retriever
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import make_net
from engine.checkpoints.layout import write_folder
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.saving import cast_floats
from engine.errors import DataError
from training.batches.batch_source import Batch, BatchSource
from training.batches.encoded_views import EncodedViews, cut_random_window, encode_maps, encode_views
from training.distributed.world import current_world, join_process_group
from training.distributed.wrapping import gather_full_tensors
from training.loop.optimizer import OptimConfig
from training.loop.random_draws import draw_random_share
from training.loop.run_checkpoint import is_finished
from training.loop.run_dtype import fast_autocast, resolve_config_dtypes
from training.loop.train_loop import train
from training.losses.cached_embeddings import Stage1Inputs, backward_in_chunks, encode_images
from training.losses.itc_itm_itg import match_distillation_loss
from training.losses.stage1_losses import apply_vision_norm, compute_itc_loss, stage1_losses
from training.stages.bert_start import read_bert, start_from_bert
from training.stages.distillation import ENCODER
from training.stages.encoder_phase import EncoderEnd
from training.stages.stage1_config import Stage1Config, check_stage1
from training.stages.stage_setup import (
    Say,
    collect_fixed_settings,
    copy_frozen_encoder,
    open_stream,
    prepare_network,
    read_whole_sets,
    take_images,
)
from training.stages.starts import find_start, is_same_encoder, load_encoder, resize_source
from training.stages.text_half import TEXT_HALF, TOKENIZER, select_text_half
from training.stages.weight_average import blend_weights


class Stage1Task:
    """ITC + ITM + ITG on the batches of a source."""

    leaves_parameters_out = False

    def __init__(
        self, net: Retriever, tokenizer: TextTokenizer, source: BatchSource, config: Stage1Config,
        optim: OptimConfig | None = None,
    ):  # fmt: skip
        """optim: of this phase, the one with all losses when not given."""
        self.net = self.model = net
        self.tokenizer, self.source, self.config = tokenizer, source, config
        self.optim = optim or config.optim
        self.wrapper: nn.Module = prepare_network(net, config)
        self.settings = collect_fixed_settings(config, config.fixed_settings, source)

    def losses(self, step: int) -> dict[str, Tensor]:
        return self.losses_of(step, self.optim.batch // current_world().size)

    def losses_of(self, step: int, count: int) -> dict[str, Tensor]:
        """Return the losses of the first `count` pairs of this process."""
        inputs = self._inputs(self.source[step], count)
        chunk, smoothing = self.config.chunk, self.config.label_smoothing
        if 0 < chunk < count:
            dec_id = self.tokenizer.dec_id
            return backward_in_chunks(self.wrapper, inputs, chunk, dec_id=dec_id, label_smoothing=smoothing)
        return self.wrapper(self._losses, inputs)

    def _inputs(self, batch: Batch, count: int) -> Stage1Inputs:
        """What the step reads. All is drawn for the N pairs, so that any number of processes trains on the same."""
        world, config, draws = current_world(), self.config, batch.draws
        assert draws is not None, "stage 1 draws alike in all processes"
        device = self.net.temperature.device
        images, queries = take_images(batch, count, config.model.vision, device), None
        ids, mask, _ = self.tokenizer(list(islice(batch.captions, count)))
        if config.views:  # a share of patches and queries: less to read, harder to learn by heart
            images = self._drawn_images(images, draws)
            num_queries = self.net.config.qformer.num_queries
            queries = draw_random_share(num_queries, config.query_share, draws).sort().values.to(device)
        return Stage1Inputs(
            images, ids.to(device), mask.to(device),
            torch.from_numpy(batch.picture_ids[:count]).to(device) if config.picture_ids else None,
            torch.rand(2, count * world.size, generator=draws).to(device),
            int(torch.randint(2**40, (), generator=draws)) + (world.rank << 48),
            queries,
        )  # fmt: skip

    def _drawn_images(self, patches_BPV: Tensor, draws: torch.Generator) -> Tensor:
        """A random `patch_share` of the patches, the same for the batch."""
        return patches_BPV[:, draw_random_share(patches_BPV.shape[1], self.config.patch_share, draws)]

    def _losses(self, net: Retriever, inputs: Stage1Inputs) -> dict[str, Tensor]:
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
        )
        parts = {"itc": losses.itc, "itm": losses.itm, "itg": losses.itg}
        if not self.config.match_distillation:
            return {"loss": losses.total_loss, **parts}
        parts["distilled"] = match_distillation_loss(
            losses.match_logits,
            losses.similarities,
            *losses.negatives,
            current_world().rank * len(inputs.ids),
        )
        return {"loss": losses.total_loss + self.config.match_distillation * parts["distilled"], **parts}


class ItcTask(Stage1Task):
    """The same with the contrastive loss alone, a fifth of the work: it brings the two sides together first."""

    leaves_parameters_out = True

    def _losses(self, net: Retriever, inputs: Stage1Inputs) -> dict[str, Tensor]:
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
    """ITC that trains the encoder's parts from `config.encoder_from` on, too, on feature maps (N, W, H, W, C)."""

    def __init__(
        self, net: Retriever, tokenizer: TextTokenizer, source: BatchSource, config: Stage1Config,
        optim: OptimConfig | None = None,
    ):  # fmt: skip
        super().__init__(net, tokenizer, source, config, optim)
        self.end = EncoderEnd(net.vision, config.encoder_from)

    def _drawn_images(self, maps_BHWC: Tensor, draws: torch.Generator) -> Tensor:
        return cut_random_window(maps_BHWC, draws)

    def _losses(self, net: Retriever, inputs: Stage1Inputs) -> dict[str, Tensor]:
        with fast_autocast(inputs.images.device):
            return super()._losses(net, replace(inputs, images=self.end.read(inputs.images)))


class TrainedModel(NamedTuple):
    """What a run has made. encoder: see `stage_setup.copy_frozen_encoder`."""

    net: Retriever
    tokenizer: Tokenizer
    encoder: dict[str, Tensor]


def run_stage1(
    config: Stage1Config, data: Path, runs: Path, output: Path, *, say: Say = lambda line: None
) -> None:
    """Train by `config`, alone or as one of torchrun's processes; write the checkpoint folder `output/model`.

    data: holds the sets; with patches made once, runs may hold them too (see training/capfilt). runs: holds the runs
    that `config` names. Raises DataError, CheckpointError and TrainingError saying what is missing or does not fit.
    """
    check_stage1(config)
    config = resolve_config_dtypes(config)
    with join_process_group() as (world, device):
        tell = say if world.rank == 0 else (lambda line: None)
        train_on = _train_on_patches if config.views else _train_on_pictures
        trained = train_on(config, data, runs, output, device, tell)
        state = cast_floats(gather_full_tensors(trained.net.state_dict()), torch.float16)
        if world.rank == 0:
            model = trained.net.config.to_dict()
            write_folder(output / "model", {**state, **trained.encoder}, trained.tokenizer, model)
            tell(f"wrote {output / 'model'}")


def _train_on_pictures(
    config: Stage1Config, data: Path, runs: Path, output: Path, device: torch.device, tell: Say
) -> TrainedModel:
    """Read pictures in every step."""
    with open_stream(config, data, config.model.vision.image_size, current_world(), tell) as stream:
        net, tokenizer = load_stage1_start(config, data, runs)
        encoder = copy_frozen_encoder(net, config, torch.float16)
        config = replace(config, model=net.config)
        words = TextTokenizer(tokenizer, net.config.max_tokens)
        train(Stage1Task(net.to(device), words, stream, config), config.optim, output / "all", say=tell)
    return TrainedModel(net, tokenizer, encoder)


def _train_on_patches(
    config: Stage1Config, data: Path, runs: Path, output: Path, device: torch.device, tell: Say
) -> TrainedModel:
    """Make patches once, with an encoder whose end may have learned before; ITC alone comes before all losses."""
    net, tokenizer = load_stage1_start(config, data, runs)
    net.to(device)
    words = TextTokenizer(tokenizer, net.config.max_tokens)
    pictures, samples = read_whole_sets(config, data, runs, net.config.vision.image_size, tell)
    if (optim := config.encoder_optim) is not None:
        done = is_finished(output / "encoder", optim)
        maps = torch.empty(0) if done else encode_maps(net, pictures, config, config.encoder_from)
        task = EncoderTask(net, words, EncodedViews(maps, samples, optim), config, optim)
        train(task, optim, output / "encoder", say=tell)
        del task, maps
    if config.itc_optim is not None or config.optim.steps:
        patches = encode_views(net, pictures, config)
    if (optim := config.itc_optim) is not None:
        train(
            ItcTask(net, words, EncodedViews(patches, samples, optim), config, optim),
            optim, output / "itc", say=tell,
        )  # fmt: skip
    if config.optim.steps:
        weights = net.state_dict() if config.earlier_share else {}
        earlier = {name: value.clone() for name, value in weights.items()}
        source = EncodedViews(patches, samples, config.optim)
        train(Stage1Task(net, words, source, config), config.optim, output / "all", say=tell)
        blend_weights(net, earlier, config.earlier_share)
    return TrainedModel(net, tokenizer, {})


def load_stage1_start(config: Stage1Config, data: Path, runs: Path) -> tuple[Retriever, Tokenizer]:
    """Return the network as training finds it, and its tokenizer. See `Stage1Config`."""
    torch.manual_seed(config.optim.seed)
    if config.start:
        return _from_folder(config, find_start(config.start, data, runs))
    if config.text:
        return _from_runs(config, runs)
    bert = read_bert(data / config.bert, config.model.qformer)
    net = Retriever(replace(config.model, qformer=bert.shape))
    load_encoder(net, data / config.encoder)
    start_from_bert(net, bert)
    return net, bert.tokenizer


def _from_folder(config: Stage1Config, folder: Path) -> tuple[Retriever, Tokenizer]:
    """A model folder, its positions interpolated where the recipe reads larger pictures."""
    model = config.model
    source = resize_source(read_folder(folder), folder, model.vision.image_size)
    found = source.config
    parts = ("qformer", "embed_dim", "max_tokens") if config.views else ("qformer", "embed_dim")
    differing = [part for part in parts if getattr(found, part) != getattr(model, part)]
    if not is_same_encoder(found.vision, model.vision):
        differing.insert(0, "vision")
    if differing:
        shown = "; ".join(f"{p}: {getattr(found, p)}, not {getattr(model, p)}" for p in differing)
        raise DataError(f"{folder} is another architecture than the recipe's: {shown}.")
    source = replace(source, config=replace(found, max_tokens=model.max_tokens))
    return make_net(source, folder, torch.float32), source.tokenizer


def _from_runs(config: Stage1Config, runs: Path) -> tuple[Retriever, Tokenizer]:
    """A new Q-Former around the encoder and the text half that runs before it taught."""
    for needed in (runs / config.encoder / ENCODER, runs / config.text / TEXT_HALF):
        if not needed.is_file():
            raise DataError(
                f"{needed} is not there; train it first (`qseek train distill`, `qseek train text`)."
            )
    net = Retriever(config.model)
    net.vision.load_state_dict(load_file(runs / config.encoder / ENCODER))
    select_text_half(net).load_state_dict(load_file(runs / config.text / TEXT_HALF))
    for layer in net.qformer.layers:  # the queries' feed-forwards start as the text's (BLIP-2, section 3.1)
        layer.query_mlp.load_state_dict(layer.text_mlp.state_dict())
    return net, Tokenizer.from_file(str(runs / config.text / TOKENIZER))
