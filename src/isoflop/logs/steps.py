"""The optimizer steps of what was logged: which column counts them, what a resume superseded; or a question."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.logs.files import ImportProblem, plain
from isoflop.logs.logged import MAX_STEP, Column, Columns, Logged
from isoflop.logs.names import factor_of, kind_of, role_of

UNSORTED = 0.1
"""Steps that go back more often than this share of the time, without a repetition, are no resumes but disorder."""
LOST = 0.5  # Share of superseded values beyond which it is asked whether the steps are those of one run
SHARED = 0.2  # Share of values with the step of another, unequal one, from which on they are of several runs or ranks
TIMES = 1e9  # No run has so many steps before its first value: seconds since 1970
EPOCHS = 10  # Steps of training to one of an evaluation whose steps are epochs
STANDS = 3  # Values of one step that are a curve logged without steps
FROM_ZERO = "Lightning counts steps from 0 (step 9 is the tenth): one is added"
ASK = "Say which column counts optimizer steps with --step COLUMN, or separates runs with --run COLUMN"
NUMBERED = "metrics were logged without a step: their values are numbered in the order of their times"
STILL = "stands still"
NO_COUNT = "holds other numbers"


def by_step(logged: Logged, step: str | None = None) -> Logged:
    """A run whose columns are by optimizer step, each step once.

    Where the steps go back, a run was resumed: what was logged at that step and beyond before is superseded, as by a
    resume line in a record, counted and told. Of two values of one step the later wins. `step`: the user's column.

    Raises:
        ImportProblem: the steps can't be told, with what to say.
    """
    if not any(logged.columns.values()):
        return logged
    notes = list(logged.notes)
    columns = logged.columns
    for name in [name for name in columns if kind_of(name) == "step" and factor_of(name) != 1.0]:
        columns[name].values = array("d", (columns[name].arrays()[1] * factor_of(name)).round(6).tobytes())
    chosen = _chosen(logged, step)
    if chosen is None and logged.index == "rows":
        rows = np.unique(np.concatenate([column.arrays()[0] for column in columns.values()]))
        number = {name: np.searchsorted(rows, column.arrays()[0]) + 1 for name, column in columns.items()}
        columns = columns.like({name: column.taken(slice(None), number[name]) for name, column in columns.items()})
        notes += ["the file has no column of steps: its rows are numbered"] if not logged.ends else []
    elif chosen is None and logged.index == "calls":
        notes.append("steps are W&B's own: what log(step=) was given, else its calls")
    elif logged.index == "steps":
        columns = _numbered_where_still(columns, notes)
    if chosen is None or logged.index == "steps":
        columns = _tidied(columns, logged, notes if chosen is None else [])
    if chosen is not None:
        columns = _tidied(_at_steps(replace(logged, columns=columns), chosen, notes), logged, notes, chosen)
    return replace(
        logged,
        columns=columns,
        notes=tuple(dict.fromkeys(notes)),
        averaged=logged.averaged or chosen == "train/global_step",  # the Trainer's own key
        numbered=chosen is None and (logged.index == "rows" or NUMBERED in notes),
    )


def _chosen(logged: Logged, step: str | None) -> str | None:
    """The column of steps: the user's, else the first by name that counts; None: the tool's own index."""
    columns = logged.columns
    if step is not None:
        if step not in columns:
            there = logged.shown()
            raise ImportProblem(f"--step: expected one of its columns {there}, got {step!r}", logged.source)
        if _fault(logged, step) == NO_COUNT:
            raise ImportProblem(f"--step {step}: expected whole numbers from 0, but it {NO_COUNT}", logged.source)
        return step
    if logged.index == "steps":
        return None
    told = []
    for name in logged.best("step"):
        if not (fault := _fault(logged, name)):
            return name
        told += [f"{plain(name, 40)} {fault}"] if fault != STILL else []
    if told:
        raise ImportProblem(f"its steps are not clear: {'; '.join(told)}. {ASK}{_others(logged)}", logged.source)
    return None


def _others(logged: Logged) -> str:
    there = logged.shown(unused=True)
    return f"; columns that are not used: {there}" if there else ""


def _fault(logged: Logged, name: str) -> str:
    """Why a column can't be the steps of one run; "": it can."""
    column = logged.columns[name]
    rows, values, _ = column.arrays()
    if not ((values >= 0) & (values <= MAX_STEP / 2)).all() or (values % 1).any():
        return NO_COUNT
    if column.stands():
        return STILL
    if len(values) and values.min() >= TIMES:
        return f"begins at {values.min():,.0f}, as times do"
    losses = [one for other, one in logged.columns.items() if kind_of(other) == "loss"]
    if logged.index == "rows" and losses:  # rows of another metric or split lie in between
        values = values[np.isin(rows, max(losses, key=len).arrays()[0])]
    falls, least, kept = _superseded(values)
    lost = len(values) - int(kept.sum())
    if falls and _is_too_much(lost, least, values) and not _is_disorder(values):
        return f"goes back {falls} times, down to {least:,.0f}: {lost:,} of {len(values):,} rows would be lost"
    return ""


def _superseded(steps: NDArray[Any]) -> tuple[int, float, NDArray[np.bool_]]:
    """How often the steps fall, the least to which they do, and which values no later step supersedes."""
    later = np.minimum.accumulate(steps[::-1])[::-1]
    kept = np.append(steps[:-1] < later[1:], True)
    down = np.flatnonzero(steps[1:] < steps[:-1]) + 1
    return len(down), float(steps[down].min()) if len(down) else 0.0, kept


def _is_too_much(lost: int, least: float, steps: NDArray[Any]) -> bool:
    """True where steps that go back would lose more than half of the values; of two epochs it is just the half."""
    return lost > LOST * len(steps) or (lost == LOST * len(steps) and least <= steps[0])


