"""Train the photo side of a Q-Former with ITC and with the names that a classifier gives, on a frozen text half.

The text half is a sentence encoder that knows more words than any captions have. Its vectors do not change, so that
each text is read once; what is learned on its side is ITC's text head.

Shapes: B captioned photos of this process, M photos in all, P patches, V vision width, D Q-Former width, N names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine.blip2.retriever import Retriever, itc_scores
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import load_net
from engine.datasets.captioned_pictures import CaptionedPicture
from engine.datasets.captioned_sets import read_small_sets
from engine.datasets.picture_reading import load_pictures
from engine.wording import count_text
from training.batches.batch_source import BatchSource
from training.batches.class_names import ClassNames
from training.batches.encoded_views import EncodedViews, encode_views
from training.batches.hard_groups import find_neighbours
from training.batches.named_pairs import NamedPairs
from training.batches.named_pictures import Classifier, NamedPictures
from training.distributed.world import current_world
from training.loop.optimizer import OptimConfig
from training.loop.random_draws import draw_random_share
from training.losses.ensemble_teachers import (
    TeacherVectors,
    encode_first_views,
    mean_scores,
    ranking_loss,
    read_teacher,
)
from training.losses.itc_itm_itg import LEAST_TEMPERATURE
from training.losses.names_loss import merge_classes, names_loss
from training.losses.pooled_texts import PooledTexts
from training.losses.stage1_losses import apply_vision_norm, compute_contrast
from training.stages.stage1_config import NamesConfig, Stage1Config
from training.stages.stage_setup import (
    Say,
    collect_fixed_settings,
    freeze_text_layers,
    prepare_network,
    take_images,
)
from training.stages.starts import find_start
from training.stages.text_half import read_caption_groups

NEIGHBOURS = 30
"""Number of photos among which the neighbours of a photo in a batch are drawn."""


class NamesInputs(NamedTuple):
    """The inputs of a step: patches (M, P, V), of which the first B have captions, and pooled texts.

    others: pooled captions of other photos. targets: the teachers' scores of the photos without captions with them.
    Both are empty without teachers.
    """

    patches: Tensor
    captions: Tensor
    names: Tensor
    probabilities: Tensor
    others: Tensor
    targets: Tensor


class NamesTask:
    """Training with ITC and names: photos learn their captions, and the names that the classifier gives them."""

    leaves_parameters_out = True

    def __init__(
        self,
        net: Retriever,
        tokenizer: TextTokenizer,
        source: BatchSource,
        sets: Sequence[Tensor],
        config: Stage1Config,
        names: NamesConfig,
        optim: OptimConfig,
        teachers: Sequence[TeacherVectors] = (),
        other_captions: Sequence[str] = (),
    ):
        """Prepare the network: image encoder and text half are frozen.

        sets: of `read_named_sets`. teachers, other_captions: of `read_teachers`.
        """
        self.net = self.model = net
        self.source, self.config, self.names, self.optim = source, config, names, optim
        self.pictures = NamedPictures(sets, names.shares)
        self.teachers, self.other_captions = teachers, other_captions
        self.wrapper = prepare_network(net, config)
        freeze_text_layers(net, net.config.qformer.num_layers)
        self.texts, self.class_names = PooledTexts(net, tokenizer), ClassNames()
        self.classifier = Classifier(net.config.vision)
        self.settings = collect_fixed_settings(config, config.fixed_settings, source)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Return the losses of a step: the total under "loss", and its parts for the log."""
        world, batch = current_world(), self.source[step]
        draws = batch.draws
        assert draws is not None, "stage 1 draws alike in all processes"
        count, device = self.optim.batch // world.size, self.net.temperature.device
        images = take_images(batch, count, self.net.config.vision, device)
        drawn = self.pictures.draw(self.names.batch, draws)
        drawn = [drawn[number] for number in world.select_share(torch.arange(len(drawn))).tolist()]
        patches = torch.cat([images, self.pictures.read_patches(drawn).to(device)])
        texts, numbers = self.class_names.draw_texts(draws)
        probabilities = merge_classes(self.classifier.classify(patches).cpu(), numbers, len(texts))
        positions = draw_random_share(patches.shape[1], self.config.patch_share, draws)
        inputs = NamesInputs(
            patches[:, positions.to(device)],
            self.texts.read(list(islice(batch.captions, count))).to(device),
            self.texts.read(texts).to(device),
            probabilities.to(device),
            *(part.to(device) for part in self._ask_teachers(drawn, draws)),
        )
        return self.wrapper(self._compute_losses, inputs)

    def _ask_teachers(
        self, drawn: Sequence[tuple[int, int, int]], draws: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return pooled captions (M, D) that are drawn now, and the teachers' scores (B, M) with them."""
        if not self.teachers:
            return torch.empty(0), torch.empty(0)
        numbers = torch.randint(len(self.other_captions), (self.names.texts,), generator=draws)
        texts = self.texts.read([self.other_captions[number] for number in numbers.tolist()])
        set_numbers, rows, _ = zip(*drawn, strict=True)
        return texts, mean_scores(self.teachers, set_numbers, rows, numbers)

    def _compute_losses(self, net: Retriever, inputs: NamesInputs) -> dict[str, Tensor]:
        keys = net.compute_photo_keys(apply_vision_norm(net, inputs.patches))
        dtype = net.temperature.dtype
        photos = net.project_photos(net.qformer.read_photos(keys)[0])
        captions, names = (net.project_texts(texts.to(dtype)) for texts in (inputs.captions, inputs.names))
        itc = compute_contrast(
            photos[: len(captions)], captions, net.temperature, label_smoothing=self.config.label_smoothing
        ).loss
        named = names_loss(photos, names, inputs.probabilities, net.temperature)
        loss_parts = {"itc": itc, "names": named}
        loss = itc + self.names.weight * named
        if len(inputs.targets):
            others = net.project_texts(inputs.others.to(dtype))
            scores = itc_scores(photos[len(captions) :], others) / net.temperature.clamp(
                min=LEAST_TEMPERATURE
            )
            loss_parts["taught"] = ranking_loss(scores, inputs.targets)
            loss = loss + loss_parts["taught"]
        return {"loss": loss, **loss_parts}


def read_teachers(
    names: NamesConfig, sets: Sequence[Tensor], data: Path, runs: Path, tell: Say
) -> tuple[list[TeacherVectors], list[str]]:
    """Load each model of `names.teachers` and let it encode the photos of the sets, and captions of other photos.

    Return the teachers' vectors and the captions; both are empty without teachers. Raises DataError for a model or a
    table that is not there.
    """
    if not names.teachers:
        return [], []
    groups = read_caption_groups([data / names.captions])
    captions = [caption for group in groups for caption in group]
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(0)).tolist()
    captions = [captions[number] for number in order[: names.num_captions]]
    teachers = []
    for name in names.teachers:
        net, tokenizer = load_net(find_start(name, data, runs))
        tell(f"The teacher {name} encodes {count_text(len(captions), 'caption')}.")
        teachers.append(read_teacher(net, tokenizer, sets, captions))
    return teachers, captions


