"""Labels of a photo or of a teacher become captions; the classifier equals the teacher's original."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from capfilt_runs import CONFIG, read_shard_json, run_in_workspace, run_train_command
from PIL import Image
from random_teachers import write_random_teacher
from reference import draw_normal, load_golden
from shard_writing import write_shard

from engine.datasets.photo_numbers import PhotoSets
from engine.datasets.tar_shards import find_shards, read_shards
from engine.errors import DataError
from training.capfilt.capfilt import run_capfilt
from training.capfilt.capfilt_config import check_capfilt_config
from training.capfilt.photo_labels import Labeller, label_captions

NAMES = ["background", "ox", "pizza, pizza pie", "golden retriever"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a teacher of random weights whose classifier gives different pictures different labels."""
    folder = write_random_teacher(tmp_path_factory.mktemp("teacher"))
    with np.load(folder / "mobilenet_v2.npz") as as_stored:
        weights = dict(as_stored)
    number = len(weights) // 2
    random = np.random.default_rng(0)
    weights[f"conv{number}.weight"] = random.normal(size=(4, 1280, 1, 1)).astype(np.float32)
    weights[f"conv{number}.bias"] = np.zeros(4, np.float32)
    np.savez(folder / "mobilenet_v2.npz", **weights)
    (folder / "imagenet_labels.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def random_pictures(count: int) -> list[Image.Image]:
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 255, (40, 60, 3), np.uint8)) for _ in range(count)]


def test_every_name_of_a_label_becomes_a_caption_of_every_text() -> None:
    texts = ("{label}", "a photo of {a}")
    assert label_captions("English springer", texts) == ["English springer", "a photo of an English springer"]
    assert label_captions("pizza, pizza pie", ("{a}",)) == ["a pizza", "a pizza pie"]
    assert label_captions("", texts) == label_captions(" , ", texts) == label_captions("ox", ()) == []


def test_the_labels_of_shards_are_read(workspace: Path) -> None:
    picture = (workspace / "photos" / "a.png").read_bytes()
    labels = ["tench", "  sea lion ", 7, None]
    members = {}
    for number, label in enumerate(labels):
        members |= {f"{number}.png": picture, f"{number}.json": json.dumps({"label": label}).encode()}
    write_shard(workspace / "data" / "labelled-000.tar", members)
    expected = ["tench", "sea lion", "", ""]
    shards = find_shards(["labelled-*.tar"], workspace / "data")
    assert [picture.label for picture in read_shards(shards)] == expected
    photos = PhotoSets(["labelled-*.tar"], workspace / "data")
    assert [photos[n].label for n in range(4)] == expected


def test_a_label_competes_or_stays(workspace: Path) -> None:
    picture = (workspace / "photos" / "a.png").read_bytes()
    shard = {"a.png": picture, "a.json": b'{"label": "pizza, pie"}', "b.png": picture}
    write_shard(workspace / "data" / "labelled-000.tar", shard)
    config = replace(CONFIG, pictures=("labelled-*.tar",), label_texts=("{label}", "the {label}"))
    named = {"pizza", "the pizza", "pie", "the pie"}
    beside, plain = read_shard_json(run_in_workspace(workspace, "kept", replace(config, originals="kept")))
    assert set(beside["captions"][:4]) == named and beside["synthetic"] == [False] * 4 + [True] * 2
    assert plain["synthetic"] == [True] * 2
    ranked, _ = read_shard_json(
        run_in_workspace(workspace, "ranked", replace(config, originals="ranked", keep=9))
    )
    assert named < set(ranked["captions"]) and ranked["scores"] == sorted(ranked["scores"])[::-1]
    none, _ = read_shard_json(run_in_workspace(workspace, "none", config))
    assert none["synthetic"] == [True] * 2
    # Nothing is drawn, so that labels are the only captions.
    alone = read_shard_json(
        run_in_workspace(workspace, "alone", replace(config, originals="ranked", per_photo=0, keep=4))
    )
    assert len(alone) == 1 and set(alone[0]["captions"]) == named


