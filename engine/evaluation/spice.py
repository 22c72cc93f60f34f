"""Compute SPICE of captions (Anderson et al. 2016, arXiv:1607.08822) with the authors' program, which needs Java.

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
OPENED_PACKAGES = " ".join(
    f"--add-opens=java.base/java.{name}=ALL-UNNAMED" for name in ("lang", "util", "math", "text", "net")
)
"""Options for Java: from Java 9 on the program may use Java's own classes only where it is told so.

Java reads them from JDK_JAVA_OPTIONS, which exists from Java 9 on, too."""


def check_spice() -> Path:
    """Return the folder of the program. Raise DataError that names the part that is missing and how to install it.

    The parts are Java, pycocoevalcap and the models of the parser.
    """
    if shutil.which("java") is None:
        raise DataError("SPICE needs Java, and there is no `java` here: install a Java runtime (8 or later).")
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise DataError("SPICE needs pycocoevalcap: pip install 'qseek[spice]'.")
    folder = Path(package.submodule_search_locations[0]) / "spice"
    if absent := [name for name in (PROGRAM, *PARSER) if not (folder / name).is_file()]:
        raise DataError(
            f"SPICE's parser is not there ({absent[0]} in {folder}): `python -m pycocoevalcap.spice."
            "get_stanford_models` downloads it (0.4 GB, from nlp.stanford.edu)."
        )
    return folder


def spice(candidates: Sequence[Words], references: Sequence[Sequence[Words]]) -> np.ndarray:
    """Compute SPICE of each photo, (N,) in percent.

    The score is the F measure of the facts (things, properties, relations) that a caption shares with the references.
    Raise DataError in the cases of `check_spice`, and when the program fails, with the end of its output.
    """
    folder = check_spice()
    rows = [
        {"image_id": row, "test": " ".join(candidate), "refs": [" ".join(text) for text in texts]}
        for row, (candidate, texts) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as work_folder:
        captions_path, scores_path = Path(work_folder) / "captions.json", Path(work_folder) / "scores.json"
        captions_path.write_text(json.dumps(rows))
        process = _run_program(folder, captions_path, scores_path)
        try:
            if process.returncode:
                raise ValueError(f"Exit code {process.returncode}")
            results = json.loads(scores_path.read_text())
            scores = {result["image_id"]: result["scores"]["All"]["f"] for result in results}
            return np.array([100 * float(scores[row] or 0.0) for row in range(len(rows))])
        except (OSError, ValueError, KeyError, TypeError) as error:
            output = (process.stderr.strip() or process.stdout.strip())[-300:]
            raise DataError(
                f"SPICE's program gave no scores ({error}). It says: {output or 'nothing'}"
            ) from error


def _run_program(folder: Path, captions_path: Path, scores_path: Path) -> subprocess.CompletedProcess[str]:
    files = [str(captions_path), "-out", str(scores_path)]
    return subprocess.run(
        ["java", f"-Xmx{MEMORY}", "-jar", PROGRAM, *files, "-subset", "-silent"],
        cwd=folder,
        env={**os.environ, "JDK_JAVA_OPTIONS": OPENED_PACKAGES},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
