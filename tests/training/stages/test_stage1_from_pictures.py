"""Test stage 1 on pictures that are read in every step: it learns, resumes after a stop, and takes every start."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bert_folders import save_bert_folder
from safetensors.torch import save_file
from shard_writing import make_png, write_shard
from tiny import tiny_checkpoint, tiny_config, tiny_net

from engine.checkpoints.building import load_net
from engine.datasets.captioned_sets import SourceConfig
from engine.errors import DataError, TrainingError
from training.loop.memory_estimate import estimate_state_bytes
from training.loop.optimizer import OptimConfig
from training.recipes.recipe_catalogue import RETRIEVAL, STAGE1
from training.stages.dry_run import count_parameters, outline_retriever
from training.stages.stage1 import Stage1Task, run_stage1
from training.stages.stage1_config import Stage1Config
from training.stages.stage_setup import compile_parts
from training.stages.starts import load_stage1_start

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "orange")


def write_data(folder: Path) -> Path:
    """Write eight one-coloured pictures (half in a shard, half in a JSON list), a BERT, timm's encoder, and a model."""
    folder.mkdir(exist_ok=True)
    members: dict[str, bytes] = {}
    for colour in COLOURS[:4]:
        members |= {f"{colour}.png": make_png(colour), f"{colour}.txt": f"a {colour} house".encode()}
    write_shard(folder / "s-0.tar", members)
    for colour in COLOURS[4:]:
        (folder / f"{colour}.png").write_bytes(make_png(colour))
    rows = [{"image": f"{colour}.png", "caption": f"a {colour} house"} for colour in COLOURS[4:]]
    (folder / "list.json").write_text(json.dumps(rows))
    save_bert_folder(folder / "bert")
    save_file(
        {name: value.clone() for name, value in tiny_net().vision.backbone.state_dict().items()}
        | {"head.weight": torch.zeros(2)},
        folder / "encoder.safetensors",
    )
    tiny_checkpoint(folder / "model", tiny_config(dropout=0.0))
    return folder


def config(**changes: Any) -> Stage1Config:
    optim = OptimConfig(steps=4, batch=8, lr=1e-3, log_every=1, weight_decay=0.0)
    sources = SourceConfig("s-{0..0}.tar"), SourceConfig("list.json")
    default_config = Stage1Config(tiny_config(dropout=0.0), sources, optim, start="model", workers=2)
    return replace(default_config, **changes)


def run(chosen: Stage1Config, tmp_path: Path, name: str) -> list[float]:
    """Run stage 1 and return the losses of the log."""
    run_stage1(chosen, write_data(tmp_path / "data"), tmp_path, tmp_path / name)
    lines = (tmp_path / name / "all" / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def test_a_stopped_run_goes_on_with_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(config(), tmp_path, "whole")
    losses = Stage1Task.losses

    def stop_at_step_2(self: Stage1Task, step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return losses(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Stage1Task, "losses", stop_at_step_2)
        with pytest.raises(KeyboardInterrupt):
            run(config(), tmp_path, "halves")
    assert run(config(), tmp_path, "halves") == expected
    whole, halves = (load_net(tmp_path / name / "model")[0].state_dict() for name in ("whole", "halves"))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    (tmp_path / "halves/all/log.jsonl").unlink()
    with pytest.raises(TrainingError, match=r"label_smoothing: 0.1 then, 0.2 now"):
        run(config(label_smoothing=0.2), tmp_path, "halves")
    with pytest.raises(TrainingError, match=r"source list.json: '\w+' then, None now"):
        run(config(sources=(SourceConfig("s-0.tar"),)), tmp_path, "halves")


@pytest.mark.parametrize("train_encoder", [False, True])
def test_the_losses_fall_and_the_encoder_learns_only_when_asked(tmp_path: Path, train_encoder: bool) -> None:
    optim = OptimConfig(
        steps=60, batch=8, lr=2e-3, log_every=20, weight_decay=0.0, layer_decay=0.9 if train_encoder else 1.0
    )
    chosen = config(
        optim=optim, train_encoder=train_encoder, recompute_encoder=train_encoder, picture_ids=True
    )
    losses = run(chosen, tmp_path, "out")
    assert losses[-1] < 0.8 * losses[0]
    before, after = (
        load_net(folder)[0].vision.state_dict()
        for folder in (tmp_path / "data/model", tmp_path / "out/model")
    )
    has_changed = [float((after[name] - before[name]).abs().max()) > 2e-3 for name in before]
    assert all(has_changed) if train_encoder else not any(has_changed)


@pytest.mark.parametrize("changes", [{"chunk": 3}, {"recompute_encoder": True}])
def test_chunks_and_recomputed_activations_give_the_same_losses(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    expected = run(config(train_encoder=True), tmp_path, "plain")
    actual = run(config(train_encoder=True, **changes), tmp_path, "other")
    assert actual == pytest.approx(expected, abs=1e-3)


def test_compiled_parts_give_the_same_logits() -> None:
    """Only Dynamo is tested: PyTorch itself tests whether compiled graphs are right."""
    net = tiny_net()
    pixels, ids = torch.randn(2, 3, 32, 32), torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])
    with torch.no_grad():
        expected = net.match(net.compute_photo_keys(net.encode_patches(pixels)), ids, ids != 0)
        compile_parts(net, backend="eager")
        actual = net.match(net.compute_photo_keys(net.encode_patches(pixels)), ids, ids != 0)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_a_run_starts_from_bert_and_an_encoder(tmp_path: Path) -> None:
    chosen = config(start="", bert="bert", encoder="encoder.safetensors")
    folder = write_data(tmp_path / "data")
    net, tokenizer = load_stage1_start(chosen, folder, tmp_path)
    assert (
        net.config.qformer.width == 24 and tokenizer.token_to_id("[DEC]") == net.config.qformer.vocab_size - 1
    )
    expected = tiny_net().vision.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in net.vision.state_dict().items())
    save_file({"cls_token": torch.zeros(1, 1, 32), "odd": torch.zeros(1)}, folder / "encoder.safetensors")
    with pytest.raises(DataError, match=r"not the image encoder vit_tiny.*missing blocks\.0\."):
        load_stage1_start(chosen, folder, tmp_path)


