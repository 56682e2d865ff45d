"""The boundary between isoflop and the training run: an error inside costs one log line, never the run.

Every hook that a trainer calls, and every part that can fail on its own, is a boundary; `BOUNDARIES` lists them all
with what is missing after a failure. Messages go through `logging`, for a warning under an error filter would raise.
Logging may fail too: a user's handler may raise, and standard output may be closed.
"""

from __future__ import annotations

import functools
import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

logger = logging.getLogger("isoflop")

Function = TypeVar("Function", bound=Callable[..., Any])

BOUNDARIES: dict[str, str] = {}
"""Name of each boundary → what is missing from the run after it has failed."""


def declare(boundary: str, missing: str) -> str:
    """Register a boundary; returns its name."""
    BOUNDARIES[boundary] = missing
    return boundary


TERMINAL = declare("the terminal's line", "no line is printed")


class Guard:
    """The boundaries of one monitor that have failed and stepped aside, each with its error (`aside`)."""

    def __init__(self) -> None:
        self.aside: dict[str, str] = {}
        self._warned: set[str] = set()

    def failed(self, boundary: str, error: Exception) -> None:
        """Step aside after an error: one warning, with the traceback at debug level.

        Raises:
            Exception: `error` itself, where a signal's handler raised it: it is meant for the training that the signal
                interrupted, such as a time limit's.
        """
        if _raised_by_a_signal(error):
            raise error
        if boundary in self.aside:
            return
        try:
            self.aside[boundary] = f"{type(error).__name__}: {error}"
        except Exception:  # an error that can't even be printed
            self.aside[boundary] = type(error).__name__
        warn(
            "%s failed (%s) and steps aside: %s. Training goes on.",
            boundary,
            self.aside[boundary],
            BOUNDARIES[boundary],
        )
        _log(logging.DEBUG, "the error in %s", boundary, exc_info=error)

    def once(self, text: str, *args: object) -> None:
        """Warn the first time only."""
        if text not in self._warned:
            self._warned.add(text)
            warn(text, *args)

    def tell(self, say: Callable[[str], None], line: str) -> None:
        """Print a line that is no warning; `logging.getLogger("isoflop").setLevel(logging.WARNING)` silences it."""
        if logger.level <= logging.INFO and self.open(TERMINAL):
            with self.part(TERMINAL):
                _print(say, line)

    @contextmanager
    def part(self, boundary: str) -> Iterator[None]:
        """Run a part that may fail: an error makes it step aside and goes no further."""
        try:
            yield
        except Exception as error:  # the boundary: whatever it is, it must not reach training
            self.failed(boundary, error)

    def open(self, boundary: str) -> bool:
        """True unless the part has failed."""
        return boundary not in self.aside


def warn(text: str, *args: object) -> None:
    """Log a warning."""
    _log(logging.WARNING, text, *args)


def _log(level: int, text: str, *args: object, exc_info: Exception | None = None) -> None:
    try:
        logger.log(level, "isoflop: " + text, *args, exc_info=exc_info)
    except Exception as error:  # a user's handler, a closed stderr: nothing can be reported
        if _raised_by_a_signal(error):
            raise


def _print(say: Callable[[str], None], line: str) -> None:
    try:
        say(line)
    except UnicodeEncodeError:  # a terminal whose alphabet has no "·"
        say(line.encode("ascii", "replace").decode())


def _raised_by_a_signal(error: BaseException) -> bool:
    """True if a signal's handler raised the error, not our own code.

    A user's time limit raises TimeoutError this way; torch's SIGCHLD handler reports a dead DataLoader worker.
    """
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in codes:
            return True
        traceback = traceback.tb_next
    return False


def _code(handler: Any) -> Any:
    called = vars(type(handler)).get("__call__")  # Lightning's handlers are objects
    return getattr(handler, "__code__", None) or getattr(called, "__code__", None)


def hook(boundary: str, missing: str) -> Callable[[Function], Function]:
    """Make a method a boundary. Its object has `guard`, a `Guard`; after a failure the method does nothing."""
    declare(boundary, missing)

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
            guard: Guard = self.guard
            if boundary in guard.aside:
                return None
            try:
                return function(self, *args, **kwargs)
            except Exception as error:  # the boundary: whatever it is, it must not reach training
                guard.failed(boundary, error)
                return None

        return guarded  # type: ignore[return-value]

    return decorate
