"""Test the names phase: names are learned by photos without captions, and the text half stays as it is."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eight_pairs import COLOURS, caption_tokenizer, stage1_config, write_colour_shard
from packaged_encoder import LITE2
from shard_writing import make_png, write_shard

from engine.blip2.config import Blip2Config
from engine.blip2.retriever import Retriever
from engine.checkpoints.building import load_net
from engine.checkpoints.saving import save_checkpoint
from engine.datasets.captioned_sets import SetConfig
from engine.errors import DataError, TrainingError
from training.batches.named_pictures import Classifier, NamedPictures
from training.loop.optimizer import OptimConfig
from training.losses.names_loss import names_loss
from training.stages import names_phase
from training.stages.stage1 import run_stage1
from training.stages.stage1_config import NamesConfig, Stage1Config, check_stage1
from training.stages.starts import load_packaged_encoder

OPTIM = OptimConfig(steps=12, batch=8, lr=2e-3, warmup=2, weight_decay=0.0, log_every=4)


def names_config(**changes: object) -> Stage1Config:
    """Return a run of the names phase alone on the eight pairs, with EfficientNet-Lite2 at 32 pixels."""
    model = stage1_config().model
    qformer = replace(model.qformer, num_layers=3, first_query_layer=1, patch_width=24)
    vision = replace(LITE2, num_channels=1280 + 120, earlier_part=15)
    model = Blip2Config(vision, qformer, embed_dim=16, max_tokens=12, text_pooling="mean", text_mlp_width=20)
    names = NamesConfig((SetConfig("n-*.tar", 2.0), SetConfig("s-*.tar")), batch=6)
    config = stage1_config(
        model=model, names=names, names_optim=OPTIM, optim=replace(OPTIM, steps=0), patch_share=0.5, views=2,
        frozen_text_layers=1,
    )  # fmt: skip
    return replace(config, **changes)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_colour_shard(tmp_path / "s-0.tar")
    write_shard(
        tmp_path / "n-0.tar", {f"{n}.png": make_png(colour) for n, colour in enumerate(("pink", "grey"))}
    )
    return tmp_path


def save_start(config: Stage1Config, folder: Path, seed: int = 0) -> Retriever:
    torch.manual_seed(seed)
    net = Retriever(config.model)
    load_packaged_encoder(net)
    save_checkpoint(folder, net, caption_tokenizer())
    return net


def test_a_run_lowers_both_losses_and_leaves_the_text_half(data: Path) -> None:
    config = names_config(names_optim=replace(OPTIM, steps=60, log_every=20))
    start = save_start(config, data / "first").state_dict()
    run_stage1(config, data, data, data / "out")
    rows = [json.loads(line) for line in (data / "out" / "names" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["itc"] < rows[0]["itc"] and rows[-1]["names"] < rows[0]["names"]
    trained = load_net(data / "out" / "model")[0].state_dict()
    for name, value in trained.items():
        is_text = ".text_mlp." in name or name.startswith(
            ("qformer.words", "qformer.positions", "qformer.norm")
        )
        if is_text or name.startswith("vision.") or (".attention." in name and "cross" not in name):
            torch.testing.assert_close(value, start[name], atol=1e-3, rtol=1e-3)
        elif name.startswith(("text_head.", "photo_head.", "vision_norm.projection")):
            assert (value - start[name]).abs().max() > 1e-3, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on_with_the_same_losses(
    data: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    optim = replace(OPTIM, dtype=dtype, log_every=1)
    config = names_config(names_optim=optim)
    save_start(config, data / "first")
    run_stage1(config, data, data, data / "whole")
    with monkeypatch.context() as patched:
        calls = []

        def stopping(*arguments: torch.Tensor) -> torch.Tensor:
            calls.append(1)
            if len(calls) == 7:
                raise KeyboardInterrupt
            return names_loss(*arguments)

        patched.setattr(names_phase, "names_loss", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_stage1(config, data, data, data / "stopped")
    run_stage1(config, data, data, data / "stopped")
    logs = [(data / name / "names" / "log.jsonl").read_text().splitlines() for name in ("whole", "stopped")]
    losses = [[json.loads(line)["loss"] for line in log] for log in logs]
    assert losses[0] == losses[1] and len(losses[0]) == 12


def test_teachers_are_asked_about_photos_without_captions(data: Path) -> None:
    """A student comes near to the mean scores of two teachers, and a missing table or model is named."""
    with gzip.open(data / "captions.tsv.gz", "wt") as table:
        table.writelines(f"{number}\ta {colour} wall\n" for number, colour in enumerate(COLOURS))
    names = NamesConfig(
        (SetConfig("n-*.tar"),), batch=6, teachers=("one", "two"), captions="captions.tsv.gz", texts=8
    )
    config = names_config(names=names, names_optim=replace(OPTIM, steps=40, log_every=10))
    save_start(config, data / "first")
    for seed, name in enumerate(("one", "two"), 1):
        save_start(config, data / name, seed)
    lines: list[str] = []
    run_stage1(config, data, data, data / "out", say=lines.append)
    assert "The teacher two encodes 8 captions." in lines
    rows = [json.loads(line) for line in (data / "out" / "names" / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["taught"] < rows[0]["taught"]
    with pytest.raises(TrainingError, match=r"No names\.captions is set for names\.teachers"):
        check_stage1(replace(config, names=replace(names, captions="")))
    for changes, word in (
        ({"captions": "none.tsv.gz"}, "none.tsv.gz cannot be read"),
        ({"teachers": ("no",)}, "'no'"),
    ):
        with pytest.raises(DataError, match=word):
            run_stage1(replace(config, names=replace(names, **changes)), data, data, data / word[:3])  # type: ignore[arg-type]


def test_the_classifier_reads_the_mean_of_the_last_map() -> None:
    """Channels of an earlier map lie behind those of the last one and do not count."""
    classifier = Classifier(replace(LITE2, num_channels=1400))
    patches = torch.rand(3, 4, 1400, generator=torch.Generator().manual_seed(0))
    probabilities = classifier.classify(patches)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))
    logits = patches[:, :, :1280].mean(1) @ classifier.weight_CV.T + classifier.bias_C
    torch.testing.assert_close(probabilities, logits.softmax(1))
    patches[:, :, 1280:] = 9
    torch.testing.assert_close(classifier.classify(patches), probabilities)


def test_named_photos_take_part_in_all_losses(data: Path) -> None:
    """The run with all losses has named pairs where the classifier is sure enough, and refuses none at all."""
    names = NamesConfig((SetConfig("n-*.tar"),), batch=6, pairs=2, least=0.0)
    optim = replace(OPTIM, steps=4, log_every=1)
    config = names_config(names=names, names_optim=None, optim=optim, group=2, picture_ids=True)
    save_start(config, data / "first")
    lines: list[str] = []
    run_stage1(config, data, data, data / "out", say=lines.append)
    assert len((data / "out" / "all" / "log.jsonl").read_text().splitlines()) == 4
    assert "n-*.tar: 2 pictures for their names, 0 unreadable." in lines
    unsure = replace(config, names=replace(names, least=0.9999))
    with pytest.raises(DataError, match=r"sure of no photo of the sets n-\*\.tar"):
        run_stage1(unsure, data, data, data / "none")


def test_photos_are_drawn_by_the_shares_of_their_sets() -> None:
    sets = [torch.full((3, 2, 1, 1), 1.0), torch.full((50, 1, 1, 1), 2.0)]
    pictures = NamedPictures(sets, [3.0, 1.0])
    drawn = pictures.draw(400, torch.Generator().manual_seed(0))
    patches = pictures.read_patches(drawn)
    assert patches.shape == (400, 1, 1) and 270 < int((patches == 1).sum()) < 330
    assert {photo[1:] for photo in drawn if photo[0] == 0} == {
        (row, view) for row in range(3) for view in range(2)
    }


def test_settings_that_do_not_go_together(data: Path) -> None:
    with pytest.raises(TrainingError, match="names_optim is set and names is not"):
        check_stage1(names_config(names=None))
    with pytest.raises(TrainingError, match="frozen_text_layers is 4; the Q-Former has 3 layers"):
        check_stage1(names_config(frozen_text_layers=4))
    with pytest.raises(TrainingError, match="names is set and views is 0"):
        check_stage1(names_config(views=0, names_optim=None, patch_share=1.0))
    with pytest.raises(TrainingError, match="'test_vit' comes from no package"):
        Classifier(stage1_config().model.vision)
    config = names_config(names=NamesConfig((SetConfig("none-*.tar"),), batch=6))
    save_start(config, data / "first")
    with pytest.raises(DataError, match="none-"):
        run_stage1(config, data, data, data / "out")
