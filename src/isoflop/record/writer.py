"""The append-only writer of one run's record: a line an event, each written whole by one system call."""

from __future__ import annotations

import errno
import os
import re
import secrets
import threading
import time
import weakref
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

from isoflop.record.lines import encode, encode_point
from isoflop.record.paths import Location
from isoflop.record.reader import read_run
from isoflop.record.run import (
    SCHEMA_VERSION,
    Point,
    RecordBusy,
    RecordError,
    RecordFinished,
    RecordMismatch,
    Run,
    Status,
)

try:
    import fcntl
except ImportError:  # Windows: no advisory lock
    fcntl = None  # type: ignore[assignment]

_BINARY = getattr(os, "O_BINARY", 0)  # Windows: no translation of newlines
_OPEN: weakref.WeakSet[RecordLog] = weakref.WeakSet()
_Log = TypeVar("_Log", bound="RecordLog")


def new_run_id() -> str:
    """A name that sorts by time: UTC and 24 random bits, like 20261122-051233-a1b2c3."""
    return f"{datetime.now(timezone.utc):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def record_path(folder: str | os.PathLike[str], run_id: str) -> Path:
    """Where a run's record lies: `<folder>/isoflop-<run_id>.jsonl`."""
    return Path(folder) / f"isoflop-{run_id}.jsonl"


