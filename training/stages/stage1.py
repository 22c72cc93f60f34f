"""Stage 1 on a small set: ITC + ITM + ITG over patches that the frozen encoder made once (BLIP-2, section 3.2).

Sets that do not fit into memory, and encoders that are trained on: `pretrain.py`.
Shapes: B pairs of this process, N of all, P patches, V vision width, W views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from engine.blip2.config import Blip2Config
from engine.blip2.retriever import Retriever
from engine.blip2.vision import network_parts
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import load_net
from engine.checkpoints.saving import save_checkpoint
from engine.datasets.captioned_pictures import CaptionedPicture, data_digest
from engine.datasets.captioned_sets import read_small_sets
from engine.datasets.picture_reading import load_pictures
from engine.errors import DataError
from training.batches.encoded_views import encode_maps, encode_views, random_window
from training.batches.sample_order import batch_of
from training.distributed.world import joined, world
from training.distributed.wrapping import Through
from training.loop.optimizer import OptimConfig
from training.loop.random_draws import random_share, shared_draws
from training.loop.run_checkpoint import finished, flat_settings
from training.loop.train_loop import train
from training.losses.itc_itm_itg import match_distillation_loss
from training.losses.stage1_losses import itc_alone, normed, stage1_losses
from training.stages.distillation import ENCODER
from training.stages.starts import find_start
from training.stages.text_half import TEXT_HALF, TOKENIZER, text_half
from training.stages.weight_average import mix


@dataclass(frozen=True)
class Stage1Config:
    """What stage 1 learns from, and how.

    model: the architecture. pictures: captioned sets, see `captioned_sets.read_small_sets`. optim: of the run with all
    losses (0 steps: there is none); itc_optim: of a run with ITC alone before it; encoder_optim: of one before that, in
    which the parts of a convolutional encoder from `encoder_from` on learn, too (`EncoderTask`). encoder, text: the
    runs (stages/distillation.py, stages/text_half.py) that it builds on; start: a stage-1 run, or a model by name, that
    is trained on instead. views: how many crops of each picture the frozen encoder reads once, before training (1 = the
    whole picture alone); smallest_crop: their least share of the side. patch_share: of the patches that are read in a
    step (arXiv:2212.00794 masks patches to the same ends); query_share: of the queries that take part in it.
    match_distillation: weight of `itc_itm_itg.match_distillation_loss`. label_smoothing: of ITC and ITG. earlier_share:
    of the weights as they were before the run with all losses in the weights that are written (averaged weights forget
    less, arXiv:2109.01903).
    """

    model: Blip2Config
    pictures: tuple[str, ...]
    optim: OptimConfig
    encoder: str = "mini-encoder"
    text: str = "mini-text"
    views: int = 1
    label_smoothing: float = 0.1
    smallest_crop: float = 0.6
    itc_optim: OptimConfig | None = None
    encoder_optim: OptimConfig | None = None
    encoder_from: int = 0
    earlier_share: float = 0.0
    patch_share: float = 1.0
    query_share: float = 1.0
    match_distillation: float = 0.0
    start: str | None = None


FREE = {"optim", "itc_optim", "encoder_optim", "earlier_share", "pictures", "encoder", "text", "start"}
"""Of `Stage1Config`: what is compared elsewhere, or only gives the start."""


class Stage1Task:
    """Stage 1 on patches that the frozen encoder made once, a batch of one caption of each of B pictures."""

    def __init__(
        self, net: Retriever, tokenizer: TextTokenizer, patches_NWPV: Tensor,
        samples: Sequence[CaptionedPicture], config: Stage1Config, optim: OptimConfig | None = None,
    ):  # fmt: skip
        self.net, self.tokenizer, self.patches, self.config = net, tokenizer, patches_NWPV, config
        self.samples, self.optim = samples, optim or config.optim
        uncaptioned = [s.key for s in samples if not s.captions]
        if uncaptioned:
            raise DataError(f"{len(uncaptioned)} pictures have no caption (first: {uncaptioned[0]}).")
        net.requires_grad_(True)
        net.vision.requires_grad_(False)
        self.model = net.train()
        net.vision.eval()
        self.through = Through(net)
        learned = {name: value for name, value in asdict(config).items() if name not in FREE}
        self.settings = flat_settings(learned) | {"data": data_digest(samples)}
        self.steps_an_epoch = len(samples) // self.optim.batch
        if not self.steps_an_epoch:
            raise DataError(f"{len(samples)} pictures are fewer than a batch of {self.optim.batch}.")

    def losses(self, step: int) -> dict[str, Tensor]:
        return self.losses_of(step, self.optim.batch)

    def losses_of(self, step: int, count: int) -> dict[str, Tensor]:
        """Of the first `count` pairs of the joined batch, for which everything is drawn: any number of processes
        trains on the same."""
        draws = shared_draws(self.optim.seed, step)
        views, ids, mask = self._pairs_of(step, count, draws)
        patches = self._some_patches(views, draws)
        queries = self._some_queries(draws).to(patches.device)
        draws_2N = torch.rand(2, count, generator=draws)
        return self.through(self._losses, patches, ids, mask, queries, draws_2N)

    def _pairs_of(self, step: int, count: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """This process's share: what the encoder made of a view of each picture, and ids and mask of a caption."""
        here, device = world(), self.net.temperature.device
        chosen = self._pictures_of(step)[:count]
        views = torch.randint(self.patches.shape[1], (len(chosen),), generator=draws)
        captions = torch.rand(len(chosen), generator=draws)
        mine = here.share(chosen)
        texts = [self.samples[number].captions for number in mine.tolist()]
        own = [t[int(c * len(t))] for t, c in zip(texts, here.share(captions).tolist(), strict=True)]
        ids, mask, _ = self.tokenizer(own)
        return self.patches[mine, here.share(views)].to(device), ids.to(device), mask.to(device)

    def _losses(
        self, net: Retriever, patches_BPV: Tensor, ids_BT: Tensor, mask_BT: Tensor, queries: Tensor,
        draws_2N: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        losses = stage1_losses(
            net, normed(net, patches_BPV), ids_BT, mask_BT,
            dec_id=self.tokenizer.dec_id, label_smoothing=self.config.label_smoothing, queries=queries,
            draws_2N=draws_2N,
        )  # fmt: skip
        parts = {"itc": losses.itc, "itm": losses.itm, "itg": losses.itg}
        if not self.config.match_distillation:
            return {"loss": losses.total, **parts}
        parts["distilled"] = match_distillation_loss(
            losses.match_logits, losses.similarities, *losses.negatives, world().rank * len(ids_BT)
        )
        return {"loss": losses.total + self.config.match_distillation * parts["distilled"], **parts}

    def _some_patches(self, patches_BPV: Tensor, draws: torch.Generator) -> Tensor:
        """A random `patch_share` of the patches, the same for the batch: less to read, harder to learn by heart."""
        return patches_BPV[:, random_share(patches_BPV.shape[1], self.config.patch_share, draws)]

    def _some_queries(self, draws: torch.Generator) -> Tensor:
        """A random `query_share` of the queries, likewise: ITM's rows are mostly theirs."""
        return random_share(self.net.config.qformer.num_queries, self.config.query_share, draws).sort().values

    def _pictures_of(self, step: int) -> Tensor:
        """Every picture once an epoch, in an order that depends on (seed, epoch)."""
        return batch_of(step, len(self.samples), self.optim)


class ItcTask(Stage1Task):
    """The same with the contrastive loss alone, a fifth of the work: it brings the two sides together first."""

    some_unused = True

    def _losses(
        self, net: Retriever, patches_BPV: Tensor, ids_BT: Tensor, mask_BT: Tensor, queries: Tensor,
        draws_2N: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        patches = normed(net, patches_BPV)
        smoothing = self.config.label_smoothing
        return {"loss": itc_alone(net, patches, ids_BT, mask_BT, label_smoothing=smoothing, queries=queries)}


class EncoderTask(Stage1Task):
    """ITC that trains the last parts of a convolutional encoder, too, on feature maps (N, W, H, W, C) which the first
    `config.encoder_from` parts made once (`encoded_views.encode_maps`).

    Of a distilled encoder whose errors add up towards its end: a step costs a fraction of one through all of it.
    """

    some_unused = True

    def __init__(
        self, net: Retriever, tokenizer: TextTokenizer, maps: Tensor, samples: Sequence[CaptionedPicture],
        config: Stage1Config, optim: OptimConfig,
    ):  # fmt: skip
        super().__init__(net, tokenizer, maps, samples, config, optim)
        last = nn.ModuleList(modules for modules, _ in network_parts(net.vision)[config.encoder_from :])
        last.requires_grad_(True).train()
        self.strided = [conv for conv in last.modules() if isinstance(conv, nn.Conv2d) and _is_slow(conv)]

    def losses_of(self, step: int, count: int) -> dict[str, Tensor]:
        draws = shared_draws(self.optim.seed, step)
        maps, ids, mask = self._pairs_of(step, count, draws)
        windows = random_window(maps, draws)
        return self.through(self._of_maps, windows, ids, mask, self._some_queries(draws).to(maps.device))

    def _of_maps(
        self, net: Retriever, maps_BHWC: Tensor, ids_BT: Tensor, mask_BT: Tensor, queries: Tensor
    ) -> dict[str, Tensor]:
        features = maps_BHWC.permute(0, 3, 1, 2)
        with torch.autocast(features.device.type, torch.bfloat16), _in_float32(self.strided):
            for _, part in network_parts(net.vision)[self.config.encoder_from :]:
                features = part(features)
            patches = normed(net, features.flatten(2).transpose(1, 2))
            smoothing = self.config.label_smoothing
            return {
                "loss": itc_alone(net, patches, ids_BT, mask_BT, label_smoothing=smoothing, queries=queries)
            }


def _is_slow(conv: nn.Conv2d) -> bool:
    """Strided and depthwise: on a CPU its backward pass takes 7 to 16 times as long in bfloat16 as in float32."""
    return conv.groups > 1 and conv.stride != (1, 1) and conv.weight.device.type == "cpu"


@contextmanager
def _in_float32(convs: Sequence[nn.Conv2d]) -> Iterator[None]:
    """These leave autocast alone."""

    def exactly(conv: nn.Conv2d, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return type(conv).forward(conv, features.float())

    for conv in convs:
        conv.forward = partial(exactly, conv)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for conv in convs:
            del conv.forward


def run_stage1(
    config: Stage1Config,
    data: Path,
    runs: Path,
    output: Path,
    *,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Stage 1 from the runs it builds on; writes the checkpoint folder `output/model`.

    data: holds the shards, or runs does (see training/capfilt). runs: holds the folders `config.encoder` (its
    encoder.safetensors) and `config.text` (its tokenizer and text half). Raises DataError naming what is missing.
    """
    if not 0 <= config.earlier_share <= 1:
        raise DataError(f"earlier_share is {config.earlier_share}; it is a share, 0 to 1.")
    with joined() as (here, device):
        net, tokenizer = _start(config, data, runs)
        net.to(device)
        samples = read_small_sets(config.pictures, data, runs)
        pictures, samples, failures = load_pictures(samples, config.model.vision.image_size)
        tell = say if here.rank == 0 else (lambda line: None)
        tell(f"{len(pictures)} pictures, {len(failures)} unreadable; encoding {config.views} views of each")
        if config.encoder_optim is not None:
            done = finished(output / "encoder", config.encoder_optim)
            maps = torch.empty(0) if done else encode_maps(net, pictures, config, config.encoder_from)
            task = EncoderTask(net, tokenizer, maps, samples, config, config.encoder_optim)
            train(task, config.encoder_optim, output / "encoder", say=say)
            del task, maps
        if config.itc_optim is not None or config.optim.steps:
            patches = encode_views(net, pictures, config)
            parts = net, tokenizer, patches, samples, config
        if config.itc_optim is not None:
            train(ItcTask(*parts, config.itc_optim), config.itc_optim, output / "itc", say=say)
        if config.optim.steps:
            weights = net.state_dict() if config.earlier_share else {}
            earlier = {name: value.clone() for name, value in weights.items()}
            train(Stage1Task(*parts), config.optim, output / "all", say=say)
            mix(net, earlier, config.earlier_share)
        if here.rank == 0:
            save_checkpoint(output / "model", net, tokenizer.tokenizer, dtype=torch.float16)
            say(f"wrote {output / 'model'}")


def _start(config: Stage1Config, data: Path, runs: Path) -> tuple[Retriever, TextTokenizer]:
    """The network as training finds it: a new Q-Former around what runs before it taught, or another run's model."""
    torch.manual_seed(config.optim.seed)
    if config.start is not None:
        folder = find_start(config.start, data, runs)
        net, tokenizer = load_net(folder)
        if net.config != config.model:
            raise DataError(f"{folder} is another architecture than the recipe's.")
        return net, tokenizer
    for needed in (runs / config.encoder / ENCODER, runs / config.text / TEXT_HALF):
        if not needed.is_file():
            raise DataError(
                f"{needed} is not there; train it first (`qseek train distill`, `qseek train text`)."
            )
    net = Retriever(config.model)
    net.vision.load_state_dict(load_file(runs / config.encoder / ENCODER))
    text_half(net).load_state_dict(load_file(runs / config.text / TEXT_HALF))
    for layer in net.qformer.layers:  # the queries' feed-forwards start as the text's (BLIP-2, section 3.1)
        layer.query_mlp.load_state_dict(layer.text_mlp.state_dict())
    words = Tokenizer.from_file(str(runs / config.text / TOKENIZER))
    return net, TextTokenizer(words, config.model.max_tokens)
