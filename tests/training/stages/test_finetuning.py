"""Test fine-tuning: a saved model knows captions and answers by heart, frozen parts stay, bad inputs are refused."""

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
    """Fine-tune by a config and return the losses of the log."""
    run_finetune(config, data, output.parent, output)
    return [json.loads(line)["loss"] for line in (output / "all" / "log.jsonl").read_text().splitlines()]


def test_captions_are_learned_by_heart_and_the_encoder_too(data: Path, tmp_path: Path) -> None:
    optim = replace(LEARNING_OPTIM, layer_decay=0.5)
    losses = run(caption_config(optim=optim, image_size=48, train_encoder=True), data, tmp_path / "out")
    assert losses[-1] < 0.4 * losses[0]
    model = load_captioner(str(tmp_path / "out" / "model"), device="cpu", dtype="float32")
    assert model.image_size == 48 and model.net.vision.backbone.pos_embed.shape[1] == 10
    assert model.caption(read_squares(data, model), options=GREEDY) == [f"the wall is {c}" for c in COLOURS]
    before = load_captioner(str(data / "opt"), device="cpu", dtype="float32").net
    for name, value in before.vision.state_dict().items():
        trained = model.net.vision.state_dict()[name]
        has_changed = trained.shape != value.shape or not torch.equal(trained, value.half().float())
        assert has_changed, f"vision.{name} was not trained"
    for name, value in before.language.state_dict().items():
        assert torch.equal(model.net.language.state_dict()[name], value), name


def test_answers_are_learned_by_heart_and_the_command_gives_them(data: Path, tmp_path: Path) -> None:
    """With two questions about each picture, neither the picture nor the question alone tells the answer."""
    losses = run(vqa_config(optim=LEARNING_OPTIM), data, tmp_path / "out")
    assert losses[-1] < 0.4 * losses[0]
    folder = tmp_path / "out" / "model"
    model = load_captioner(str(folder), device="cpu", dtype="float32")
    assert model.config.language.reads_prompt and model.config.language.question == "{}"
    pictures = read_squares(data, model, COLOURS[:4])
    assert model.answer(pictures, ["the wall is?"] * 4, GREEDY) == list(COLOURS[:4])
    assert model.answer(pictures, ["a photo of?"] * 4, GREEDY) == ["wall"] * 4
    arguments = ["caption", str(data / "red.png"), "--model", str(folder), "--question", "the wall is?"]
    result = CliRunner().invoke(main, [*arguments, "--beams", "1", "--json"])
    assert json.loads(result.stdout)["caption"] == "red", result.output


def test_a_frozen_encoder_is_saved_as_it_was(data: Path, tmp_path: Path) -> None:
    run(caption_config(optim=replace(OPTIM, dtype="bfloat16")), data, tmp_path / "out")
    before, after = (
        load_captioner(str(folder), device="cpu", dtype="float32").net
        for folder in (data / "opt", tmp_path / "out" / "model")
    )
    for name, value in before.vision.state_dict().items():
        # Training reads it in bfloat16, the checkpoint holds it in float16.
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(after.vision.state_dict()[name], expected), name
    assert not torch.equal(after.qformer.queries, before.qformer.queries)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stopped_run_goes_on_with_the_same_losses(
    data: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = vqa_config(optim=replace(OPTIM, dtype=dtype, steps=6), train_encoder=True)
    expected = run(config, data, tmp_path / "whole")
    losses = Stage2Task.losses

    def stop_at_step_3(self: Stage2Task, step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return losses(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Stage2Task, "losses", stop_at_step_3)
        with pytest.raises(KeyboardInterrupt):
            run(config, data, tmp_path / "halves")
    assert run(config, data, tmp_path / "halves") == expected and len(set(expected)) == 6
    whole, halves = (
        load_captioner(str(tmp_path / name / "model"), device="cpu", dtype="float32").net.state_dict()
        for name in ("whole", "halves")
    )
    assert all(torch.equal(whole[name], halves[name]) for name in whole)
    with pytest.raises(TrainingError, match=r"max_tokens: 32 then, 31 now"):
        run(replace(config, max_tokens=31), data, tmp_path / "halves")


@pytest.mark.parametrize("changes", [{"chunk": 3}, {"recompute_encoder": True}])
def test_chunks_and_recomputed_activations_give_the_same_losses(
    data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    expected = run(caption_config(train_encoder=True), data, tmp_path / "plain")
    actual = run(caption_config(train_encoder=True, **changes), data, tmp_path / "other")
    assert actual == pytest.approx(expected, abs=1e-4) and len(set(expected)) == 4


def test_a_model_of_one_file_keeps_its_language_model(data: Path, tmp_path: Path) -> None:
    """A transformers folder holds all weights in one file; the language model is taken out of it bit for bit."""
    from random_blip2 import random_captioner, save_captioner_folder

    save_captioner_folder(random_captioner("t5"), "t5", tmp_path / "transformers")
    before = load_captioner(str(tmp_path / "transformers"), device="cpu", dtype="float32")
    run(
        caption_config(start=str(tmp_path / "transformers"), image_size=70, train_encoder=True),
        data,
        tmp_path / "out",
    )
    after = load_captioner(str(tmp_path / "out" / "model"), device="cpu", dtype="float32")
    assert after.image_size == 70 and before.image_size == 56
    expected = before.net.language.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in after.net.language.state_dict().items())


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
def test_settings_that_do_not_fit_are_refused(data: Path, tmp_path: Path, case: str) -> None:
    changes, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        run(vqa_config(**changes), data, tmp_path / "out")


def test_a_prompt_for_captions_has_no_place_for_a_question(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="but the sets hold no questions"):
        run(caption_config(prompts=("a {} of",)), data, tmp_path / "out")


def test_a_text_branch_of_another_shape_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot give the text branch"):
        run(vqa_config(text_start="mini"), data, tmp_path / "out")


def test_a_damaged_picture_is_replaced_and_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    rows = [{"image": f"{n}.png", "question": "is it red?", "answer": "a"} for n in ("red", "bad")]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    lines: list[str] = []
    config = vqa_config(
        sources=(QuestionConfig(str(tmp_path / "q.json")),), optim=replace(OPTIM, steps=1, batch=4)
    )
    run_finetune(config, data, tmp_path, tmp_path / "out", say=lines.append)
    assert any("samples replaced: it cannot be read" in line for line in lines)
    assert any("question 1 (bad.png)" in line for line in lines)


def test_captions_are_learned_on_patches_that_are_made_once(data: Path, tmp_path: Path) -> None:
    """The frozen encoder reads every picture once before training; a run with other settings does not go on."""
    config = caption_config(views=2, optim=OPTIM)
    run_finetune(config, data, tmp_path, tmp_path / "out")
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == OPTIM.steps
    assert load_captioner(str(tmp_path / "out" / "model")).image_size == 32
    with pytest.raises(TrainingError, match="views: 2 then, 1 now"):
        run_finetune(replace(config, views=1), data, tmp_path, tmp_path / "out")
