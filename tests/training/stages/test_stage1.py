"""Stage 1 trains: it learns eight pairs by heart, not when they are shuffled at every step; the run makes a model."""

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
def test_eight_pairs_by_heart(tmp_path: Path, dtype: str) -> None:
    chosen = stage1_config()
    chosen = replace(chosen, optim=replace(chosen.optim, dtype=dtype))
    net, tokenizer, patches, samples = make_eight_pairs(chosen)
    frozen = {name: value.clone() for name, value in net.vision.state_dict().items()}
    rows = train(
        Stage1Task(net, tokenizer, make_batches(patches, samples, chosen), chosen), chosen.optim, tmp_path
    )
    assert rows[-1]["itg"] < 0.6 * rows[0]["itg"] and rows[-1]["itm"] < 0.5
    net.eval()
    with torch.no_grad():
        ids, mask, _ = tokenizer([texts[0] for texts in CAPTIONS])
        keys = net.compute_photo_keys(net.vision_norm(patches[:, 0].float()))
        scores = itc_scores(net.encode_photos(keys), net.encode_texts(ids, mask))
        own = net.match(keys, ids, mask)[:, 1]
        wrong = net.match(keys, ids.roll(1, 0), mask.roll(1, 0))[:, 1]
    assert (scores.argmax(0) == torch.arange(8)).all() and (scores.argmax(1) == torch.arange(8)).all()
    assert (own > wrong).all()
    assert all(torch.equal(value, frozen[name]) for name, value in net.vision.state_dict().items())


def test_shuffled_pairs_are_not_learned(tmp_path: Path) -> None:
    chosen = stage1_config()
    net, tokenizer, patches, samples = make_eight_pairs(chosen)

    class Shuffled(EncodedViews):
        def __getitem__(self, step: int) -> Batch:
            self.views = self.views[torch.randperm(8)]
            return super().__getitem__(step)

    source = Shuffled(patches, samples, chosen.optim)
    rows = train(Stage1Task(net, tokenizer, source, chosen), chosen.optim, tmp_path)
    assert rows[-1]["itc"] > 1.9  # ln 8 = 2.08 is chance
    assert rows[-1]["itm"] > 0.6  # the share of matching pairs, 1/3, gives 0.64


def test_contrast_alone_first(tmp_path: Path) -> None:
    chosen = stage1_config(patch_share=0.5, views=3)
    net, tokenizer, patches, samples = make_eight_pairs(chosen)
    assert patches.shape[1] == 3 and not torch.equal(patches[:, 0], patches[:, 1])
    rows = train(
        ItcTask(net, tokenizer, make_batches(patches, samples, chosen), chosen), chosen.optim, tmp_path
    )
    assert set(rows[0]) == {"step", "loss", "lr", "samples_per_second", "mfu"}
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]


def test_every_picture_once_an_epoch() -> None:
    chosen = stage1_config()
    chosen = replace(chosen, optim=replace(chosen.optim, batch=4))
    _, _, patches, samples = make_eight_pairs(chosen)
    source = make_batches(patches, samples, chosen)
    epochs = [
        [*source[2 * e].picture_ids.tolist(), *source[2 * e + 1].picture_ids.tolist()] for e in range(2)
    ]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs) and epochs[0] != epochs[1]


def test_paraphrases_find_each_other(tmp_path: Path) -> None:
    chosen = stage1_config()
    torch.manual_seed(0)
    net = Retriever(chosen.model)
    words = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    task = TextTask(net, TextTokenizer(words, 12), CAPTIONS, 8)
    rows = train(task, replace(chosen.optim, steps=60, log_every=20, lr=1e-3), tmp_path)
    assert rows[-1]["right"] > 0.95 > rows[0]["right"]


def test_a_run_makes_a_model(tmp_path: Path) -> None:
    """From shards and the runs before it to a folder that load_model reads; missing runs are named."""
    data, runs = tmp_path / "data", tmp_path / "runs"
    data.mkdir()
    write_colour_shard(data / "s-000.tar")
    chosen = stage1_config()
    chosen = replace(
        chosen,
        optim=replace(chosen.optim, steps=3),
        itc_optim=replace(chosen.optim, steps=2),
        start="",
        encoder="e",
        text="t",
    )
    with pytest.raises(DataError, match="train it first"):
        run_stage1(chosen, data, runs, runs / "out")
    net = Retriever(chosen.model)
    (runs / "e").mkdir(parents=True)
    (runs / "t").mkdir()
    save_file(net.vision.state_dict(), runs / "e" / "encoder.safetensors")
    save_file(select_text_half(net).state_dict(), runs / "t" / TEXT_HALF)
    train_tokenizer((t for g in CAPTIONS for t in g), 100).save(str(runs / "t" / "tokenizer.json"))
    run_stage1(chosen, data, runs, runs / "out")
    model = load_model(str(runs / "out" / "model"), dtype="float32")
    assert model.encode_texts(["a red wall"])[0].shape == (1, 16)


