"""A ladder's fit as plain values: what `isoflop ladder fit --json` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.ladder.fitting import Estimate, LadderFit


def as_object(fit: LadderFit) -> dict[str, Any]:
    """Plain values; null for what is unknown. docs/ladder.md documents the keys."""
    result: dict[str, Any] = {
        "target_flops": fit.target_flops,
        "level": fit.level,
        **{name: _estimate(getattr(fit, name)) for name in ("N_opt", "D_opt", "tokens_per_param", "batch", "loss")},
        "exponents": {name: _estimate(value) for name, value in fit.exponents.items()},
        "noise": _estimate(fit.noise),
        "approaches": [
            {
                "name": row.name,
                "a": row.a,
                "a_interval": _pair(row.a_interval),
                "N": row.N,
                "N_interval": _pair(row.N_interval),
                "D": row.D,
                "D_interval": _pair(row.D_interval),
            }
            for row in (fit.approaches.rows if fit.approaches is not None else ())
        ],
        "without_opinion": list(fit.without),
        "leave_largest_out": None,
        "one_more_rung": None,
        "loss_name": fit.finished.loss_name,
        "runs": [
            {"name": run.name, "N": run.N, "D": run.D, "flops": run.flops, "loss": run.loss}
            for run in fit.finished.runs
        ],
        "left_out": list(fit.finished.left_out),
        "missing": list(fit.finished.missing),
        "warnings": list(fit.warnings),
    }
    if fit.left_out is not None:
        check = fit.left_out
        result["leave_largest_out"] = {
            "runs": [
                {"name": r.name, "loss": r.loss, "expected": r.expected, "low": r.low, "high": r.high}
                for r in check.runs
            ],
            "fitted_runs": check.fitted,
            "reach": check.reach,
            "inside": check.inside,
            "chance": check.chance,
            "passed": check.passed,
        }
    if fit.rung is not None:
        rung = fit.rung
        result["one_more_rung"] = {
            "go": rung.go,
            "waste_flops": rung.waste,
            "waste_flops_after": rung.waste_after,
            "saved_flops": rung.saved,
            "cost_flops": rung.cost,
            "budget": rung.budget,
            "sizes": list(rung.sizes),
            "narrower": rung.narrower,
        }
    return result


def _estimate(value: Estimate) -> dict[str, float]:
    return {"value": value.value, "low": value.low, "high": value.high}


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [float(end) for end in interval]
