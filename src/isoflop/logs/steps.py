"""The optimizer steps of what was logged: which column counts them, what a resume superseded; or a question."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.logs.files import ImportProblem, plain
from isoflop.logs.logged import MAX_STEP, Column, Columns, Logged
from isoflop.logs.names import kind_of, role_of, unit_of, words

UNSORTED = 0.1
"""Steps that go back more often than this share of the time, without a repetition, are no resumes but disorder."""
LOST = 0.5  # Share of superseded values beyond which it is asked whether the steps are those of one run
SHARED = 0.2  # Share of values with the step of another, unequal one, from which on they are of several runs or ranks
TIMES = 1e9  # No run has so many steps before its first value: seconds since 1970
EPOCHS = 10  # Steps of training to one of an evaluation whose steps are epochs
STANDS = 3  # Values of one step that are a curve logged without steps
FROM_ZERO = "Lightning counts steps from 0 (step 9 is the tenth): one is added"
ASK = "Say which column counts optimizer steps with --step COLUMN, or separates runs with --run COLUMN"


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
    chosen = _chosen(logged, step)
    columns = logged.columns
    if chosen is None or logged.index == "steps":
        columns = _by_index(logged, notes, told=chosen is None)
    if chosen is not None:
        columns = _by_column(replace(logged, columns=columns), chosen, notes)
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
            raise ImportProblem(f"{logged.source}: --step: expected one of its columns {there}, got {step!r}")
        if (fault := _fault(columns[step])) == NO_COUNT:
            raise ImportProblem(f"{logged.source}: --step {step}: expected whole numbers from 0, but it {fault}")
        return step
    if logged.index == "steps":
        return None
    told = []
    for name in logged.best("step"):
        fault = _fault(columns[name])
        if not fault:
            return name
        told += [f"{plain(name, 40)} {fault}"] if fault != STILL else []
    for name in [*columns.unused, *logged.labels] if logged.index == "rows" else ():
        factor, left = unit_of(words(name))
        if factor != 1.0 and kind_of(" ".join(left)) == "step":
            told.append(f"{plain(name, 40)} counts in thousands or more")
    if told:
        raise ImportProblem(f"{logged.source}: its steps are not clear: {'; '.join(told)}. {ASK}{_others(logged)}")
    return None


def _others(logged: Logged) -> str:
    there = logged.shown(unused=True)
    return f"; columns that are not used: {there}" if there else ""


NUMBERED = "metrics were logged without a step: their values are numbered in the order of their times"
STILL = "stands still"
NO_COUNT = "holds other numbers"


def _fault(column: Column) -> str:
    """Why a column can't be the steps of one run; "": it can."""
    values = column.arrays()[1]
    if not ((values >= 0) & (values <= MAX_STEP / 2)).all() or (values % 1).any():
        return NO_COUNT
    if column.stands():
        return STILL
    if len(values) and values.min() >= TIMES:
        return f"begins at {values.min():,.0f}, as times do"
    falls, least, kept = _superseded(values)
    lost = len(values) - int(kept.sum())
    if falls and lost > LOST * len(values) and not _is_disorder(values):
        return f"goes back {falls} times, down to {least:,.0f}: {lost:,} of {len(values):,} rows would be lost"
    return ""


def _superseded(steps: NDArray[Any]) -> tuple[int, float, NDArray[np.bool_]]:
    """How often the steps fall, the least to which they do, and which values no later step supersedes."""
    later = np.minimum.accumulate(steps[::-1])[::-1]
    kept = np.append(steps[:-1] < later[1:], True)
    down = np.flatnonzero(steps[1:] < steps[:-1]) + 1
    return len(down), float(steps[down].min()) if len(down) else 0.0, kept


def _is_disorder(steps: NDArray[Any]) -> bool:
    falls = int((steps[1:] < steps[:-1]).sum())
    return bool(falls > UNSORTED * len(steps) and len(np.unique(steps)) == len(steps))


def _by_index(logged: Logged, notes: list[str], told: bool) -> Columns:
    """The columns by the tool's own index; numbered, where that is of no use."""
    columns = logged.columns
    if logged.index == "rows":
        rows = np.unique(np.concatenate([column.arrays()[0] for column in columns.values()]))
        columns = columns.like({name: _numbered(column, rows) for name, column in columns.items()})
        notes += ["the file has no column of steps: its rows are numbered"] if not logged.ends else []
    elif logged.index == "calls":
        notes.append("steps are W&B's own: what log(step=) was given, else its calls")
    else:
        columns = _numbered_where_still(columns, notes)
    tidy = {}
    for name, column in columns.items():
        told_of = notes if told and kind_of(name) in (None, "loss", "own") else []
        tidy[name] = _in_order(name, column, logged, told_of)
    return columns.like(_without_epochs(tidy, columns.named, notes))


