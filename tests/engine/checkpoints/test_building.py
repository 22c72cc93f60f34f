"""Checkpoint folders: the same model comes back to the bit, and what does not fit is named."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import SIDE, tiny_checkpoint, tiny_config, tiny_model, tiny_net, tiny_tokenizer
from tokenizers import Tokenizer, models

from engine.blip2.config import Blip2Config, mini, vit_g, vit_l
from engine.checkpoints.retrieval_reading import read_folder
from engine.checkpoints.saving import save_checkpoint
from engine.errors import CheckpointError
from engine.models import catalogue, hub, retrieval_model
from engine.models.catalogue import find_model, list_models
from engine.models.loading import load_model

PICTURES = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's models folder, and no bundled models."""
    monkeypatch.setenv("QSEEK_MODELS", str(tmp_path / "own"))
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path / "bundled")
    (tmp_path / "own").mkdir()
    (tmp_path / "bundled").mkdir()
    return tmp_path / "own"


def digest(folder: Path) -> str:
    return hub.digest_of(read_folder(folder).files)


def load(folder: Path) -> retrieval_model.RetrievalModel:
    return load_model(str(folder), device="cpu", dtype="float32")


def change_config(folder: Path, change: Callable[[dict], object]) -> None:
    values = json.loads((folder / "config.json").read_text())
    change(values)
    (folder / "config.json").write_text(json.dumps(values))


def change_weights(folder: Path, change: Callable[[dict], object]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_what_is_saved_comes_back_to_the_bit(folder: Path) -> None:
    net, loaded = tiny_net().requires_grad_(False), load(folder)
    want, got = net.state_dict(), loaded.net.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    assert loaded.config == tiny_config() and loaded.patch_shape == (17, 32)
    assert loaded.dtype == torch.float32 and not loaded.net.training
    vectors, _ = loaded.encode_texts(["a red dog"])
    ids, mask, _ = loaded.tokenizer(["a red dog"])
    np.testing.assert_array_equal(vectors, net.encode_texts(ids, mask).numpy())
    other = folder.with_name("again")
    save_checkpoint(other, loaded.net, loaded.tokenizer.tokenizer)
    assert digest(other) == digest(folder)


def test_saved_in_half_precision(folder: Path, tmp_path: Path) -> None:
    net = tiny_net()
    save_checkpoint(tmp_path / "half", net, tiny_tokenizer(), dtype=torch.float16)
    sizes = [(one / "model.safetensors").stat().st_size for one in (tmp_path / "half", folder)]
    assert sizes[0] < 0.6 * sizes[1]
    half, full = load(tmp_path / "half"), load(folder)
    for name, tensor in net.state_dict().items():
        assert torch.equal(half.net.state_dict()[name], tensor.half().float()), name
    got, want = (one.encode_photos(one.encode_patches(PICTURES)) for one in (half, full))
    np.testing.assert_allclose(got, want, atol=2e-2)


def test_a_counter_keeps_its_kind_in_half_precision(tmp_path: Path) -> None:
    """Batch norm counts its batches in int64; as float16 it would not come back."""
    from engine.blip2.config import VisionConfig

    config = tiny_config(VisionConfig("test_resnet", SIDE, 96, class_token=False))
    save_checkpoint(tmp_path / "half", tiny_net(config), tiny_tokenizer(), dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    counters = [tensor for name, tensor in stored.items() if name.endswith("num_batches_tracked")]
    assert counters and all(tensor.dtype == torch.int64 for tensor in counters)
    assert load(tmp_path / "half").patch_shape[1] == 96


WEIGHTS: dict[str, tuple[Callable[[dict], object], str]] = {
    "missing": (lambda s: s.pop("text_head.bias"), r"missing text_head\.bias"),
    "extra": (lambda s: s.update({"vision.head.bias": torch.zeros(3)}), r"unknown vision\.head\.bias"),
    "misshapen": (
        lambda s: s.update({"match_head.weight": torch.zeros(3, 32)}),
        r"match_head\.weight is \(3, 32\), should be \(2, 32\)",
    ),
    "broadcastable": (
        lambda s: s.update({"match_head.bias": torch.zeros(1)}),
        r"match_head\.bias is \(1,\), should be \(2,\)",
    ),
    "renamed": (
        lambda s: s.update({"temp": s.pop("temperature")}),
        r"missing temperature; unknown temp",
    ),
    "many": (lambda s: s.clear() or s.update(x=torch.zeros(1)), r"and \d+ more"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_tensors_that_do_not_fit_are_named(folder: Path, case: str) -> None:
    change, message = WEIGHTS[case]
    change_weights(folder, change)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights gone": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a readable safetensors"),
    "weights cut": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1000]),
        "not a readable safetensors",
    ),
    "weights cut in the header": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:300]),
        "not a readable safetensors",
    ),
    "weights garbage": (
        lambda f: (f / "model.safetensors").write_bytes(bytes(range(256)) * 9),
        "not a readable safetensors",
    ),
    "weights are a page of a web site": (
        lambda f: (f / "model.safetensors").write_text("<!DOCTYPE html><html>Not found</html>"),
        "not a readable safetensors",
    ),
    "config gone": (lambda f: (f / "config.json").unlink(), "is no model: it has no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not readable JSON"),
    "config no text": (
        lambda f: (f / "config.json").write_bytes(b"\xff\xfe"),
        "config.json is not readable JSON",
    ),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "should hold a JSON object"),
    "tokenizer gone": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "tokenizer garbage": (lambda f: (f / "tokenizer.json").write_text("{}"), "not a readable tokenizer"),
    "tokenizer without [DEC]": (
        lambda f: Tokenizer(models.WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2}, "[PAD]")).save(
            str(f / "tokenizer.json")
        ),
        r"no \[DEC\] token",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_are_damaged(folder: Path, case: str) -> None:
    damage, message = FILES[case]
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder)
    assert str(folder) in str(caught.value) or "DEC" in case


