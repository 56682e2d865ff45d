"""Which columns are the losses of a run, in which unit, and what they are in nats per token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from .given import EVERY, UNITS, Answers
from .logged import Column, Logged, in_order
from .names import TRAIN, TRAIN_PERPLEXITY, evaluation, is_perplexity

_SAID = {
    "bits": "bits per token, as declared: × ln 2",
    "ppl": "perplexity: its natural logarithm",
    "bpb": "bits per byte, as declared: kept so",
}


@dataclass(frozen=True)
class Losses:
    """The losses of a run by name, in order; `units` where they are not nats; how each was obtained."""

    columns: Mapping[str, Column] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    taken: Mapping[str, str] = field(default_factory=dict)


def losses_of(logged: Logged, answers: Answers) -> Losses:
    """The training loss and those of evaluations: the columns that the user names, else those whose names tell.

    Of several columns for one loss that with most values is taken (a mean over the run is logged once), isoflop's own
    before any other, a loss before a perplexity.
    """
    chosen: dict[str, str] = {}
    for column in logged.columns:
        name = _loss_of(column)
        if name is not None and (name not in chosen or _rank(logged, column) < _rank(logged, chosen[name])):
            chosen[name] = column
    for name, column in answers.loss.items():
        if column in logged.columns:
            chosen = {loss: other for loss, other in chosen.items() if other != column}
            chosen[name] = column
    found: dict[str, Column] = {}
    units: dict[str, str] = {}
    notes: list[str] = []
    for name in sorted(chosen, key=lambda one: (one != "train", one)):
        column = chosen[name]
        tidy, resumed, disorder = in_order(logged.columns[column])
        if resumed:
            times = "once" if resumed == 1 else f"{resumed} times"
            notes.append(f"{column}: its steps go back {times}, as after a resume: the later values count")
        if disorder:
            notes.append(f"{column}: its steps are in no order: sorted")
        unit = _unit(column, name, answers)
        if unit == "bpb":
            units[name] = "bits per byte"
        if unit != "nats":
            notes.append(f"{name} ({column}) is {_SAID[unit]}")
        found[name] = converted(tidy, unit)
    return Losses(found, units, tuple(notes), chosen)


def converted(column: Column, unit: str) -> Column:
    """A column of losses in nats per token (of bits per byte: as they are)."""
    if unit in ("nats", "bpb"):
        return column
    result = Column()
    for step, value, time in column:
        result.add(step, value * math.log(2) if unit == "bits" else _log(value), time)
    return result


def _log(perplexity: float) -> float:
    return math.log(perplexity) if perplexity > 0 else math.nan


def _loss_of(column: str) -> str | None:
    if column in TRAIN or column in TRAIN_PERPLEXITY:
        return "train"
    name = evaluation(column)
    return None if name is None else f"eval/{name}"


def _rank(logged: Logged, column: str) -> tuple[bool, bool, int, int]:
    order = TRAIN.index(column) if column in TRAIN else len(TRAIN)
    return (column != "isoflop/loss", is_perplexity(column), -len(logged.columns[column]), order)


def _unit(column: str, name: str, answers: Answers) -> str:
    unit = answers.loss_unit.get(name, answers.loss_unit.get(EVERY, "nats"))
    assert unit in UNITS
    if column == "isoflop/loss":
        return "nats"
    return "ppl" if is_perplexity(column) else unit