class RecordLog:
    """One run's record, open for appending; made by `create` or `resume`.

    A line is in the kernel's hands when a method returns: kill -9 loses none that was written (a power cut
    may). Two processes never tear each other's lines. An advisory lock on the file itself, held until `close`
    or the process's death, tells a second writer.

    Attributes:
        path: the file.
        location: where readers find it: the file, or its URL.
        run_id: the run's name.
        attempt: 1 for a new run, one more with each resume.
        messages: what the log found out of order when it opened, for the caller to say.
    """

    def __init__(self, path: Path, run_id: str, attempt: int, descriptor: int) -> None:
        self.path = path
        self.location: Location = path
        self.run_id = run_id
        self.attempt = attempt
        self.messages: list[str] = []
        self._descriptor = descriptor
        self._torn = False  # the last write stopped inside a line (disk full)
        self._size = 0  # bytes that the file holds at least
        self._one_at_a_time = threading.RLock()  # threads; a signal's handler may close the run within a write
        self._finalizer = weakref.finalize(self, os.close, descriptor)
        _OPEN.add(self)

    @classmethod
    def create(cls: type[_Log], folder: str | os.PathLike[str], run_id: str, header: dict[str, Any]) -> _Log:
        """Start `<folder>/isoflop-<run_id>.jsonl` with its header line. The folder is made if need be.

        Args:
            folder: a local folder.
            run_id: letters, digits, `.`, `_`, `-`; see `new_run_id`.
            header: fields of `Run`, and any others; made plain and bounded by `json_safe`.

        Raises:
            RecordError: the folder can't be made or written, or the file exists.
        """
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,128}", run_id):
            raise RecordError(f"run_id: expected up to 128 letters, digits, '.', '_' or '-', got {run_id!r}")
        if "://" in os.fspath(folder):
            raise RecordError(f"Expected a local folder, got {folder!s}: set record_dir= to one.")
        path = record_path(folder, run_id)
        fixed = {"event": "header", "isoflop": SCHEMA_VERSION, "run_id": run_id}
        line = encode({**fixed, "created": iso_time(time.time()), **header, **fixed})
        try:
            os.makedirs(folder, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | _BINARY, 0o666)
            log = cls(path, run_id, 1, descriptor)
            _lock(descriptor, path)
            log._write(line)
        except OSError as error:
            raise RecordError(
                f"Expected a folder that can be made and written, but {path} gave: {error}. "
                "Set record_dir= to another folder."
            ) from error
        return log

    @classmethod
    def resume(
        cls: type[_Log], path: str | os.PathLike[str], step: int, *, expected: dict[str, Any] | None = None
    ) -> _Log:
        """Go on with a record after its checkpoint of `step`: points beyond it are superseded.

        Args:
            path: the record's file.
            step: optimizer steps done in the checkpoint.
            expected: a header (`{"model": {"class": …}, "parameters": {"total": …}}`) that the record's must
                agree with, where both say.

        Raises:
            RecordBusy: another process is writing it.
            RecordMismatch: it is of another model.
            RecordFinished: it completed beyond `step`.
            RecordError: it can't be read or written, has no header, or is of a newer schema.

        In each case nothing was written to it.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | _BINARY)
        except OSError as error:
            raise RecordError(
                f"Expected a record to resume at {path}, got: {error}. Set record_dir= to its folder."
            ) from error
        try:
            _lock(descriptor, path)
            run = read_run(path)
            check_resumable(run, step, expected or {})
        except BaseException:  # also Ctrl-C: the descriptor and its lock must not stay behind; raised on
            os.close(descriptor)
            raise
        log = cls(path, run.run_id, run.attempts + 1, descriptor)
        if run.end and run.status == "completed" and step > run.end["step"]:
            log.messages.append(f"{path} completed at step {run.end['step']}; resumed at step {step}, a gap.")
        os.lseek(descriptor, -1, os.SEEK_END)  # not empty: it has a header
        if os.read(descriptor, 1) != b"\n":
            log._torn = True  # the next line starts on a line of its own; readers skip the torn one
            log.messages.append(f"{path}: its last line was cut off when the run stopped; it was closed.")
        log.event("resume", attempt=log.attempt, step=step)
        return log

    @property
    def closed(self) -> bool:
        """True after `close`, and in a forked child (a DataLoader's worker)."""
        return not self._finalizer.alive

    def point(self, point: Point) -> None:
        """Append one point."""
        self._write(encode_point(point, self.attempt))

    def event(self, name: str, /, **fields: Any) -> None:
        """Append an event of any name, like `event("note", text="…")`; readers skip names they don't know."""
        self._write(encode({"event": name, **fields, "time": time.time()} | {"event": name}))

    def end(self, step: int, status: Status, **totals: Any) -> None:
        """Append the end of this attempt: optimizer steps done, "completed" or "interrupted", and totals."""
        self.event("end", step=step, status=status, **totals)

    def close(self) -> None:
        """Close the file and let its lock go; more than once does no harm."""
        self._finalizer()

    def _write(self, line: bytes) -> None:
        with self._one_at_a_time:
            if not self._finalizer.alive:
                raise RecordError(f"Expected an open record to write to, but {self.path} was closed.")
            found = os.fstat(self._descriptor)
            if found.st_nlink == 0:
                raise RecordError(f"{self.path} was deleted while the run wrote it; the rest isn't recorded.")
            if found.st_size < self._size:  # what is left may have no header, or half a line
                raise RecordError(f"{self.path} was cut short while the run wrote it; the rest isn't recorded.")
            rest = b"\n" + line if self._torn else line
            size = len(rest)
            try:
                while rest:  # one call, but for a disk that fills up
                    rest = rest[os.write(self._descriptor, rest) :]
            finally:
                self._torn = bool(rest) and (self._torn or len(rest) < size)
                self._size = found.st_size + size - len(rest)


def check_resumable(run: Run, step: int, expected: dict[str, Any]) -> None:
    """Check that a record can be resumed at a step; raises as `RecordLog.resume` does."""
    if run.schema > SCHEMA_VERSION:
        raise RecordError(f"{run.path} is of schema {run.schema}, expected {SCHEMA_VERSION}: upgrade isoflop to go on.")
    for part, key in (("model", "class"), ("parameters", "total")):
        want, found = (expected.get(part) or {}).get(key), getattr(run, part).get(key)
        if want is not None and found is not None and want != found:
            raise RecordMismatch(
                f"Expected a record of {part} {key} {want!r}, but {run.path} is of {found!r}. "
                "Set record_dir= to another folder, or resume the checkpoint of that model."
            )
    if run.end and run.status == "completed" and step < run.end["step"]:
        raise RecordFinished(
            f"{run.path} completed at step {run.end['step']}; going on from step {step} is a branch, which "
            "needs a record of its own.",
            run.run_id,
            run.end["step"],
        )


def _lock(descriptor: int, path: Path) -> None:
    """Take the advisory lock; go on without where the system or the file system has none.

    On the record itself, not by filelock: that needs a file of its own, which would stay in the user's folder after a
    kill, or be truncated where it is the record.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            raise RecordBusy(
                f"{path} is being written by another process; expected to be its only writer. "
                "End that process, or set record_dir= to another folder."
            ) from error


def iso_time(seconds: float) -> str:
    """A unix time as records write it: ISO 8601, UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")


def _close_in_child() -> None:
    # A forked child shares the lock: without this, DataLoader workers that outlive a killed trainer by some
    # seconds would keep its record busy. Closing here doesn't let the parent's lock go.
    for log in list(_OPEN):
        log._one_at_a_time = threading.RLock()  # its holder may not be here
        log.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
