"""The boundary between isoflop and the training run: an error inside costs one log line, never the run.

Every hook that a trainer calls, and every part that can fail on its own, is a boundary; `BOUNDARIES` lists them all
with what is missing after a failure. Messages go through `logging`, for a warning under an error filter would raise.
Logging may fail too: a user's handler may raise, and standard output may be closed.
"""

from __future__ import annotations

import errno
import functools
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from types import FrameType, TracebackType
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
UNKNOWN = "tokens and FLOPs are unknown from here on"
"""What is missing after a failure in counting."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.EFBIG)
"""Errors of which one is the cause of the others that follow it: they cost one warning in all."""


class Guard:
    """The boundaries of one monitor that have failed and stepped aside, each with its error (`aside`)."""

    def __init__(self) -> None:
        self.aside: dict[str, str] = {}
        self.on_failure: Callable[[], Callable[[], None] | None] = lambda: None
        """A weak reference to what lets go of the training when a boundary fails."""
        self._warned: set[str | int] = set()

    def __reduce__(self) -> tuple[type[Guard], tuple[()]]:
        """In a copy, or another process, nothing has failed yet."""
        return type(self), ()

    def failed(self, boundary: str, error: Exception) -> None:
        """Step aside after an error: one warning, with the traceback at debug level.

        Raises:
            Exception: `error` itself, where a signal's handler raised it: it is meant for the training that the signal
                interrupted, such as a time limit's.
        """
        release = self.on_failure()
        if release is not None:
            release()
        pass_on(error)
        if boundary in self.aside:
            return
        try:
            self.aside[boundary] = f"{type(error).__name__}: {error}"
        except Exception:  # an error that can't even be printed
            self.aside[boundary] = type(error).__name__
        code = getattr(error, "errno", None) or getattr(error.__cause__, "errno", None)
        level = logging.INFO if code in _OF_THE_DISK and code in self._warned else logging.WARNING
        if isinstance(code, int):
            self._warned.add(code)
        text = "%s failed (%s) and is turned off: %s. Training goes on."
        _log(level, text, boundary, self.aside[boundary], BOUNDARIES[boundary])
        _log(logging.DEBUG, "the error in %s", boundary, exc_info=error)

    def once(self, text: str, *args: object) -> None:
        """Warn the first time only."""
        if text not in self._warned:
            self._warned.add(text)
            warn(text, *args)

    def tell(self, say: Callable[[str], None], line: str | Callable[[], str]) -> None:
        """Print a line that is no warning; `logging.getLogger("isoflop").setLevel(logging.WARNING)` silences it."""
        if logger.level > logging.INFO or TERMINAL in self.aside:
            return
        try:
            text = line if isinstance(line, str) else line()
            try:
                say(text)
            except UnicodeEncodeError:  # a terminal whose alphabet has no "·"
                say(text.encode("ascii", "replace").decode())
        except Exception as error:  # the boundary: whatever it is, it must not reach training
            self.failed(TERMINAL, error)

    @contextmanager
    def part(self, boundary: str) -> Iterator[None]:
        """Run a part that may fail: an error makes it step aside and goes no further."""
        try:
            yield
        except Exception as error:  # the boundary: whatever it is, it must not reach training
            self.failed(boundary, error)

    @property
    def counts(self) -> bool:
        """True unless something has failed without which tokens and FLOPs are unknown."""
        return not any(BOUNDARIES[boundary] == UNKNOWN for boundary in self.aside)


def warn(text: str, *args: object) -> None:
    """Log a warning."""
    _log(logging.WARNING, text, *args)


def _log(level: int, text: str, *args: object, exc_info: Exception | None = None) -> None:
    try:
        with _beside_progress_bars():
            logger.log(level, "isoflop: " + text, *args, exc_info=exc_info)
    except Exception as error:  # a user's handler, a closed stderr: nothing can be reported
        pass_on(error)


def _beside_progress_bars() -> Any:
    """Takes tqdm's bars off the terminal for as long as something else is written there."""
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    # without a bar its lock is not touched: made here, it would settle how the user's processes are started
    bars = getattr(tqdm, "_instances", None)
    return tqdm.external_write_mode(file=sys.stderr) if tqdm is not None and bars else nullcontext()


def pass_on(error: Exception) -> None:
    """Raise an error on that a signal's handler has raised: it is meant for the training that the signal interrupted.

    A preemption's handler raises so that the loop saves; a user's time limit raises TimeoutError; torch's SIGCHLD
    handler reports a dead DataLoader worker. To be called wherever an exception of any kind is caught.
    """
    frames: set[FrameType] = set()
    cause: BaseException | None = error
    while cause is not None:
        through = [traceback.tb_frame for traceback in _entries(cause)]
        # code on the way may have made another error of it; what was caught further out is another story
        if frames and not (through and through[0] in frames):
            return
        if _is_handlers(through):
            raise error
        frames.update(through)
        cause = cause.__cause__ or cause.__context__


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns that runs the user's code (a model's `config`, a data set's `info`); None if it fails."""
    try:
        return function(*args)
    except Exception as error:
        pass_on(error)
        return None


def _entries(error: BaseException) -> Iterator[TracebackType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _is_handlers(frames: list[FrameType]) -> bool:
    """True if one of the functions that an error came through is a signal's handler, though it may be one no longer."""
    codes = {_code(signal.getsignal(number)) for number in signal.valid_signals()} - {None}
    return any(frame.f_code in codes for frame in frames) or any(_was_given(*two) for two in pairwise(frames))


def _was_given(caller: FrameType, frame: FrameType) -> bool:
    """True if a function was called with its caller's frame, as Python calls handlers of signals, and no one else."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 0x04)]  # 0x04: *args
    given = [frame.f_locals.get(name) for name in names]
    return any(value is caller or (isinstance(value, tuple) and any(v is caller for v in value)) for value in given)


def _code(handler: Any) -> Any:
    while isinstance(handler, functools.partial):
        handler = handler.func
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
