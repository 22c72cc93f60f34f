"""`qseek evaluate` scores what tiny models write or results files hold, by parts of a set, and continues a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from shard_writing import write_shard
from tiny import SIDE, tiny_checkpoint, tiny_config, tiny_net, tiny_tokenizer, write_pictures
from tiny_language import save_tiny_captioner

from engine.checkpoints.saving import save_checkpoint
from engine.datasets import picture_reading
from engine.evaluation.caption_metrics import score_captions
from engine.models.loading import load_captioner, load_model
from engine.pictures.opening import open_picture
from engine.pictures.squares import squash
from ui.cli.main import main

IDS = (42, 73, 91)
NAMES = [f"COCO_val2014_{number:012d}.jpg" for number in IDS]
SCORES = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D"]
REFERENCES = {
    42: ["a red dog", "the dog runs"],
    73: ["a cat on the house"],
    91: ["green snow", "blue snow in the house"],
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "itg": tiny_checkpoint(folder / "tiny-itg"),
        "opt": save_tiny_captioner("opt", folder / "tiny-opt"),
    }


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "images", NAMES)
    return tmp_path / "images"


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_json(tmp_path / "captions_val2014.json", make_coco_file())


def make_coco_file(**changes: Any) -> dict[str, Any]:
    photos = [{"id": id_, "file_name": name} for id_, name in zip(IDS, NAMES, strict=True)]
    texts = [{"image_id": id_, "caption": text} for id_, captions in REFERENCES.items() for text in captions]
    return {"images": photos, "annotations": texts} | changes


@pytest.fixture
def vqa_files(tmp_path: Path) -> list[Path]:
    questions = [
        {"image_id": IDS[n // 2], "question": f"what is {n}?", "question_id": 100 + n} for n in range(6)
    ]
    people = [{"answer": text} for text in "abcccccccc"]
    kinds = ("number", "other")
    answers = [{"question_id": 100 + n, "answer_type": kinds[n % 2], "answers": people} for n in range(6)]
    questions_file = write_json(tmp_path / "q.json", {"data_subtype": "val2014", "questions": questions})
    return [questions_file, write_json(tmp_path / "a.json", {"annotations": answers})]


def write_json(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def run_evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def read_pictures(images: Path) -> np.ndarray:
    return np.stack([squash(open_picture(images / name), SIDE) for name in NAMES])


def test_captions_of_the_itg_head_are_written_and_scored(
    models: dict[str, Path], images: Path, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = tmp_path / "out.json"
    result = run_evaluate(
        "caption", coco, "--images", images, "--model", models["itg"], "--save", save, "--max-length", 12
    )
    assert result.exit_code == 0, result.output
    model = load_model(str(models["itg"]))
    keys = model.compute_photo_keys(model.encode_patches(read_pictures(images)))
    expected = model.write_best_captions(keys, min_length=9, max_length=13)  # [DEC] is counted
    assert json.loads(save.read_text()) == [
        {"image_id": id_, "caption": text} for id_, text in zip(IDS, expected, strict=True)
    ]
    assert len(set(expected)) > 1
    monkeypatch.setattr("engine.models.retrieval_model.BEAM_BATCH", 10)
    assert model.write_best_captions(keys, min_length=9, max_length=13) == expected, (
        "two photos at a time, then one"
    )
    lines = result.stdout.splitlines()
    assert lines[0].startswith("captions_val2014.json, ") and "ITG head, 5 beams, 8 to 12 tokens" in lines[0]
    assert lines[0].endswith("): 3 photos, 5 references, percent")
    assert lines[2] == f"| | {' | '.join(SCORES)} | photos |"
    scores = score_captions(expected, list(REFERENCES.values()))
    assert lines[4] == f"| all | {' | '.join(f'{scores[name]:.1f}' for name in SCORES)} | 3 |"


def test_captions_of_a_language_model_are_scored_and_continue_a_prompt(
    models: dict[str, Path], images: Path, coco: Path
) -> None:
    options = ["caption", coco, "--images", images, "--model", models["opt"], "--json"]
    result = run_evaluate(*options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    expected = load_captioner(str(models["opt"])).caption(read_pictures(images))
    assert report["scores"] == pytest.approx(score_captions(expected, list(REFERENCES.values())))
    assert (report["num_photos"], report["unit"], report["parts"]) == (3, "percent", {})
    assert '"two", 5 beams' in json.loads(run_evaluate(*options, "--prompt", "two").stdout)["how"]


def test_a_shard_is_a_set(models: dict[str, Path], images: Path, tmp_path: Path) -> None:
    members = {}
    for id_, name in zip(IDS, NAMES, strict=True):
        members |= {f"{id_}.jpg": (images / name).read_bytes()}
        members |= {f"{id_}.json": json.dumps({"captions": REFERENCES[id_]}).encode()}
    shard = write_shard(tmp_path / "set-000.tar", members)
    result = run_evaluate("caption", shard, "--model", models["itg"], "--max-length", 12, "--limit", 2)
    assert result.exit_code == 0, result.output
    assert (
        "set-000.tar (the first 2), " in result.stdout
        and ": 2 photos, 3 references, percent" in result.stdout
    )


def write_predictions(path: Path, **changes: str) -> Path:
    texts = {str(id_): captions[0] for id_, captions in REFERENCES.items()} | changes
    return write_json(path, [{"image_id": int(id_), "caption": text} for id_, text in texts.items()])


def test_a_results_file_is_scored_without_a_model(coco: Path, tmp_path: Path) -> None:
    path = write_predictions(tmp_path / "r.json")
    result = run_evaluate("caption", coco, "--predictions", path)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("captions_val2014.json, r.json: 3 photos, 5 references, percent\n")
    assert json.loads(run_evaluate("caption", coco, "--predictions", path, "--json").stdout)["scores"][
        "BLEU-1"
    ] == pytest.approx(100)


def test_nocaps_is_scored_by_domain(tmp_path: Path) -> None:
    domains = ["in-domain", "out-domain", "out-domain"]
    photos = [{"id": i, "file_name": n, "domain": d} for i, n, d in zip(IDS, NAMES, domains, strict=True)]
    nocaps = write_json(tmp_path / "nocaps.json", make_coco_file(images=photos))
    path = write_predictions(tmp_path / "r.json", **{"91": "a dog"})
    report = json.loads(run_evaluate("caption", nocaps, "--predictions", path, "--json").stdout)
    assert list(report["parts"]) == ["in-domain", "out-domain"]
    assert report["parts"]["in-domain"] == pytest.approx(
        {"num_photos": 1, **score_captions([REFERENCES[42][0]], [REFERENCES[42]])}
    )
    out = score_captions([REFERENCES[73][0], "a dog"], [REFERENCES[73], REFERENCES[91]])
    assert report["parts"]["out-domain"] == pytest.approx({"num_photos": 2, **out})
    assert "| out-domain | " in run_evaluate("caption", nocaps, "--predictions", path).stdout


def test_without_java_the_scores_but_spice_are_given_with_a_note(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run_evaluate("caption", coco, "--predictions", write_predictions(tmp_path / "r.json"), "--spice")
    assert result.exit_code == 0 and "| CIDEr-D | photos |" in result.stdout
    assert "Note: SPICE needs Java" in result.stderr and "SPICE needs Java" in result.stdout


def test_spice_is_the_mean_over_the_photos(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.evaluation.spice.spice", lambda ours, theirs: np.array([10.0, 20.0, 60.0]))
    result = run_evaluate(
        "caption", coco, "--predictions", write_predictions(tmp_path / "r.json"), "--spice", "--json"
    )
    assert json.loads(result.stdout)["scores"]["SPICE"] == pytest.approx(30)


def test_answers_to_vqa_are_written_and_scored_by_type(
    models: dict[str, Path], images: Path, vqa_files: list[Path], tmp_path: Path
) -> None:
    save = tmp_path / "answers.json"
    result = run_evaluate("vqa", *vqa_files, "--images", images, "--model", models["opt"], "--save", save)
    assert result.exit_code == 0, result.output
    photos = read_pictures(images)[[0, 0, 1, 1, 2, 2]]
    expected = load_captioner(str(models["opt"])).answer(photos, [f"what is {n}?" for n in range(6)])
    rows = json.loads(save.read_text())
    assert rows == [{"question_id": 100 + n, "answer": text} for n, text in enumerate(expected)]
    assert "| | accuracy | questions |" in result.stdout and "length penalty -1" in result.stdout

    answers = write_json(
        tmp_path / "r.json", [{**row, "answer": "c" if n % 2 else "b."} for n, row in enumerate(rows)]
    )
    report = json.loads(run_evaluate("vqa", *vqa_files, "--predictions", answers, "--json").stdout)
    assert report["scores"]["accuracy"] == pytest.approx(65)
    assert report["parts"]["answer type: number"] == pytest.approx({"num_questions": 3, "accuracy": 30})


def test_answers_to_gqa_are_written_and_scored(models: dict[str, Path], images: Path, tmp_path: Path) -> None:
    write_pictures(images, ["n1.jpg"])
    rows = {f"20{n}": {"imageId": "n1", "question": "what?", "answer": "dog"} for n in range(2)}
    gqa, save = write_json(tmp_path / "testdev_balanced_questions.json", rows), tmp_path / "s.json"
    result = run_evaluate("vqa", gqa, "--images", images, "--model", models["opt"], "--save", save)
    assert result.exit_code == 0, result.output
    assert [row["questionId"] for row in json.loads(save.read_text())] == ["200", "201"]
    texts = {"200": "The dog.", "201": "cat"}
    right = write_json(
        tmp_path / "r.json", [{"question_id": id_, "answer": text} for id_, text in texts.items()]
    )
    assert "| all | 50.0 | 2 |" in run_evaluate("vqa", gqa, "--predictions", right).stdout


def test_texts_without_references_are_only_written(
    models: dict[str, Path], images: Path, vqa_files: list[Path], tmp_path: Path
) -> None:
    bare, save = write_json(tmp_path / "test.json", make_coco_file(annotations=[])), tmp_path / "s.json"
    options = ["--images", images, "--model", models["opt"], "--beams", 1]
    for arguments in (["caption", bare], ["vqa", vqa_files[0]]):
        refused = run_evaluate(*arguments, *options)
        assert refused.exit_code == 1 and "--save" in refused.stderr
        result = run_evaluate(*arguments, *options, "--save", save)
        assert result.exit_code == 0 and result.stdout == "" and len(json.loads(save.read_text())) in (3, 6)


def test_a_stopped_run_is_continued(
    models: dict[str, Path], images: Path, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["caption", coco, "--images", images, "--model", models["opt"], "--json", "--beams", 1]
    whole = json.loads(run_evaluate(*options).stdout)
    monkeypatch.setattr("engine.models.caption_model.CAPTION_BATCH", 1)
    calls, original = [], picture_reading.read_pictures

    def read_or_interrupt(samples: Any, size: int) -> Any:
        calls.append(len(samples))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(samples, size)

    monkeypatch.setattr(picture_reading, "read_pictures", read_or_interrupt)
    save = tmp_path / "s.json"
    stopped = run_evaluate(*options, "--save", save)
    assert (
        stopped.exit_code == 130
        and "Stopped. The same command goes on from here." in stopped.stderr
        and not save.exists()
    )
    continued = run_evaluate(*options, "--save", save)
    assert continued.exit_code == 0 and len(calls) == 4, "one photo was left to write about"
    assert json.loads(continued.stdout)["num_kept"] == 2 and save.exists()
    assert json.loads(continued.stdout)["scores"] == pytest.approx(whole["scores"])


def test_photos_that_are_missing_or_damaged_are_refused_or_left_out(
    models: dict[str, Path], images: Path, coco: Path
) -> None:
    options = ["caption", coco, "--images", images, "--model", models["itg"], "--max-length", 12]
    (images / NAMES[1]).unlink()
    result = run_evaluate(*options)
    assert result.exit_code == 1 and result.stdout == "" and f"  {NAMES[1]}" in result.stderr
    assert "1 photo is missing" in result.stderr and "--allow-missing" in result.stderr
    assert "**1 photo left out: not comparable**" in run_evaluate(*options, "--allow-missing").stdout
    (images / NAMES[0]).write_bytes(b"no picture")
    result = run_evaluate(*options, "--allow-missing")
    assert result.exit_code == 0 and "1 photo could not be read" in result.stderr
    assert "**2 photos left out" in result.stdout and ": 1 photo, 2 references" in result.stdout
    write_pictures(images, [NAMES[1]])
    assert "1 photo is missing" in run_evaluate(*options).stderr
    for name in NAMES:
        (images / name).write_bytes(b"no picture")
    assert "None of the photos could be read" in run_evaluate(*options, "--allow-missing").stderr


def test_wrong_input_is_refused_in_plain_words(
    models: dict[str, Path], images: Path, coco: Path, vqa_files: list[Path], tmp_path: Path
) -> None:
    other = write_predictions(tmp_path / "other.json", **{"5": "a dog"})
    write_json(tmp_path / "few.json", json.loads(other.read_text())[:1])
    half = write_json(tmp_path / "half.json", make_coco_file(annotations=make_coco_file()["annotations"][:2]))
    strange = write_json(tmp_path / "strange.json", make_coco_file(images=[{"id": 1, "file_name": "a.jpg"}]))
    silent = tmp_path / "silent"
    save_checkpoint(silent, tiny_net(replace(tiny_config(), has_captions=False)), tiny_tokenizer())
    with_images = ["--images", images]
    cases: list[tuple[list[object], int, str]] = [
        (["caption", coco, "--predictions", other], 1, "1 photo that the set does not have (the first is 5)"),
        (["caption", coco, "--predictions", tmp_path / "few.json"], 1, "2 photos of the set's 3 without a caption"),
        (["caption", coco, "--predictions", tmp_path / "none.json"], 1, "none.json cannot be read: No such file"),
        (["caption", coco, "--predictions", other, "--save", other], 2, "Leave --save and --limit out"),
        (["caption", half, *with_images], 1, "2 of the 3 photos in"),
        (["caption", strange, *with_images], 1, "captions of 3 photos that it does not list"),
        (["caption", tmp_path / "none.json"], 1, "none.json"),
        (["caption", tmp_path / "none-*.tar"], 1, "No shard"),
        (["caption", coco, "--images", tmp_path], 1, "None of the 3 pictures is in"),
        (["caption", coco, *with_images, "--min-length", 9, "--max-length", 8], 2, "9, but --max-length is 8."),
        (["caption", coco, *with_images, "--model", models["itg"], "--max-length", 17], 1, "writes at most 15 tokens"),
        (["caption", coco, *with_images, "--model", models["itg"], "--max-length", 9, "--prompt", "a"], 1, "no prompt"),
        (["caption", coco, *with_images, "--model", silent], 1, "blip2-opt-2.7b"),
        (["caption", coco, *with_images, "--save", tmp_path / "no" / "s.json"], 1, "its folder is missing"),
        (["vqa", *vqa_files, *with_images, "--model", models["itg"]], 1, "blip2-opt-2.7b"),
        (["vqa", *vqa_files, *with_images], 2, "No model is named"),
        (["vqa", vqa_files[0], *with_images, "--model", models["opt"]], 1, "no answers to compare with"),
        (["vqa", coco, *with_images, "--model", models["opt"]], 1, "0 hold questions and 1 hold annotations"),
        (["vqa", *vqa_files, "--predictions", other], 1, '"question_id"'),
    ]  # fmt: skip
    for arguments, code, words in cases:
        result = run_evaluate(*arguments)
        assert result.exit_code == code and words in result.stderr, (arguments, result.output)
        assert "Traceback" not in result.output and result.stdout == ""
