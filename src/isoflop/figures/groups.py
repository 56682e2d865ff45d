"""Runs coloured by group: a column of a table, what an import kept of each run, or its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from isoflop.figures.curves import legend_entry
from isoflop.figures.figure import Figure, Series
from isoflop.figures.study import Study
from isoflop.figures.text import listed

NONE = "no group"
MOST = 8
"""Groups that colours tell apart."""


def by_group(figure: Figure, study: Study, column: str) -> Figure:
    """A figure with a colour and an entry in the legend for each group, instead of shades by size.

    Args:
        figure: one of the study's.
        study: whose ends state their groups (`RunEnd.kinds`).
        column: the group.

    Raises:
        ValueError: no run has the column, it has too many values, or the figure does not show single runs.
    """
    of = {end: dict(end.kinds).get(column, "") or NONE for end in study.ends}
    groups = sorted({*of.values()} - {NONE})
    if not groups:
        known = dict.fromkeys(name for end in study.ends for name, _ in end.kinds)
        raise ValueError(f"--group: expected a column of the runs ({', '.join(known) or 'none'}), got {column!r}")
    if len(groups) > MOST:
        raise ValueError(f"--group: expected at most {MOST} groups, {column} has {len(groups)}: {listed(groups)}")
    every = [*groups, *([NONE] if NONE in of.values() else [])]
    by_run = {end.run_id: group for end, group in of.items()}
    series = [each for one in figure.series for each in _coloured(one, every, by_run, [of[e] for e in study.counted])]
    shown = [name for name in every if any(each.role == "group" and each.group == name for each in series)]
    if not shown:
        raise ValueError(f"--group: {figure.key} does not draw single runs by colour")
    entries = [legend_entry(name, role="group", number=every.index(name), group=name) for name in shown]
    return replace(figure, series=(*series, *entries), shades=None, notes=(*figure.notes, f"Colours: {column}"))


def _coloured(
    one: Series, groups: list[str], by_run: Mapping[str | None, str], counted: list[str]
) -> tuple[Series, ...]:
    """A series of a run in its group's colour; one of several runs split by group; another as it is."""
    if one.role == "run" and one.run_id is not None:
        group = by_run.get(one.run_id, NONE)
        return (replace(one, role="group", shade=None, number=groups.index(group), group=group, legend=False),)
    if one.role == "out" and one.run_id is not None:
        return (replace(one, legend=False),)
    if one.role != "run" or one.shades is None or not one.ends:
        return (one,)
    mine = np.array([counted[i] for i in one.ends])
    found = []
    for number, group in enumerate(groups):
        at = np.flatnonzero(mine == group)
        if len(at):
            hover = {
                name: values[at] if isinstance(values, np.ndarray) else values for name, values in one.hover.items()
            }
            labels = tuple(one.labels[i] for i in at)
            part = replace(one, x=one.x[at], y=one.y[at], hover=hover, labels=labels, ends=(), shades=None)
            found.append(replace(part, role="group", number=number, group=group, legend=False))
    return tuple(found)
