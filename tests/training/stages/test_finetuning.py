"""Fine-tuning learns captions and answers by heart through the saved checkpoint; what is frozen stays; bad inputs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_stage1 import COLOURS
from test_stage2 import language_model, stage1_net, word_tokenizer
from test_tar_shards import picture

from engine.blip2.captioner import Captioner
from engine.blip2.generation import GenerationOptions
from engine.checkpoints.language_folder import describe_language
from engine.checkpoints.saving import save_captioner, save_checkpoint
from engine.datasets.captioned_sets import SourceConfig
from engine.datasets.question_sets import QuestionConfig
from engine.errors import CheckpointError, DataError, QseekError, TrainingError
from engine.models.caption_model import CaptionModel
from engine.models.loading import load_captioner
from engine.pictures.opening import open_picture
from engine.pictures.squares import squash
from training.loop.optimizer import OptimConfig, learning_rate_scales, make_optimizer
from training.recipes.recipe_catalogue import CAPTION, STAGE2, VQA
from training.recipes.recipe_settings import with_settings
from training.stages.finetuning import CaptionConfig, VqaConfig, run_finetune
from training.stages.generative import GenerativeTask
from training.stages.stage2 import from_stage1
from training.stages.stage2_stream import Stage2StreamConfig, run_stage2_stream
from ui.cli.main import main

GREEDY = GenerationOptions(max_new_tokens=8)
OPTIM = OptimConfig(
    steps=4, batch=8, lr=3e-3, warmup=5, betas=(0.9, 0.999), weight_decay=0.0, clip=1.0, log_every=1
)
pytestmark = pytest.mark.usefixtures("one_thread")


def stage2_model(folder: Path, kind: str = "opt") -> Captioner:
    """A captioner of stage 2, its Q-Former without a text branch."""
    retriever, _ = stage1_net()
    language = language_model(kind)
    net = from_stage1(
        retriever, language, describe_language(language.config, word_tokenizer(kind), Path("x"))
    )
    save_captioner(folder, net, word_tokenizer(kind))
    return net


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight one-coloured pictures with captions and questions; a stage-1 model; captioners before two languages."""
    folder = tmp_path_factory.mktemp("data")
    for colour in COLOURS:
        (folder / f"{colour}.png").write_bytes(picture(colour, (40, 40)))
    captions = [{"image": f"{c}.png", "caption": f"the wall is {c}"} for c in COLOURS]
    (folder / "captions.json").write_text(json.dumps(captions))
    questions = [
        {"image": f"{colour}.png", "question": question, "answer": answer}
        for colour in COLOURS[:4]
        for question, answer in (("the wall is?", [colour] * 3), ("a photo of?", "wall"))
    ]
    (folder / "questions.json").write_text(json.dumps(questions))
    retriever, words = stage1_net()
    save_checkpoint(folder / "first", retriever, words)
    for kind in ("opt", "t5"):
        stage2_model(folder / kind, kind)
    return folder


def captions(**changes: Any) -> CaptionConfig:
    return replace(CaptionConfig((SourceConfig("captions.json"),), OPTIM, "opt", workers=2), **changes)


def questions(**changes: Any) -> VqaConfig:
    made = VqaConfig((QuestionConfig("questions.json"),), OPTIM, "opt", reads_prompt=True, text_start="first")
    return replace(made, **{"workers": 2, "prompts": ("{}",)} | changes)


def run(config: CaptionConfig, data: Path, output: Path) -> list[float]:
    run_finetune(config, data, output.parent, output)
    return [json.loads(line)["loss"] for line in (output / "all" / "log.jsonl").read_text().splitlines()]


def pictures(data: Path, model: CaptionModel, colours: tuple[str, ...] = COLOURS) -> np.ndarray:
    size = model.image_size
    return np.stack([squash(open_picture(data / f"{colour}.png"), size) for colour in colours])


LEARNS = replace(OPTIM, steps=100, lr=5e-3, log_every=20)


