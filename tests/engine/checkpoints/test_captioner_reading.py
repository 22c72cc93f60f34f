"""Captioners of ours come back whole, LAVIS' files are read, and parts that do not fit are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lavis_networks import eva_captioner, write_lavis_captioner
from prompts_and_pictures import PROMPTS, SHORT, random_pictures
from random_blip2 import random_captioner, save_captioner_folder
from reference import draw_normal
from safetensors.torch import load_file, save_file
from tiny import tiny_checkpoint, tiny_config, tiny_tokenizer
from tiny_language import (
    KINDS,
    byte_tokenizer,
    language_config,
    random_language,
    randomise_weights,
    save_language,
    save_tiny_captioner,
    tiny_captioner,
)
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from engine.blip2.captioner import Captioner
from engine.blip2.retriever import Retriever
from engine.checkpoints.building import make_captioner
from engine.checkpoints.captioner_reading import has_language, read_captioner
from engine.checkpoints.checkpoint_sources import CaptionerSource
from engine.checkpoints.language_folder import make_language, read_language
from engine.checkpoints.lavis_files import read_lavis_captioner
from engine.checkpoints.saving import save_captioner, save_checkpoint
from engine.errors import CheckpointError
from engine.models.catalogue import list_models
from engine.models.loading import load_captioner, load_model


@pytest.mark.parametrize("kind", KINDS)
def test_ours_comes_back_whole(tmp_path: Path, kind: str) -> None:
    net = tiny_captioner(kind)
    model = load_captioner(str(save_tiny_captioner(kind, tmp_path)), device="cpu", dtype="float32")
    assert model.config == net.config and has_language(tmp_path)
    want = net.state_dict()
    actual = model.net.state_dict()
    assert actual.keys() == want.keys() and all(
        torch.equal(value, want[name]) for name, value in actual.items()
    )
    assert not any(parameter.requires_grad for parameter in model.net.parameters())
    again = load_captioner(str(tmp_path), device="cpu", dtype="float32")
    assert again.digest == model.digest
    assert again.generate(random_pictures(2), PROMPTS[:2], SHORT) == model.generate(
        random_pictures(2), PROMPTS[:2], SHORT
    )


@pytest.mark.parametrize("kind", KINDS)
def test_its_language_folder_is_transformers_own(tmp_path: Path, kind: str) -> None:
    save_tiny_captioner(kind, tmp_path)
    automatic = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    theirs, info = automatic.from_pretrained(tmp_path / "language", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    want = random_language(kind).state_dict()
    assert all(torch.equal(value, want[name]) for name, value in theirs.state_dict().items())


def test_bfloat16(tmp_path: Path) -> None:
    model = load_captioner(str(save_tiny_captioner("t5", tmp_path)), device="cpu", dtype="bfloat16")
    assert {value.dtype for value in model.net.state_dict().values()} == {torch.bfloat16}
    assert len(model.generate(random_pictures(2), ["a"], SHORT)) == 2


def read_files(kind: str, folder: Path, net: Captioner | None = None, **changes: Any) -> CaptionerSource:
    path, encoder = write_lavis_captioner(net or eva_captioner(kind), kind, folder)
    language = save_language(kind, folder / "language")
    given = {"vocabulary": tiny_tokenizer() if kind == "llama" else None, "encoder": encoder}
    return read_lavis_captioner(path, language, **given | changes)


@pytest.mark.parametrize("kind", KINDS)
def test_lavis_files_come_back_whole(tmp_path: Path, kind: str) -> None:
    net = eva_captioner(kind)
    source = read_files(kind, tmp_path, net)
    actual = make_captioner(source, tmp_path, torch.float32)
    assert actual.config.language == net.config.language
    want = net.state_dict()
    assert actual.state_dict().keys() == want.keys()
    assert all(torch.equal(value, want[name]) for name, value in actual.state_dict().items())
    pixels = draw_normal(1, (2, 3, 56, 56))
    torch.testing.assert_close(actual.eval().encode_patches(pixels), net.encode_patches(pixels))


def test_lavis_flan_t5_has_the_exact_gelu(tmp_path: Path) -> None:
    """A Flan-T5 folder says gelu_new, and LAVIS replaces it by gelu."""
    save_language("t5", tmp_path / "language")
    values = json.loads((tmp_path / "language" / "config.json").read_text())
    (tmp_path / "language" / "config.json").write_text(json.dumps(values | {"dense_act_fn": "gelu_new"}))
    assert read_language(tmp_path / "language").config.dense_act_fn == "gelu_new"
    path, encoder = write_lavis_captioner(eva_captioner("t5"), "t5", tmp_path)
    source = read_lavis_captioner(path, tmp_path / "language", encoder=encoder)
    assert source.language.config.dense_act_fn == "gelu"


def test_lavis_files_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not hold the frozen image encoder .*--encoder"):
        read_files("opt", tmp_path, encoder=None)
    with pytest.raises(CheckpointError, match=r"reads the prompt. Give .* with --vocabulary"):
        read_files("llama", tmp_path, vocabulary=None)
    with pytest.raises(CheckpointError, match="is not a captioner"):
        torch.save({"query_tokens": torch.ones(1, 8, 64)}, tmp_path / "odd.pth")
        read_lavis_captioner(tmp_path / "odd.pth", tmp_path / "language")
    path, encoder = write_lavis_captioner(eva_captioner("opt"), "opt", tmp_path)
    state = torch.load(path)["model"]
    state["opt_proj.weight"] = torch.ones(48, 64)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"width 48; the one in .* has width 32"):
        read_lavis_captioner(path, save_language("opt", tmp_path / "opt"), encoder=encoder)
    with pytest.raises(CheckpointError, match=r"is not a language model's folder: config.json"):
        read_lavis_captioner(path, tmp_path / "nowhere", encoder=encoder)


def test_a_retrieval_checkpoint_cannot_write(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    assert not has_language(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"no language model, so it searches.*blip2-opt-2.7b.*train stage2"
    ):
        load_captioner(str(tmp_path))
    with pytest.raises(CheckpointError, match="no language model"):
        load_captioner("mini")


def test_a_generative_checkpoint_cannot_search(tmp_path: Path) -> None:
    save_tiny_captioner("opt", tmp_path / "ours")
    save_captioner_folder(random_captioner("opt"), "opt", tmp_path / "theirs")
    save_captioner_folder(random_captioner("llama"), "llama", tmp_path / "instruct")
    for name in ("ours", "theirs", "instruct"):
        with pytest.raises(CheckpointError, match=r"is a captioner .* cannot search"):
            load_model(str(tmp_path / name))


def change_weights(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    tensors = load_file(folder / "model.safetensors") | changes
    remaining = {name: value for name, value in tensors.items() if value is not None}
    save_file(remaining, folder / "model.safetensors", metadata={"format": "pt"})


MISFITS = {
    "missing": ("", {"projection.bias": None}, "missing projection.bias"),
    "extra": ("", {"qformer.words.weight": torch.ones(3, 32)}, "unknown qformer.words.weight"),
    "misshapen": ("", {"projection.weight": torch.ones(9, 32)}, r"on.weight is \(9, 32\), should be \(32, 32\)"),
    "language missing": (
        "language", {"model.decoder.layers.1.fc1.bias": None}, r"language do.* missing model.decoder.layers.1.fc1.bias"
    ),
    "language extra": ("language", {"lora.weight": torch.ones(2)}, "unknown lora.weight"),
    "language misshapen": (
        "language", {"model.decoder.layers.0.fc1.bias": torch.ones(47)}, r"is \(47,\), should be \(48,\)"
    ),
    "no word embeddings": ("language", {"model.decoder.embed_tokens.weight": None}, "missing model.decoder.embed"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit(tmp_path: Path, case: str) -> None:
    place, changes, message = MISFITS[case]
    save_tiny_captioner("opt", tmp_path)
    change_weights(tmp_path / place, changes)
    with pytest.raises(CheckpointError, match=message):
        load_captioner(str(tmp_path), device="cpu")


def test_folders_that_are_not_whole(tmp_path: Path) -> None:
    save_tiny_captioner("llama", tmp_path)
    language = tmp_path / "language"
    (language / "tokenizer.json").rename(language / "kept.json")
    with pytest.raises(CheckpointError, match=r"has no tokenizer.json, and transformers cannot make one"):
        read_captioner(tmp_path)
    (language / "kept.json").rename(language / "tokenizer.json")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer.json is not a readable tokenizer"):
        read_captioner(tmp_path)
    values = json.loads((language / "config.json").read_text())
    (language / "config.json").write_text(json.dumps(values | {"model_type": "nothing"}))
    with pytest.raises(CheckpointError, match="is not a language model's config"):
        read_captioner(tmp_path)
    (language / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"language is not a language model.s folder: config.json"):
        read_captioner(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"language": {}, "vision": {}}))
    with pytest.raises(CheckpointError, match="missing"):
        read_captioner(tmp_path)


def test_another_language_model(tmp_path: Path) -> None:
    save_tiny_captioner("opt", tmp_path)
    wide = language_config("opt")
    wide.hidden_size = wide.word_embed_proj_dim = 48
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "language")
    with pytest.raises(CheckpointError, match=r"has width 48, but config.json says 32"):
        load_captioner(str(tmp_path))


def test_tensors_of_other_times(tmp_path: Path) -> None:
    """Files may have the names of a bare model, a tied matrix twice, and a constant of old LLaMA files."""
    opt = read_language(save_language("opt", tmp_path / "opt"))
    want = make_language(opt.config, opt.tensors, tmp_path, torch.float32).state_dict()
    bare = {name.removeprefix("model."): tensor for name, tensor in opt.tensors.items()}
    twice = bare | {"lm_head.weight": bare["decoder.embed_tokens.weight"]}
    actual = make_language(opt.config, twice, tmp_path, torch.float32)
    assert actual.lm_head.weight is actual.model.decoder.embed_tokens.weight
    assert all(torch.equal(value, want[name]) for name, value in actual.state_dict().items())
    llama = read_language(save_language("llama", tmp_path / "llama"))
    constant = {"model.layers.0.self_attn.rotary_emb.inv_freq": llama.tensors["model.norm.weight"]}
    make_language(llama.config, dict(llama.tensors) | constant, tmp_path, torch.float32)


def test_list_models_knows_both_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSEEK_MODELS", str(tmp_path))
    save_tiny_captioner("opt", tmp_path / "writer")
    tiny_checkpoint(tmp_path / "searcher")
    info_by_name = {info.name: info for info in list_models()}
    assert info_by_name["writer"].writes and not info_by_name["searcher"].writes
    model = load_captioner("writer", device="cpu", dtype="float32")
    assert info_by_name["writer"].digest == model.digest and model.name == "writer"
    assert info_by_name["writer"].num_parameters == sum(p.numel() for p in model.net.parameters())


def save_sharing(folder: Path, encoder_seed: int = 0) -> Captioner:
    """Write a search model and, beside it, a captioner that shares its encoder."""
    net = tiny_captioner("opt")
    search = Retriever(tiny_config())
    randomise_weights(search.vision, seed=encoder_seed)
    if not encoder_seed:
        search.vision.load_state_dict(net.vision.state_dict())
    save_checkpoint(folder / "search", search, tiny_tokenizer(), dtype=torch.float16)
    save_captioner(folder / "writer", net, byte_tokenizer("opt"), dtype=torch.float16, encoder="search")
    return net


def test_a_shared_encoder_is_written_once_and_read_from_beside(tmp_path: Path) -> None:
    net = save_sharing(tmp_path)
    assert not any(
        name.startswith("vision.") for name in load_file(tmp_path / "writer" / "model.safetensors")
    )
    save_captioner(tmp_path / "whole", net, byte_tokenizer("opt"), dtype=torch.float16)
    photos = random_pictures(2)
    shared, whole = (load_captioner(str(tmp_path / name), dtype="float32") for name in ("writer", "whole"))
    assert torch.equal(shared.encode_patches(photos), whole.encode_patches(photos))
    assert shared.digest != whole.digest
    save_captioner(tmp_path / "again", shared.net, byte_tokenizer("opt"), dtype=torch.float16)
    again = load_captioner(str(tmp_path / "again"), dtype="float32")
    assert again.config.encoder == "" and torch.equal(
        again.encode_patches(photos), whole.encode_patches(photos)
    )


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not this captioner's"):
        save_sharing(tmp_path, encoder_seed=5)
    save_sharing(tmp_path)
    other = Retriever(tiny_config())
    save_checkpoint(tmp_path / "search", other, tiny_tokenizer(), dtype=torch.float16)
    with pytest.raises(CheckpointError, match="is not the one that it was trained with"):
        load_captioner(str(tmp_path / "writer"))
    shutil.rmtree(tmp_path / "search")
    with pytest.raises(CheckpointError, match="Keep the two folders beside each other"):
        load_captioner(str(tmp_path / "writer"))
