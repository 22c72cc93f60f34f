"""Walk a folder and name the photos in it. Decodes nothing: a known suffix is enough to be named."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import QueryError
from engine.pictures.formats import PHOTO_SUFFIXES
from engine.types import Failure

# Folders that systems and NAS boxes fill with thumbnails, rubbish and snapshots; compared in lower case.
# Names with a leading dot (.Trash-1000, ._IMG_1.jpg, .thumbnails) are skipped by that dot.
SKIPPED_FOLDERS = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "recycler"}
    | {"system volume information", "__macosx", "lost+found", "thumbs"}
)


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """A file that may be a photo. path: absolute. size: bytes. mtime_ns: nanoseconds since 1970."""

    path: Path
    size: int
    mtime_ns: int


def scan(
    root: Path, *, follow_links: bool = True, on_unreadable: Callable[[Failure], None] | None = None
) -> Iterator[ScannedFile]:
    """Name the photos beneath a folder, each path once, in the same order every time.

    root: made absolute, its links kept as they are. follow_links: enter linked folders too; each folder is
    entered once, whatever leads to it, and by its real path where that lies beneath the root. Linked files
    are named as photos either way, dangling links are not. on_unreadable: called with each folder or file
    that cannot be looked at; what lies beneath such a folder is unknown, not gone.
    Raises QueryError at once when the root is not there, no folder, or unreadable.
    """
    root = Path(os.path.abspath(root))
    shown = repr(os.fspath(root))
    try:
        if not stat.S_ISDIR(root.stat().st_mode):
            raise QueryError(f"{shown} is a file, not a folder: give the folder that it lies in")
        os.scandir(root).close()
    except (FileNotFoundError, NotADirectoryError):
        raise QueryError(f"there is no folder {shown}: check the spelling, or mount its drive") from None
    except OSError as error:
        raise QueryError(f"cannot read the folder {shown} ({error.strerror}): see its permissions") from None
    return _walk(os.fspath(root), follow_links, on_unreadable or _ignore)


def _ignore(failure: Failure) -> None:
    pass


def _walk(root: str, follow_links: bool, on_unreadable: Callable[[Failure], None]) -> Iterator[ScannedFile]:
    entered: set[tuple[int, int]] = set()  # (device, inode)
    folders = [root]  # a stack; next to enter is the last
    links: deque[str] = deque()  # linked folders wait until the real ones are done
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except FileNotFoundError:  # vanished since its parent was listed
            continue
        except OSError as error:
            on_unreadable(Failure(Path(folder), f"the folder cannot be read: {error.strerror}"))
            continue
        subfolders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    if entry.name.lower() in SKIPPED_FOLDERS:
                        continue
                    if not entry.is_symlink():
                        subfolders.append(entry.path)
                    elif follow_links:
                        links.append(entry.path)
                elif os.path.splitext(entry.name)[1].lower() in PHOTO_SUFFIXES and entry.is_file():
                    status = entry.stat()
                    yield ScannedFile(Path(entry.path), status.st_size, status.st_mtime_ns)
            except FileNotFoundError:
                continue
            except OSError as error:  # a link that leads to itself, a failing disk
                on_unreadable(Failure(Path(entry.path), f"it cannot be looked at: {error.strerror}"))
        folders.extend(reversed(subfolders))