def test_larger_pictures_interpolate_the_positions(tmp_path: Path) -> None:
    model = config().model
    timm_args = model.vision.timm_args | {"img_size": 48}
    larger = replace(model, vision=replace(model.vision, image_size=48, timm_args=timm_args))
    net, _ = load_stage1_start(config(model=larger), write_data(tmp_path / "data"), tmp_path)
    assert net.vision.backbone.pos_embed.shape == (1, 1 + 36, 32) and net.vision.count_patches() == 37
    odd = replace(model, vision=replace(model.vision, image_size=50))
    with pytest.raises(DataError, match="50 pixels are not a multiple of the encoder's patches of 8"):
        load_stage1_start(config(model=odd), tmp_path / "data", tmp_path)
    other = replace(model, embed_dim=8)
    with pytest.raises(DataError, match=r"another architecture .*embed_dim: 16, not 8"):
        load_stage1_start(config(model=other), tmp_path / "data", tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"start": ""}, "start is not set"),
        ({"start": "", "bert": "bert"}, "encoder is not set"),
        ({"bert": "bert"}, "not both"),
        ({"chunk": 1}, "chunk is 1"),
        ({"optim": OptimConfig(steps=1, batch=2, lr=1.0, layer_decay=0.9)}, "frozen"),
    ],
)
def test_contradicting_settings_are_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainingError, match=words):
        run_stage1(config(**changes), tmp_path, tmp_path, tmp_path / "out")


def test_the_recipes_have_the_papers_numbers() -> None:
    """The numbers are those of BLIP-2, section 3.4 and appendix."""
    recipes = {name: make() for name, make in {**STAGE1, **RETRIEVAL}.items() if not name.startswith("mini")}
    numbers = {
        name: (
            optim.batch,
            optim.lr,
            optim.min_lr,
            optim.warmup,
            optim.steps,
            optim.betas,
            optim.weight_decay,
            optim.layer_decay,
            recipe.model.vision.image_size,
        )
        for name, recipe in recipes.items()
        for optim in [recipe.optim]
    }
    assert numbers == {
        "blip2-vit-g": (1680, 1e-4, 1e-5, 2000, 250_000, (0.9, 0.98), 0.05, 1.0, 224),
        "blip2-vit-l": (2320, 1e-4, 1e-5, 2000, 250_000, (0.9, 0.98), 0.05, 1.0, 224),
        "coco-vit-g": (224, 1e-5, 0.0, 1000, 12_650, (0.9, 0.999), 0.05, 0.95, 364),
        "coco-vit-l": (224, 5e-6, 0.0, 1000, 12_650, (0.9, 0.98), 0.05, 1.0, 364),
    }
    assert all(r.picture_ids and r.train_encoder for name, r in recipes.items() if name.startswith("coco"))


def test_an_outline_counts_the_parameters_of_the_network() -> None:
    net = tiny_net()
    net.vision.requires_grad_(False)
    table = {row.name: row for row in count_parameters(net)}
    assert sum(row.trainable + row.frozen for row in table.values()) == sum(
        p.numel() for p in net.parameters()
    )
    assert (
        table["vision"].trainable == 0
        and table["temperature"].trainable == 1
        and table["qformer"].frozen == 0
    )
    assert estimate_state_bytes(10, 5, "float32") == 180 and estimate_state_bytes(10, 5, "bfloat16") == 210
    lines = list(outline_retriever(tiny_config(), OptimConfig(steps=3, batch=8, lr=1e-4), num_processes=2))
    assert (
        lines[0].split() == ["part", "trainable", "frozen"]
        and "3 of 8 pairs (4 a process), 24 in all" in lines[-2]
    )
    assert lines[-1].startswith("memory of a process, estimated: 0.0 GiB")
