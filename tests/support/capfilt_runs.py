"""Run CapFilt over the small photos of a workspace and read the shards that it wrote.

A workspace is a folder with the folders `data` (pictures) and `runs` (models and output).
"""

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
    ("plain-*.tar",),
    "tiny",
    "tiny",
    per_photo=5,
    keep=2,
    min_tokens=2,
    max_tokens=8,
    photos_at_once=2,
    shard_photos=3,
)
ORIGINAL_CAPTIONS = [
    ("a red dog", "the dog runs"),
    ("a cat",),
    ("snow on the house", "a house", "the house in snow"),
]


def run_in_workspace(workspace: Path, name: str = "out", config: CapfiltConfig = CONFIG) -> Path:
    """Run CapFilt under a name; return the folder of the run."""
    run_capfilt(config, workspace / "data", workspace / "runs", workspace / "runs" / name)
    return workspace / "runs" / name


def read_shard_json(folder: Path) -> list[dict[str, Any]]:
    """Return the JSON object of every sample in the tar shards of a folder, in their order."""
    samples: list[dict[str, Any]] = []
    for path in sorted(folder.glob("*.tar")):
        training_set = open_training_set(SourceConfig(str(path)), folder)
        for row in range(training_set.count):
            start, size = training_set.shards[0].byte_ranges[row][2:]  # type: ignore[union-attr]
            samples.append(json.loads(path.read_bytes()[int(start) : int(start) + int(size)]))
    return samples


def load_matcher(workspace: Path) -> RetrievalModel:
    """Load the retrieval model that ranks the captions of `CONFIG`."""
    return load_captioner_and_matcher(CONFIG, workspace / "runs", "cpu")[1]


def run_train_command(workspace: Path, *changes: str, data: str = "data") -> Result:
    """Run `qseek train capfilt` in this process. changes: settings, given with --set after those of `CONFIG`."""
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
    options = [argument for setting in settings for argument in ("--set", setting)]
    return CliRunner().invoke(main, [*arguments, "--runs", str(workspace / "runs"), *options])
