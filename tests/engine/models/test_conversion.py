"""Checkpoints are written in another layout, and the parts that a .pth file lacks are taken from files beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lavis_networks import EVA, eva_captioner, random_net, write_lavis_captioner, write_lavis_retriever
from tiny import tiny_checkpoint, tiny_tokenizer
from tiny_language import save_language, save_tiny_captioner

from engine.checkpoints.building import load_net, make_captioner
from engine.checkpoints.captioner_reading import read_captioner
from engine.errors import CheckpointError
from engine.models import conversion
from engine.models.conversion import LavisParts, convert_captioner, convert_retriever, is_captioner


def test_a_lavis_retriever_becomes_a_qseek_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder has the given vocabulary, else BERT's from the Hugging Face cache."""
    net = random_net(EVA)
    path, encoder = write_lavis_retriever(tmp_path, net)
    words = tmp_path / "words.json"
    tiny_tokenizer().save(str(words))
    assert not is_captioner(path, LavisParts(encoder, words))
    monkeypatch.setattr(conversion, "load_bert_vocabulary", lambda: pytest.fail("a vocabulary was given"))
    opened = convert_retriever(
        path, tmp_path / "out", "qseek", torch.float32, LavisParts(encoder, words, image_size=84)
    )
    assert opened.config.vision.image_size == 84
    monkeypatch.setattr(conversion, "load_bert_vocabulary", lambda: words)
    convert_retriever(path, tmp_path / "as it is", "qseek", torch.float32, LavisParts(encoder))
    actual, want = load_net(tmp_path / "as it is")[0].state_dict(), net.state_dict()
    assert actual.keys() == want.keys() and all(torch.equal(actual[name], want[name]) for name in want)


def test_without_a_vocabulary_and_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, encoder = write_lavis_retriever(tmp_path, random_net(EVA))

    def offline(*_: object) -> str:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(
        CheckpointError, match=r"could not be downloaded: give its vocab.txt with --vocabulary"
    ):
        convert_retriever(path, tmp_path / "out", "qseek", torch.float32, LavisParts(encoder))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["qseek", "transformers"])
def test_a_lavis_captioner_becomes_a_folder(tmp_path: Path, layout: conversion.Layout) -> None:
    net = eva_captioner("opt")
    path, encoder = write_lavis_captioner(net, "opt", tmp_path)
    parts = LavisParts(encoder, language=save_language("opt", tmp_path / "language"))
    assert is_captioner(path, parts) and not is_captioner(path, LavisParts(encoder))
    convert_captioner(path, tmp_path / "out", layout, torch.float32, parts)
    actual = make_captioner(read_captioner(tmp_path / "out"), tmp_path / "out", torch.float32).state_dict()
    want = net.state_dict()
    name = "qformer.queries"
    assert torch.equal(actual[name], want[name]) and actual.keys() == want.keys()


def test_which_folders_are_captioners(tmp_path: Path) -> None:
    assert is_captioner(save_tiny_captioner("t5", tmp_path / "writes"), LavisParts())
    assert not is_captioner(tiny_checkpoint(tmp_path / "searches"), LavisParts())
