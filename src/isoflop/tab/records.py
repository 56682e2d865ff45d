"""Records below the log folders, followed while they grow by one thread that works while the tab is looked at.

Links are not followed, and a file is opened only where it really lies inside of the log folder. Of a file that
grew, what was added is read; one that was replaced is read anew. Only the standard library is imported before a record
is read.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from isoflop.record import SMALL, Digest, Point, RecordError, Run, glimpse, read_stream

if TYPE_CHECKING:
    from isoflop.fit.runs import RunCurve

_logger = logging.getLogger("isoflop.tab")

BLOCK = 1 << 22
"""Bytes read at once."""
LOOK_EVERY = 1.0
"""Least seconds between two looks at the files."""
PUBLISH_EVERY = 0.1
"""Least seconds between two snapshots while records are read: each sorts all of them, so one a record is quadratic."""
SCAN_SHARE = 10
"""A folder is listed again after so many times the seconds that listing it took: huge ones take a while."""


# -- the folder --------------------------------------------------------------------------------------------------------


Stamp = tuple[int, int, int, int]
"""Size [bytes], modification [ns since 1970], device and inode of a file: it has changed where they differ."""


def stamp_of(status: os.stat_result) -> Stamp:
    """The stamp of a file's status."""
    return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino


def scan(root: str, on_first: Callable[[], None] = lambda: None) -> tuple[dict[str, Stamp], int]:
    """The stamp of each `isoflop-*.jsonl` below a folder by its path from there, and the number of links.

    Links are not followed; what can't be listed is left out. `on_first` is called as soon as one is found.
    """
    files: dict[str, Stamp] = {}
    links, folders = 0, [""]
    while folders:
        below = folders.pop()
        with suppress(OSError), os.scandir(os.path.join(root, below) if below else root) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}" if below else entry.name
                is_record = entry.name.startswith("isoflop-") and entry.name.endswith(".jsonl")
                with suppress(OSError):  # it vanished meanwhile
                    if entry.is_symlink():
                        links += is_record or entry.is_dir()
                    elif entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif is_record and entry.is_file(follow_symlinks=False):
                        if not files:
                            on_first()
                        files[path] = stamp_of(entry.stat(follow_symlinks=False))
    return files, links


def open_inside(root: str, path: str) -> BinaryIO:
    """Open a regular file that really lies below a folder; OSError: a link or pipe, elsewhere, or gone."""
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


# -- one record --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What is known of one record."""

    run: Run | None  # with the points that determine its end; None: it can't be read as a record
    curve: RunCurve | None = None  # its points, thinned, as columns
    problem: str | None = None  # reason why there is no run, or what was left out
    whole: bool = True  # whether all of the file was looked at


class Tail:
    """Reads one file, and later what was added to it."""

    def __init__(self, root: str, path: str) -> None:
        self.root, self.path = root, path
        self.stamp: Stamp | None = None  # of the file as it was last read
        self._digest = Digest()
        self._before = b""  # the last bytes taken, to tell a file that was written anew in its place

    def glimpse(self, size: int) -> Reading:
        """A first look at a large file, from a few of its lines."""
        try:
            with open_inside(self.root, self.path) as stream:
                return _reading(glimpse(stream, size), self.path, whole=False)
        except OSError as error:
            return _unread(error)

    def read(self) -> Reading:
        """All that the file holds now."""
        old, self.stamp = self.stamp, None
        try:
            with open_inside(self.root, self.path) as stream:
                stamp = stamp_of(os.fstat(stream.fileno()))
                if old is None or stamp[2:] != old[2:] or not self._continues(stream, stamp[0]):
                    self._digest, self._before = Digest(), b""
                stream.seek(self._digest.size)
                left = stamp[0] - self._digest.size  # what the file had when it was opened
                while left > 0 and (block := stream.read(min(BLOCK, left))):
                    left -= len(block)
                    self._digest.feed(block)
                    self._before = (self._before + block)[-64:]
        except OSError as error:
            return _unread(error)
        self.stamp = stamp
        reading = _reading(self._digest.record(), self.path, self._digest.problem)
        if reading.run is not None and reading.run.status != "running":  # one that is resumed is read again
            self._digest, self._before = Digest(), b""
        return reading

    def _continues(self, stream: BinaryIO, size: int) -> bool:
        """Whether the file is the one that was read so far, with nothing or something added."""
        if size < self._digest.size:
            return False
        stream.seek(self._digest.size - len(self._before))
        return stream.read(len(self._before)) == self._before


def _unread(error: OSError) -> Reading:
    return Reading(None, problem=f"it can't be read: {error.strerror or error}")


def _reading(record: bytes, path: str, problem: str | None = None, *, whole: bool = True) -> Reading:
    from isoflop.fit.runs import curve_of_run  # NumPy and SciPy: not while TensorBoard starts

    try:
        run = read_stream(io.BytesIO(record), path)
    except RecordError as error:
        return Reading(None, problem=str(error), whole=whole)
    return Reading(replace(run, points=_ends(run)), curve_of_run(run), problem, whole)


def _ends(run: Run) -> tuple[Point, ...]:
    """Points of the last 5% of steps, the last one of each loss, and the last of all: they determine the end."""
    from isoflop.fit.runs import at_end  # NumPy

    last = {name: point for point in run.points for name, value in point.losses.items() if value is not None}
    late = at_end([point.step for point in run.points], "train")
    kept = {id(point) for point in (*last.values(), *run.points[-1:])}
    return tuple(point for point, end in zip(run.points, late, strict=True) if end or id(point) in kept)


