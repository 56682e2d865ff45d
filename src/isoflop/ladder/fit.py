"""`fit_ladder_runs`: a ladder's finished runs to the law, and from it what the run at the target should be.

The largest rung left out and predicted from the others: whether the law extrapolates where that can be seen.

What a ladder tells of its target, and the same as plain values: what `isoflop ladder fit --json` prints.

Hoffmann et al.'s three approaches on a ladder's runs, beside the ladder's own law.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.approaches import (
    Comparison,
    Curve,
    NoApproach,
    approach_3,
    compare_approaches,
    envelope,
    isoflop_profiles,
    posterior_approach,
)
from isoflop.fit.fit_law import fit_law
from isoflop.fit.posterior import BudgetLine, Posterior, posterior_of_runs
from isoflop.ladder.design import RungWorth, worth_of_a_rung
from isoflop.ladder.finished import Finished, FinishedRun, read_finished
from isoflop.ladder.plan import LadderPlan, read_plan
from isoflop.laws.frontier import short
from isoflop.laws.published import published
from isoflop.record.run import DEFAULT_N

RUNG = 1.5
"""A factor of the largest budget within which runs are its rung."""
LEAVE_OUT_FEWEST = 5
"""Runs below it."""
SURPRISING = 0.05
"""Probability of as few runs inside from which on it is no accident."""


@dataclass(frozen=True)
class Predicted:
    """One run of the largest rung: its loss and what the others said it would be, with an interval."""

    name: str
    loss: float
    expected: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the loss lies in the interval."""
        return self.low <= self.loss <= self.high


@dataclass(frozen=True)
class LeftOut:
    """The check.

    Attributes:
        runs: of the largest rung.
        fitted: runs below it.
        reach: its budget over the largest that was fitted.
        level: of the intervals.
        chance: probability of as few runs inside their intervals if the law holds.
    """

    runs: tuple[Predicted, ...]
    fitted: int
    reach: float
    level: float
    chance: float

    @property
    def inside(self) -> int:
        """How many runs came out inside their interval."""
        return sum(run.inside for run in self.runs)

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.passed:
            return "the law does NOT extrapolate: do not rely on it"
        if 2 * self.inside < len(self.runs):
            return "too few runs to tell a law that does not extrapolate from chance"
        return "the law extrapolates there"

    @property
    def passed(self) -> bool:
        """Whether so many inside are no surprise."""
        return self.chance >= SURPRISING


def leave_largest_out(
    N: Array,
    D: Array,
    C: Array,
    loss: Array,
    names: Sequence[str],
    level: float,
    fit: Callable[[Array, Array, Array, Array], Posterior],
) -> LeftOut | None:
    """Fit without the largest rung and predict it; None where fewer than five runs are left.

    All predictions share the law's error, so runs leave their intervals together: the chance comes from draws.
    """
    top = C.max() / RUNG <= C
    if (~top).sum() < LEAVE_OUT_FEWEST:
        return None
    posterior = fit(N[~top], D[~top], C[~top], loss[~top])
    drawn = np.stack([posterior.run_losses(N[i], D[i], seed=int(i)) for i in np.flatnonzero(top)], axis=1)
    low, middle, high = np.quantile(drawn, [(1 - level) / 2, 0.5, (1 + level) / 2], axis=0)
    hits = ((low <= np.log(loss[top])) & (np.log(loss[top]) <= high)).sum()
    chance = float(np.mean(((low <= drawn) & (drawn <= high)).sum(axis=1) <= hits))
    runs = tuple(
        Predicted(names[int(i)], float(loss[i]), *(float(np.exp(v[k])) for v in (middle, low, high)))
        for k, i in enumerate(np.flatnonzero(top))
    )
    return LeftOut(runs, int((~top).sum()), float(C[top].max() / C[~top].max()), level, chance)


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


DRAWS = 400
OPEN = 0.15
"""Standard error of an exponent from which on an approach says nothing: a is known to .09 before any run."""
NAME = "ladder (law with prior)"


