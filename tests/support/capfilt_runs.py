"""Runs of CapFilt over seven small photos, and what they wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from engine.datasets.captioned_sets import SourceConfig, open_training_set
from engine.models.retrieval_model import RetrievalModel
from training.capfilt.capfilt import run_capfilt
from training.capfilt.capfilt_config import CapfiltConfig
from training.capfilt.caption_candidates import load_captioner_and_matcher
from ui.cli.main import main

CONFIG = CapfiltConfig(
    ("plain-*.tar",), "tiny", "tiny", per_photo=5, keep=2, min_tokens=2, max_tokens=8, photos_at_once=2,
    shard_photos=3,
)  # fmt: skip
ORIGINAL_CAPTIONS = [
    ("a red dog", "the dog runs"),
    ("a cat",),
    ("snow on the house", "a house", "the house in snow"),
]


def run_in_workspace(workspace: Path, name: str = "out", config: CapfiltConfig = CONFIG) -> Path:
    run_capfilt(config, workspace / "data", workspace / "runs", workspace / "runs" / name)
    return workspace / "runs" / name


def read_shard_json(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.tar")):
        source = open_training_set(SourceConfig(str(path)), folder)
        for row in range(source.count):
            text_at, size = source.shards[0].byte_ranges[row][2:]  # type: ignore[union-attr]
            found.append(json.loads(path.read_bytes()[int(text_at) : int(text_at) + int(size)]))
    return found


def load_matcher(workspace: Path) -> RetrievalModel:
    return load_captioner_and_matcher(CONFIG, workspace / "runs", "cpu")[1]


def run_train_command(workspace: Path, *changes: str, data: str = "data") -> Result:
    settings = [
        f"captioner={CONFIG.captioner}",
        "matcher=tiny",
        "pictures=plain-*.tar",
        "max_tokens=8",
        "originals=none",
        "label_least=none",
        "least=none",
        *changes,
    ]
    arguments = ["train", "capfilt", "--recipe", "mini-capfilt", "--data", str(workspace / data)]
    sets = [part for change in settings for part in ("--set", change)]
    return CliRunner().invoke(main, [*arguments, "--runs", str(workspace / "runs"), *sets])
