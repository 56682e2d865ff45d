"""`fit_ladder_runs`: a ladder's finished runs to the law, and from it what the run at the target should be."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np

from isoflop.fit.frontier.allocation import short
from isoflop.fit.papers.published import published
from isoflop.fit.posterior import Array, BudgetLine, Posterior, posterior_of_runs
from isoflop.ladder.approaches import three_approaches
from isoflop.ladder.finished import Finished, FinishedRun, read_finished
from isoflop.ladder.ladder_fit import Estimate, LadderFit, estimate
from isoflop.ladder.leave_out import leave_largest_out
from isoflop.ladder.plan import LadderPlan
from isoflop.ladder.plan_file import read_plan
from isoflop.ladder.worth import worth_of_a_rung
from isoflop.record.conventions import DEFAULT_N

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