def _is_disorder(steps: NDArray[Any]) -> bool:
    falls = int((steps[1:] < steps[:-1]).sum())
    return bool(falls > UNSORTED * len(steps) and len(np.unique(steps)) == len(steps))


def _numbered_where_still(columns: Columns, notes: list[str]) -> Columns:
    """Metrics logged without a step have one step in common: a curve in the order of their times."""
    still = {name for name, column in columns.items() if len(column) >= STANDS and not np.ptp(column.arrays()[0])}
    losses = {name for name in columns if kind_of(name) == "loss"}
    if not still & losses:
        return columns
    if any(len(columns[name]) > 1 for name in losses - still):
        names = ", ".join(plain(name, 40) for name in columns if name in still & losses)
        notes.append(f"{names}: logged without a step, beside others with one: left out")
        return columns.like({name: column for name, column in columns.items() if name not in still & losses})
    notes.append(NUMBERED)
    by_time = {name: np.argsort(columns[name].arrays()[2], kind="stable") for name in still}
    numbered = {name: columns[name].taken(order, np.arange(1, len(order) + 1)) for name, order in by_time.items()}
    return columns.like({**columns, **numbered})


def _at_steps(logged: Logged, chosen: str, notes: list[str]) -> Columns:
    """The columns at the steps that one of them holds; of calls without one at the last before."""
    more = logged.more or (1 if chosen == "trainer/global_step" else 0)  # Lightning's key in W&B
    notes += [f"steps are {plain(chosen, 40)}"] if chosen not in ("step", "Step") else []
    notes += [FROM_ZERO] if more else []
    rows, values, _ = logged.columns.pop(chosen).arrays()
    steps = values.astype(np.int64) + more
    moved = {}
    for name in list(logged.columns):
        column = logged.columns.pop(name)  # of a million rows there is room for one copy
        own = column.arrays()[0]
        place = np.searchsorted(rows, own, side="right") - 1
        exact = rows[place] == own
        fits = np.flatnonzero((place >= 0) & (exact | (logged.index != "rows")))
        moved[name] = column.taken(fits, steps[place[fits]])
        if logged.index == "rows" and kind_of(name) == "loss" and len(fits) < len(own):
            without = f"{len(own) - len(fits):,} of {len(own):,} values have no {plain(chosen, 40)}"
            notes.append(f"{plain(name, 40)}: {without}: left out")
    return logged.columns.like({name: column for name, column in moved.items() if len(column)})


def _tidied(columns: Columns, logged: Logged, notes: list[str], chosen: str | None = None) -> Columns:
    """The columns with rising steps, each once; less evaluations by epochs where the steps are the tool's own."""
    tidy = {}
    for name in list(columns):
        told = notes if kind_of(name) in (None, "loss", "own") and (chosen is None or logged.index == "rows") else []
        tidy[name] = _in_order(name, columns.pop(name), logged, told, chosen)
    return columns.like(tidy if chosen else _without_epochs(columns.like(tidy), notes))


def _in_order(name: str, column: Column, logged: Logged, notes: list[str], chosen: str | None) -> Column:
    """A column with rising steps, each once."""
    steps, values, _ = column.arrays()
    called, where = plain(name, 40), f"the steps of {plain(name, 40)}"
    if len(steps) and steps.min() >= TIMES:
        raise ImportProblem(f"{where} begin at {steps.min():,}, as times do. {ASK}", logged.source)
    if (np.diff(steps) > 0).all():
        return column
    if _is_disorder(steps):
        notes.append(f"{called}: its steps are in no order: sorted")
        return column.taken(np.argsort(steps, kind="stable"))
    falls, least, kept = _superseded(steps)
    lost = len(steps) - int(kept.sum())
    of = f"{lost:,} of {len(steps):,} values"
    if falls and chosen is None and _is_too_much(lost, least, steps):
        raise ImportProblem(
            f"{where} go back {falls} times, down to {least:,.0f}; {of} would be lost: several runs in it, or steps "
            f"that begin again. {ASK}",
            logged.source,
        )
    if falls:
        times = "once" if falls == 1 else f"{falls} times"
        notes.append(
            f"{called}: its steps go back {times}, as after a resume: the later values count, {of} are superseded"
        )
    else:
        differ = int(((np.diff(steps) == 0) & (np.diff(values) != 0)).sum())
        if chosen is not None and logged.index == "rows" and kind_of(name) == "loss" and differ >= SHARED * len(steps):
            raise ImportProblem(
                f"{differ + 1:,} of {len(steps):,} values of {called} share their step with another. "
                f"{ASK}{_others(logged)}",
                logged.source,
            )
        notes.append(f"{called}: {of} have the step of a later one, which counts")
    return column.taken(kept)


def _without_epochs(columns: Columns, notes: list[str]) -> dict[str, Column]:
    """Less evaluations whose steps are 0, 1, 2 … epochs, beside a training loss by steps."""
    losses = {name: role.name for name in columns if (role := role_of(name)) and role.kind == "loss" and columns[name]}
    last = max((columns[name].steps[-1] for name, loss in losses.items() if loss == "train"), default=0)
    kept = dict(columns)
    for name, loss in losses.items():
        steps = columns[name].arrays()[0]
        few = steps[0] <= 1 and len(steps) > 2 and EPOCHS * steps[-1] <= last
        if loss != "train" and name not in columns.named and few and (np.diff(steps) == 1).all():
            del kept[name]
            notes.append(
                f"{plain(name, 40)}: its steps {steps[0]} to {steps[-1]} look like epochs, beside {last:,} steps of "
                f"training: left out (--loss {loss}={name} keeps it)"
            )
    return kept
