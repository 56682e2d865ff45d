"""The losses of a run: which columns they are, and their unit, held against the perplexity where both were logged."""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from isoflop.logs.files import plain
from isoflop.logs.given import EVERY, Answers, either
from isoflop.logs.logged import Column, Logged
from isoflop.logs.names import Role, part_words, role_of

CONVERTED = {
    "bits": "bits per token: × ln 2",
    "ppl": "perplexity: its natural logarithm",
    "bpb": "bits per byte: kept so",
}
CLOSE = 0.02  # Relative distance of a loss from its perplexity's logarithm, both printed with few digits


@dataclass
class Losses:
    """The losses of a run by name, in order."""

    columns: dict[str, Column] = field(default_factory=dict)  # in nats per token but where `units` says otherwise
    units: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what the user should know
    taken: dict[str, str] = field(default_factory=dict)  # the column that each was taken from
    doubts: list[str] = field(default_factory=list)  # what must be asked


def losses_of(logged: Logged, answers: Answers) -> Losses:
    """The training loss and those of evaluations: the columns that the user names, else those whose names tell.

    Of several columns for one loss that with most values is taken (a mean over the run is logged once), isoflop's own
    before any other, a loss before a perplexity, a cross-entropy before a sum of losses.
    """
    by_loss = _candidates(logged)
    chosen = {name: columns[0] for name, columns in by_loss.items()}
    for name, text in answers.given.loss.items():
        found = (one if one in logged.columns else chosen.get(one) for one in either(text))
        if column := next(filter(None, found), None):
            chosen = {loss: other for loss, other in chosen.items() if other != column} | {name: column}
    losses = Losses()
    for name in sorted(chosen, key=lambda one: (one != "train", one)):
        column = chosen[name]
        unit = _unit(name, column, answers.given.loss_unit) or _by_perplexity(
            logged, column, by_loss.get(name, ()), losses
        )
        if unit == "bpb":
            losses.units[name] = "bits per byte"
        if unit != "nats":
            losses.notes.append(f"{name} ({plain(column, 40)}) is {CONVERTED[unit]}")
        if name == "train" and name not in answers.given.loss:
            _doubt_sum(logged, column, losses)
        losses.columns[name] = _converted(logged.columns[column], unit)
        losses.taken[name] = column
    return losses


def _doubt_sum(logged: Logged, column: str, losses: Losses) -> None:
    """A loss that is no cross-entropy by its name, beside parts of a loss, may be their sum."""
    role = role_of(column)
    beside = [plain(name, 40) for name in logged.columns.unused if part_words(name)][:5]
    if beside and role is not None and role.kind == "loss" and role.rank % 3:
        losses.doubts.append(
            f"{plain(column, 40)} may be a sum: there are {', '.join(beside)} beside it. Name the cross-entropy with "
            "--loss COLUMN"
        )


def _candidates(logged: Logged) -> dict[str, list[str]]:
    """Columns by loss, the best first; parts of a loss that training logged too are none."""
    parts = {word for name in logged.columns.unused for word in part_words(name)}
    ranked: dict[str, list[tuple[tuple[bool, bool, int, int], str]]] = defaultdict(list)
    for column, values in logged.columns.items():
        role = Role("loss", "train") if column == "isoflop/loss" else role_of(column)
        if role is None or role.kind != "loss" or not len(values) or (role.parts and role.parts <= parts):
            continue
        rank = (column != "isoflop/loss", bool(role.unit), -len(values), role.rank)
        ranked[role.name].append((rank, column))
    return {name: [column for _, column in sorted(columns)] for name, columns in ranked.items()}


def _unit(name: str, column: str, given: Mapping[str, str]) -> str | None:
    """The unit that the user or the column's name tells; None: neither."""
    role = role_of(column)
    told = role.unit if role is not None else ""
    return "nats" if column == "isoflop/loss" else given.get(name) or told or given.get(EVERY)


def _by_perplexity(logged: Logged, column: str, others: Sequence[str], losses: Losses) -> str:
    """The base of a loss's logarithm, by the perplexity that was logged beside it; nats where there is none."""
    beside = next((name for name in others if (role := role_of(name)) and role.unit == "ppl" and name != column), None)
    if beside is None:
        return "nats"
    steps, values, _ = logged.columns[column].arrays()
    at, ppl, _ = logged.columns[beside].arrays()
    common, mine, theirs = np.intersect1d(steps, at, return_indices=True)
    with np.errstate(all="ignore"):
        ratio = np.log(ppl[theirs]) / values[mine]
        ratio = ratio[np.isfinite(ratio) & (values[mine] > 0.1)]
    if not len(common) or not len(ratio):
        return "nats"
    middle = float(np.median(ratio))
    if abs(middle - 1) < CLOSE:
        return "nats"
    if abs(middle / math.log(2) - 1) < CLOSE:
        losses.notes.append(f"{plain(beside, 40)} is 2 to the power of {plain(column, 40)}")
        return "bits"
    losses.doubts.append(
        f"ln {plain(beside, 40)} is {middle:.3g} times {plain(column, 40)}: another loss, or no mean per token? "
        "Name the loss with --loss COLUMN, its unit with --loss-unit nats, bits or ppl"
    )
    return "nats"


def _converted(column: Column, unit: str) -> Column:
    """A column of losses in nats per token (of bits per byte: as they are)."""
    if unit in ("nats", "bpb"):
        return column
    values = column.arrays()[1]
    with np.errstate(all="ignore"):
        nats = values * math.log(2) if unit == "bits" else np.log(np.where(values > 0, values, math.nan))
    result = column.taken(slice(None))
    result.values = array("d", nats.tobytes())
    return result
