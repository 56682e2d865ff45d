"""How a ladder's runs go, in the terminal: a table while they do, and what is to be told in the end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table as RichTable

from isoflop.ladder.run import LadderRun, Watching
from isoflop.ladder.state import Folders, RunState, state_of

if TYPE_CHECKING:
    from isoflop.ladder.plan import PlannedRun

EVERY = 1.0  # seconds between two looks at the runs' folders, at least
SHARE = 0.02  # of the time is spent looking, at most
LINES = 15  # rows of a ladder with more runs: those under way and those that failed
_STYLES = {"finished": "green", "running": "cyan", "failed": "red", "stopped": "yellow", "waiting": "dim"}


class Table(Watching):
    """A table that follows the runs' own folders, on stderr; where that is no terminal, a line for each that ends."""

    def __init__(self, runs: Sequence[PlannedRun], folders: Mapping[str, Folders]) -> None:
        self._runs, self._folders = {run.name: run for run in runs}, folders
        self._states = {run.name: state_of(run, folders[run.name]) for run in runs}
        self._over = {name for name, state in self._states.items() if state.stage == "finished"}
        self._every = 1 + len(self._runs) // 100  # of many runs, so many lines at most, and those that fail
        self._stop = threading.Event()
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._console = console
        self._thread = threading.Thread(target=self._follow, name="isoflop-ladder-table", daemon=True)
        if self._live is not None:
            self._live.start()
            self._thread.start()

    def ended(self, name: str) -> None:
        """A run is at its end, or no further attempt is made."""
        self._over.add(name)
        self._states[name] = state = state_of(self._runs[name], self._folders[name])
        if self._live is None and (state.stage != "finished" or len(self._over) % self._every == 0):
            count = f"{len(self._over)}/{len(self._runs)}"
            self._console.print(f"{count} {name}: {state.stage}{_at(state)}", highlight=False, soft_wrap=True)

    def close(self) -> None:
        """The last look."""
        self._stop.set()
        if self._live is not None:
            self._thread.join()
            self._live.stop()

    def _follow(self) -> None:
        pause = 0.0
        while not self._stop.wait(pause):
            began = time.monotonic()
            for name, run in self._runs.items():
                if name not in self._over:
                    self._states[name] = state_of(run, self._folders[name])
            assert self._live is not None
            self._live.update(states_table(list(self._states.values())), refresh=True)
            pause = max(EVERY, (time.monotonic() - began) / SHARE)


def states_table(states: Sequence[RunState]) -> RichTable:
    """The runs' states as a table; of many runs, those that are under way or failed."""
    table = RichTable(box=None, pad_edge=False, header_style="bold", caption=counts(states), caption_justify="left")
    table.add_column("run")
    table.add_column("state")
    for name in ("step", "", "loss", "attempts"):
        table.add_column(name, justify="right")
    shown = states if len(states) <= LINES else [state for state in states if state.stage in ("running", "failed")]
    for state in shown[-LINES:]:
        table.add_row(
            state.name,
            f"[{_STYLES[state.stage]}]{state.stage}[/]",
            f"{state.step:,}",
            f"{state.step / state.steps:.0%}",
            "" if state.loss is None else f"{state.loss:.4f}",
            str(state.attempts or ""),
        )
    return table


def counts(states: Sequence[RunState]) -> str:
    """How many runs are in which state.

    >>> counts([])
    'no runs'
    """
    found: Counter[str] = Counter(state.stage for state in states)
    return ", ".join(f"{found[stage]:,} {stage}" for stage in _STYLES if found[stage]) or "no runs"


def summary_lines(result: LadderRun) -> Iterator[str]:
    """What is told when a ladder's runs are over: how many are finished, and of the others why not."""
    skipped = sum(state.stage == "finished" for state in result.before)
    resumed = [before.name for before in result.before if before.stage != "finished" and before.step]
    known = f" ({skipped:,} of them before)" if skipped else ""
    yield f"{counts(result.states)}{known}" + (f"; {len(resumed):,} went on from where they were" if resumed else "")
    for state in result.of("failed", "stopped", "waiting"):
        yield f"{state.name}: {state.stage}{_at(state)} after {state.attempts} attempts"
        for line in (state.error or "").splitlines()[-4:]:
            yield f"    {line}"
    for state in result.of("running"):
        yield f"{state.name}: another process is at it; it was left alone"


def _at(state: RunState) -> str:
    loss = "" if state.loss is None else f", loss {state.loss:.4f}"
    return f" at step {state.step:,} of {state.steps:,}{loss}"
