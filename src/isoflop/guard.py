"""The boundary between isoflop and the training run: an error inside costs one log line, never the run.

Every place where a trainer calls us, and every part that can fail on its own, is a boundary; `BOUNDARIES` lists them
all with what steps aside when they fail. Only `logging` speaks here: a warning under an error filter would raise. Nor
may speaking itself fail: a user's log handler may raise, and standard output may be closed.
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
"""Name of each boundary → what is missing from the run when it has stepped aside."""


def declare(boundary: str, missing: str) -> str:
    """Enter a boundary into the registry; returns its name."""
    BOUNDARIES[boundary] = missing
    return boundary


TERMINAL = declare("the terminal's line", "no line is printed")


class Guard:
    """Which boundaries of one monitor have stepped aside, and why."""

    def __init__(self) -> None:
        self.aside: dict[str, str] = {}
        self._said: set[str] = set()

    def failed(self, boundary: str, error: Exception) -> None:
        """Step aside: one warning, with the traceback at debug level.

        Raises:
            Exception: `error` itself, where a signal's handler has raised it: it is meant for the training that the
                signal came into, like a time limit's.
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
        """Warn of something the user should know, the first time only."""
        if text not in self._said:
            self._said.add(text)
            warn(text, *args)

    def tell(self, say: Callable[[str], None], line: str) -> None:
        """Print a line that is no warning; `logging.getLogger("isoflop").setLevel(logging.WARNING)` silences it."""
        if logger.level <= logging.INFO and self.open(TERMINAL):
            with self.part(TERMINAL):
                _print(say, line)

    @contextmanager
    def part(self, boundary: str) -> Iterator[None]:
        """Run a part of ours that may fail without taking the others along."""
        try:
            yield
        except Exception as error:  # the boundary: whatever it is, it must not reach training
            self.failed(boundary, error)

    def open(self, boundary: str) -> bool:
        """Whether the part has not failed yet."""
        return boundary not in self.aside


def warn(text: str, *args: object) -> None:
    """Warn of something the user should know."""
    _log(logging.WARNING, text, *args)


def _log(level: int, text: str, *args: object, exc_info: Exception | None = None) -> None:
    try:
        logger.log(level, "isoflop: " + text, *args, exc_info=exc_info)
    except Exception as error:  # a user's handler, a closed stderr: there is nobody left to tell
        if _raised_by_a_signal(error):
            raise


def _print(say: Callable[[str], None], line: str) -> None:
    try:
        say(line)
    except UnicodeEncodeError:  # a terminal whose alphabet has no "·"
        say(line.encode("ascii", "replace").decode())


def _raised_by_a_signal(error: BaseException) -> bool:
    """Whether an error came out of a signal's handler, and not out of our own code.

    A user's time limit raises TimeoutError so; a DataLoader's worker that dies is told by torch's SIGCHLD handler.
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