def test_the_teacher_labels_what_has_no_label(workspace: Path, teacher: Path) -> None:
    """The labels follow from the teacher's probabilities; a photo's own label goes before the teacher's."""
    for name, letter in (("plain-000", "a"), ("plain-001", "e")):
        assert PhotoSets([f"{name}.tar"], workspace / "data")[0].key == letter
    labeller = Labeller(teacher, 0.0, "cpu")
    opened = [Image.open(workspace / "photos" / f"{letter}.png").convert("RGB") for letter in "abcdefg"]
    labels = labeller.label_pictures(opened)
    assert set(labels) <= {"", *NAMES[1:]} and any(labels)
    config = replace(CONFIG, originals="kept", label_texts=("{label}",), label_least=0.0)
    run_capfilt(config, workspace / "data", workspace / "runs", workspace / "runs" / "out", teacher=teacher)
    for fields, label in zip(read_shard_json(workspace / "runs" / "out"), labels, strict=True):
        is_drawn = fields["synthetic"]
        originals = [text for text, drawn in zip(fields["captions"], is_drawn, strict=True) if not drawn]
        assert sorted(originals) == sorted(label_captions(label, ["{label}"]))


def test_a_picture_gets_a_label_only_where_the_classifier_is_sure(teacher: Path) -> None:
    labeller, pictures = Labeller(teacher, 0.0, "cpu"), random_pictures(6)
    labels = labeller.label_pictures(pictures)
    # A picture gets the label alone that it gets in a batch.
    assert labels == [label for picture in pictures for label in labeller.label_pictures([picture])]
    mirrored = [picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures]
    assert labels == labeller.label_pictures(mirrored)
    labeller.min_probability = 1.1
    assert labeller.label_pictures(pictures) == [""] * 6
    labeller.min_probability = 0.0
    labeller.names = ["is background", *NAMES[1:]]
    # Background is no label.
    labeller.bias_C[0] = 1e4
    assert labeller.label_pictures(pictures) == [""] * 6


def test_the_classifier_equals_its_original(tmp_path: Path) -> None:
    labeller = Labeller(write_random_teacher(tmp_path, num_classes=1001), 0.5, "cpu")
    _, expected = load_golden("i_classifier")
    pixels = draw_normal(602, (2, 3, 224, 224)).clamp(-1, 1)
    torch.testing.assert_close(
        labeller.compute_probabilities(pixels), expected["probabilities"], atol=1e-5, rtol=1e-3
    )
    assert labeller.names[1].startswith("tench") and len(labeller.names) == 1001


def test_bad_label_settings_and_incomplete_teachers_are_refused(
    workspace: Path, teacher: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, originals="kept", label_least=0.5)
    for changes, words in (
        ({"label_texts": ("a photo",)}, "it needs {label}"),
        ({"label_texts": ("{name}",)}, "it needs {label}"),
        ({"label_texts": ("{label} {",)}, "it needs {label}"),
        ({"label_least": 50.0}, "it is a probability, 0 to 1"),
        ({"originals": "none"}, "labels that nothing uses"),
        ({"label_texts": ()}, "labels that nothing uses"),
    ):
        with pytest.raises(DataError, match=words):
            check_capfilt_config(replace(config, **changes))
    with pytest.raises(DataError, match="give the teacher's folder with --teacher"):
        run_capfilt(config, workspace / "data", workspace / "runs", workspace / "runs" / "out")
    with pytest.raises(DataError, match="There is no teacher at"):
        Labeller(tmp_path, 0.5, "cpu")
    (teacher / "imagenet_labels.txt").write_text("one\n")
    with pytest.raises(DataError, match="1 names for 4 classes"):
        Labeller(teacher, 0.5, "cpu")
    (teacher / "imagenet_labels.txt").unlink()
    with pytest.raises(DataError, match="No names of classes"):
        Labeller(teacher, 0.5, "cpu")
    result = run_train_command(workspace, "originals=kept", "label_least=0.5")
    assert result.exit_code == 1 and "--teacher" in result.stderr and "Traceback" not in result.output
