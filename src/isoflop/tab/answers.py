"""Answers to the tab's requests as plain values: runs, advice, figures, fit, plan.

The list of runs needs the standard library alone: it is answered while NumPy and SciPy are still being imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from isoflop.console import finite, picked
from isoflop.record import PREFERRED_N, SEVERITIES, Point, Run
from isoflop.tab.records import Entry, Snapshot

if TYPE_CHECKING:
    from isoflop.figures import Study
    from isoflop.fit.law_fit import LawFit
    from isoflop.fit.runs import RunCurve

MOST_TEXT = 300
"""Characters of a recorded name or path."""
MOST_ADVICE = 500
"""Pieces of advice sent, the latest."""
EXPECTED = "a budget in FLOPs, such as 1e21, or in PF-days, such as 10 PF-days"
LONGEST = 40
"""Characters of a budget."""
LEVEL = 0.8
"""Of the planner's intervals, as `isoflop plan` has them."""


def runs_answer(snapshot: Snapshot, whole: bool = True) -> dict[str, Any]:
    """How much was read, and the list of the runs unless the browser has it."""
    told = {name: getattr(snapshot, name) for name in ("version", "listed", "found", "whole", "links")}
    told["read"] = len(snapshot.entries)
    return told | {"runs": list(map(_row_once, snapshot.entries))} if whole else told


_rows: WeakKeyDictionary[Entry, dict[str, Any]] = WeakKeyDictionary()


def _row_once(entry: Entry) -> dict[str, Any]:
    """Its row: while 5,000 records are read the list is asked for again and again."""
    return _rows.get(entry) or _rows.setdefault(entry, _row(entry))


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
    known = [(name[:MOST_TEXT], point.step, loss) for point in run.points for name, loss in point.losses.items()]
    losses = {name: loss for name, _, loss in known if loss is not None}
    holds = [item for item in run.advice if run.status == "running" or item.get("reason") != "hardware"]
    given = {item.get("severity") for item in holds if isinstance(item.get("severity"), str)}
    return row | {
        "name": (run.name or run.run_id)[:MOST_TEXT],
        "run_id": run.run_id[:MOST_TEXT],
        "status": run.status,
        "stopped": run.stopped,
        "rose": "" if reading.curve is None else reading.curve.rose,
        "N": size and run.parameters[size],
        "convention": size and size.replace("_", " "),
        "step": last and last.step,
        "planned": planned if isinstance(planned, int | float) and math.isfinite(planned) else None,
        "D": last and last.data_tokens,
        "C": last and last.flops,
        "mfu": last and last.extra.get("mfu"),
        **_forecast(run, reading.curve),
        "time": last and last.time,
        "every": _seconds_between(run.points[-2:]),
        "losses": losses,
        "loss_steps": {name: step for name, step, loss in known if loss is not None},
        "created": run.created[:MOST_TEXT],
        "problems": len(run.problems),
        "advice": len(run.advice),
        "worst": next((severity for severity in SEVERITIES if severity in given), None),
    }


def _forecast(run: Run, curve: RunCurve | None) -> dict[str, Any]:
    """Loss at the planned end and the ends of its interval, if the last point has them; the step it was forecast at."""
    from isoflop.forecast import logged_forecast

    held = run.points and "forecast_loss" in run.points[-1].extra
    last = logged_forecast(curve.step, curve.extra) if curve is not None and held else None
    return {"forecast": last and [last.loss, last.low, last.high], "forecast_step": last and last.as_of}


def _seconds_between(points: Sequence[Point]) -> float | None:
    """Of the last log interval: a run that is silent for many of them has been lost."""
    times = [point.time for point in points if point.time is not None]
    return times[1] - times[0] if len(times) == 2 else None


