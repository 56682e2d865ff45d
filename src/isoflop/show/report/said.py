"""The advice that runs got while they trained, as their records hold it: strangers' values, made fit to be shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from isoflop.advise.advice import Quantity, share
from isoflop.record import Run
from isoflop.show.figures.words import name_of

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
