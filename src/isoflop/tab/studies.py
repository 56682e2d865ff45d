"""Studies of the runs that somebody chose: drawn at once, fitted beside in one thread, kept until a run ends."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from isoflop.figures.study import Study, study
from isoflop.tab.records import Entry

_logger = logging.getLogger("isoflop.tab")

KEPT = 8
"""Choices of runs whose studies are kept."""
REST = 3.0
"""A fit is made again after that many times the seconds which it took, while its runs grow."""


FAILED = 10.0
"""Seconds of rest after a fit that could not be made for a reason nobody thought of."""
WAITS = "the fit is still being made"


@dataclass(frozen=True)
class Drawn:
    """What figures are made from now.

    Attributes:
        study: with the latest curves, and the fit where there is one.
        state: "fitted"; "fitting": there is none yet, ends and laws are left out; "older": of the runs some time ago.
        version: changes when one of these does.
    """

    study: Study
    state: str
    version: str


@dataclass
class _Choice:
    """Some runs that somebody looks at."""

    versions: tuple[int, ...] = ()
    now: Study | None = None  # of these versions
    fitted: Study | None = None
    again: float = 0.0  # time.monotonic() from which it may be fitted again
    fits: int = 0
    drawn: Study | None = None  # `now` with the fit of `fitted`


class Desk:
    """Makes studies, and fits the one asked for last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._choices: OrderedDict[tuple[str, ...], _Choice] = OrderedDict()
        self._wanted: _Choice | None = None
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def drawn(self, entries: Sequence[Entry], may_fit: bool = True) -> Drawn:
        """The study of some runs, without waiting for a fit.

        Args:
            entries: the runs.
            may_fit: whether to begin one; not while most runs are still to be read.
        """
        entries = [entry for entry in entries if entry.reading.curve is not None]
        keys, versions = tuple(entry.key for entry in entries), tuple(entry.version for entry in entries)
        with self._lock:
            choice = self._choices.setdefault(keys, _Choice())
            self._choices.move_to_end(keys)
            while len(self._choices) > KEPT:
                self._choices.popitem(last=False)
            if choice.now is None or choice.versions != versions:
                choice.now = study([entry.reading.curve for entry in entries if entry.reading.curve is not None])
                choice.versions, choice.drawn = versions, None
            now, fitted = choice.now, choice.fitted if choice.fitted and goes_on(choice.now, choice.fitted) else None
            if may_fit and now is not fitted and (fitted is None or time.monotonic() >= choice.again):
                self._ask(choice)
            state = "fitting" if fitted is None else "fitted" if fitted.counted == now.counted else "older"
            if choice.drawn is None:
                choice.drawn = without_fit(now) if fitted is None else now.with_fit_of(fitted, WAITS)
            told = hashlib.sha256(repr((keys, versions, choice.fits, state)).encode()).hexdigest()[:16]
            return Drawn(choice.drawn, state, told)

    def _ask(self, choice: _Choice) -> None:
        self._wanted = choice
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="isoflop-fit", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self._lock:
                choice, self._wanted = self._wanted, None
                now = choice.now if choice else None
            if choice is None or now is None or now is choice.fitted:
                continue
            started = time.monotonic()
            try:
                now.fit_all()
            except Exception:  # of one choice; the other runs' figures go on
                _logger.exception("isoflop: the Scaling tab could not fit the runs")
                time.sleep(FAILED)
                continue
            with self._lock:
                choice.fitted, choice.drawn, choice.fits = now, None, choice.fits + 1
                choice.again = time.monotonic() + REST * (time.monotonic() - started)


def without_fit(now: Study) -> Study:
    """A study that fits nothing: no run counts yet."""
    return replace(now, ends=tuple(replace(end, left_out=end.left_out or WAITS) for end in now.ends))


def goes_on(now: Study, fitted: Study) -> bool:
    """Whether a study is of the runs that an earlier fit rests on, and of others perhaps."""
    return {end.run_id for end in fitted.counted} <= {end.run_id for end in now.ends}