def test_a_run_goes_on_from_another_runs_model(tmp_path: Path) -> None:
    data, runs = tmp_path, tmp_path / "runs"
    chosen = stage1_config()
    net, tokenizer, _, _ = make_eight_pairs(chosen)
    save_checkpoint(runs / "first" / "model", net, tokenizer.tokenizer)
    write_colour_shard(data / "s-000.tar")
    more = replace(chosen, start="first", optim=replace(chosen.optim, steps=1, warmup=0, lr=1e-9))
    run_stage1(more, data, runs, runs / "more")
    first, second = (load_model(str(runs / name / "model"), dtype="float32") for name in ("first", "more"))
    np.testing.assert_allclose(*(m.encode_texts(["a red wall"])[0] for m in (first, second)), atol=2e-3)
    other = replace(more, model=replace(more.model, max_tokens=11))
    with pytest.raises(DataError, match="another architecture"):
        run_stage1(other, data, runs, runs / "other")


def test_some_queries_and_patches_take_part(tmp_path: Path) -> None:
    chosen = stage1_config(query_share=0.5, patch_share=0.5, match_distillation=1.0)
    chosen = replace(chosen, optim=replace(chosen.optim, steps=300, log_every=60))
    net, tokenizer, patches, samples = make_eight_pairs(chosen)
    seen: list[tuple[int, ...]] = []
    read = net.qformer.read_photos

    def count(keys: PhotoKeys, queries: torch.Tensor) -> tuple[torch.Tensor, list[KeysValues]]:
        seen.append((keys[0][0].shape[2], *queries.tolist()))
        return read(keys, queries)

    net.qformer.read_photos = count  # type: ignore[method-assign]
    rows = train(
        Stage1Task(net, tokenizer, make_batches(patches, samples, chosen), chosen), chosen.optim, tmp_path
    )
    assert set(rows[0]) >= {"itc", "itm", "itg", "distilled"} and rows[-1]["itc"] < rows[0]["itc"]
    assert all(num == round(patches.shape[2] / 2) and len(queries) == 2 for num, *queries in seen)
    assert len({tuple(queries) for _, *queries in seen}) == 6  # every pair of the four queries


def test_pictures_without_captions_are_refused() -> None:
    chosen = stage1_config()
    _, _, patches, samples = make_eight_pairs(chosen)
    samples[3] = CaptionedPicture("bare", b"", ())
    with pytest.raises(DataError, match=r"1 pictures have no caption \(first: bare\)"):
        make_batches(patches, samples, chosen)


def test_without_steps_there_is_no_run_with_all_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = stage1_config(start="first")
    chosen = replace(chosen, optim=replace(chosen.optim, steps=0))
    net, tokenizer, _, _ = make_eight_pairs(chosen)
    save_checkpoint(tmp_path / "runs" / "first" / "model", net, tokenizer.tokenizer, dtype=torch.float16)
    write_colour_shard(tmp_path / "s-000.tar")
    monkeypatch.setattr(stage1, "encode_views", None)  # nothing reads them
    run_stage1(chosen, tmp_path, tmp_path / "runs", tmp_path / "out")
    first, out = (tmp_path / place / "model.safetensors" for place in ("runs/first/model", "out/model"))
    assert first.read_bytes() == out.read_bytes()


def test_earlier_weights_are_averaged_in(tmp_path: Path) -> None:
    chosen = stage1_config(start="first")
    chosen = replace(chosen, optim=replace(chosen.optim, steps=3, batch=4))
    net, tokenizer, _, _ = make_eight_pairs(chosen)
    save_checkpoint(tmp_path / "runs" / "first" / "model", net, tokenizer.tokenizer)
    write_colour_shard(tmp_path / "s-000.tar")
    found = {}
    for share in (0.0, 0.5, 1.0):
        run_stage1(
            replace(chosen, earlier_share=share), tmp_path, tmp_path / "runs", tmp_path / f"out{share}"
        )
        found[share] = load_net(tmp_path / f"out{share}" / "model")[0].state_dict()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(found[1.0][name], value, atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(
            found[0.5][name], (found[0.0][name] + found[1.0][name]) / 2, atol=2e-3, rtol=2e-3
        )
    assert not torch.equal(found[0.0]["qformer.queries"], found[1.0]["qformer.queries"])
    with pytest.raises(DataError, match="earlier_share is 2"):
        run_stage1(replace(chosen, earlier_share=2.0), tmp_path, tmp_path / "runs", tmp_path / "no")
