"""What the tab's requests are answered with, as plain values: figures, advice, the fit. Pure functions.

The list of runs as plain values. Standard library only: it is answered while NumPy and SciPy are still imported.

The planner: a budget as somebody types it, answered as `isoflop plan --runs` answers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from isoflop.figures.by_law import FIGURES
from isoflop.figures.figure import NoFigure
from isoflop.figures.palette import ThemeName
from isoflop.figures.plotly import plotly_figure
from isoflop.figures.study import Study
from isoflop.laws.quantities import PF_DAY
from isoflop.record.run import PREFERRED_N, Point, Run
from isoflop.tab.records import Entry, Snapshot

MOST_TEXT = 300
"""Characters of a stranger's name or path."""


def runs_answer(snapshot: Snapshot, whole: bool = True) -> dict[str, Any]:
    """How much was read, and the list of the runs unless the browser has it."""
    told = {
        "version": snapshot.version,
        "listed": snapshot.listed,
        "found": snapshot.found,
        "read": len(snapshot.entries),
        "whole": snapshot.whole,
        "links": snapshot.links,
    }
    return told | {"runs": [_row(entry) for entry in snapshot.entries]} if whole else told


def _row(entry: Entry) -> dict[str, Any]:
    run, reading = entry.run, entry.reading
    row: dict[str, Any] = {
        "key": entry.key,
        "path": entry.path[:MOST_TEXT],
        "name": entry.path.rsplit("/", 1)[-1][:MOST_TEXT],
        "whole": reading.whole,
        "problem": reading.problem,
    }
    if run is None:
        return row
    last = run.points[-1] if run.points else None
    size = next((name for name in PREFERRED_N if run.parameters.get(name)), None)
    planned = run.planned.get("steps")
    return row | {
        "name": (run.name or run.run_id)[:MOST_TEXT],
        "run_id": run.run_id[:MOST_TEXT],
        "status": run.status,
        "N": size and run.parameters[size],
        "convention": size and size.replace("_", " "),
        "step": last and last.step,
        "planned": planned if isinstance(planned, int | float) and math.isfinite(planned) else None,
        "D": last and last.data_tokens,
        "C": last and last.flops,
        "losses": _losses(run.points),
        "created": run.created[:MOST_TEXT],
        "problems": len(run.problems),
        "advice": len(run.advice),
    }


def _losses(points: Sequence[Point]) -> dict[str, float]:
    """The last value of each loss."""
    last: dict[str, float] = {}
    for point in points:
        last.update({name[:MOST_TEXT]: value for name, value in point.losses.items() if value is not None})
    return last


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


EXPECTED = "a budget in FLOPs, such as 1e21, or in PF-days, such as 10 PF-days"
LONGEST = 40
"""Characters of a budget."""
LEVEL = 0.8
"""Of the intervals, as `isoflop plan` has them."""
_BUDGET = re.compile(
    r"(?P<number>\d[\d,_]*\.?\d*(?:e[+-]?\d{1,3})?|\.\d+)\s*(?P<times>[kmbt])?\s*"
    r"(?P<unit>flops?|pf[\s/-]*s?[\s/-]*days?|pfd)?",
    re.IGNORECASE,
)
_TIMES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def budget_of(text: str) -> float:
    """FLOPs of a budget.

    Raises:
        ValueError: it is none; the message shows one.

    >>> budget_of("1e21"), budget_of("10 PF-days"), budget_of("2.5 pfd")
    (1e+21, 8.64e+20, 2.16e+20)
    """
    shown = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    match = _BUDGET.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if match is None:
        raise ValueError(f"expected {EXPECTED}; got {shown!r}")
    number = float(match["number"].replace(",", "").replace("_", "")) * _TIMES.get((match["times"] or "").lower(), 1.0)
    flops = number * (PF_DAY if (match["unit"] or "").lower().startswith("pf") else 1.0)
    if not (flops > 0 and math.isfinite(flops)):
        raise ValueError(f"expected {EXPECTED}, more than 0 and finite; got {shown!r}")
    return flops


def plan_for(runs: Sequence[Run], text: str) -> dict[str, Any]:
    """Parameters and tokens for a budget, by some runs; without any, by what others showed.

    Raises:
        ValueError: the text is no budget, or the runs can't be used: which and why.
    """
    from isoflop.fit.plan import plan
    from isoflop.fit.runs import table_of_runs

    flops = budget_of(text)
    table = table_of_runs(runs, ("N", "D", "loss")) if runs else None
    answer = plan(
        flops,
        own=None if table is None else {**table.columns, "C": table.C},
        level=LEVEL,
        convention="unknown" if table is None else table.convention,  # type: ignore[arg-type]
        rows=None if table is None else table.rows,
    )
    return {
        "budget": flops,
        "pf_days": flops / PF_DAY,
        "runs": len(table.rows) if table else 0,
        "N": answer.N,
        "D": answer.D,
        "L": answer.L,
        "flops": answer.flops,
        "tokens_per_param": answer.tokens_per_param,
        "intervals": {name: list(ends) for name, ends in (answer.intervals or {}).items()},
        "level": answer.level,
        "n_convention": answer.convention,
        "method": answer.method,
        "notes": [*(f"left out: {text}" for text in (table.left_out if table else ())), *answer.notes],
        "alternatives": [
            {"name": row.name, "N": row.N, "D": row.D, "L": row.L, "n_convention": row.convention}
            for row in answer.alternatives
        ],
    }