def _without_epochs(columns: dict[str, Column], named: Collection[str], notes: list[str]) -> dict[str, Column]:
    """Less evaluations whose steps are 0, 1, 2 … epochs, beside a training loss by steps."""
    losses = {name: role.name for name in columns if (role := role_of(name)) and role.kind == "loss" and columns[name]}
    last = max((columns[name].steps[-1] for name, loss in losses.items() if loss == "train"), default=0)
    by_epoch = []
    for name, loss in losses.items():
        steps = columns[name].arrays()[0]
        if loss != "train" and name not in named and steps[0] <= 1 and len(steps) > 2 and EPOCHS * steps[-1] <= last:
            by_epoch += [name] if (np.diff(steps) == 1).all() else []
    for name in by_epoch:
        to = f"{columns[name].steps[0]} to {columns[name].steps[-1]}"
        notes.append(
            f"{plain(name, 40)}: its steps {to} look like epochs, beside {last:,} steps of training: left out (--loss "
            f"{losses[name]}={name} keeps it)"
        )
    return {name: column for name, column in columns.items() if name not in by_epoch}


def _numbered(column: Column, rows: NDArray[np.int64]) -> Column:
    """A column by the number of its row among those with values, from 1."""
    own = column.arrays()[0]
    return column.taken(np.arange(len(own)), np.searchsorted(rows, own) + 1)


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
    return columns.like({name: _by_time(column) if name in still else column for name, column in columns.items()})


def _by_time(column: Column) -> Column:
    return column.taken(np.argsort(column.arrays()[2], kind="stable"), np.arange(1, len(column) + 1))


def _in_order(name: str, column: Column, logged: Logged, notes: list[str]) -> Column:
    """A column with rising steps, each once."""
    steps = column.arrays()[0]
    if len(steps) and steps.min() >= TIMES:
        raise ImportProblem(
            f"{logged.source}: the steps of {plain(name, 40)} begin at {steps.min():,}, as times do. {ASK}"
        )
    if (np.diff(steps) > 0).all():
        return column
    if _is_disorder(steps):
        notes.append(f"{plain(name, 40)}: its steps are in no order: sorted")
        return column.taken(np.argsort(steps, kind="stable"))
    falls, least, kept = _superseded(steps)
    lost = len(steps) - int(kept.sum())
    if falls and lost > LOST * len(steps):
        raise ImportProblem(
            f"{logged.source}: the steps of {plain(name, 40)} go back {falls} times, down to {least:,.0f}; {lost:,} "
            f"of {len(steps):,} values would be lost: several runs in it, or steps that begin again. {ASK}"
        )
    notes.append(_lost(name, falls, lost, len(steps)))
    return column.taken(kept)


def _lost(name: str, falls: int, lost: int, total: int) -> str:
    if not falls:
        return f"{plain(name, 40)}: {lost:,} of {total:,} values have the step of a later one, which counts"
    times = "once" if falls == 1 else f"{falls} times"
    return (
        f"{plain(name, 40)}: its steps go back {times}, as after a resume: the later values count, {lost:,} of "
        f"{total:,} are superseded"
    )


def _by_column(logged: Logged, chosen: str, notes: list[str]) -> Columns:
    """The columns at the steps that one of them holds; of calls without one at the last before."""
    more = logged.more or (1 if chosen == "trainer/global_step" else 0)  # Lightning's key in W&B
    if chosen not in ("step", "Step"):
        notes.append(f"steps are {plain(chosen, 40)}")
    if more:
        notes.append(FROM_ZERO)
    rows, values, _ = logged.columns[chosen].arrays()
    steps = values.astype(np.int64)
    falls, _, kept = _superseded(steps)
    if _is_disorder(steps):
        notes.append(f"{plain(chosen, 40)} is in no order: sorted")
        kept = np.ones(len(steps), dtype=bool)
    elif falls:
        notes.append(_lost(chosen, falls, len(steps) - int(kept.sum()), len(steps)))
    elif logged.index == "rows" and not kept.all():
        kept[:] = True  # columns of rows that share a step complete each other
    moved = {}
    for name in [name for name in logged.columns if name != chosen]:
        column = logged.columns.pop(name)  # of a million rows there is room for one copy
        own = column.arrays()[0]
        place = np.searchsorted(rows, own, side="right") - 1
        fits = (place >= 0) & (kept[place]) & ((rows[place] == own) | (logged.index != "rows"))
        order = np.flatnonzero(fits)
        order = order[np.argsort(steps[place[order]], kind="stable")]
        there = column.taken(order, steps[place[order]] + more)
        loss = logged.index == "rows" and kind_of(name) == "loss"
        if loss and (without := int((rows[place] != own).sum())):
            notes.append(f"{plain(name, 40)}: {without:,} of {len(own):,} values have no {plain(chosen, 40)}: left out")
        if not len(there):
            continue
        moved[name] = there.taken(_superseded(there.arrays()[0])[2])
        lost = len(there) - len(moved[name])
        if loss and lost:
            at, of, _ = there.arrays()
            differ = int(((np.diff(at) == 0) & (np.diff(of) != 0)).sum())
            if differ >= SHARED * len(there):
                raise ImportProblem(
                    f"{logged.source}: {differ + 1:,} of {len(there):,} values of {plain(name, 40)} share their step "
                    f"with another. {ASK}{_others(logged)}"
                )
            notes.append(_lost(name, 0, lost, len(there)))
    return logged.columns.like(moved)