def three_approaches(
    finished: Finished, posterior: Posterior, target: BudgetLine, level: float
) -> tuple[Comparison | None, tuple[NoApproach, ...]]:
    """The approaches side by side at the target, and why some have no opinion.

    Args:
        finished: the runs, with their curves.
        posterior: the ladder's law.
        target: where they are compared.
        level: of the intervals.
    """
    table = np.array([[run.flops, run.N, run.D, run.loss] for run in finished.runs])
    C, N, D, L = table.T
    found = [posterior_approach(posterior, target, level, NAME)]
    without = []
    try:
        curves = [
            Curve(run.N, run.curve[0], run.curve[2], run.curve[1]) for run in finished.runs if run.curve is not None
        ]
        if len(curves) < 3:
            raise ValueError("fewer than three runs recorded a training curve with FLOPs")
        by_curves = envelope(curves, level=level)
        if by_curves.standard_errors.get("a", math.inf) > OPEN:
            raise ValueError("the envelope of these curves leaves the exponent open: too few sizes lead in turn")
        found.append(by_curves)
    except ValueError as reason:
        without.append(NoApproach("approach 1 (envelope of curves)", str(reason)))
    try:
        found.append(isoflop_profiles(C, N, D, L, level=level))
    except ValueError as reason:
        without.append(NoApproach("approach 2 (minima of isoFLOP profiles)", str(reason)))
    try:
        law = fit_law("hoffmann", {"N": N, "D": D, "loss": L}, level=level, draws=DRAWS).law
        if law.draws is None:
            raise ValueError("these runs alone leave constants of the law open")
        found.append(approach_3(law, level))
    except ValueError as reason:
        without.append(NoApproach("approach 3 (the law without a prior)", str(reason)))
    return compare_approaches(found, target.C), tuple(without)


FEWEST = 6
"""Runs that are fitted: fewer tell less than the prior."""
SEVERAL = 3
"""Sizes."""
BATCH_RULES = ("steplaw2025", "deepseek2024", "porian2024")
"""The first names the batch, all of them the interval: they differ by more than the tokens are uncertain."""
NEAR = 3.0
"""A factor of the largest budget within which runs are held against its optimum."""
FAR = 1e3
"""A factor of compute beyond which an extrapolation is spoken of."""


def fit_ladder_runs(
    runs: Sequence[str | os.PathLike[str]],
    *,
    plan: LadderPlan | str | os.PathLike[str] | None = None,
    target_flops: float | None = None,
    loss: str | None = None,
    level: float = 0.9,
) -> LadderFit:
    """Fit the records of a ladder.

    Args:
        runs: records, or folders with some.
        plan: the plan, or its file: it names the runs and the target.
        target_flops: of the run that is to be sized; default: the plan's.
        loss: `train` or eval/<name>; default: an evaluation that all finished runs have, else the training loss.
        level: of the intervals.

    Raises:
        ValueError: no target; a plan that can't be read; fewer than six finished runs or three sizes, with the reasons.
    """
    if plan is not None and not isinstance(plan, LadderPlan):
        plan = read_plan(os.fspath(plan))
    target_flops = target_flops or (plan.target_flops if plan is not None else None)
    if target_flops is None:
        raise ValueError("expected a target: pass the plan (--plan plan.yaml) or its FLOPs (--flops 1e21)")
    if not 0 < level < 1:
        raise ValueError(f"level= expects a probability between 0 and 1, got {level!r}")
    convention = DEFAULT_N if plan is None else plan.convention
    finished = read_finished(runs, plan=plan, loss=loss, convention=convention)
    return fit_finished(finished, target_flops, level)


