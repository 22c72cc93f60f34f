"""Test stage 2 on pictures that are read in every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from eight_pairs import COLOURS, language_model, word_tokenizer
from finetuning_inputs import GREEDY, LEARNING_OPTIM, read_squares

from engine.datasets.captioned_sets import SourceConfig
from engine.errors import TrainingError
from engine.models.loading import load_captioner
from training.stages.stage2 import run_stage2
from training.stages.stage2_config import Stage2Config


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_stage_2_learns_captions_from_a_stream_of_pictures(data: Path, tmp_path: Path, kind: str) -> None:
    """The run starts from a stage-1 model and a language model; Flan-T5 reads captions that are cut in two."""
    language_model(kind).save_pretrained(tmp_path / "language")
    word_tokenizer(kind).save(str(tmp_path / "language" / "tokenizer.json"))
    config = Stage2Config(
        (SourceConfig("captions.json"),),
        replace(LEARNING_OPTIM, steps=150),
        "first",
        prompts=("",),
        prefix_share=1.0 if kind == "t5" else 0.0,
        workers=2,
    )
    run_stage2(config, data, tmp_path, tmp_path / "language", tmp_path / "out")
    model = load_captioner(str(tmp_path / "out" / "model"), device="cpu", dtype="float32")
    assert not hasattr(model.net.qformer, "words")
    if kind == "opt":
        assert model.caption(read_squares(data, model), "", GREEDY) == [f"the wall is {c}" for c in COLOURS]
    else:
        # A random Flan-T5 hardly learns when to end, but it knows which colour comes after the beginning.
        soft = model.net.read_photos(model.encode_patches(read_squares(data, model)))
        endings = [f"is {colour}" for colour in COLOURS]
        losses = [
            model.net.compute_loss(soft, model.tokenizer.encode_pairs(["the wall"] * 8, texts, 16)).item()
            for texts in (endings, endings[1:] + endings[:1], endings[4:] + endings[:4])
        ]
        assert losses[0] < min(losses[1:]) - 0.3, losses
    with pytest.raises(TrainingError, match="the language model is a decoder"):
        language_model("opt").save_pretrained(tmp_path / "opt")
        word_tokenizer("opt").save(str(tmp_path / "opt" / "tokenizer.json"))
        run_stage2(replace(config, prefix_share=0.5), data, tmp_path, tmp_path / "opt", tmp_path / "no")
