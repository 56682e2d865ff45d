"""Runs a target on numbered cases: the number is the seed, so a case that fails can be run again by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from random import Random

Target = Callable[[Random, Path], None]


class Lost(AssertionError):
    """Case `number` let something come out that should not."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


def run_case(target: Target, number: int, folder: Path) -> None:
    """One case.

    Raises:
        Lost: which case it was, from what went wrong.
    """
    try:
        target(Random(f"{target.__name__} {number}"), folder)
    except Exception as error:
        raise Lost(number, f"{target.__name__}, case {number}: {type(error).__name__}: {error}"[:2000]) from error


def run_cases(target: Target, cases: int, folder: Path, seconds: float = float("inf"), first: int = 0) -> int:
    """Cases `first` … until there were so many or the time is over; returns how many there were."""
    until = time.monotonic() + seconds
    for done in range(cases):
        if time.monotonic() > until:
            return done
        run_case(target, first + done, folder)
    return cases