def test_captions_by_heart_with_the_encoder(data: Path, tmp_path: Path) -> None:
    optim = replace(LEARNS, layer_decay=0.5)
    losses = run(captions(optim=optim, image_size=48, train_encoder=True), data, tmp_path / "out")
    assert losses[-1] < 0.4 * losses[0]
    model = load_captioner(str(tmp_path / "out" / "model"), device="cpu", dtype="float32")
    assert model.image_size == 48 and model.net.vision.backbone.pos_embed.shape[1] == 10
    assert model.caption(pictures(data, model), how=GREEDY) == [f"the wall is {c}" for c in COLOURS]
    before = load_captioner(str(data / "opt"), device="cpu", dtype="float32").net
    for name, value in before.vision.state_dict().items():
        got = model.net.vision.state_dict()[name]
        moved = got.shape != value.shape or not torch.equal(got, value.half().float())
        assert moved, f"vision.{name} was not trained"
    for name, value in before.language.state_dict().items():
        assert torch.equal(model.net.language.state_dict()[name], value), name


def test_answers_by_heart_through_the_command(data: Path, tmp_path: Path) -> None:
    """Two questions about each picture: who reads one of both alone cannot know the answers."""
    losses = run(questions(optim=LEARNS), data, tmp_path / "out")
    assert losses[-1] < 0.4 * losses[0]
    folder = tmp_path / "out" / "model"
    model = load_captioner(str(folder), device="cpu", dtype="float32")
    assert model.config.language.reads_prompt and model.config.language.question == "{}"
    shown = pictures(data, model, COLOURS[:4])
    assert model.answer(shown, ["the wall is?"] * 4, GREEDY) == list(COLOURS[:4])
    assert model.answer(shown, ["a photo of?"] * 4, GREEDY) == ["wall"] * 4
    asked = ["caption", str(data / "red.png"), "--model", str(folder), "--question", "the wall is?"]
    result = CliRunner().invoke(main, [*asked, "--beams", "1", "--json"])
    assert json.loads(result.stdout)["caption"] == "red", result.output


