"""Write pictures of one colour, and tar files of captioned pictures."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image


def make_png(colour: str, size: tuple[int, int] = (20, 10)) -> bytes:
    """Return the bytes of a PNG file of one colour. size: width and height in pixels."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar file; return its path. members: the name of a file in it -> its content."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