def fit_finished(finished: Finished, target_flops: float, level: float = 0.9) -> LadderFit:
    """The same from runs that are read already. Errors as `fit_ladder_runs`."""
    N, D, C, L = columns(finished.runs)
    if len(N) < FEWEST or len(set(N)) < SEVERAL:
        reasons = "".join(
            f"\n  {reason}" for reason in (*finished.left_out, *(f"{n}: no record" for n in finished.missing))
        )
        raise ValueError(
            f"expected at least {FEWEST} finished runs of {SEVERAL} sizes, got {len(N)} of {len(set(N))}{reasons}"
        )
    posterior = posterior_of_runs(N, D, C, L)
    target = posterior.line(target_flops)
    log_N = posterior.sizes(target)
    sizes = np.exp(log_N)
    tokens = np.asarray(target.tokens(sizes))
    N_opt, D_opt = estimate(sizes, level), estimate(tokens, level)
    compared, without = three_approaches(finished, posterior, target, level)
    return LadderFit(
        target_flops=target_flops,
        level=level,
        N_opt=N_opt,
        D_opt=D_opt,
        tokens_per_param=estimate(tokens / sizes, level),
        batch=batch_of(D_opt, N_opt, target_flops),
        loss=estimate(np.exp(posterior.run_losses(N_opt.value, float(target.tokens(N_opt.value)))), level),
        exponents=_exponents(posterior, target, log_N, float(C.max()), level),
        noise=estimate(posterior.noise, level),
        approaches=compared,
        without=without,
        left_out=leave_largest_out(N, D, C, L, [run.name for run in finished.runs], level, posterior_of_runs),
        rung=worth_of_a_rung(posterior, target, N, D, C),
        finished=finished,
        warnings=_warnings(finished, target, N, C, posterior),
        posterior=posterior,
        target=target,
    )


def columns(runs: Sequence[FinishedRun]) -> tuple[Array, Array, Array, Array]:
    """N, D, C and losses of runs."""
    table = np.array([[run.N, run.D, run.flops, run.loss] for run in runs], dtype=float).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def batch_of(D: Estimate, N: Estimate, flops: float) -> Estimate:
    """Tokens a step at a run of D tokens: Step Law's, its interval what published rules and D's interval span."""
    at = {"value": (N.value, D.value), "low": (N.low, D.low), "high": (N.high, D.high)}
    laws = [published(name).batch_law for name in BATCH_RULES]

    def of(where: str) -> list[float]:
        size, tokens = at[where]
        return [float(law(N=size, D=tokens, C=flops)) for law in laws if law is not None]

    return Estimate(of("value")[0], min(of("low")), max(of("high")))


def _exponents(
    posterior: Posterior, target: BudgetLine, log_N: Array, largest: float, level: float
) -> dict[str, Estimate]:
    found = {
        "alpha": estimate(np.exp(posterior.draws[:, 3]), level),
        "beta": estimate(np.exp(posterior.draws[:, 4]), level),
    }
    if 1.01 * largest < target.C:
        step = math.log(target.C / largest)
        below = BudgetLine(largest, target.N, target.D * largest / target.C, target.slope)
        found["a"] = estimate((log_N - posterior.sizes(below)) / step, level)
    return found


def _outside(posterior: Posterior, target: BudgetLine, N: Array, C: Array) -> str | None:
    """What to say where the largest budgets' runs are all smaller or all larger than the optimum there."""
    largest = float(C.max())
    line = BudgetLine(largest, target.N, target.D * largest / target.C, target.slope)
    best = float(np.exp(np.median(posterior.sizes(line))))
    there = N[largest / NEAR <= C]
    if there.min() < best < there.max():
        return None
    text = f"the optimum at the largest budget, about {short(best)} parameters, is"
    if best >= there.max():
        where, more = f"larger than all runs there (up to {short(float(there.max()))})", "larger"
    else:
        where, more = f"smaller than all runs there (from {short(float(there.min()))} on)", "smaller"
    return f"{text} {where}: the runs do not enclose it, and the prior tells much of where it is: add {more} models"


def _warnings(finished: Finished, target: BudgetLine, N: Array, C: Array, posterior: Posterior) -> tuple[str, ...]:
    said = []
    reach = target.C / float(C.max())
    outside = _outside(posterior, target, N, C)
    if outside is not None:
        said.append(outside)
    if reach > FAR:
        said.append(
            f"the target is {reach:,.0f} times the largest run's compute: the intervals know of bends by a prior alone"
        )
    if reach < 1:
        said.append("the target is smaller than the largest run: this is no extrapolation, look at the runs around it")
    if finished.loss_name == "train" and finished.runs:
        said.append(
            "the loss is the training loss at each run's end, noise and repeated data in it: an evaluation is better"
        )
    if finished.missing:
        n = len(finished.missing)
        said.append(
            f"{n} planned run{'s have' if n > 1 else ' has'} no finished record: the intervals are wider for it"
        )
    if float(N.min()) < 1e7:
        said.append("models below 10M parameters: the law may bend on the way up")
    return tuple(said)
