"""The writer of a record that lies at a URL: written here as any other, and uploaded whole by a thread of its own."""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .log import RecordLog, check_resumable, record_name
from .place import below, check_place, read_bytes, write_bytes
from .read import read_run
from .run import Point, RecordError, Status
from .upload import EVERY, Uploader

FLUSH_SECONDS = 60.0
"""How long the end of a run waits for its record's last upload."""
READ_SECONDS = 60.0
"""How long a resumed run waits for the record that it goes on with."""


class RemoteLog:
    """`RecordLog` for a folder behind a URL.

    Object stores cannot append. So the record is written to a file of this machine first, as ever (the spool), and a
    thread replaces the object with it whenever it has grown, at most every ten seconds and a fiftieth of the time: a
    record is bounded by a few MB. What is not uploaded yet travels in the checkpoint (`unsent`), so a run that goes on
    elsewhere has all of it. A failed upload is tried again for as long as the run lasts.

    Attributes:
        path: the record's URL.
        run_id: the run's name.
        attempt: 1 for a new run, one more with each resume.
        messages: what the log found out of order when it opened.
    """

    def __init__(self, url: str, log: RecordLog, say: Callable[[str], None], uploaded: int, every: float) -> None:
        self.path = url
        self.run_id, self.attempt, self.messages = log.run_id, log.attempt, log.messages
        self._log, self._say = log, say
        self._uploader = Uploader(
            log.path, lambda content: write_bytes(url, content), say, uploaded=uploaded, every=every
        )
        self._process = os.getpid()
        atexit.register(self.close)  # a script that ends without `close`
        self._uploader.grown()

    @classmethod
    def create(
        cls, folder: str, run_id: str, header: dict[str, Any], say: Callable[[str], None], *, every: float = EVERY
    ) -> RemoteLog:
        """Start `<folder>/isoflop-<run_id>.jsonl` with its header line; the network is left to the thread.

        Raises:
            RecordError: the URL's packages are missing, or the spool can't be written.
        """
        check_place(folder)
        url = str(below(folder, record_name(run_id)))
        return cls(url, RecordLog.create(spool_of(folder), run_id, header), say, 0, every)

    @classmethod
    def resume(
        cls,
        folder: str,
        run_id: str,
        step: int,
        *,
        expected: dict[str, Any] | None = None,
        unsent: dict[str, Any] | None = None,
        say: Callable[[str], None],
        every: float = EVERY,
    ) -> RemoteLog:
        """Go on with a record after its checkpoint of `step`, as `RecordLog.resume` does.

        Args:
            unsent: `RemoteLog.unsent` of the checkpoint.

        Raises:
            RecordError: of the kinds of `RecordLog.resume`; or neither this machine nor the URL has the record.
        """
        check_place(folder)
        url = str(below(folder, record_name(run_id)))
        spool = spool_of(folder)
        path = spool / record_name(run_id)
        try:
            here = path.read_bytes()
        except OSError:
            here = b""
        there = _read_in_time(url, optional=bool(here) or (unsent or {}).get("offset") == 0)
        content = _whole(here, there, unsent or {})
        if not content:
            raise RecordError(f"Expected a record to resume at {url}, got none. Set record_dir= to its folder.")
        if content != here:
            spool.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_bytes(content)
            try:
                check_resumable(read_run(part), step, expected or {})
            except RecordError:
                part.unlink()
                raise
            os.replace(part, path)
        return cls(url, RecordLog.resume(path, step, expected=expected), say, len(there), every)

    @property
    def closed(self) -> bool:
        """Whether the log is closed."""
        return self._log.closed

    def point(self, point: Point) -> None:
        """Append one point."""
        self._log.point(point)
        self._uploader.grown()

    def event(self, name: str, /, **fields: Any) -> None:
        """Append an event of any name."""
        self._log.event(name, **fields)
        self._uploader.grown()

    def end(self, step: int, status: Status, **totals: Any) -> None:
        """Append the end of this attempt."""
        self._log.end(step, status, **totals)
        self._uploader.grown()

    def unsent(self) -> dict[str, Any]:
        """The lines not yet uploaded: a checkpoint carries them, so that nothing is missing where the run goes on."""
        offset = self._uploader.uploaded
        with open(self._log.path, "rb") as stream:
            stream.seek(offset)
            return {"offset": offset, "lines": stream.read().decode("utf-8", "replace")}

    def close(self, timeout: float = FLUSH_SECONDS) -> None:
        """Close the file and wait for its upload, `timeout` seconds at most; more than once does no harm."""
        if self.closed or os.getpid() != self._process:  # a forked child has its parent's exit functions
            return
        atexit.unregister(self.close)
        self._log.close()
        if self._uploader.flush(timeout):
            self._log.path.unlink(missing_ok=True)
            return
        reason = self._uploader.error
        told = f"it took more than {timeout:g} s" if reason is None else f"{type(reason).__name__}: {reason}"
        self._say(f"the end of the record is not at {self.path} ({told}): all of it is in {self._log.path}")


def spool_of(folder: str) -> Path:
    """The folder of this machine where records for a URL are written; the same for each process of this user."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    digest = hashlib.sha256(folder.encode()).hexdigest()[:16]
    top = Path(tempfile.gettempdir()) / f"isoflop-{user}"
    top.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and top.stat().st_uid != os.getuid():  # somebody else's, in a folder that all may write to
        top = Path(tempfile.mkdtemp(prefix="isoflop-"))
    return top / digest


def _whole(here: bytes, there: bytes, unsent: dict[str, Any]) -> bytes:
    """The record with nothing missing, from the spool, the object and the checkpoint; each a beginning of it, or none.

    Another machine may have gone on with the object since; then the spool here is no longer a continuation of it.
    """
    offset, lines = unsent.get("offset", 0), str(unsent.get("lines", "")).encode()
    carried = there[:offset] + lines if len(there) >= offset else there
    if not carried.startswith(there):  # the object is further, or went on elsewhere
        carried = there
    return here if here.startswith(carried) else carried


def _read_in_time(url: str, *, optional: bool) -> bytes:
    """The object; empty where there is none. In a thread, for a network may hang.

    Raises:
        RecordError: it can't be read, unless that is `optional`.
    """
    found: list[bytes | Exception] = []

    def read() -> None:
        try:
            found.append(read_bytes(url))
        except FileNotFoundError:
            found.append(b"")
        except Exception as error:  # of any file system's own kind
            found.append(error)

    thread = threading.Thread(target=read, name="isoflop-download", daemon=True)
    thread.start()
    thread.join(READ_SECONDS)
    came = found[0] if found else TimeoutError(f"nothing within {READ_SECONDS:g} s")
    if isinstance(came, bytes):
        return came
    if optional:
        return b""
    raise RecordError(f"Expected a record that can be read at {url}, got: {came}") from came
