"""SPICE of captions (Anderson et al. 2016, arXiv:1607.08822), by the authors' program, which needs Java.

The program comes with pycocoevalcap; the language models of its parser do not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.errors import DataError
from engine.evaluation.caption_metrics import Words

PROGRAM = "spice-1.0.jar"
PARSER = ("lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar")
MEMORY = "8G"
OPENED = " ".join(
    f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("lang", "util", "math", "text", "net")
)
"""From Java 9 on (which alone reads JDK_JAVA_OPTIONS) the program may look into Java's own classes only where told."""


def check_spice() -> Path:
    """The folder of the program. Raises DataError saying which of Java, pycocoevalcap and the models is missing."""
    if shutil.which("java") is None:
        raise DataError("SPICE needs Java, and there is no `java` here: install a Java runtime (8 or later).")
    found = importlib.util.find_spec("pycocoevalcap")
    if found is None or not found.submodule_search_locations:
        raise DataError("SPICE needs pycocoevalcap: pip install 'qseek[spice]'.")
    folder = Path(found.submodule_search_locations[0]) / "spice"
    if absent := [name for name in (PROGRAM, *PARSER) if not (folder / name).is_file()]:
        raise DataError(
            f"SPICE's parser is not there ({absent[0]} in {folder}): `python -m pycocoevalcap.spice."
            "get_stanford_models` downloads it (0.4 GB, from nlp.stanford.edu)."
        )
    return folder


def spice(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """(N,) percent: F of the facts (things, properties, relations) that captions and references share.

    Raises DataError as `check_spice` does, and when the program fails, with the end of what it says.
    """
    folder = check_spice()
    rows = [
        {"image_id": row, "test": " ".join(candidate), "refs": [" ".join(one) for one in own]}
        for row, (candidate, own) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as work:
        asked, answered = Path(work) / "captions.json", Path(work) / "scores.json"
        asked.write_text(json.dumps(rows))
        command = [
            "java", f"-Xmx{MEMORY}", "-jar", PROGRAM, str(asked), "-out", str(answered), "-subset", "-silent"
        ]  # fmt: skip
        environment = {**os.environ, "JDK_JAVA_OPTIONS": OPENED}
        ran = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        try:
            if ran.returncode:
                raise ValueError(f"it ended with {ran.returncode}")
            scores = {one["image_id"]: one["scores"]["All"]["f"] for one in json.loads(answered.read_text())}
            return np.array([100 * float(scores[row] or 0.0) for row in range(len(rows))])
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = (ran.stderr.strip() or ran.stdout.strip())[-300:]
            raise DataError(
                f"SPICE's program gave no scores: {error}. It says: {said or 'nothing'}"
            ) from error
