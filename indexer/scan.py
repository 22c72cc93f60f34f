"""Walk a folder and yield the files in it that may be photos, by their suffix; nothing is decoded."""

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

# Systems and network drives fill these folders with thumbnails, rubbish and snapshots; names are compared in lower
# case. Names with a leading dot (.Trash-1000, ._IMG_1.jpg, .thumbnails) are skipped because of the dot.
SKIPPED_FOLDERS = frozenset(
    {"@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin", "recycler"}
    | {"system volume information", "__macosx", "lost+found", "thumbs"}
)


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """A file that may be a photo. path: its absolute path. size: in bytes. mtime_ns: modification time, ns since
    1970.
    """

    path: Path
    size: int
    mtime_ns: int


def scan(
    root: Path, *, follow_links: bool = True, on_unreadable: Callable[[Failure], None] | None = None
) -> Iterator[ScannedFile]:
    """Yield the photos below a folder, each path once, always in the same order.

    root: the folder; it is made absolute, and its links stay as they are. follow_links: whether linked folders are
    entered, too. Each folder is entered once, however many links lead to it, and by its real path where that lies below
    the root. Linked files are photos in any case, and dangling links never. on_unreadable: called with each folder or
    file that cannot be looked at; files below such a folder are unknown, not gone. Raises QueryError at once when the
    root is not there, is not a folder, or cannot be read.
    """
    root = Path(os.path.abspath(root))
    quoted = repr(os.fspath(root))
    try:
        if not stat.S_ISDIR(root.stat().st_mode):
            raise QueryError(f"{quoted} is a file, not a folder. Give the folder that it lies in.")
        os.scandir(root).close()
    except (FileNotFoundError, NotADirectoryError):
        raise QueryError(f"There is no folder {quoted}. Check the spelling, or mount its drive.") from None
    except OSError as error:
        raise QueryError(
            f"The folder {quoted} cannot be read: {error.strerror}. Check its permissions."
        ) from None
    return _walk(os.fspath(root), follow_links, on_unreadable or _ignore)


def _ignore(failure: Failure) -> None:
    pass


def _walk(root: str, follow_links: bool, on_unreadable: Callable[[Failure], None]) -> Iterator[ScannedFile]:
    entered: set[tuple[int, int]] = set()  # The device and inode of each folder that was entered.
    folders = [root]  # A stack: the last folder is entered next.
    links: deque[str] = deque()  # Linked folders wait until the real ones are done.
    while folders or links:
        folder = folders.pop() if folders else links.popleft()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except FileNotFoundError:  # The folder has vanished since its parent was listed.
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
            except OSError as error:  # A link may lead to itself, or the disk may fail.
                on_unreadable(Failure(Path(entry.path), f"it cannot be looked at: {error.strerror}"))
        folders.extend(reversed(subfolders))
