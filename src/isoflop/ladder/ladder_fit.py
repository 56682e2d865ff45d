"""What a ladder tells of its target, and the same as plain values: what `isoflop ladder fit --json` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoflop.fit.approaches.approach import NoApproach
from isoflop.fit.approaches.compare import Comparison
from isoflop.fit.posterior import Array, BudgetLine, Posterior
from isoflop.ladder.finished import Finished
from isoflop.ladder.leave_out import LeftOut
from isoflop.ladder.worth import RungWorth


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float


def estimate(values: Array, level: float) -> Estimate:
    """Median and interval of draws."""
    low, middle, high = np.quantile(values, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Estimate(float(middle), float(low), float(high))


@dataclass(frozen=True)
class LadderFit:
    """What a ladder tells of its target.

    Attributes:
        target_flops: budget of the run that is sized.
        level: of every interval.
        N_opt, D_opt: parameters and tokens of the least loss; tokens_per_param their ratio.
        batch: tokens a step at D_opt, by published rules.
        loss: of a run of N_opt on D_opt, nats per token, its noise and the law's doubt included.
        exponents: α and β at the largest budget, and a = ln N_opt per ln C from there to the target.
        noise: standard deviation of a run's ln L.
        approaches: Hoffmann et al.'s three and this law's, side by side at the target; None: none has an opinion.
        without: why approaches have none.
        left_out: the fit without the largest rung against that rung's runs; None: too few runs are left.
        rung: what one more rung would be worth; None: the largest rung is at the target already.
        finished: the runs it rests on, and why others are left out.
        warnings: what to know before relying on it.
    """

    target_flops: float
    level: float
    N_opt: Estimate
    D_opt: Estimate
    tokens_per_param: Estimate
    batch: Estimate
    loss: Estimate
    exponents: Mapping[str, Estimate]
    noise: Estimate
    approaches: Comparison | None
    without: tuple[NoApproach, ...]
    left_out: LeftOut | None
    rung: RungWorth | None
    finished: Finished
    warnings: tuple[str, ...]
    posterior: Posterior = field(repr=False, compare=False)
    target: BudgetLine = field(repr=False, compare=False)

    def loss_of(self, N: float, D: float) -> Estimate:
        """Loss to expect of one run of N parameters (counted as the ladder's) on D tokens."""
        return estimate(np.exp(self.posterior.run_losses(N, D)), self.level)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the object of `--json` (docs/ladder.md has its keys)."""
        return _object(self)


def _object(fit: LadderFit) -> dict[str, Any]:
    """Plain values; null for what is unknown. docs/ladder.md documents the keys."""
    result: dict[str, Any] = {
        "target_flops": fit.target_flops,
        "level": fit.level,
        **{name: _plain(getattr(fit, name)) for name in ("N_opt", "D_opt", "tokens_per_param", "batch", "loss")},
        "exponents": {name: _plain(value) for name, value in fit.exponents.items()},
        "noise": _plain(fit.noise),
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
        "without_opinion": [str(each) for each in fit.without],
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


def _plain(value: Estimate) -> dict[str, float]:
    return {"value": value.value, "low": value.low, "high": value.high}


def _pair(interval: tuple[float, float] | None) -> list[float] | None:
    return None if interval is None else [float(end) for end in interval]
