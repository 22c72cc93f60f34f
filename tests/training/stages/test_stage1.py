"""Stage 1 trains: it learns eight pairs by heart, not when they are shuffled at every step; the run makes a model."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from engine.blip2.config import Blip2Config, QFormerConfig, VisionConfig
from engine.blip2.layers import KeysValues
from engine.blip2.pixels import to_pixels
from engine.blip2.qformer import PhotoKeys
from engine.blip2.retriever import Retriever, itc_scores
from engine.blip2.wordpiece import TextTokenizer
from engine.checkpoints.building import load_net
from engine.checkpoints.saving import save_checkpoint
from engine.datasets.captioned_pictures import CaptionedPicture
from engine.errors import DataError
from engine.models.loading import load_model
from training.batches.encoded_views import encode_maps, encode_views
from training.loop.optimizer import OptimConfig
from training.loop.train_loop import train
from training.losses.stage1_losses import itc_alone, normed
from training.stages import stage1
from training.stages.stage1 import EncoderTask, ItcTask, Stage1Config, Stage1Task, run_stage1
from training.stages.text_half import TEXT_HALF, TextTask, text_half, train_tokenizer

COLOURS = ("red", "green", "blue", "white", "black", "yellow", "purple", "orange")
CAPTIONS = [(f"a {colour} wall", f"the wall is {colour}") for colour in COLOURS]
VISION = VisionConfig(
    "test_vit", 32, 64, {"img_size": 32}, class_token=True, final_norm=True, mean=(0.5,) * 3, std=(0.5,) * 3
)


def config(**changes: object) -> Stage1Config:
    words = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    qformer = QFormerConfig(
        num_layers=2, width=32, num_heads=2, mlp_width=64, num_queries=4, vocab_size=words.get_vocab_size(),
        max_positions=16, dropout=0.0,
    )  # fmt: skip
    model = Blip2Config(VISION, qformer, embed_dim=16, max_tokens=12)
    optim = OptimConfig(steps=300, batch=8, lr=5e-3, warmup=10, weight_decay=0.0, log_every=50)
    return replace(Stage1Config(model, ("s-*.tar",), optim), **changes)


def eight_pairs(
    chosen: Stage1Config,
) -> tuple[Retriever, TextTokenizer, torch.Tensor, list[CaptionedPicture]]:
    torch.manual_seed(0)
    net = Retriever(chosen.model)
    words = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), dtype=np.uint8)
    samples = [CaptionedPicture(c, b"", texts) for c, texts in zip(COLOURS, CAPTIONS, strict=True)]
    return net, TextTokenizer(words, 12), encode_views(net, pictures, chosen), samples


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_pairs_by_heart(tmp_path: Path, dtype: str) -> None:
    chosen = config()
    chosen = replace(chosen, optim=replace(chosen.optim, dtype=dtype))
    net, tokenizer, patches, samples = eight_pairs(chosen)
    frozen = {name: value.clone() for name, value in net.vision.state_dict().items()}
    rows = train(Stage1Task(net, tokenizer, patches, samples, chosen), chosen.optim, tmp_path)
    assert rows[-1]["itg"] < 0.6 * rows[0]["itg"] and rows[-1]["itm"] < 0.5
    net.eval()
    with torch.no_grad():
        ids, mask, _ = tokenizer([texts[0] for texts in CAPTIONS])
        keys = net.photo_keys(net.vision_norm(patches[:, 0].float()))
        scores = itc_scores(net.encode_photos(keys), net.encode_texts(ids, mask))
        own = net.match(keys, ids, mask)[:, 1]
        wrong = net.match(keys, ids.roll(1, 0), mask.roll(1, 0))[:, 1]
    assert (scores.argmax(0) == torch.arange(8)).all() and (scores.argmax(1) == torch.arange(8)).all()
    assert (own > wrong).all()
    assert all(torch.equal(value, frozen[name]) for name, value in net.vision.state_dict().items())


def test_shuffled_pairs_are_not_learned(tmp_path: Path) -> None:
    chosen = config()
    net, tokenizer, patches, samples = eight_pairs(chosen)

    class Shuffled(Stage1Task):
        def _pictures_of(self, step: int) -> torch.Tensor:
            self.patches = self.patches[torch.randperm(8)]
            return super()._pictures_of(step)

    rows = train(Shuffled(net, tokenizer, patches, samples, chosen), chosen.optim, tmp_path)
    assert rows[-1]["itc"] > 1.9  # ln 8 = 2.08 is chance
    assert rows[-1]["itm"] > 0.6  # the share of matching pairs, 1/3, gives 0.64


def test_contrast_alone_first(tmp_path: Path) -> None:
    chosen = config(patch_share=0.5, views=3)
    net, tokenizer, patches, samples = eight_pairs(chosen)
    assert patches.shape[1] == 3 and not torch.equal(patches[:, 0], patches[:, 1])
    rows = train(ItcTask(net, tokenizer, patches, samples, chosen), chosen.optim, tmp_path)
    assert set(rows[0]) == {"step", "loss", "lr", "samples_per_second", "mfu"}
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]


def test_every_picture_once_an_epoch() -> None:
    chosen = config()
    chosen = replace(chosen, optim=replace(chosen.optim, batch=4))
    net, tokenizer, patches, samples = eight_pairs(chosen)
    task = Stage1Task(net, tokenizer, patches, samples, chosen)
    epochs = [torch.cat([task._pictures_of(2 * e), task._pictures_of(2 * e + 1)]).tolist() for e in range(2)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs) and epochs[0] != epochs[1]


def test_paraphrases_find_each_other(tmp_path: Path) -> None:
    chosen = config()
    torch.manual_seed(0)
    net = Retriever(chosen.model)
    words = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    task = TextTask(net, TextTokenizer(words, 12), CAPTIONS, 8)
    rows = train(task, replace(chosen.optim, steps=60, log_every=20, lr=1e-3), tmp_path)
    assert rows[-1]["right"] > 0.95 > rows[0]["right"]


def write_shard(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        for colour, texts in zip(COLOURS, CAPTIONS, strict=True):
            file = io.BytesIO()
            Image.new("RGB", (40, 32), colour).save(file, "PNG")
            facts = json.dumps({"captions": texts}).encode()
            for name, content in ((f"{colour}.png", file.getvalue()), (f"{colour}.json", facts)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_a_run_makes_a_model(tmp_path: Path) -> None:
    """From shards and the runs before it to a folder that load_model reads; missing runs are named."""
    data, runs = tmp_path / "data", tmp_path / "runs"
    data.mkdir()
    write_shard(data / "s-000.tar")
    chosen = config()
    chosen = replace(
        chosen,
        optim=replace(chosen.optim, steps=3),
        itc_optim=replace(chosen.optim, steps=2),
        encoder="e",
        text="t",
    )
    with pytest.raises(DataError, match="train it first"):
        run_stage1(chosen, data, runs, runs / "out")
    net = Retriever(chosen.model)
    (runs / "e").mkdir(parents=True)
    (runs / "t").mkdir()
    save_file(net.vision.state_dict(), runs / "e" / "encoder.safetensors")
    save_file(text_half(net).state_dict(), runs / "t" / TEXT_HALF)
    train_tokenizer((t for g in CAPTIONS for t in g), 100).save(str(runs / "t" / "tokenizer.json"))
    run_stage1(chosen, data, runs, runs / "out")
    model = load_model(str(runs / "out" / "model"), dtype="float32")
    assert model.encode_texts(["a red wall"])[0].shape == (1, 16)


def test_a_run_goes_on_from_another_runs_model(tmp_path: Path) -> None:
    data, runs = tmp_path, tmp_path / "runs"
    chosen = config()
    net, tokenizer, _, _ = eight_pairs(chosen)
    save_checkpoint(runs / "first" / "model", net, tokenizer.tokenizer)
    write_shard(data / "s-000.tar")
    more = replace(chosen, start="first", optim=replace(chosen.optim, steps=1, warmup=0, lr=1e-9))
    run_stage1(more, data, runs, runs / "more")
    first, second = (load_model(str(runs / name / "model"), dtype="float32") for name in ("first", "more"))
    np.testing.assert_allclose(*(m.encode_texts(["a red wall"])[0] for m in (first, second)), atol=2e-3)
    other = replace(more, model=replace(more.model, max_tokens=11))
    with pytest.raises(DataError, match="another architecture"):
        run_stage1(other, data, runs, runs / "other")


def test_some_queries_and_patches_take_part(tmp_path: Path) -> None:
    chosen = config(query_share=0.5, patch_share=0.5, match_distillation=1.0)
    chosen = replace(chosen, optim=replace(chosen.optim, steps=300, log_every=60))
    net, tokenizer, patches, samples = eight_pairs(chosen)
    seen: list[tuple[int, ...]] = []
    read = net.qformer.read_photos

    def count(keys: PhotoKeys, queries: torch.Tensor) -> tuple[torch.Tensor, list[KeysValues]]:
        seen.append((keys[0][0].shape[2], *queries.tolist()))
        return read(keys, queries)

    net.qformer.read_photos = count  # type: ignore[method-assign]
    rows = train(Stage1Task(net, tokenizer, patches, samples, chosen), chosen.optim, tmp_path)
    assert set(rows[0]) >= {"itc", "itm", "itg", "distilled"} and rows[-1]["itc"] < rows[0]["itc"]
    assert all(num == round(patches.shape[2] / 2) and len(queries) == 2 for num, *queries in seen)
    assert len({tuple(queries) for _, *queries in seen}) == 6  # every pair of the four queries


def test_pictures_without_captions_are_refused() -> None:
    chosen = config()
    net, tokenizer, patches, samples = eight_pairs(chosen)
    samples[3] = CaptionedPicture("bare", b"", ())
    with pytest.raises(DataError, match=r"1 pictures have no caption \(first: bare\)"):
        Stage1Task(net, tokenizer, patches, samples, chosen)


def test_the_frozen_encoder_stays_as_it_is() -> None:
    """Batch norms of a convolutional encoder must neither take the batch's statistics nor change their own."""
    chosen = config()
    vision = VisionConfig("test_resnet", 32, 64, class_token=False, mean=(0.5,) * 3, std=(0.5,) * 3)
    net = Retriever(replace(chosen.model, vision=replace(vision, num_channels=_channels("test_resnet"))))
    before = {name: value.clone() for name, value in net.vision.state_dict().items()}
    pictures = np.random.default_rng(0).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    together = encode_views(net, pictures, chosen)
    alone = encode_views(net, pictures[:1], chosen)
    torch.testing.assert_close(together[:1], alone, atol=0.02, rtol=0.02)
    assert all(torch.equal(value, before[name]) for name, value in net.vision.state_dict().items())


