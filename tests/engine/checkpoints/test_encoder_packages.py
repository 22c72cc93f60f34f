"""A checkpoint leaves its image encoder to a package: which tensors come from there, and what errors say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from packaged_encoder import LITE2, PACKAGE
from PIL import Image
from skimage import data
from tiny import tiny_config, tiny_net, tiny_tokenizer

from engine.blip2.pixels import to_pixels
from engine.checkpoints import encoder_packages
from engine.checkpoints.building import load_net
from engine.checkpoints.encoder_packages import (
    BACKBONE,
    PACKAGES,
    is_classifier,
    read_packaged_encoder,
    translate_name,
)
from engine.checkpoints.layout import WEIGHTS
from engine.checkpoints.saving import save_checkpoint
from engine.checkpoints.tensors import read_safetensors
from engine.errors import CheckpointError
from engine.models.catalogue import check_model

CATS = range(281, 286)
"""Numbers of ImageNet's classes of house cats."""


@pytest.mark.parametrize("package", PACKAGES)
def test_every_tensor_of_timms_architecture_has_one_name(package: str) -> None:
    """The table is one to one: the stages of timm's network have the depths that the table says."""
    net = timm.create_model(PACKAGES[package].timm_name)
    depths = PACKAGES[package].depths
    assert tuple(len(stage) for stage in net.blocks) == depths
    theirs = ["_conv_stem.weight", "_bn0.bias", "_conv_head.weight", "_bn1.running_var", "_fc.bias"]
    ours = [translate_name(name, depths) for name in theirs]
    assert ours == ["conv_stem.weight", "bn1.bias", "conv_head.weight", "bn2.running_var", "classifier.bias"]
    last = sum(depths) - 1
    assert translate_name(f"_blocks.{last}._bn2.weight", depths) == "blocks.6.0.bn3.weight"
    assert translate_name("_blocks.0._project_conv.weight", depths) == "blocks.0.0.conv_pw.weight"
    assert translate_name("_blocks.1._expand_conv.weight", depths) == "blocks.1.0.conv_pw.weight"
    for wrong in (f"_blocks.{last + 1}._bn2.weight", "_blocks.0._expand_conv.weight", "_swish.weight"):
        with pytest.raises(CheckpointError, match=r"EfficientNet-Lite|more blocks than its"):
            translate_name(wrong, depths)


def test_the_package_gives_timms_network_all_its_weights() -> None:
    packaged = read_packaged_encoder(PACKAGE, PACKAGES[PACKAGE].digest, "The test")
    net = timm.create_model("tf_efficientnet_lite2")
    net.load_state_dict({name.removeprefix(BACKBONE): tensor.read() for name, tensor in packaged.items()})
    assert sum(map(is_classifier, packaged)) == 2
    cat = Image.fromarray(data.cat()).resize((192, 192), Image.Resampling.BICUBIC)
    with torch.inference_mode():
        logits = net.eval()(to_pixels(np.array(cat)[None], (0.5,) * 3, (0.5,) * 3, torch.device("cpu")))
    assert int(logits.argmax()) in CATS


def test_a_checkpoint_holds_only_what_was_changed(tmp_path: Path) -> None:
    """Tensors as the package has them are left out and read from there; a changed one goes before the package's."""
    net = tiny_net(tiny_config(LITE2))
    packaged = read_packaged_encoder(PACKAGE, LITE2.package_digest, "The test")
    net.load_state_dict(
        {name: tensor.read() for name, tensor in packaged.items() if not is_classifier(name)}, strict=False
    )
    changed = f"{BACKBONE}blocks.6.0.bn3.bias"
    with torch.no_grad():
        net.get_parameter(changed).add_(0.5)
    save_checkpoint(tmp_path / "model", net, tiny_tokenizer(), dtype=torch.float16)
    stored = read_safetensors(tmp_path / "model" / WEIGHTS)
    assert [name for name in stored if name.startswith("vision.")] == [changed]
    loaded, want = load_net(tmp_path / "model")[0].state_dict(), net.state_dict()
    for name in want:
        if name.startswith(BACKBONE) and name != changed:
            assert torch.equal(loaded[name], want[name]), name
    torch.testing.assert_close(loaded[changed], want[changed], atol=1e-3, rtol=1e-3)
    info = check_model("model", tmp_path / "model")
    assert info.encoder == PACKAGE
    assert info.num_parameters < sum(parameter.numel() for parameter in net.parameters()) / 10


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a checkpoint without encoder tensors; which weights it has does not matter."""
    net = tiny_net(tiny_config(LITE2))
    packaged = read_packaged_encoder(PACKAGE, LITE2.package_digest, "The test")
    net.load_state_dict(
        {name: tensor.read() for name, tensor in packaged.items() if not is_classifier(name)}, strict=False
    )
    save_checkpoint(tmp_path / "model", net, tiny_tokenizer())
    return tmp_path / "model"


def test_what_cannot_be_read_is_said_with_the_line_that_installs_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal() -> str:
        with pytest.raises(CheckpointError) as caught:
            load_net(folder)
        return str(caught.value)

    def missing(name: str) -> None:
        raise encoder_packages.PackageNotFoundError(name)

    monkeypatch.setattr(encoder_packages, "distribution", missing)
    line = f"pip install --no-deps {PACKAGE}==0.1.0"
    assert refusal() == (
        f"The image encoder of {folder} needs the package {PACKAGE}, which is not installed. Run `{line}`."
    )
    monkeypatch.setattr(encoder_packages, "distribution", lambda name: SimpleNamespace(files=None))
    assert "has lost its .pth file" in refusal() and f"--force-reinstall {PACKAGE}==0.1.0" in refusal()
    other = tmp_path / "lite.pth"
    torch.save({"_fc.bias": torch.zeros(3)}, other)
    file = SimpleNamespace(locate=lambda: other)
    monkeypatch.setattr(encoder_packages, "distribution", lambda name: SimpleNamespace(files=[file]))
    assert f"{other} is another file than {PACKAGE} 0.1.0 has" in refusal()
    assert "should be 9656183eaeaf...." in refusal() and "--force-reinstall" in refusal()


def test_a_package_that_nobody_knows_and_one_of_another_size(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace(PACKAGE, "efficientnet-lite9"))
    with pytest.raises(CheckpointError, match=r"from the package 'efficientnet-lite9', which this version"):
        load_net(folder)
    (folder / "config.json").write_text(config.replace("tf_efficientnet_lite2", "tf_efficientnet_lite0"))
    with pytest.raises(CheckpointError, match=r"do not fit the config.json: unknown vision\.backbone\."):
        load_net(folder)
