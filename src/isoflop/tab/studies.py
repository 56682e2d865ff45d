"""Studies of the chosen runs: drawn at once, fitted by one thread beside, kept until a run ends."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from isoflop.figures import Study, study
from isoflop.tab.records import Entry

_logger = logging.getLogger("isoflop.tab")

KEPT = 8
"""Choices of runs whose studies are kept."""
REST = 3.0
"""A fit is repeated after so many times the seconds that it took, while its runs grow."""
FAILED = 10.0
"""Seconds of rest after a fit that failed unexpectedly."""
WAITS = "the fit is still being made"
APART = "of another folder or data set"
TOGETHER = "*"
MOST_GROUP = 200
"""Characters of a group's name."""


@dataclass(frozen=True)
class Drawn:
    """The study that figures are made from now."""

    study: Study  # with the latest curves, and the fit where there is one
    state: str  # "fitted"; "fitting": there is no fit yet; "older": of the runs some time ago
    version: str  # changes when one of these does


@dataclass
class _Choice:
    """Some runs that somebody looks at."""

    versions: tuple[int, ...] = ()
    now: Study | None = None  # of these versions
    fitted: Study | None = None
    again: float = 0.0  # time.monotonic() from which it may be fitted again
    fits: int = 0
    drawn: Study | None = None  # `now` with the fit of `fitted`


class Studies:
    """Makes studies, and fits the one asked for last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._choices: OrderedDict[tuple[tuple[str, ...], tuple[bool, ...]], _Choice] = OrderedDict()
        self._wanted: _Choice | None = None
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None

    def drawn(self, entries: Sequence[Entry], may_fit: bool = True, group: str | None = None) -> Drawn:
        """The study of some runs, without waiting for a fit.

        A fit begins if it may: not while most runs are still to be read. Runs of another `group_of` than `group` are
        drawn, not fitted; None: all are fitted.
        """
        read = [(entry, entry.reading.curve) for entry in entries if entry.reading.curve is not None]
        keys, versions = tuple(entry.key for entry, _ in read), tuple(entry.version for entry, _ in read)
        apart = tuple(group is not None and group_of(entry) != group for entry, _ in read)
        with self._lock:
            choice = self._choices.setdefault((keys, apart), _Choice())
            self._choices.move_to_end((keys, apart))
            while len(self._choices) > KEPT:
                self._choices.popitem(last=False)
            if choice.now is None or choice.versions != versions:
                choice.now = _left_out(study([curve for _, curve in read]), APART, apart)
                choice.versions, choice.drawn = versions, None
            now, fitted = choice.now, choice.fitted
            if fitted and not {end.run_id for end in fitted.counted} <= {end.run_id for end in now.ends}:
                fitted = None  # a run that it was fitted to is gone
            if may_fit and now is not fitted and (fitted is None or time.monotonic() >= choice.again):
                self._ask(choice)
            state = "fitting" if fitted is None else "fitted" if fitted.counted == now.counted else "older"
            if choice.drawn is None:
                choice.drawn = _left_out(now, WAITS) if fitted is None else now.with_fit_of(fitted, WAITS)
            version = hashlib.sha256(repr((keys, apart, versions, choice.fits, state)).encode()).hexdigest()[:16]
            return Drawn(choice.drawn, state, version)

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


def _left_out(now: Study, why: str, which: Sequence[bool] | None = None) -> Study:
    """A study in which some ends, or all, don't count, for a reason."""
    chosen = which or [True] * len(now.ends)
    ends = [
        replace(end, left_out=end.left_out or why) if out else end for end, out in zip(now.ends, chosen, strict=True)
    ]
    return replace(now, ends=tuple(ends))


def group_of(entry: Entry) -> str:
    """What a run is compared with by default: the runs on the same data in the same folder of runs."""
    folder = entry.path.rsplit("/", 2)[0] if entry.path.count("/") > 1 else "."
    data = entry.run.data if entry.run is not None else None
    return f"{folder} · {data}"[:MOST_GROUP] if data else folder[:MOST_GROUP]


def fitted_group(entries: Sequence[Entry], asked: Mapping[str, str]) -> str | None:
    """The group that a request names with `group`, else that of the most runs; None: all are fitted together."""
    groups = Counter(map(group_of, entries))
    named = asked.get("group", "")
    if named == TOGETHER or len(groups) < 2:
        return None
    return named if named in groups else groups.most_common(1)[0][0]
