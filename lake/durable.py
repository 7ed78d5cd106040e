"""Local writes that survive a power cut: a file, its folder, and a Delta commit are on the disk before they count.

An object store answers when an object is durable. A local file system answers when it is in the page cache, so a power
cut may leave a log that names files of zero bytes. `WORLDLAKE_FSYNC=off` skips the flushes, for lakes that may be lost:
docs/explanation/recovery.md has what they cost.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

_OFF = ("off", "0", "false", "no")
UNFINISHED = ".unfinished"
"""The ending of a file that is still being written."""


def write(path: Path, content: bytes) -> None:
    """Write a whole file or replace it as a whole: readers get the old bytes or the new ones.

    Raises:
        OSError: the disk is full or cannot be written; the old file is as it was.
    """
    make_folder(path.parent)
    # Of this call alone: two threads may write the same file at once.
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}{UNFINISHED}")
    try:
        with unfinished.open("xb") as out:
            out.write(content)
            out.flush()
            if is_on():
                os.fsync(out.fileno())
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink()
        raise
    flush_folder(path.parent)


def write_new(path: Path, content: bytes) -> bool:
    """Write a whole file where there is none; whether it did. Of several writers at once one does.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}{UNFINISHED}")
    try:
        write(unfinished, content)
        path.hardlink_to(unfinished)
    except FileExistsError:
        return False
    finally:
        unfinished.unlink(missing_ok=True)
    flush_folder(path.parent)
    return True


def replace(path: Path, old: bytes, new: bytes) -> bool:
    """Replace a file whose content is `old`; whether it did. Of several processes at once one does.

    A process that is paused in here keeps the others out.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        # Who had the lock before has put another file there.
        if not os.path.samestat(os.fstat(file.fileno()), path.stat()) or file.read() != old:
            return False
        write(path, new)
        return True


def flush(path: Path) -> None:
    """Bring a file that another library wrote to the disk, and its folder."""
    if is_on():
        _fsync(path)
        flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    if is_on():
        _fsync(path)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, if they are not there."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_folder(folder.parent)


def is_on() -> bool:
    """Return whether writes are flushed."""
    return os.environ.get("WORLDLAKE_FSYNC", "on").lower() not in _OFF


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