def _channels(name: str) -> int:
    return timm.create_model(name, num_classes=0).num_features


def convolutional(**changes: object) -> Stage1Config:
    vision = VisionConfig(
        "mobilenetv2_050", 64, 1280, {"pad_type": "same"}, class_token=False, final_norm=True, mean=(0.5,) * 3,
        std=(0.5,) * 3,
    )  # fmt: skip
    chosen = config(encoder_from=17, **changes)
    return replace(chosen, model=replace(chosen.model, vision=vision))


def test_itc_trains_the_encoders_last_parts_alone(tmp_path: Path) -> None:
    """On feature maps made once, with the loss of a pass through all of it; what is before stays bit for bit."""
    chosen = convolutional()
    net, tokenizer, _, samples = eight_pairs(replace(chosen, model=config().model))
    torch.manual_seed(0)
    net = Retriever(chosen.model)
    pictures = np.random.default_rng(0).integers(0, 255, (8, 64, 64, 3), dtype=np.uint8)
    maps = encode_maps(net, pictures, chosen, chosen.encoder_from)
    optim = replace(chosen.optim, steps=12, lr=2e-3, log_every=4)
    task = EncoderTask(net, tokenizer, maps, samples, chosen, optim)
    ids, mask, _ = tokenizer([texts[0] for texts in CAPTIONS])
    net.vision.eval()
    pixels = to_pixels(pictures, chosen.model.vision.mean, chosen.model.vision.std, torch.device("cpu"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        want = itc_alone(net, normed(net, net.vision(pixels)), ids, mask)
        queries = torch.arange(net.config.qformer.num_queries)
        got = task._of_maps(net, maps[:, 0], ids, mask, queries)["loss"]
    torch.testing.assert_close(got, want, atol=2e-2, rtol=0)
    before = {name: value.clone() for name, value in net.vision.state_dict().items()}
    task = EncoderTask(net, tokenizer, maps, samples, chosen, optim)
    rows = train(task, optim, tmp_path)
    assert rows[-1]["loss"] < rows[0]["loss"]
    last = [f"backbone.{name}" for name in ("blocks.6", "conv_head", "bn2")]
    for name, value in net.vision.state_dict().items():
        if name.endswith(("weight", "bias", "running_mean")):
            assert torch.equal(value, before[name]) != name.startswith(tuple(last)), name


def test_a_run_with_the_encoder_writes_what_it_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = convolutional(start="first")
    chosen = replace(
        chosen, optim=replace(chosen.optim, steps=1), encoder_optim=replace(chosen.optim, steps=3, batch=8)
    )
    words = train_tokenizer((text for group in CAPTIONS for text in group), 100)
    torch.manual_seed(0)
    net = Retriever(chosen.model)
    save_checkpoint(tmp_path / "runs" / "first" / "model", net, words)
    write_shard(tmp_path / "s-000.tar")
    run_stage1(chosen, tmp_path, tmp_path / "runs", tmp_path / "out")
    got = load_net(tmp_path / "out" / "model")[0].vision.state_dict()
    changed = {
        name
        for name, value in net.vision.half().state_dict().items()
        if not torch.equal(value.float(), got[name].float())
    }
    assert changed and all(
        name.startswith(("backbone.blocks.6", "backbone.conv_head", "backbone.bn2")) for name in changed
    )
    first = (tmp_path / "out" / "model" / "model.safetensors").read_bytes()
    monkeypatch.setattr(stage1, "encode_maps", None)  # a finished phase is not made ready again
    run_stage1(chosen, tmp_path, tmp_path / "runs", tmp_path / "out")
    assert (tmp_path / "out" / "model" / "model.safetensors").read_bytes() == first


def test_strided_depthwise_convolutions_are_computed_in_float32() -> None:
    """Those that are slow in bfloat16 on a CPU: under autocast as without it, and only within."""
    chosen = convolutional()
    _, tokenizer, _, samples = eight_pairs(replace(chosen, model=config().model))
    net = Retriever(chosen.model)
    task = EncoderTask(net, tokenizer, torch.empty(0), samples, replace(chosen, encoder_from=2), chosen.optim)
    assert len(task.strided) > 1 and all(conv.groups > 1 < conv.stride[0] for conv in task.strided)
    conv = task.strided[0]
    maps = torch.randn(2, conv.in_channels, 8, 8).bfloat16()
    want = conv(maps.float())
    (want_gradient,) = torch.autograd.grad(want.square().sum(), conv.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv(maps).dtype == torch.bfloat16
        with stage1._in_float32(task.strided):
            got = conv(maps)
        assert conv(maps).dtype == torch.bfloat16 and "forward" not in vars(conv)
    (gradient,) = torch.autograd.grad(got.square().sum(), conv.weight)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient, want_gradient)


def test_without_steps_there_is_no_run_with_all_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(start="first")
    chosen = replace(chosen, optim=replace(chosen.optim, steps=0))
    net, tokenizer, _, _ = eight_pairs(chosen)
    save_checkpoint(tmp_path / "runs" / "first" / "model", net, tokenizer.tokenizer, dtype=torch.float16)
    write_shard(tmp_path / "s-000.tar")
    monkeypatch.setattr(stage1, "encode_views", None)  # nothing reads them
    run_stage1(chosen, tmp_path, tmp_path / "runs", tmp_path / "out")
    first, out = (tmp_path / place / "model.safetensors" for place in ("runs/first/model", "out/model"))
    assert first.read_bytes() == out.read_bytes()


def test_earlier_weights_are_averaged_in(tmp_path: Path) -> None:
    chosen = config(start="first")
    chosen = replace(chosen, optim=replace(chosen.optim, steps=3, batch=4))
    net, tokenizer, _, _ = eight_pairs(chosen)
    save_checkpoint(tmp_path / "runs" / "first" / "model", net, tokenizer.tokenizer)
    write_shard(tmp_path / "s-000.tar")
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
