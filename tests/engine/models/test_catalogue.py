"""Models are listed, and found by their name and by their folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from damaged_folders import DAMAGED_CONFIGS, DAMAGED_FILES, change_config, compute_folder_digest, load_on_cpu
from safetensors.torch import load_file
from tiny import SIDE, tiny_checkpoint

from engine.errors import CheckpointError
from engine.models import catalogue
from engine.models.catalogue import check_model, find_model, list_models
from engine.models.loading import load_model

pytestmark = pytest.mark.usefixtures("own_models")


def test_models_are_found_by_name_and_by_folder(
    folder: Path, own_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, own_models / "mine")
    assert find_model("mine") == own_models / "mine"
    assert load_model("mine", device="cpu").name == "mine"
    assert load_model(str(own_models / "mine"), device="cpu").name == "mine"
    assert load_on_cpu(folder).name == str(folder)
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
    assert load_on_cpu(own_models / "tiny").name == str(own_models / "tiny")
    # "./tiny" is meant as a folder, whatever else is called so.
    monkeypatch.chdir(own_models)
    assert load_model("./tiny", device="cpu").digest == compute_folder_digest(own_models / "tiny")


def test_an_unknown_name_says_where_it_looked(folder: Path, own_models: Path) -> None:
    shutil.copytree(folder, own_models / "mine")
    (own_models / "mine" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"no model 'blip3'.*\(mine, blip2-itm") as caught:
        load_model("blip3")
    assert str(own_models) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"is not a model folder: config\.json is missing"):
        load_model(str(own_models))


@pytest.mark.parametrize("name", ["~nobody-of-that-name/model", "m" * 5000, "nul\0name", ""])
def test_names_that_no_folder_can_have(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"There is no model|is not a model folder"):
        load_model(name)


def test_the_list_holds_what_can_be_loaded(
    folder: Path, own_models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (own_models / "notes").mkdir()
    (own_models / "readme.txt").write_text("mine")
    shutil.copytree(
        folder, own_models / "zebra.new"
    )  # left by a process that was killed while it wrote a model
    for number, (name, damage) in enumerate({**DAMAGED_FILES, **DAMAGED_CONFIGS}.items()):
        if name in (
            "config gone",
            "tokenizer garbage",
            "tokenizer without [DEC]",
            *list(DAMAGED_CONFIGS)[4:],
        ):
            continue  # no model at all, or found out only when it is loaded
        broken = Path(shutil.copytree(folder, own_models / f"broken{number}"))
        change_config(broken, damage[0]) if name in DAMAGED_CONFIGS else damage[0](broken)
    shutil.copytree(folder, own_models / "zebra")
    shutil.copytree(folder, catalogue.BUNDLED / "lynx")
    with caplog.at_level(logging.WARNING):
        models = list_models()
    assert [info.name for info in models] == ["lynx", "zebra"]
    assert len(caplog.records) == sum(path.name.startswith("broken") for path in own_models.iterdir()) > 8
    assert "broken0 is left out" in caplog.text and "has no model.safetensors" in caplog.text
    info = models[1]
    model = load_on_cpu(info.folder)
    assert info.num_parameters == sum(tensor.numel() for tensor in model.net.state_dict().values())
    assert info.num_bytes == (folder / "model.safetensors").stat().st_size
    assert (info.image_size, info.digest) == (SIDE, model.digest)


def test_a_shared_encoder_is_not_counted() -> None:
    """The bundled captioner shares mini's encoder; the list names mini and counts the captioner's own weights alone."""
    bundled = Path(catalogue.__file__).parent / "bundled"
    info = check_model("mini-captioner", bundled / "mini-captioner")
    files = sorted((bundled / "mini-captioner").rglob("*.safetensors"))
    assert len(files) == 2 and info.num_bytes == sum(file.stat().st_size for file in files)
    tensors = [tensor for file in files for tensor in load_file(file).values()]
    assert info.num_parameters == sum(tensor.numel() for tensor in tensors)
    assert (round(info.num_parameters / 1e6, 1), round(info.num_bytes / 1e6, 1)) == (8.3, 16.5)
    assert info.encoder == "mini" and check_model("mini", bundled / "mini").encoder == ""


def test_no_models_anywhere(own_models: Path) -> None:
    own_models.rmdir()
    assert list_models() == []
    with pytest.raises(CheckpointError, match=r"it is none of the known ones"):
        load_model()