def advice_answer(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The advice that runs got, oldest first."""
    from isoflop.report.runs import recorded_advice

    found = [(advice, entry.key) for entry in entries if entry.run for advice in recorded_advice(entry.run)]
    found.sort(key=lambda each: each[0].order)
    return [asdict(advice) | {"key": key, "run": advice.run[:MOST_TEXT]} for advice, key in found[-MOST_ADVICE:]]


def figure_answer(
    key: str, study: Study, state: str, theme: str, axis: str = "", loss: str = "", smooth: float = 0.0
) -> dict[str, Any]:
    """One figure for plotly, or the reason why there is none.

    `axis` and `loss` as of `loss_against`, "": default; training losses as means over the last `smooth` of the steps.
    """
    from isoflop.figures import FIGURES, NoFigure
    from isoflop.figures.by_compute import loss_against
    from isoflop.figures.curves import smoothed
    from isoflop.figures.plotly import plotly_figure

    study = smoothed(study, smooth) if smooth else study
    made = loss_against(study, axis, loss) if axis else FIGURES[key](study)
    answer: dict[str, Any] = {"key": key, "title": made.title, "state": state}
    if isinstance(made, NoFigure):
        return answer | {"reason": made.reason, "notes": [], "plot": None}
    means = [f"Each loss is the mean over the last {smooth:.0%} of the steps up to it"] if smooth else []
    if means and (loss or study.loss) != "train":
        means = ["Evaluations are drawn as measured: only training losses are smoothed"]
    return answer | {"reason": "", "notes": [*means, *made.notes], "plot": plotly_figure(made, theme)}


def fit_answer(study: Study, state: str) -> dict[str, Any]:
    """The fitted law, the posterior and the approaches beside it, or why there are none; `state` is that of `Drawn`."""
    if state == "fitting":
        return {"state": state}
    fit, compared = study.fit, study.compared() if study.counted else None
    return {
        "state": state,
        "counted": len(study.counted),
        "left_out": [
            {"why": why, "runs": len(names), "names": [name[:MOST_TEXT] for name in names[:5]]}
            for why, names in study.uncounted.items()
        ],
        "loss": study.loss,
        "convention": study.convention,
        "level": study.level,
        "draws": study.draws,
        "law": None if fit is None else fit.law.form.text,
        "refused": study.refused,
        "doubts": list(study.doubts),
        "constants": [] if fit is None else [_constant(fit, name) for name in fit.parameters],
        "C": None if compared is None else compared.C,
        "approaches": [
            {"name": row.name}
            | {each: _estimate(getattr(row, each), getattr(row, f"{each}_interval")) for each in "abND"}
            for row in (() if compared is None else compared.rows)
        ],
        "without": [asdict(each) for each in study.without],
        "warnings": [*(() if fit is None else fit.warnings), *(() if compared is None else compared.warnings)],
    }


def _constant(fit: LawFit, name: str) -> dict[str, Any]:
    """A constant of the law; without a value where the runs do not determine it."""
    if name in fit.undetermined:
        return {"name": name, "error": None, "value": None, "interval": [None, None]}
    error = finite(fit.standard_errors[name])
    return {"name": name, "error": error, **_estimate(fit.parameters[name], fit.intervals[name])}


def _estimate(value: float, ends: Sequence[float] | None) -> dict[str, Any]:
    return {"value": finite(value), "interval": ends and [finite(end) for end in ends]}


# -- the planner -------------------------------------------------------------------------------------------------------

_BUDGET = re.compile(r"(.*?)\s*(flops?|pf[\s/-]*s?[\s/-]*days?|pfd)?", re.IGNORECASE)


def budget_of(text: str) -> float:
    """FLOPs of a budget.

    Raises:
        ValueError: it is none; the message shows one.

    >>> budget_of("1e21"), budget_of("10 PF-days"), budget_of("2.5 pfd")
    (1e+21, 8.64e+20, 2.16e+20)
    """
    from isoflop.laws import PF_DAY
    from isoflop.logs.files import cell_number

    match = _BUDGET.fullmatch(text.strip()) if len(text) <= LONGEST else None
    number = (cell_number(match[1]) if match else None) or 0.0
    flops = number * (PF_DAY if match and (match[2] or "").lower().startswith("pf") else 1.0)
    if not 0 < flops < math.inf:
        shown = text if len(text) <= LONGEST else text[:LONGEST] + "…"
        raise ValueError(f"expected {EXPECTED}; got {shown!r}")
    return flops


def plan_answer(runs: Sequence[Run], text: str) -> dict[str, Any]:
    """Parameters and tokens for a budget by some runs, as `isoflop plan` answers; without any, by published sweeps.

    Raises:
        ValueError: the text is no budget, or the runs can't be used: which and why.
    """
    from isoflop.fit.plan import plan
    from isoflop.fit.table import table_of_runs
    from isoflop.laws import PF_DAY

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
        **picked(answer, "N D L flops tokens_per_param level method", n_convention="convention"),
        "intervals": {"L" if name == "loss" else name: list(ends) for name, ends in (answer.intervals or {}).items()},
        "notes": [*(f"left out: {text}" for text in (table.left_out if table else ())), *answer.notes],
        "alternatives": [picked(row, "name N D L", n_convention="convention") for row in answer.alternatives],
    }
