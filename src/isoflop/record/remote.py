"""The record of a run at a URL (s3://, gs://, …): written to this machine first, and uploaded whole by a thread."""

from __future__ import annotations

import atexit
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from isoflop.record.paths import below, check_location, read_bytes, write_bytes
from isoflop.record.reader import read_run
from isoflop.record.run import RecordError
from isoflop.record.writer import RecordLog, check_resumable, record_path

EVERY = 10.0  # seconds between two uploads, at least
SHARE = 0.02  # of the time is spent uploading, at most: a record of 3 MB may take a while
BACK_OFF = 300.0  # seconds between two tries while they fail, at most
FLUSH_SECONDS = 60.0  # how long the end of a run waits for its record's last upload
READ_SECONDS = 60.0  # how long a resumed run waits for the record that it goes on with


class RemoteLog(RecordLog):
    """`RecordLog` for a folder behind a URL; made by `start` or `go_on`. Its `path` is the spool, `location` the URL.

    Object stores cannot append. So the record is written to a file of this machine first (the spool), and a thread
    replaces the object with it whenever it has grown, at most every ten seconds and a fiftieth of the time. What is not
    uploaded yet travels in the checkpoint (`unsent`), so a run that goes on elsewhere has all of it.
    """

    _uploader: Uploader | None = None

    @classmethod
    def start(
        cls, folder: str, run_id: str, header: dict[str, Any], say: Callable[[str], None], *, every: float = EVERY
    ) -> RemoteLog:
        """Start `<folder>/isoflop-<run_id>.jsonl` with its header line; the network is left to the thread.

        Raises:
            RecordError: the URL's packages are missing, or the spool can't be written.
        """
        check_location(folder)
        return cls.create(spool_of(folder), run_id, header)._uploaded_to(folder, say, 0, every)

    @classmethod
    def go_on(
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
        check_location(folder)
        path = record_path(spool_of(folder), run_id)
        url = str(below(folder, path.name))
        here = path.read_bytes() if path.is_file() else b""
        there = _read_in_time(url, optional=bool(here) or (unsent or {}).get("offset") == 0)
        content = whole_record(here, there, unsent or {})
        if not content:
            raise RecordError(f"Expected a record to resume at {url}, got none. Set record_dir= to its folder.")
        if content != here:
            part = path.with_suffix(".part")
            write_bytes(part, content)
            try:
                check_resumable(read_run(part), step, expected or {})
            except RecordError:
                part.unlink()
                raise
            os.replace(part, path)
        return cls.resume(path, step, expected=expected)._uploaded_to(folder, say, len(there), every)

    def _uploaded_to(self, folder: str, say: Callable[[str], None], uploaded: int, every: float) -> RemoteLog:
        self.location = str(below(folder, self.path.name))
        self._say, self._process = say, os.getpid()
        self._uploader = Uploader(self.path, self.location, say, uploaded, every)
        atexit.register(self.close)  # a script that ends without `close`
        self._uploader.grown.set()
        return self

    def unsent(self) -> dict[str, Any]:
        """The lines not yet uploaded, for the checkpoint."""
        offset = 0 if self._uploader is None else self._uploader.uploaded
        return {"offset": offset, "lines": self.path.read_bytes()[offset:].decode("utf-8", "replace")}

    def close(self, timeout: float = FLUSH_SECONDS) -> None:
        """Close the file and wait for its upload, `timeout` seconds at most; more than once does no harm."""
        if self.closed:
            return
        super().close()
        if self._uploader is None or os.getpid() != self._process:  # a forked child has its parent's exit functions
            return
        atexit.unregister(self.close)
        if self._uploader.flush(timeout):
            self.path.unlink(missing_ok=True)
            return
        error = self._uploader.error
        reason = f"it took more than {timeout:g} s" if error is None else f"{type(error).__name__}: {error}"
        self._say(f"the end of the record is not at {self.location} ({reason}): all of it is in {self.path}")

    def _write(self, line: bytes) -> None:
        super()._write(line)
        if self._uploader is not None:
            self._uploader.grown.set()


class Uploader:
    """Uploads a growing file to a URL in a thread. Nothing here raises or waits but `flush`, for the time given.

    A failure is said once, and the upload tried again for as long as the run lasts.

    Attributes:
        grown: to be set when the file has grown.
        uploaded: bytes that are known to be there.
        error: why the last try failed; None: it did not.
    """

    def __init__(self, path: Path, url: str, say: Callable[[str], None], uploaded: int, every: float) -> None:
        self.uploaded = uploaded
        self.error: BaseException | None = None
        self.grown, self._ending, self._stopped = threading.Event(), threading.Event(), threading.Event()
        self._path, self._url, self._say, self._every = path, url, say, every
        self._told = False
        self._thread = threading.Thread(target=self._run, name="isoflop-upload", daemon=True)
        self._thread.start()

    def flush(self, timeout: float) -> bool:
        """Wait until all of the file is uploaded, at most `timeout` seconds, and end. True if it is."""
        self._ending.set()
        self.grown.set()
        self._thread.join(timeout)
        self.stop()
        return not self._thread.is_alive()

    def stop(self) -> None:
        """End without waiting, as a kill does."""
        for event in (self._stopped, self._ending, self.grown):
            event.set()

    def _run(self) -> None:
        pause, failures = 0.0, 0
        while True:
            self.grown.wait()
            if self._ending.is_set():  # may have come since the last upload: its pause is not waited for
                self._stopped.wait(min(pause, 1.0))
            else:
                self._ending.wait(pause)
            if self._stopped.is_set():
                return
            self.grown.clear()
            began = time.monotonic()
            if self._upload():
                failures, pause = 0, max(self._every, (time.monotonic() - began) / SHARE)
            else:
                failures += 1
                pause = min(BACK_OFF, self._every * 2.0 ** min(failures, 20))
                self.grown.set()  # tried again
            if self._ending.is_set() and not self.grown.is_set():
                return

    def _upload(self) -> bool:
        try:
            content = self._path.read_bytes()
            if len(content) > self.uploaded:
                write_bytes(self._url, content)
                self.uploaded = len(content)
            self.error = None
        except BaseException as error:  # whatever it is, it must not reach training
            self.error = error
            if not self._told:
                self._told = True
                self._say(
                    f"the record could not be uploaded ({type(error).__name__}: {error}). Training goes on, and so "
                    f"does the record in {self._path}; uploading it is tried again"
                )
        return self.error is None


def spool_of(folder: str) -> Path:
    """The folder of this machine where records for a URL are written; the same for each process of this user."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    top = Path(tempfile.gettempdir()) / f"isoflop-{user}"
    top.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and top.stat().st_uid != user:  # somebody else's, in a folder that all may write to
        top = Path(tempfile.mkdtemp(prefix="isoflop-"))
    return top / hashlib.sha256(folder.encode()).hexdigest()[:16]


def whole_record(here: bytes, there: bytes, unsent: dict[str, Any]) -> bytes:
    """The record with nothing missing, from the spool, the object and the checkpoint; each a beginning of it, or none.

    Another machine may have gone on with the object since; then the spool here is no longer a continuation of it.
    """
    offset, lines = unsent.get("offset", 0), str(unsent.get("lines", "")).encode()
    carried = there[:offset] + lines if len(there) >= offset else there
    if not carried.startswith(there):  # the object is further, or went on elsewhere
        carried = there
    return here if here.startswith(carried) else carried


def _read_in_time(url: str, *, optional: bool) -> bytes:
    """The object; empty where there is none, or it can't be read and is `optional`. In a thread: a network may hang."""
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
