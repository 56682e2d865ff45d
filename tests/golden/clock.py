"""A clock that stands still until a script moves it: what takes no time on it costs nothing on any machine."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

START = 1_700_000_000.0
"""Seconds since 1970 at which each script begins."""
NAMES = ("time", "monotonic", "perf_counter", "process_time", "thread_time")
REAL: dict[str, Callable[[], Any]] = {name: getattr(time, name) for base in NAMES for name in (base, f"{base}_ns")}

_now: float | None = None  # seconds since the script began; None: no script runs
_thread: int | None = None


def tick(seconds: float) -> None:
    """Time goes by; nothing happens where no script runs."""
    global _now
    if _now is not None:
        _now += seconds


def _scripted(name: str) -> Callable[[], Any]:
    real, whole, origin = REAL[name], name.endswith("_ns"), START if name.startswith("time") else 0.0

    def read() -> Any:
        if _now is None or threading.get_ident() != _thread:  # kept by somebody, or asked by another thread
            return real()
        return round((origin + _now) * 1e9) if whole else origin + _now

    return read


SCRIPTED = {name: _scripted(name) for name in REAL}
_BY_REAL = {id(REAL[name]): SCRIPTED[name] for name in REAL}


@contextmanager
def scripted_clock() -> Iterator[None]:
    """In this thread, all clocks of `time` stand still but for `tick`; also where isoflop has bound one by name."""
    global _now, _thread
    undo = [*_put_into(vars(time)), *_put_into_isoflop()]
    _now, _thread = 0.0, threading.get_ident()
    try:
        yield
    finally:
        _now = _thread = None
        for back in reversed(undo):
            back()


def _put_into(names: dict[str, Any]) -> Iterator[Callable[[], None]]:
    for name, value in list(names.items()):
        if id(value) in _BY_REAL:
            names[name] = _BY_REAL[id(value)]
            yield lambda name=name, value=value: names.__setitem__(name, value)


def _put_into_isoflop() -> Iterator[Callable[[], None]]:
    """Names bound by `from time import …` and defaults of arguments, bound when a module was imported."""
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0].startswith("isoflop")]:
        yield from _put_into(vars(module))
        for value in list(vars(module).values()):
            members = list(vars(value).values()) if isinstance(value, type) else [value]
            for function in members:
                if isinstance(function, FunctionType):
                    yield from _put_into_defaults(function)


def _put_into_defaults(function: FunctionType) -> Iterator[Callable[[], None]]:
    if any(id(value) in _BY_REAL for value in function.__defaults__ or ()):
        before = function.__defaults__
        function.__defaults__ = tuple(_BY_REAL.get(id(value), value) for value in before or ())
        yield lambda: setattr(function, "__defaults__", before)
    if function.__kwdefaults__:
        yield from _put_into(function.__kwdefaults__)
