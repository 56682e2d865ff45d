"""All records below the log folders, kept up to date by one thread that works while somebody looks."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from isoflop.record import Run

from .folder import Scan, Stamp, scan, stamp_of
from .tail import Reading, Tail, is_large

_logger = logging.getLogger("isoflop.tab")

LOOK_EVERY = 1.0
"""Seconds between two looks at the files, at the least."""
SCAN_SHARE = 10
"""A folder is listed again after that many times the seconds which listing it took: huge ones take a while."""


@dataclass(frozen=True)
class Root:
    """A log folder; `name` of `--logdir_spec`, or empty."""

    path: str
    name: str = ""


@dataclass(frozen=True)
class Entry:
    """One record.

    Attributes:
        key: names it in requests; a hash of its path, so that no path is ever asked for.
        path: from the log folder, for people.
        reading: what is known of it.
        version: grows with each change.
    """

    key: str
    path: str
    reading: Reading
    version: int

    @property
    def run(self) -> Run | None:
        """What was read."""
        return self.reading.run


@dataclass(frozen=True)
class Snapshot:
    """What is known at one moment.

    Attributes:
        version: changes when anything does, and when the server is started anew.
        entries: by path.
        found: records that there are.
        links: links that were not followed.
        listed: whether the folders were listed once.
    """

    version: str
    entries: tuple[Entry, ...] = ()
    found: int = 0
    links: int = 0
    listed: bool = False

    @property
    def whole(self) -> int:
        """Records that were read to the end."""
        return sum(entry.reading.whole for entry in self.entries)


class RecordStore:
    """Follows the records below some folders.

    The thread starts with the first question, and sleeps while none is asked.
    """

    def __init__(self, roots: Sequence[Root]) -> None:
        self._roots = tuple(roots)
        self._session = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._wake, self._some = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._tails: dict[tuple[int, str], Tail] = {}
        self._entries: dict[tuple[int, str], Entry] = {}
        self._scans: list[Scan] = []
        self._next_scan = 0.0
        self._version = 0
        self._snapshot = Snapshot(self._session)

    def any(self, wait: float = 0.5) -> bool:
        """Whether there is a record; the first time an answer is waited for, so many seconds at the most."""
        self._poke()
        if not self._snapshot.listed:
            self._some.wait(wait)
        return bool(self._snapshot.found) or (self._some.is_set() and not self._snapshot.listed)

    def snapshot(self) -> Snapshot:
        """What is known now; what is new will be in a later one."""
        self._poke()
        return self._snapshot

    def look(self) -> Snapshot:
        """List the folders and read what has changed, here and now."""
        with self._lock:
            self._look()
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
                self.look()
            except Exception:  # a tab must not end TensorBoard; what it knew stays
                _logger.exception("isoflop: the Scaling tab could not read the records")
            time.sleep(LOOK_EVERY)

    def _look(self) -> None:
        files = self._files()
        for gone in self._tails.keys() - files.keys():
            del self._tails[gone]
            self._entries.pop(gone, None)
            self._version += 1
        self._publish(len(files))
        self._some.set()
        new = [place for place in files if place not in self._tails]
        self._tails.update({place: Tail(self._roots[place[0]].path, place[1]) for place in new})
        for place in new:  # a first look at all of them, before any is read to its end
            tail, large = self._tails[place], is_large(files[place])
            self._put(place, tail.glimpse(files[place].size) if large else tail.read(), len(files))
        for place, stamp in files.items():
            if self._tails[place].stamp != stamp:
                self._put(place, self._tails[place].read(), len(files))

    def _files(self) -> dict[tuple[int, str], Stamp]:
        """The records' stamps now; the folders are listed again where that is due."""
        started = time.monotonic()
        if started >= self._next_scan:
            self._scans = [scan(root.path, self._some.set) for root in self._roots]
            self._next_scan = time.monotonic() + SCAN_SHARE * (time.monotonic() - started)
            return {(i, path): stamp for i, found in enumerate(self._scans) for path, stamp in found.files.items()}
        found = {}
        for i, path in self._tails:
            with suppress(OSError):  # gone
                found[i, path] = stamp_of(os.lstat(os.path.join(self._roots[i].path, path)))
        return found

    def _put(self, place: tuple[int, str], reading: Reading, found: int) -> None:
        old, name = self._entries.get(place), self._roots[place[0]].name
        if old is not None and old.reading == reading:
            return
        self._version += 1
        path = f"{name}/{place[1]}" if name else place[1]
        whole = os.path.join(self._roots[place[0]].path, place[1])
        key = hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        self._entries[place] = Entry(key, path, reading, self._version)
        self._publish(found)

    def _publish(self, found: int) -> None:
        entries = tuple(sorted(self._entries.values(), key=lambda entry: entry.path))
        links = sum(each.links for each in self._scans)
        self._snapshot = Snapshot(f"{self._session}-{self._version}", entries, found, links, True)
