"""The boundary between isoflop and the training run: an error inside costs one log line, never the run.

Every place where a trainer calls us, and every part that can fail on its own, is a boundary; `BOUNDARIES` lists them
all with what steps aside when they fail. Only `logging` speaks here: a warning under an error filter would raise.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

logger = logging.getLogger("isoflop")

Function = TypeVar("Function", bound=Callable[..., Any])

BOUNDARIES: dict[str, str] = {}
"""Name of each boundary → what is missing from the run when it has stepped aside."""


class Guard:
    """Which boundaries of one monitor have stepped aside, and why."""

    def __init__(self) -> None:
        self.aside: dict[str, str] = {}
        self._said: set[str] = set()

    def failed(self, boundary: str, error: Exception) -> None:
        """Step aside: one warning, with the traceback at debug level."""
        if boundary in self.aside:
            return
        try:
            self.aside[boundary] = f"{type(error).__name__}: {error}"
        except Exception:  # an error that can't even be printed
            self.aside[boundary] = type(error).__name__
        logger.warning(
            "isoflop: %s failed (%s) and steps aside: %s. Training goes on.",
            boundary,
            self.aside[boundary],
            BOUNDARIES[boundary],
        )
        logger.debug("isoflop: the error in %s", boundary, exc_info=error)

    def once(self, text: str, *args: object) -> None:
        """Warn of something the user should know, the first time only."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("isoflop: " + text, *args)

    def note(self, say: Callable[[str], None], text: str) -> None:
        """Tell the user in the terminal, where nothing is wrong that a warning would be due for."""
        if logger.level <= logging.INFO:
            say("isoflop: " + text)

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


def declare(boundary: str, missing: str) -> str:
    """Enter a boundary into the registry; returns its name."""
    BOUNDARIES[boundary] = missing
    return boundary


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
