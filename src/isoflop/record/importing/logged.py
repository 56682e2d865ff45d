"""What a reader finds in another tool's log, before anything is made of it: `Column`, `Columns` and `Logged`."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from isoflop.record.run import Status

MAX_STEP = 2**63 - 1
MAX_COLUMNS = 2000
"""Names kept of one run: a file of random names must not fill the memory."""
UNSORTED = 0.1
"""Steps that go back more often than this share of the time, without a repetition, are no resumes but disorder."""


class Column:
    """One logged quantity: steps, values and unix times (NaN where unknown), 24 bytes a value, as logged."""

    __slots__ = ("steps", "times", "values")

    def __init__(self) -> None:
        self.steps, self.values, self.times = array("q"), array("d"), array("d")

    def add(self, step: int, value: float, time: float = math.nan) -> None:
        """Append a value."""
        self.steps.append(step)
        self.values.append(value)
        self.times.append(time)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float, float]]:
        return zip(self.steps, self.values, self.times, strict=True)


class Columns(dict[str, Column]):
    """Columns by name, made as they are met."""

    def add(self, name: str, step: int, value: float, time: float = math.nan) -> bool:
        """Append a value to a column; False where there are too many columns, or the step can't be one."""
        column = self.get(name)
        if column is None:
            if len(self) >= MAX_COLUMNS:
                return False
            column = self[name] = Column()
        if not 0 <= step <= MAX_STEP:
            return False
        column.add(step, value, time)
        return True


def in_order(column: Column) -> tuple[Column, int, bool]:
    """A column by step, each step once.

    Where the steps go back, a run was resumed: what was logged at that step and beyond before is superseded, as by a
    resume line in a record. Of two values of one step the later wins. A file in another order is sorted: one whose
    steps go back all the time and never repeat.

    Returns:
        The column, how often the run was resumed, and whether it was sorted.
    """
    steps = column.steps
    back = sum(later < earlier for earlier, later in pairwise(steps))
    if not back and len(set(steps)) == len(steps):
        return column, 0, False
    if back > UNSORTED * len(steps) and len(set(steps)) == len(steps):
        tidy = Column()
        for row in sorted(column):
            tidy.add(*row)
        return tidy, 0, True
    tidy = Column()
    for step, value, time in column:
        while tidy.steps and tidy.steps[-1] >= step:
            for kept in (tidy.steps, tidy.values, tidy.times):
                kept.pop()
        tidy.add(step, value, time)
    return tidy, back, False


@dataclass(frozen=True, eq=False, kw_only=True)
class Logged:
    """One run as another tool logged it.

    Attributes:
        kind: which reader: `huggingface`, `tensorboard`, `lightning`, `wandb`, `mlflow`, `table`.
        source: where it was read, for messages and for the record.
        key: what the run is known by: a second import of the same key is the same run.
        name: what its owner calls it.
        columns: by name, as logged; steps are optimizer steps done.
        settings: hyperparameters as the tool kept them, flat.
        config: a Hugging Face model configuration: its file, or its content.
        parameters: N by convention, where the log says so itself.
        parameters_method: how.
        total_flos: by step, Hugging Face's count.
        planned_steps: optimizer steps of the plan.
        status: None where the tool does not say.
        averaged: losses are means over the steps since the one before.
        single: values are float32.
        ends: its one point is the end of a run, whose steps are not known.
        unused: names of columns that were not kept, for a question about them.
        notes: what the user should know of how it was read.
        problems: what could not be read.
    """

    kind: str
    source: str
    key: str
    name: str
    columns: Mapping[str, Column]
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: str | Mapping[str, Any] | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    parameters_method: str | None = None
    total_flos: Mapping[int, float] = field(default_factory=dict)
    planned_steps: int | None = None
    status: Status | None = None
    created: float | None = None
    averaged: bool = False
    single: bool = False
    ends: bool = False
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
