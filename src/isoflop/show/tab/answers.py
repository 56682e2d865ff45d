"""What the tab's requests are answered with, as plain values: figures, advice, the fit. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from isoflop.record import Run
from isoflop.show.figures.all import FIGURES
from isoflop.show.figures.draw_plotly import plotly_figure
from isoflop.show.figures.figure import NoFigure
from isoflop.show.figures.palette import ThemeName
from isoflop.show.figures.study import Study

from .listing import MOST_TEXT
from .store import Entry

MOST_ADVICE = 500
"""Pieces of advice sent, the latest."""


def advice_answer(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """All that was said of some runs, oldest first; what is not as isoflop writes it is left out."""
    found = [_advice(entry, entry.run, item) for entry in entries if entry.run for item in entry.run.advice]
    return sorted(found, key=lambda item: (item["time"] or 0.0, item["step"]))[-MOST_ADVICE:]


def _advice(entry: Entry, run: Run, item: dict[str, Any]) -> dict[str, Any]:
    basis = item.get("basis")
    return {
        "key": entry.key,
        "run": (run.name or run.run_id)[:MOST_TEXT],
        "time": _number(item.get("time")),
        "step": _number(item.get("step")) or 0,
        **{name: _text(item.get(name)) for name in ("reason", "severity", "what", "do")},
        "numbers": _quantities(item.get("numbers")),
        "saves": _quantities(item.get("saves")),
        "basis": [_text(each) for each in basis[:20]] if isinstance(basis, list) else [],
        "probability": _number(item.get("probability")),
        "level": _number(item.get("level")),
    }


def _quantities(given: object) -> list[dict[str, Any]]:
    rows = [row for row in given[:50] if isinstance(row, dict)] if isinstance(given, list) else []
    return [
        {name: _text(row.get(name)) for name in ("name", "unit")}
        | {name: _number(row.get(name)) for name in ("value", "low", "high")}
        for row in rows
    ]


def _text(value: object) -> str:
    return value[:4000] if isinstance(value, str) else ""


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < 1e300 else None


def figure_keys() -> list[str]:
    """What figures there are, in the order in which they are shown."""
    return list(FIGURES)


def figure_answer(key: str, study: Study, state: str, theme: ThemeName) -> dict[str, Any]:
    """One figure as plotly draws it; or why there is none."""
    made = FIGURES[key](study)
    answer: dict[str, Any] = {"key": key, "title": made.title, "state": state}
    if isinstance(made, NoFigure):
        return answer | {"reason": made.reason, "notes": [], "plot": None}
    return answer | {"reason": "", "notes": list(made.notes), "plot": plotly_figure(made, theme)}


def fit_answer(study: Study, state: str) -> dict[str, Any]:
    """The fitted law and the three approaches side by side; or why there are none.

    Args:
        study: of the chosen runs.
        state: of its fit, as `Drawn` has it.
    """
    if state == "fitting":
        return {"state": state}
    fit, compared = study.fit, study.compared() if study.counted else None
    left_out: dict[str, list[str]] = {}
    for end in study.ends:
        if end.left_out:
            left_out.setdefault(end.left_out, []).append(end.name[:MOST_TEXT])
    return {
        "state": state,
        "counted": len(study.counted),
        "left_out": [{"why": why, "runs": len(names), "names": names[:5]} for why, names in left_out.items()],
        "loss": study.loss,
        "convention": study.convention,
        "level": study.level,
        "draws": study.draws,
        "law": None if fit is None else fit.law.form.text,
        "refused": study.refused,
        "doubts": list(study.doubts),
        "constants": []
        if fit is None
        else [
            {
                "name": name,
                "value": _finite(value),
                "error": _finite(fit.standard_errors.get(name, math.nan)),
                "interval": [_finite(end) for end in fit.intervals.get(name, (math.nan, math.nan))],
            }
            for name, value in fit.parameters.items()
        ],
        "C": None if compared is None else compared.C,
        "approaches": []
        if compared is None
        else [
            {
                "name": row.name,
                **{
                    name: {"value": _finite(value), "interval": None if ends is None else [_finite(e) for e in ends]}
                    for name, value, ends in (
                        ("a", row.a, row.a_interval),
                        ("b", row.b, row.b_interval),
                        ("N", row.N, row.N_interval),
                        ("D", row.D, row.D_interval),
                    )
                },
            }
            for row in compared.rows
        ],
        "without": [{"name": each.name, "reason": each.reason} for each in study.without],
        "warnings": [*(() if fit is None else fit.warnings), *(() if compared is None else compared.warnings)],
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