def test_a_frozen_encoder_is_saved_as_it_was(data: Path, tmp_path: Path) -> None:
    run(captions(optim=replace(OPTIM, dtype="bfloat16")), data, tmp_path / "out")
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
    chosen = questions(optim=replace(OPTIM, dtype=dtype, steps=6), train_encoder=True)
    want = run(chosen, data, tmp_path / "whole")
    losses = GenerativeTask.losses

    def stops(self: GenerativeTask, step: int) -> Any:
        if step == 3:
            raise KeyboardInterrupt
        return losses(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(GenerativeTask, "losses", stops)
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
    want = run(captions(train_encoder=True), data, tmp_path / "plain")
    got = run(captions(train_encoder=True, **changes), data, tmp_path / "other")
    assert got == pytest.approx(want, abs=1e-4) and len(set(want)) == 4


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_stage_2_on_a_stream(data: Path, tmp_path: Path, kind: str) -> None:
    """From a stage-1 model and a language model; Flan-T5 with captions cut in two."""
    language_model(kind).save_pretrained(tmp_path / "language")
    word_tokenizer(kind).save(str(tmp_path / "language" / "tokenizer.json"))
    chosen = Stage2StreamConfig(
        (SourceConfig("captions.json"),), replace(LEARNS, steps=150), "first", prompts=("",),
        prefix_share=1.0 if kind == "t5" else 0.0, workers=2,
    )  # fmt: skip
    run_stage2_stream(chosen, data, tmp_path, tmp_path / "language", tmp_path / "out")
    model = load_captioner(str(tmp_path / "out" / "model"), device="cpu", dtype="float32")
    assert not hasattr(model.net.qformer, "words")
    if kind == "opt":
        assert model.caption(pictures(data, model), "", GREEDY) == [f"the wall is {c}" for c in COLOURS]
    else:  # a random Flan-T5 hardly learns when to end; but it tells whose colour comes after the beginning
        soft = model.net.read_photos(model.encode_patches(pictures(data, model)))
        own = [f"is {colour}" for colour in COLOURS]
        costs = [
            model.net.loss(soft, model.tokenizer.pairs(["the wall"] * 8, texts, 16)).item()
            for texts in (own, own[1:] + own[:1], own[4:] + own[:4])
        ]
        assert costs[0] < min(costs[1:]) - 0.3, costs
    with pytest.raises(TrainingError, match="the language model is a decoder"):
        language_model("opt").save_pretrained(tmp_path / "opt")
        word_tokenizer("opt").save(str(tmp_path / "opt" / "tokenizer.json"))
        run_stage2_stream(
            replace(chosen, prefix_share=0.5), data, tmp_path, tmp_path / "opt", tmp_path / "no"
        )


def test_a_model_of_one_file_keeps_its_language_model(data: Path, tmp_path: Path) -> None:
    """A transformers folder holds all in one file: the language model is taken out of it, bit for bit."""
    from test_captioner_parity import random_theirs, save_theirs

    save_theirs(random_theirs("t5"), "t5", tmp_path / "theirs")
    before = load_captioner(str(tmp_path / "theirs"), device="cpu", dtype="float32")
    run(captions(start=str(tmp_path / "theirs"), image_size=70, train_encoder=True), data, tmp_path / "out")
    after = load_captioner(str(tmp_path / "out" / "model"), device="cpu", dtype="float32")
    assert after.image_size == 70 and before.image_size == 56
    want = before.net.language.state_dict()
    assert all(torch.equal(value, want[n]) for n, value in after.net.language.state_dict().items())


REFUSED: dict[str, tuple[dict[str, Any], type[QseekError], str]] = {
    "no text branch": ({"text_start": ""}, TrainingError, r"has no text branch: name the stage-1 run .*text_start"),
    "no text model": ({"text_start": "nowhere"}, DataError, "no model to start from"),
    "generative text": ({"text_start": "t5"}, CheckpointError, "generative"),
    "no question": ({"prompts": ("Answer:",)}, TrainingError, 'has no "{}" for the question'),
    "decay": ({"optim": replace(OPTIM, layer_decay=0.9)}, TrainingError, "encoder, which is frozen"),
    "odd pixels": ({"image_size": 50}, DataError, r"opt: 50 pixels are not a multiple .* patches of 16"),
    "start": ({"start": "nowhere"}, DataError, "There is no model to start from"),
    "searches": ({"start": "first"}, CheckpointError, "has no language model: it searches"),
    "long": ({"max_tokens": 3}, DataError, r"could not be read, the last: .*more than 3 tokens"),
    "long to the Q-Former": (
        {"prompts": ("Question: {} Short answer:",)}, DataError, r"more than the 16 tokens that the Q-Former reads"
    ),
    "dtype": ({"optim": replace(OPTIM, dtype="float16")}, TrainingError, "dtype is 'float16'; it must be one of"),
    "crop": ({"smallest_crop": 0.0}, TrainingError, "smallest_crop is 0.0"),
    "no prompts": ({"prompts": ()}, TrainingError, "has no prompts"),
    "chunk": ({"chunk": -1}, TrainingError, "chunk is -1"),
    "another model": ({"model": VQA["vqav2-opt-2.7b"]().model}, DataError, "vision, qformer, the language model's"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(data: Path, tmp_path: Path, case: str) -> None:
    changes, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words):
        run(questions(**changes), data, tmp_path / "out")


def test_captions_ask_nothing(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="but nothing is asked"):
        run(captions(prompts=("a {} of",)), data, tmp_path / "out")


def test_a_text_branch_of_another_shape(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot give the text branch"):
        run(questions(text_start="mini"), data, tmp_path / "out")


def test_the_papers_numbers() -> None:
    """BLIP-2, section 3.4, tables 7 and 8."""
    recipes = {
        name: make() for name, make in {**STAGE2, **CAPTION, **VQA}.items() if not name.startswith("mini")
    }
    numbers = {
        name: (o.batch, o.lr, o.min_lr, o.warmup, o.steps, o.betas, o.layer_decay, r.image_size, r.prompts)
        for name, r in recipes.items()
        for o in [r.optim]
    }
    stage2, fine = (1e-4, 5e-5, 2000, 80_000, (0.9, 0.98), 1.0, 0, ("",)), (1e-5, 0.0, 1000)
    betas, caption = (0.9, 0.999), ("a photo of",)
    asks, short = ("Question: {} Answer:",), ("Question: {} Short answer:",)
    assert numbers == {
        "blip2-opt-2.7b": (1920, *stage2),
        "blip2-opt-6.7b": (1920, *stage2),
        "blip2-flan-t5-xl": (1520, *stage2),
        "coco-opt-2.7b": (256, *fine, 11_065, betas, 1.0, 364, caption),
        "coco-opt-6.7b": (256, *fine, 11_065, betas, 0.95, 364, caption),
        "coco-flan-t5-xl": (256, *fine, 11_065, betas, 1.0, 364, caption),
        "vqav2-opt-2.7b": (128, *fine, 82_165, betas, 0.95, 490, asks),
        "vqav2-opt-6.7b": (128, *fine, 82_165, betas, 0.9, 490, asks),
        "vqav2-flan-t5-xl": (128, *fine, 82_165, betas, 0.95, 490, short),
    }
    assert all(r.optim.weight_decay == 0.05 and r.optim.dtype == "bfloat16" for r in recipes.values())
    tuned = [recipes[name] for name in recipes if name in {**CAPTION, **VQA}]
    assert len(tuned) == 6 and all(r.train_encoder and r.recompute_encoder for r in tuned)
    assert all(recipes[name].reads_prompt == (name in VQA) for name in recipes)


def train(*arguments: object) -> Any:
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


def test_the_commands(data: Path, tmp_path: Path) -> None:
    """As a user runs them, with sets of their own on a small captioner."""
    common = ["--data", data, "--runs", tmp_path, "--set", f"start={data / 'opt'}"]
    small = ["--set", "train.steps=2", "--set", "train.batch=4"]
    short = ["--set", "prompts={}"]  # the Q-Former of these tests has room for 16 tokens
    mine = ["--set", "sources.0.path=captions.json"]
    result = train("caption", "--recipe", "mini-captions", *common, *small, *mine)
    assert result.exit_code == 0 and "8 samples in 1 sources" in result.output, result.output
    assert load_captioner(str(tmp_path / "mini-captions" / "model")).image_size == 32
    asked = [
        *common,
        *small,
        *short,
        "--set",
        "text_start=first",
        "--set",
        'sources=[{"path": "questions.json"}]',
    ]
    result = train("vqa", "--recipe", "mini-vqa", *asked, "--set", "image_size=64")
    assert result.exit_code == 0, result.output
    assert load_captioner(str(tmp_path / "mini-vqa" / "model")).image_size == 64
    result = train("vqa", "--recipe", "mini-vqa", *asked)
    assert result.exit_code == 1 and "image_size: 64 then, 0 now" in result.output
    result = train("vqa", "--recipe", "mini-vqa", *asked, "--set", "sources.0.path=captions.json")
    assert result.exit_code == 1 and 'a row needs "image", "question" and "answer"' in result.output
    result = train("caption", "--recipe", "mini-captions", *common, "--set", "sources.0.path=questions.json")
    assert result.exit_code == 1 and '"image" and "caption"' in result.output


def test_dry_runs(data: Path, tmp_path: Path) -> None:
    def rows(output: str) -> dict[str, list[int]]:
        return {
            line.split()[0]: [int(n.replace(",", "")) for n in line.split()[1:]]
            for line in output.splitlines()[2:-2]
        }

    result = train("caption", "--recipe", "coco-opt-2.7b", "--dry-run", "--set", "chunk=8")
    table = rows(result.output)
    assert table["language"] == [0, 2_651_596_800] and table["vision"][1] == 0 and table["vision"][0] > 980e6
    assert "11,065 of 256 pairs" in result.output and "364 px, prompts 'a photo of'" in result.output
    result = train("stage2", "--recipe", "blip2-flan-t5-xl", "--dry-run")
    table = rows(result.output)
    assert (
        table["vision"][0] == 0 and 2.7e9 < table["language"][1] < 2.9e9 and 100e6 < table["all"][0] < 110e6
    )
    common = ["--dry-run", "--data", data, "--set", f"start={data / 'opt'}", "--set", "text_start=first"]
    result = train("vqa", "--recipe", "mini-vqa", *common)
    made = load_captioner(str(data / "opt"), device="cpu", dtype="float32").net
    assert rows(result.output)["language"][1] == sum(p.numel() for p in made.language.parameters())
    result = train("stage2", "--recipe", "mini-captioner", "--dry-run")
    assert result.exit_code == 1 and "give its folder with --language" in result.output
    result = train("vqa", "--recipe", "mini-vqa", "--dry-run", "--runs", tmp_path, "--set", "start=x")
    assert result.exit_code == 1 and "There is no model to start from" in result.output


def test_layer_decay_of_a_captioner(data: Path) -> None:
    """Blocks get less the deeper they lie, all else the whole rate; the language model is not trained at all."""
    net = load_captioner(str(data / "opt"), device="cpu", dtype="float32").net
    net.requires_grad_(True).language.requires_grad_(False)
    names = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert not any(name.startswith("language.") for name in names)
    scales = dict(zip(names, learning_rate_scales(names, 0.9), strict=True))
    depth = len(net.vision.backbone.blocks)
    assert scales[f"vision.backbone.blocks.{depth - 1}.norm1.weight"] == pytest.approx(0.9)
    assert scales["vision.backbone.blocks.0.norm1.weight"] == pytest.approx(0.9**depth)
    assert scales["vision.backbone.pos_embed"] == pytest.approx(0.9 ** (depth + 1))
    assert all(scale == 1.0 for name, scale in scales.items() if not name.startswith("vision."))
    groups = make_optimizer(
        [p for p in net.parameters() if p.requires_grad], OPTIM, list(scales.values())
    ).param_groups
    assert {round(group["scale"], 6) for group in groups} == {round(s, 6) for s in scales.values()}


@pytest.mark.parametrize("name", [*STAGE2, *CAPTION, *VQA])
def test_every_recipe_takes_settings(name: str) -> None:
    recipe = {**STAGE2, **CAPTION, **VQA}[name]()
    got = with_settings(recipe, ["train.batch=64", "start=x"])
    assert got.optim.batch == 64 and got.start == "x"


def test_settings_of_questions() -> None:
    changed = with_settings(
        VQA["mini-vqa"](), ['sources=[{"path": "q.json", "annotations": "a.json"}]', "model=none"]
    )
    assert changed.sources == (QuestionConfig("q.json", annotations="a.json"),)
    with pytest.raises(TrainingError, match="QuestionConfig has no 'anotations'; did you mean 'annotations'"):
        with_settings(VQA["mini-vqa"](), ['sources=[{"path": "q.json", "anotations": "a.json"}]'])


def test_a_damaged_picture_is_replaced_and_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    rows = [{"image": f"{n}.png", "question": "is it red?", "answer": "a"} for n in ("red", "bad")]
    (tmp_path / "q.json").write_text(json.dumps(rows))
    said: list[str] = []
    chosen = questions(
        sources=(QuestionConfig(str(tmp_path / "q.json")),), optim=replace(OPTIM, steps=1, batch=4)
    )
    run_finetune(chosen, data, tmp_path, tmp_path / "out", say=said.append)
    assert any("samples replaced: it cannot be read" in line for line in said)
    assert any("question 1 (bad.png)" in line for line in said)
