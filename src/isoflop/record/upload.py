"""Keeps a file of an object store like a local one: uploads it whole, in a thread of its own, whenever it has grown."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

EVERY = 10.0  # seconds between two uploads, at least
SHARE = 0.02  # of the time is spent uploading, at most: a record of 3 MB may take a while
BACK_OFF = 300.0  # seconds between two tries while they fail, at most


class Uploader:
    """Uploads a growing file. Nothing here raises or waits but `flush`, which waits as long as it is told.

    Args:
        path: the file; only ever appended to.
        put: writes a whole object; may raise and may hang.
        say: told once that an upload has failed, and once that the last one was not done.
        uploaded: bytes that are known to be there already.
        every: seconds between two uploads, at least.
        back_off: seconds between two tries while they fail, at most.

    Attributes:
        uploaded: bytes that are known to be there.
        error: why the last try failed; None: it did not.
    """

    def __init__(
        self,
        path: Path,
        put: Callable[[bytes], None],
        say: Callable[[str], None],
        *,
        uploaded: int = 0,
        every: float = EVERY,
        back_off: float = BACK_OFF,
    ) -> None:
        self.uploaded = uploaded
        self.error: BaseException | None = None
        self._path, self._put, self._say = path, put, say
        self._every, self._back_off = every, back_off
        self._changed = threading.Condition()
        # _grown: not all is uploaded; _busy: an upload is under way; _now: don't wait for the next turn
        self._grown = self._busy = self._now = self._ending = self._stopped = self._told = False
        self._thread: threading.Thread | None = None

    def grown(self) -> None:
        """The file has grown: it is uploaded before long."""
        with self._changed:
            self._grown = True
            if self._thread is None and not self._stopped:
                self._thread = threading.Thread(target=self._run, name="isoflop-upload", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float) -> bool:
        """Wait until all of the file is uploaded, at most `timeout` seconds, and end. Whether it is."""
        with self._changed:
            self._now = self._ending = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not (self._grown or self._busy), timeout)
            self._stopped = True
            self._changed.notify_all()
            return done

    def _run(self) -> None:
        pause, failures = 0.0, 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._grown or self._stopped)
                self._changed.wait_for(lambda: self._now or self._stopped, pause)
                if self._stopped:
                    return
                self._grown, self._busy, self._now = False, True, False
            began = time.monotonic()
            error = self._upload()
            with self._changed:
                self.error, self._busy = error, False
                failures = failures + 1 if error else 0
                self._grown = self._grown or error is not None  # tried again
                if self._ending:
                    pause = min(1.0, self._every)
                elif error is not None:
                    pause = min(self._back_off, self._every * 2.0 ** min(failures, 20))
                else:
                    pause = max(self._every, (time.monotonic() - began) / SHARE)
                self._changed.notify_all()

    def _upload(self) -> BaseException | None:
        try:
            content = self._path.read_bytes()
            if len(content) > self.uploaded:
                self._put(content)
                self.uploaded = len(content)
        except BaseException as error:  # whatever it is, it must not reach training
            if not self._told:
                self._told = True
                self._say(
                    f"the record could not be uploaded ({type(error).__name__}: {error}). Training goes on, and so "
                    f"does the record in {self._path}; uploading it is tried again"
                )
            return error
        return None
