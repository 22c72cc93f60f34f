"""Captioners with a language model or an ITG head write what direct calls of the two models write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import SIDE, tiny_checkpoint, tiny_config, tiny_net, tiny_tokenizer
from tiny_language import save_tiny_captioner

from engine.blip2.generation import CAPTION, GenerationOptions
from engine.blip2.itg_decoding import search_captions
from engine.checkpoints.saving import save_checkpoint
from engine.errors import CheckpointError, QueryError
from engine.models import catalogue, photo_captioners
from engine.models.loading import load_captioner, load_model
from engine.models.photo_captioners import (
    HeadCaptioner,
    LanguageCaptioner,
    choose_default_captioner,
    is_called,
    load_photo_captioner,
)

PICTURES = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_checkpoint(folder / "tiny")
    save_tiny_captioner("opt", folder / "opt")
    config = replace(tiny_config(), has_captions=False)
    save_checkpoint(folder / "headless", tiny_net(config), tiny_tokenizer())
    return folder


@pytest.fixture(autouse=True)
def own_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSEEK_MODELS", str(folder))


def test_the_head_writes_what_describe_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photo_captioners, "HEAD_CAPTION_BATCH", 2)  # in batches
    writer = load_photo_captioner("tiny")
    assert isinstance(writer, HeadCaptioner) and not writer.answers
    model = load_model("tiny")
    keys = model.compute_photo_keys(model.encode_patches(PICTURES))
    special = {"dec_id": model.tokenizer.dec_id, "sep_id": model.tokenizer.sep_id}
    ids = search_captions(model.net, keys, **special, num_beams=5, min_length=9, max_length=16)
    want = [model.tokenizer.decode(row) for row in ids.tolist()]
    assert writer.caption(PICTURES, options=CAPTION) == want and len(set(want)) > 1, "30 tokens are cut to 15"
    drawn = [
        writer.caption(PICTURES, options=GenerationOptions(top_p=0.9, max_new_tokens=9, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_language_model_writes_as_ever() -> None:
    writer = load_photo_captioner("opt")
    assert isinstance(writer, LanguageCaptioner) and writer.answers
    direct = load_captioner("opt")
    assert writer.caption(PICTURES[:2]) == direct.caption(PICTURES[:2])
    assert writer.caption(PICTURES[:2], "a cat") == direct.caption(PICTURES[:2], "a cat")
    assert writer.answer(PICTURES[:2], ["what?"]) == direct.answer(PICTURES[:2], ["what?"])
    assert (writer.name, writer.digest) == (direct.name, direct.digest)


def test_a_loaded_model_is_not_loaded_again() -> None:
    model = load_model("tiny")
    writer = load_photo_captioner("tiny", model)
    assert isinstance(writer, HeadCaptioner) and writer.model is model


def test_what_cannot_be_is_said(folder: Path) -> None:
    head, language = load_photo_captioner("tiny"), load_photo_captioner("opt")
    for ask in (lambda: head.caption(PICTURES, "a"), lambda: head.answer(PICTURES, ["why?"])):
        with pytest.raises(
            QueryError, match=r"tiny only writes captions: it reads no prompt.*blip2-opt-2\.7b"
        ):
            ask()
    with pytest.raises(QueryError, match="The prompt is empty"):
        language.caption(PICTURES, " ")
    with pytest.raises(QueryError, match=r"has 2\d\d tokens; the language model reads at most \d+"):
        language.caption(PICTURES, "a" * 200)
    with pytest.raises(QueryError, match="500 new tokens are more than the language model can write"):
        language.caption(PICTURES, options=GenerationOptions(max_new_tokens=500))
    with pytest.raises(CheckpointError, match=r"headless cannot write.*mini.*blip2-opt-2\.7b"):
        load_photo_captioner(str(folder / "headless"))
    with pytest.raises(ValueError, match="an ITG head supports none: both must be 1"):
        head.caption(PICTURES, options=GenerationOptions(length_penalty=-1.0))


def test_who_writes_when_nobody_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    monkeypatch.setattr(catalogue, "BUNDLED", tmp_path)  # as if nothing were bundled
    assert (
        choose_default_captioner()
        == choose_default_captioner("mini")
        == choose_default_captioner("headless")
        == "mini"
    )
    assert choose_default_captioner("tiny") == "tiny", "a searching model that writes"
    assert choose_default_captioner("gone") == "mini"
    save_tiny_captioner("opt", tmp_path / "mini-captioner")
    assert (
        choose_default_captioner()
        == choose_default_captioner("mini")
        == choose_default_captioner("headless")
        == "mini-captioner"
    )
    assert choose_default_captioner("tiny") == "tiny"
    assert is_called("tiny", "tiny") and is_called(str(folder / "tiny"), "tiny")
    assert not is_called("tiny", "opt")
