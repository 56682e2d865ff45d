"""A report as data: the study, its figures, what is said of it, what it rests on. `page` writes it for a browser.

The advice that runs got while they trained, as their records hold it: strangers' values, made fit to be shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from isoflop.advice.advice import Quantity, share
from isoflop.figures import study
from isoflop.figures.by_law import figures
from isoflop.figures.figure import Figure, NoFigure
from isoflop.figures.study import LEVEL, Study
from isoflop.figures.text import name_of
from isoflop.fit.approaches import NoApproach
from isoflop.fit.holdout import Extrapolation
from isoflop.record.run import Run
from isoflop.report.checklist import Item, checklist
from isoflop.report.latex import used_by
from isoflop.report.runs import RunRow, Sources, run_rows
from isoflop.report.sentences import Headline, headline, holdout

MOST = 200
"""Pieces that are shown, the latest."""
SEVERITIES = ("critical", "warning", "info", "note")


@dataclass(frozen=True)
class Said:
    """One piece of advice; texts as recorded.

    Attributes:
        run: its name.
        step: optimizer steps done.
        time: in UTC, for people; "": unknown.
        severity: one of `SEVERITIES`; "": another.
        reason, what, do: texts.
        numbers: what it rests on and what following it is worth, for people.
        sure: its probability for people; "": none.
        basis: what it rests on.
    """

    run: str
    step: int
    time: str
    severity: str
    reason: str
    what: str
    do: str
    numbers: tuple[str, ...]
    sure: str
    basis: tuple[str, ...]


def said_to(runs: Sequence[Run]) -> tuple[Said, ...]:
    """All of it, by time and then by step; the latest `MOST`."""
    found = [
        (_number(item.get("time")) or 0.0, _number(item.get("step")) or 0.0, _said(run, item))
        for run in runs
        for item in run.advice
    ]
    found.sort(key=lambda each: each[:2])
    return tuple(each for *_, each in found[-MOST:])


def _said(run: Run, item: Mapping[str, Any]) -> Said:
    severity, probability = _text(item.get("severity")), _number(item.get("probability"))
    return Said(
        run=name_of(run.name or run.run_id),
        step=int(_number(item.get("step")) or 0),
        time=_when(_number(item.get("time"))),
        severity=severity if severity in SEVERITIES else "",
        reason=_text(item.get("reason")).replace("_", " "),
        what=_text(item.get("what")),
        do=_text(item.get("do")),
        numbers=(*_quantities(item.get("numbers")), *(f"worth: {text}" for text in _quantities(item.get("saves")))),
        sure="" if probability is None or not 0 <= probability <= 1 else share(probability),
        basis=tuple(text for each in _list(item.get("basis")) if (text := _text(each))),
    )


def _quantities(given: object) -> list[str]:
    rows = [row for row in _list(given) if isinstance(row, dict) and _number(row.get("value")) is not None]
    return [
        str(
            Quantity(
                _text(row.get("name")),
                float(row["value"]),
                _text(row.get("unit")),
                _number(row.get("low")),
                _number(row.get("high")),
            )
        )
        for row in rows
    ]


def _when(seconds: float | None) -> str:
    if seconds is None or not 0 <= seconds <= 2.5e11:
        return ""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")


def _list(value: object) -> list[Any]:
    return value[:50] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value[:4000] if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


@dataclass(frozen=True)
class Report:
    """All that a report holds.

    Attributes:
        sources: what was read.
        study: of the runs.
        held: the law of the smaller runs held against the larger.
        headline: in plain words.
        figures: with the reason in place of one that can't be made.
        rows: a run each.
        advice: what the runs were told.
        checklist: of what a paper must report.
        papers: keys of `bibliography.PAPERS`.
    """

    sources: Sources
    study: Study
    held: Extrapolation | str
    headline: Headline
    figures: tuple[Figure | NoFigure, ...]
    rows: tuple[RunRow, ...]
    advice: tuple[Said, ...]
    checklist: tuple[Item, ...]
    papers: tuple[str, ...]

    @property
    def drawn(self) -> tuple[Figure, ...]:
        """The figures that there are."""
        return tuple(figure for figure in self.figures if isinstance(figure, Figure))

    @property
    def without(self) -> tuple[NoApproach, ...]:
        """Why an approach has no opinion, in words of the command."""
        return tuple(NoApproach(each.name, for_the_shell(each.reason)) for each in self.study.without)


def make_report(
    sources: Sources,
    *,
    loss: str | None = None,
    convention: str | None = None,
    level: float = LEVEL,
    budgets: Sequence[float] | None = None,
) -> Report:
    """Make one.

    Args:
        sources: what was read.
        loss: of records which, `train` or eval/<name>; default: an evaluation's that all have, else `train`; `train`
            too where no run has finished, for its curve tells more than a few evaluations.
        convention: of records which parameters N counts; default: one that all tell. Of tables N is as given.
        level: of the intervals.
        budgets: nominal budgets of isoFLOP profiles, FLOPs.

    Raises:
        ValueError: a loss that no record has.
    """
    runs = [record.run for record in sources.records]
    if loss is not None and runs:
        known = dict.fromkeys(name for run in runs for point in run.points for name in point.losses)
        if loss not in known:
            raise ValueError(f"--loss: expected a loss that a record has ({', '.join(known) or 'none'}), got {loss!r}")
    convention = convention or (None if runs else "unknown")
    made = study(runs, table=sources.rows, loss=loss, convention=convention, level=level, budgets=budgets)
    if loss is None and not made.counted and any("train" in curve.losses for curve in made.curves):
        made = study(made.curves, loss="train", convention=convention, level=level, budgets=budgets)
    held = holdout(made)
    drawn = figures(made)
    return Report(
        sources=sources,
        study=made,
        held=held,
        headline=headline(made, held),
        figures=drawn,
        rows=run_rows(made),
        advice=said_to(runs),
        checklist=checklist(made, held),
        papers=used_by(made, [figure.key for figure in drawn if isinstance(figure, Figure)]),
    )


def for_the_shell(text: str) -> str:
    """A reason with the command's options in place of Python's.

    >>> for_the_shell("budgets run on: pass budgets=, or a smaller tolerance")
    'budgets run on: name the nominal ones with --budgets, such as 6e18,1e19'
    """
    return text.replace(
        "pass budgets=, or a smaller tolerance", "name the nominal ones with --budgets, such as 6e18,1e19"
    )
