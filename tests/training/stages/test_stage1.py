"""Test stage 1: it learns eight pairs by heart, but not when they are shuffled at every step; a run makes a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from eight_pairs import CAPTIONS, make_batches, make_eight_pairs, stage1_config, write_colour_shard
from safetensors.torch import save_file

from engine.blip2.layers import KeysValues
from engine.blip2.qformer import PhotoKeys
from engine.blip2.retriever import Retriever, itc_scores
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import load_net
from engine.checkpoints.saving import save_checkpoint
from engine.datasets.captioned_pictures import CaptionedPicture
from engine.errors import DataError
from engine.models.loading import load_model
from training.batches.batch_source import Batch
from training.batches.encoded_views import EncodedViews
from training.loop.train_loop import train
from training.stages import stage1
from training.stages.stage1 import ItcTask, Stage1Task, run_stage1
from training.stages.text_half import TEXT_HALF, TextTask, select_text_half, train_tokenizer


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_pairs_are_learned_by_heart(tmp_path: Path, dtype: str) -> None:
    config = stage1_config()
    config = replace(config, optim=replace(config.optim, dtype=dtype))
    net, tokenizer, patches, samples = make_eight_pairs(config)
    frozen = {name: value.clone() for name, value in net.vision.state_dict().items()}
    rows = train(
        Stage1Task(net, tokenizer, make_batches(patches, samples, config), config), config.optim, tmp_path
    )
    assert rows[-1]["itg"] < 0.6 * rows[0]["itg"] and rows[-1]["itm"] < 0.5
    net.eval()
    with torch.no_grad():
        ids, mask, _ = tokenizer([texts[0] for texts in CAPTIONS])
        keys = net.compute_photo_keys(net.vision_norm(patches[:, 0].float()))
        scores = itc_scores(net.encode_photos(keys), net.encode_texts(ids, mask))
        matching = net.match(keys, ids, mask)[:, 1]
        mismatched = net.match(keys, ids.roll(1, 0), mask.roll(1, 0))[:, 1]
    assert (scores.argmax(0) == torch.arange(8)).all() and (scores.argmax(1) == torch.arange(8)).all()
    assert (matching > mismatched).all()
    assert all(torch.equal(value, frozen[name]) for name, value in net.vision.state_dict().items())


def test_shuffled_pairs_are_not_learned(tmp_path: Path) -> None:
    config = stage1_config()
    net, tokenizer, patches, samples = make_eight_pairs(config)

    class Shuffled(EncodedViews):
        def __getitem__(self, step: int) -> Batch:
            self.views = self.views[torch.randperm(8)]
            return super().__getitem__(step)

    source = Shuffled(patches, samples, config.optim)
    rows = train(Stage1Task(net, tokenizer, source, config), config.optim, tmp_path)
    # Chance gives ln 8 = 2.08 for ITC, and 0.64 for ITM, where a third of the pairs matches.
    assert rows[-1]["itc"] > 1.9
    assert rows[-1]["itm"] > 0.6


def test_itc_alone_learns(tmp_path: Path) -> None:
    config = stage1_config(patch_share=0.5, views=3)
    net, tokenizer, patches, samples = make_eight_pairs(config)
    assert patches.shape[1] == 3 and not torch.equal(patches[:, 0], patches[:, 1])
    rows = train(
        ItcTask(net, tokenizer, make_batches(patches, samples, config), config), config.optim, tmp_path
    )
    assert set(rows[0]) == {"step", "loss", "lr", "samples_per_second", "mfu"}
    # Crops of noise have little in common; chance gives ln 8 = 2.08.
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_every_picture_comes_once_an_epoch() -> None:
    config = stage1_config()
    config = replace(config, optim=replace(config.optim, batch=4))
    _, _, patches, samples = make_eight_pairs(config)
    source = make_batches(patches, samples, config)
    epochs = [
        [*source[2 * epoch].picture_ids.tolist(), *source[2 * epoch + 1].picture_ids.tolist()]
        for epoch in range(2)
    ]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs) and epochs[0] != epochs[1]


def test_paraphrases_find_each_other(tmp_path: Path) -> None:
    config = stage1_config()
    torch.manual_seed(0)
    net = Retriever(config.model)
    tokenizer = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    task = TextTask(net, TextTokenizer(tokenizer, 12), CAPTIONS, 8)
    rows = train(task, replace(config.optim, steps=60, log_every=20, lr=1e-3), tmp_path)
    assert rows[-1]["right"] > 0.95 > rows[0]["right"]


def test_a_run_makes_a_model(tmp_path: Path) -> None:
    """A run reads shards and earlier runs and writes a folder that load_model reads; missing runs are named."""
    data, runs = tmp_path / "data", tmp_path / "runs"
    data.mkdir()
    write_colour_shard(data / "s-000.tar")
    config = stage1_config()
    config = replace(
        config,
        optim=replace(config.optim, steps=3),
        itc_optim=replace(config.optim, steps=2),
        start="",
        encoder="e",
        text="t",
    )
    with pytest.raises(DataError, match="train it first"):
        run_stage1(config, data, runs, runs / "out")
    net = Retriever(config.model)
    (runs / "e").mkdir(parents=True)
    (runs / "t").mkdir()
    save_file(net.vision.state_dict(), runs / "e" / "encoder.safetensors")
    save_file(select_text_half(net).state_dict(), runs / "t" / TEXT_HALF)
    train_tokenizer((t for g in CAPTIONS for t in g), 100).save(str(runs / "t" / "tokenizer.json"))
    run_stage1(config, data, runs, runs / "out")
    model = load_model(str(runs / "out" / "model"), dtype="float32")
    assert model.encode_texts(["a red wall"])[0].shape == (1, 16)


def test_a_run_goes_on_from_another_runs_model(tmp_path: Path) -> None:
    data, runs = tmp_path, tmp_path / "runs"
    config = stage1_config()
    net, tokenizer, _, _ = make_eight_pairs(config)
    save_checkpoint(runs / "first" / "model", net, tokenizer.tokenizer)
    write_colour_shard(data / "s-000.tar")
    second_config = replace(config, start="first", optim=replace(config.optim, steps=1, warmup=0, lr=1e-9))
    run_stage1(second_config, data, runs, runs / "second")
    first, second = (load_model(str(runs / name / "model"), dtype="float32") for name in ("first", "second"))
    np.testing.assert_allclose(
        *(model.encode_texts(["a red wall"])[0] for model in (first, second)), atol=2e-3
    )
    other = replace(second_config, model=replace(second_config.model, max_tokens=11))
    with pytest.raises(DataError, match="another architecture"):
        run_stage1(other, data, runs, runs / "other")


def test_a_share_of_queries_and_patches_takes_part(tmp_path: Path) -> None:
    config = stage1_config(query_share=0.5, patch_share=0.5, match_distillation=1.0)
    config = replace(config, optim=replace(config.optim, steps=300, log_every=60))
    net, tokenizer, patches, samples = make_eight_pairs(config)
    counts: list[tuple[int, ...]] = []
    read_photos = net.qformer.read_photos

    def record_shares(keys: PhotoKeys, queries: torch.Tensor) -> tuple[torch.Tensor, list[KeysValues]]:
        counts.append((keys[0][0].shape[2], *queries.tolist()))
        return read_photos(keys, queries)

    net.qformer.read_photos = record_shares  # type: ignore[method-assign]
    rows = train(
        Stage1Task(net, tokenizer, make_batches(patches, samples, config), config), config.optim, tmp_path
    )
    assert set(rows[0]) >= {"itc", "itm", "itg", "distilled"} and rows[-1]["itc"] < rows[0]["itc"]
    num_patches = round(patches.shape[2] / 2)
    assert all(count == num_patches and len(queries) == 2 for count, *queries in counts)
    # Each of the six pairs of the four queries was drawn.
    assert len({tuple(queries) for _, *queries in counts}) == 6


def test_pictures_without_captions_are_refused() -> None:
    config = stage1_config()
    _, _, patches, samples = make_eight_pairs(config)
    samples[3] = CaptionedPicture("bare", b"", ())
    with pytest.raises(DataError, match=r"1 pictures have no caption \(first: bare\)"):
        make_batches(patches, samples, config)


def test_without_steps_there_is_no_run_with_all_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage1_config(start="first")
    config = replace(config, optim=replace(config.optim, steps=0))
    net, tokenizer, _, _ = make_eight_pairs(config)
    save_checkpoint(tmp_path / "runs" / "first" / "model", net, tokenizer.tokenizer, dtype=torch.float16)
    write_colour_shard(tmp_path / "s-000.tar")
    # Nothing reads patches.
    monkeypatch.setattr(stage1, "encode_views", None)
    run_stage1(config, tmp_path, tmp_path / "runs", tmp_path / "out")
    first, out = (tmp_path / folder / "model.safetensors" for folder in ("runs/first/model", "out/model"))
    assert first.read_bytes() == out.read_bytes()


def test_earlier_weights_are_averaged_in(tmp_path: Path) -> None:
    config = stage1_config(start="first")
    config = replace(config, optim=replace(config.optim, steps=3, batch=4))
    net, tokenizer, _, _ = make_eight_pairs(config)
    save_checkpoint(tmp_path / "runs" / "first" / "model", net, tokenizer.tokenizer)
    write_colour_shard(tmp_path / "s-000.tar")
    weights = {}
    for share in (0.0, 0.5, 1.0):
        run_stage1(
            replace(config, earlier_share=share), tmp_path, tmp_path / "runs", tmp_path / f"out{share}"
        )
        weights[share] = load_net(tmp_path / f"out{share}" / "model")[0].state_dict()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(weights[1.0][name], value, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(
            weights[0.5][name], (weights[0.0][name] + weights[1.0][name]) / 2, atol=2e-3, rtol=2e-3
        )
    assert not torch.equal(weights[0.0]["qformer.queries"], weights[1.0]["qformer.queries"])
    with pytest.raises(DataError, match="earlier_share is 2"):
        run_stage1(replace(config, earlier_share=2.0), tmp_path, tmp_path / "runs", tmp_path / "no")