CONFIGS: dict[str, tuple[Callable[[dict], object], str]] = {
    "unknown key": (lambda c: c.update(depth=3), r"unknown \['depth'\]"),
    "unknown inner key": (
        lambda c: c["qformer"].update(heads=3),
        r"\(qformer\): missing nothing, unknown \['heads'\]",
    ),
    "missing key": (lambda c: c["vision"].pop("timm_name"), r"\(vision\): missing \['timm_name'\]"),
    "vision a word": (lambda c: c.update(vision="vit"), "should hold a JSON object, not 'vit'"),
    "other width": (
        lambda c: c["qformer"].update(width=64),
        r"match_head\.weight is \(2, 32\), should be \(2, 64\)",
    ),
    "other embedding": (lambda c: c.update(embed_dim=8), r"photo_head\.bias is \(16,\), should be \(8,\)"),
    "more layers": (lambda c: c["qformer"].update(num_layers=4), r"missing qformer\.layers\.3\."),
    "fewer layers": (lambda c: c["qformer"].update(num_layers=2), r"unknown qformer\.layers\.2\."),
    "more patches": (lambda c: c["vision"]["timm_args"].update(img_size=64), r"pos_embed is \(1, 17, 32\)"),
    "other encoder": (lambda c: c["vision"].update(timm_name="no_such_net"), "cannot make .*'no_such_net'"),
    "other channels": (
        lambda c: c["vision"].update(num_channels=40),
        "gives 32 channels, config.json says 40",
    ),
    "a word for a number": (lambda c: c["qformer"].update(num_layers="two"), "no model that can be made"),
    "a width below zero": (lambda c: c["qformer"].update(width=-32), "no model that can be made"),
    "heads that do not divide": (
        lambda c: c["qformer"].update(num_heads=5),
        "32 is not a multiple of num_heads 5",
    ),
    "texts beyond positions": (
        lambda c: c.update(max_tokens=17),
        "max_tokens 17 is not in 3 to max_positions 16",
    ),
    "a small vocabulary": (lambda c: c["qformer"].update(vocab_size=5), r"words\.weight is|has \d+ tokens"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_that_does_not_fit(folder: Path, case: str) -> None:
    change, message = CONFIGS[case]
    change_config(folder, change)
    with pytest.raises(CheckpointError, match=message):
        load(folder)


def test_more_tokens_than_words(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["extra"])
    tokenizer.save(str(folder / "tokenizer.json"))
    size = tiny_config().qformer.vocab_size
    with pytest.raises(CheckpointError, match=f"has {size + 1} tokens, config.json says {size}"):
        load(folder)


@pytest.mark.parametrize("config", [vit_g(), vit_g(364), vit_l(), mini(), tiny_config()])
def test_configs_survive_json(config: Blip2Config) -> None:
    assert Blip2Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_the_digest_follows_all_three_files(folder: Path) -> None:
    seen = {digest(folder)}
    change_weights(folder, lambda s: s["match_head.bias"].add_(1e-6))
    seen.add(digest(folder))
    change_config(folder, lambda c: c.update(max_tokens=11))
    seen.add(digest(folder))
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + "\n")
    seen.add(digest(folder))
    assert len(seen) == 4 and all(len(digest) == 32 for digest in seen)
    assert load(folder).digest == digest(folder)
    assert digest(Path(shutil.copytree(folder, folder.with_name("copy")))) == digest(folder)


def test_models_are_found_by_name_and_by_folder(
    folder: Path, own_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, own_models / "mine")
    assert find_model("mine") == own_models / "mine"
    assert load_model("mine", device="cpu").name == "mine"
    assert load_model(str(own_models / "mine"), device="cpu").name == "mine"
    assert load(folder).name == str(folder)
    monkeypatch.chdir(folder.parent)
    assert find_model("tiny") == Path("tiny")
    assert load_model("tiny", device="cpu").name == str(folder)  # an index must find it from anywhere


def test_a_bundled_name_is_the_bundled_model(
    folder: Path, own_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_checkpoint(own_models / "tiny", seed=1)
    shutil.copytree(folder, catalogue.BUNDLED / "tiny")
    assert find_model("tiny") == catalogue.BUNDLED / "tiny"
    assert [(info.name, info.folder) for info in list_models()] == [("tiny", catalogue.BUNDLED / "tiny")]
    # The name of a hidden model would lead back to the bundled one, so it goes by its folder.
    assert load(own_models / "tiny").name == str(own_models / "tiny")
    # "./tiny" is meant as a folder, whatever else is called so.
    monkeypatch.chdir(own_models)
    assert load_model("./tiny", device="cpu").digest == digest(own_models / "tiny")


def test_an_unknown_name_says_where_it_looked(folder: Path, own_models: Path) -> None:
    shutil.copytree(folder, own_models / "mine")
    (own_models / "mine" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"no model 'blip3'.*\(mine, blip2-itm") as caught:
        load_model("blip3")
    assert str(own_models) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"is no model: it has no config\.json"):
        load_model(str(own_models))


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "m" * 5000, "nul\0name", ""])
def test_names_that_no_folder_can_have(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"There is no model|is no model"):
        load_model(name)