def read_named_sets(
    net: Retriever, config: Stage1Config, names: NamesConfig, data: Path, views_folder: Path, tell: Say
) -> list[Tensor]:
    """Return the patches (N, W, P, V) of each set of `names.pictures`.

    views_folder: where the encoded views are kept. Raises DataError for a set that cannot be read.
    """
    sets = []
    for source in names.pictures:
        samples = read_small_sets([source.path], data)
        pictures, samples, failures = load_pictures(samples, net.config.vision.image_size)
        tell(
            f"{source.path}: {count_text(len(pictures), 'picture')} for their names, {len(failures):,} unreadable."
        )
        sets.append(encode_views(net, pictures, replace(config, views=names.views), views_folder))
    return sets


def make_source(
    net: Retriever,
    tokenizer: TextTokenizer,
    patches: Tensor,
    samples: Sequence[CaptionedPicture],
    named_sets: Sequence[Tensor],
    config: Stage1Config,
) -> BatchSource:
    """Return the batches of the run with all losses.

    `config.group` puts photos together that the network confuses as it is now; `names.pairs` adds named photos.
    """
    names, optim = config.names, config.optim
    num_named = names.pairs if names is not None else 0
    neighbours = None
    if config.group > 1:
        neighbours = find_confused(net, tokenizer, patches, samples)
    captioned = EncodedViews(
        patches,
        samples,
        replace(optim, batch=optim.batch - num_named),
        neighbours=neighbours,
        group=config.group,
    )
    if names is None or not num_named:
        return captioned
    paths = [source.path for source in names.pictures]
    classifier = Classifier(net.config.vision)
    return NamedPairs(captioned, named_sets, names.shares, paths, classifier, num_named, names.least)


@torch.no_grad()
def find_confused(
    net: Retriever, tokenizer: TextTokenizer, patches: Tensor, samples: Sequence[CaptionedPicture]
) -> Tensor:
    """Return the table of `find_neighbours` for photos by their first view and the mean vector of their captions."""
    device, was_training = net.temperature.device, net.training
    net.eval()
    pooled = PooledTexts(net, tokenizer)
    texts = [
        net.project_texts(pooled.read(sample.captions).to(device)).mean(dim=0).cpu() for sample in samples
    ]
    photos = encode_first_views(net, patches)
    net.train(was_training)
    return find_neighbours(photos, torch.stack(texts), NEIGHBOURS)
