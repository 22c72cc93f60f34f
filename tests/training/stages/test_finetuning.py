"""Fine-tuning learns captions and answers by heart through the saved checkpoint; what is frozen stays; bad inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from eight_pairs import COLOURS
from finetuning_inputs import GREEDY, LEARNING_OPTIM, OPTIM, caption_config, read_squares, vqa_config
from PIL import Image

from engine.datasets.question_sets import QuestionConfig
from engine.errors import CheckpointError, DataError, QseekError, TrainingError
from engine.models.loading import load_captioner
from training.recipes.recipe_catalogue import VQA
from training.stages.finetuning import CaptionConfig, run_finetune
from training.stages.stage2 import Stage2Task
from ui.cli.main import main


def run(config: CaptionConfig, data: Path, output: Path) -> list[float]:
    run_finetune(config, data, output.parent, output)
    return [json.loads(line)["loss"] for line in (output / "all" / "log.jsonl").read_text().splitlines()]


def test_captions_by_heart_with_the_encoder(data: Path, tmp_path: Path) -> None:
    optim = replace(LEARNING_OPTIM, layer_decay=0.5)
    losses = run(caption_config(optim=optim, image_size=48, train_encoder=True), data, tmp_path / "out")
    assert losses[-1] < 0.4 * losses[0]
    model = load_captioner(str(tmp_path / "out" / "model"), device="cpu", dtype="float32")
    assert model.image_size == 48 and model.net.vision.backbone.pos_embed.shape[1] == 10
    assert model.caption(read_squares(data, model), options=GREEDY) == [f"the wall is {c}" for c in COLOURS]
    before = load_captioner(str(data / "opt"), device="cpu", dtype="float32").net
    for name, value in before.vision.state_dict().items():
        got = model.net.vision.state_dict()[name]
        moved = got.shape != value.shape or not torch.equal(got, value.half().float())
        assert moved, f"vision.{name} was not trained"
    for name, value in before.language.state_dict().items():
        assert torch.equal(model.net.language.state_dict()[name], value), name


def test_answers_by_heart_through_the_command(data: Path, tmp_path: Path) -> None:
    """Two questions about each picture: who reads one of both alone cannot know the answers."""
    losses = run(vqa_config(optim=LEARNING_OPTIM), data, tmp_path / "out")
    assert losses[-1] < 0.4 * losses[0]
    folder = tmp_path / "out" / "model"
    model = load_captioner(str(folder), device="cpu", dtype="float32")
    assert model.config.language.reads_prompt and model.config.language.question == "{}"
    shown = read_squares(data, model, COLOURS[:4])
    assert model.answer(shown, ["the wall is?"] * 4, GREEDY) == list(COLOURS[:4])
    assert model.answer(shown, ["a photo of?"] * 4, GREEDY) == ["wall"] * 4
    asked = ["caption", str(data / "red.png"), "--model", str(folder), "--question", "the wall is?"]
    result = CliRunner().invoke(main, [*asked, "--beams", "1", "--json"])
    assert json.loads(result.stdout)["caption"] == "red", result.output


def test_a_frozen_encoder_is_saved_as_it_was(data: Path, tmp_path: Path) -> None:
    run(caption_config(optim=replace(OPTIM, dtype="bfloat16")), data, tmp_path / "out")
    before, after = (
        load_captioner(str(folder), device="cpu", dtype="float32").net
        for folder in (data / "opt", tmp_path / "out" / "model")
    )
    for name, value in before.vision.state_dict().items():
        # Training reads it in bfloat16, the checkpoint holds it in float16.
        want = value.half().float() if value.is_floating_point() else value
        assert torch.equal(after.vision.state_dict()[name], want), name
    assert not torch.equal(after.qformer.queries, before.qformer.queries)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_stops_and_goes_on(
    data: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = vqa_config(optim=replace(OPTIM, dtype=dtype, steps=6), train_encoder=True)
    want = run(chosen, data, tmp_path / "whole")
    losses = Stage2Task.losses

    def stops(self: Stage2Task, step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return losses(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Stage2Task, "losses", stops)
        with pytest.raises(KeyboardInterrupt):
            run(chosen, data, tmp_path / "halves")
    assert run(chosen, data, tmp_path / "halves") == want and len(set(want)) == 6
    whole, halves = (
        load_captioner(str(tmp_path / n / "model"), device="cpu", dtype="float32").net.state_dict()
        for n in ("whole", "halves")
    )
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    with pytest.raises(TrainingError, match=r"max_tokens: 32 then, 31 now"):
        run(replace(chosen, max_tokens=31), data, tmp_path / "halves")


@pytest.mark.parametrize("changes", [{"chunk": 3}, {"recompute_encoder": True}])
def test_cheaper_ways_train_alike(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    want = run(caption_config(train_encoder=True), data, tmp_path / "plain")
    got = run(caption_config(train_encoder=True, **changes), data, tmp_path / "other")
    assert got == pytest.approx(want, abs=1e-4) and len(set(want)) == 4


def test_a_model_of_one_file_keeps_its_language_model(data: Path, tmp_path: Path) -> None:
    """A transformers folder holds all in one file: the language model is taken out of it, bit for bit."""
    from random_blip2 import random_captioner, save_captioner_folder

    save_captioner_folder(random_captioner("t5"), "t5", tmp_path / "theirs")
    before = load_captioner(str(tmp_path / "theirs"), device="cpu", dtype="float32")
    run(
        caption_config(start=str(tmp_path / "theirs"), image_size=70, train_encoder=True),
        data,
        tmp_path / "out",
    )
    after = load_captioner(str(tmp_path / "out" / "model"), device="cpu", dtype="float32")
    assert after.image_size == 70 and before.image_size == 56
    want = before.net.language.state_dict()
    assert all(torch.equal(value, want[n]) for n, value in after.net.language.state_dict().items())


REFUSED: dict[str, tuple[dict[str, Any], type[QseekError], str]] = {
    "no text branch": ({"text_start": ""}, TrainingError, r"has no text branch: name the stage-1 run .*text_start"),
    "no text model": ({"text_start": "nowhere"}, DataError, "no model to start from"),
    "generative text": ({"text_start": "t5"}, CheckpointError, "is a captioner"),
    "no question": ({"prompts": ("Answer:",)}, TrainingError, 'has no "{}" for the question'),
    "decay": ({"optim": replace(OPTIM, layer_decay=0.9)}, TrainingError, "encoder, which is frozen"),
    "odd pixels": ({"image_size": 50}, DataError, r"opt: 50 pixels are not a multiple .* patches of 16"),
    "start": ({"start": "nowhere"}, DataError, "There is no model to start from"),
    "searches": ({"start": "first"}, CheckpointError, "has no language model, so it searches"),
    "long": ({"max_tokens": 3}, DataError, r"could not be read, the last: .*more than 3 tokens"),
    "long to the Q-Former": (
        {"prompts": ("Question: {} Short answer:",)}, DataError, r"more than the 16 tokens that the Q-Former reads"
    ),
    "dtype": ({"optim": replace(OPTIM, dtype="float16")}, TrainingError, "dtype is 'float16'; it must be auto or one"),
    "crop": ({"smallest_crop": 0.0}, TrainingError, "smallest_crop is 0.0"),
    "no prompts": ({"prompts": ()}, TrainingError, "has no prompts"),
    "chunk": ({"chunk": -1}, TrainingError, "chunk is -1"),
    "another model": ({"model": VQA["vqav2-opt-2.7b"]().model}, DataError, "vision, qformer, the language model's"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(data: Path, tmp_path: Path, case: str) -> None:
    changes, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words):
        run(vqa_config(**changes), data, tmp_path / "out")


def test_captions_ask_nothing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="but the sets hold no questions"):
        run(caption_config(prompts=("a {} of",)), data, tmp_path / "out")


def test_a_text_branch_of_another_shape(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot give the text branch"):
        run(vqa_config(text_start="mini"), data, tmp_path / "out")


def test_a_damaged_picture_is_replaced_and_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    rows = [{"image": f"{n}.png", "question": "is it red?", "answer": "a"} for n in ("red", "bad")]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    said: list[str] = []
    chosen = vqa_config(
        sources=(QuestionConfig(str(tmp_path / "q.json")),), optim=replace(OPTIM, steps=1, batch=4)
    )
    run_finetune(chosen, data, tmp_path, tmp_path / "out", say=said.append)
    assert any("samples replaced: it cannot be read" in line for line in said)
    assert any("question 1 (bad.png)" in line for line in said)


def test_captions_on_patches_made_once(data: Path, tmp_path: Path) -> None:
    """The same fine-tuning where the frozen encoder reads every picture once; it goes on with the same settings."""
    chosen = caption_config(views=2, optim=OPTIM)
    run_finetune(chosen, data, tmp_path, tmp_path / "out")
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == OPTIM.steps
    assert load_captioner(str(tmp_path / "out" / "model")).image_size == 32
    with pytest.raises(TrainingError, match="views: 2 then, 1 now"):
        run_finetune(replace(chosen, views=1), data, tmp_path, tmp_path / "out")