# -- all records -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Root:
    """A log folder; `name` of `--logdir_spec`, or empty."""

    path: str
    name: str = ""


@dataclass(frozen=True, eq=False)
class Entry:
    """One record."""

    key: str  # names it in requests; a hash of its path, so that no path is ever asked for
    path: str  # from the log folder, for people
    reading: Reading
    version: int  # grows with each change

    @property
    def run(self) -> Run | None:
        """What was read."""
        return self.reading.run


@dataclass(frozen=True)
class Snapshot:
    """What is known at one moment."""

    version: str  # changes when anything does, and when the server is started anew
    entries: tuple[Entry, ...] = ()  # by path
    found: int = 0  # number of records that there are
    links: int = 0  # number of links that were not followed
    listed: bool = False  # whether the folders were listed once

    @property
    def whole(self) -> int:
        """Records that were read to the end."""
        return sum(entry.reading.whole for entry in self.entries)


class RecordStore:
    """Follows the records below some folders.

    The thread starts with the first question, and sleeps while none is asked. `any` makes it take a first look alone:
    somebody opened TensorBoard, and may open the tab.
    """

    def __init__(self, roots: Sequence[Root]) -> None:
        self._roots = tuple(roots)
        self._session = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._wake, self._some = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._wanted = False  # by a page of the tab
        self._tails: dict[tuple[int, str], Tail] = {}
        self._entries: dict[tuple[int, str], Entry] = {}
        self._next_scan, self._version, self._links, self._next_publish = 0.0, 0, 0, 0.0
        self._snapshot = Snapshot(self._session)

    def any(self, wait: float = 0.5) -> bool:
        """Whether there is a record; the first time it waits for an answer, so many seconds at the most."""
        self._poke()
        if not self._snapshot.listed:
            self._some.wait(wait)
        return bool(self._snapshot.found) or (self._some.is_set() and not self._snapshot.listed)

    def snapshot(self) -> Snapshot:
        """What is known now; news will be in a later one."""
        self._wanted = True
        self._poke()
        return self._snapshot

    def look(self) -> Snapshot:
        """List the folders and read what has changed, here and now."""
        with self._lock:
            while self._look():
                pass
        return self._snapshot

    def _poke(self) -> None:
        self._wake.set()
        if self._thread is None and self._roots:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="isoflop-tab", daemon=True)
                    self._thread.start()

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            try:
                with self._lock:
                    first = self._look(self._wanted)
                self._wanted = self._wanted and first  # what was only glimpsed at is read next
                if self._wanted:
                    self._wake.set()
            except Exception:  # a tab must not end TensorBoard; what it knew stays
                _logger.exception("isoflop: the Scaling tab could not read the records")
            time.sleep(LOOK_EVERY)

    def _look(self, read: bool = True) -> bool:
        """Take a first look at new records; else, where wanted, read on. Whether there were new ones."""
        files = self._files()
        for gone in self._tails.keys() - files.keys():
            del self._tails[gone]
            self._entries.pop(gone, None)
            self._version += 1
        self._publish(len(files))
        self._some.set()
        new = [place for place in files if place not in self._tails]
        self._tails.update({place: Tail(self._roots[place[0]].path, place[1]) for place in new})
        try:
            for place in new:  # a first look at all of them, before any is read to its end
                tail, size = self._tails[place], files[place][0]
                self._put(place, tail.glimpse(size) if size > SMALL else tail.read(), len(files))
            for place, stamp in files.items() if read and not new else ():
                if self._tails[place].stamp != stamp:
                    self._put(place, self._tails[place].read(), len(files))
        finally:
            self._publish(len(files))
        return bool(new)

    def _files(self) -> dict[tuple[int, str], Stamp]:
        """The records' stamps now; the folders are listed again where that is due."""
        started = time.monotonic()
        if started >= self._next_scan:
            scans = [scan(root.path, self._some.set) for root in self._roots]
            self._links = sum(links for _, links in scans)
            self._next_scan = time.monotonic() + SCAN_SHARE * (time.monotonic() - started)
            return {(i, path): stamp for i, (files, _) in enumerate(scans) for path, stamp in files.items()}
        found = {}
        for i, path in self._tails:
            with suppress(OSError):  # gone
                found[i, path] = stamp_of(os.lstat(os.path.join(self._roots[i].path, path)))
        return found

    def _put(self, place: tuple[int, str], reading: Reading, found: int) -> None:
        root, path = self._roots[place[0]], place[1]
        old = self._entries.get(place)
        if old is not None and old.reading == reading:
            return
        self._version += 1
        key = hashlib.sha256(os.path.join(root.path, path).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        shown = f"{root.name}/{path}" if root.name else path
        self._entries[place] = Entry(key, shown, reading, self._version)
        if time.monotonic() >= self._next_publish:
            self._publish(found)

    def _publish(self, found: int) -> None:
        entries = tuple(sorted(self._entries.values(), key=lambda entry: entry.path))
        self._snapshot = Snapshot(f"{self._session}-{self._version}", entries, found, self._links, True)
        self._next_publish = time.monotonic() + PUBLISH_EVERY
