"""Records below a log folder: found without following links, opened only where they really lie inside."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Stamp:
    """What tells that a file has changed."""

    size: int  # bytes
    modified: int  # nanoseconds since 1970
    file: tuple[int, int]  # device and inode: another one was put in its place


@dataclass(frozen=True)
class Scan:
    """What lies below a folder.

    Attributes:
        files: stamp of each record by its path from the folder, with "/".
        links: folders and records that are links; never followed.
        unread: folders that can't be listed.
    """

    files: dict[str, Stamp]
    links: int = 0
    unread: int = 0


def scan(root: str, on_first: Callable[[], None] = lambda: None) -> Scan:
    """Look for `isoflop-*.jsonl` below a folder; nothing raises.

    Args:
        root: the folder.
        on_first: called as soon as one is found: a large folder takes a while.
    """
    files: dict[str, Stamp] = {}
    links, unread, folders = 0, 0, [""]
    while folders:
        below = folders.pop()
        try:
            with os.scandir(os.path.join(root, below) if below else root) as entries:
                for entry in entries:
                    path = f"{below}/{entry.name}" if below else entry.name
                    is_record = entry.name.startswith("isoflop-") and entry.name.endswith(".jsonl")
                    try:
                        if entry.is_symlink():
                            links += is_record or entry.is_dir()
                        elif entry.is_dir(follow_symlinks=False):
                            folders.append(path)
                        elif is_record and entry.is_file(follow_symlinks=False):
                            if not files:
                                on_first()
                            files[path] = stamp_of(entry.stat(follow_symlinks=False))
                    except OSError:  # it vanished meanwhile
                        continue
        except OSError:
            unread += 1
    return Scan(files, links, unread)


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file's status."""
    return Stamp(status.st_size, status.st_mtime_ns, (status.st_dev, status.st_ino))


def open_inside(root: str, path: str) -> BinaryIO:
    """Open a regular file that really lies below a folder.

    Args:
        root: the folder.
        path: from the folder.

    Raises:
        OSError: it is a link, a pipe or device, lies elsewhere, or is gone.
    """
    full, inside = os.path.join(root, path), os.path.realpath(root)
    no_link_no_wait = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    stream = os.fdopen(os.open(full, os.O_RDONLY | no_link_no_wait), "rb")
    try:
        status, real = os.fstat(stream.fileno()), os.path.realpath(full)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("it is no regular file")
        # what was opened is what lies there, also where a folder on the way was just replaced by a link
        if os.path.commonpath([inside, real]) != inside or not os.path.samestat(status, os.stat(real)):
            raise OSError("it lies outside of the log folder")
    except (OSError, ValueError) as error:
        stream.close()
        raise OSError(f"{path}: {error}") from None
    return stream