def test_an_unknown_dtype(folder: Path) -> None:
    with pytest.raises(ValueError, match="dtype is 'float16'; it must be auto or one of bfloat16, float32"):
        load_model(str(folder), device="cpu", dtype="float16")


def test_the_list_holds_what_can_be_loaded(
    folder: Path, own_models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own_models / "notes").mkdir()
    (own_models / "readme.txt").write_text("mine")
    for number, (name, damage) in enumerate({**FILES, **CONFIGS}.items()):
        if name in ("config gone", "tokenizer garbage", "tokenizer without [DEC]", *list(CONFIGS)[4:]):
            continue  # no model at all, or found out only when it is loaded
        broken = Path(shutil.copytree(folder, own_models / f"broken{number}"))
        change_config(broken, damage[0]) if name in CONFIGS else damage[0](broken)
    shutil.copytree(folder, own_models / "zebra")
    shutil.copytree(folder, catalogue.BUNDLED / "lynx")
    with caplog.at_level(logging.WARNING):
        found = list_models()
    assert [info.name for info in found] == ["lynx", "zebra"]
    assert len(caplog.records) == sum(path.name.startswith("broken") for path in own_models.iterdir()) > 8
    assert "broken0 is left out" in caplog.text and "has no model.safetensors" in caplog.text
    info = found[1]
    model = load(info.folder)
    assert info.num_parameters == sum(tensor.numel() for tensor in model.net.state_dict().values())
    assert info.num_bytes == (folder / "model.safetensors").stat().st_size
    assert (info.image_size, info.digest) == (SIDE, model.digest)


def test_no_models_anywhere(own_models: Path) -> None:
    own_models.rmdir()
    assert list_models() == []
    with pytest.raises(CheckpointError, match=r"not among the known ones"):
        load_model()


def test_bfloat16_is_near(folder: Path) -> None:
    full, half = load(folder), tiny_model(folder.with_name("other"), dtype="bfloat16")
    assert half.dtype == torch.bfloat16 and next(half.net.parameters()).dtype == torch.bfloat16
    got, want = (one.encode_photos(one.encode_patches(PICTURES)) for one in (half, full))
    assert got.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(got, axis=2), 1, atol=1e-5)
    assert (got * want).sum(axis=2).min() > 0.99
