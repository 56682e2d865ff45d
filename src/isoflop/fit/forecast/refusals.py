"""When there is no forecast, and what to tell the user: checks before the fit and on its residuals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.forecast.result import Silence
from isoflop.fit.forecast.schedule import LrPlan

Array = NDArray[np.float64]
DOMAINS = ("moe", "finetuning", "vision", "reinforcement_learning")
"""What the priors do not know; a mixture of experts gets wider ones, the rest no forecast without own runs."""
FEWEST = 6
"""Bins of loss after the warm-up that a fit needs."""
OFF_PLAN = 0.05
"""A rate this far off its plan, as a fraction of the peak, has left it."""
BATCH = 0.2
"""Tokens per step that change by this fraction in the window are another batch."""
REWARMED = 0.25
"""A plan that rises by this fraction of its peak after the warm-up is none that was tested."""
JUMP = 0.012
"""A step in the residuals of this fraction of the loss, and of nine times its noise, is a change point."""
RISE = 0.02
"""A loss this fraction above its lowest, and by six times the noise, diverges."""


def checked_domain(domain: Mapping[str, bool] | None) -> frozenset[str]:
    """The flags that are set.

    Raises:
        ValueError: for a flag that is none of `DOMAINS`.
    """
    unknown = sorted(set(domain or {}) - set(DOMAINS))
    if unknown:
        raise ValueError(f"Unknown domain {', '.join(map(repr, unknown))}; the flags are {', '.join(DOMAINS)}.")
    return frozenset(flag for flag, on in (domain or {}).items() if on)


def of_domain(domain: frozenset[str], own_runs: int) -> Silence | None:
    """Silence where the priors say nothing: no dense language-model pretraining, and no own runs to learn from."""
    foreign = sorted(domain - {"moe"})
    if not foreign or own_runs:
        return None
    kind = " and ".join(flag.replace("_", " ") for flag in foreign)
    return Silence(
        "outside the priors",
        f"The priors are of language-model pretraining, this is {kind}: give finished runs of yours as `history`.",
    )


def of_plan(plan: LrPlan, steps: Array, rates: Array, warmup: int) -> Silence | None:
    """Silence where the run left the plan, or the plan is none that was tested."""
    after = plan.steps >= warmup
    lowest = np.minimum.accumulate(plan.lr[after])
    if len(lowest) and float((plan.lr[after] - lowest).max()) > REWARMED * plan.peak:
        return Silence("outside the priors", "The learning rate rises again after its warm-up; no such run was tested.")
    if len(steps) == 0:
        return None
    off = off_plan(plan, steps[-2:], rates[-2:])
    if off.min() > OFF_PLAN:
        return Silence(
            "learning rate left its plan",
            f"At step {steps[-1]:,.0f} the learning rate is {rates[-1]:.3g}, by the plan it is "
            f"{float(plan.at(steps[-1])):.3g}: pass the plan that the run follows now.",
        )
    return None


def off_plan(plan: LrPlan, steps: Array, rates: Array) -> Array:
    """How far rates are off a plan, as fractions of its peak; a step early or late is none."""
    near = plan.at(steps[:, None] + np.array([-1.0, 0.0, 1.0]))
    return np.asarray(np.abs(near - rates[:, None]).min(1) / plan.peak)


def of_curve(step: Array, tokens: Array, loss: Array, now: float, warmup: int, lost: int) -> Silence | None:
    """Silence where the curve is too young, breaks off or changes its batch; arrays are the bins after the warm-up."""
    if lost:
        return Silence("diverging", f"The last {lost} logged losses are not finite.")
    if now < 2 * warmup:
        return Silence("warm-up", f"A forecast needs {2 * warmup:,} steps, twice the warm-up; {now:,.0f} are done.")
    if len(step) < FEWEST:
        return Silence(
            "too few points",
            f"{len(step)} of the {FEWEST} bins of loss that a fit needs are filled: log more often or wait.",
        )
    third = len(step) // 3
    early, late = ((tokens[i] - tokens[j]) / (step[i] - step[j]) for i, j in ((third, 0), (-1, -1 - third)))
    if early > 0 and abs(late / early - 1) > BATCH:
        return Silence(
            "batch size changed",
            f"The tokens per step went from {early:,.0f} to {late:,.0f}: the curve before says nothing of the one now.",
        )
    return None


def of_residuals(residual: Array, loss: Array) -> Silence | None:
    """Silence where the loss rose from its lowest, or jumped where no learning rate explains it."""
    n = len(residual)
    if n < 8:
        return None
    noise = 1.4826 * float(np.median(np.abs(np.diff(residual)))) / np.sqrt(2)
    level = float(np.mean(loss))
    # a jump between the medians of up to four bins before and after: one spike is none
    size = min(4, n // 4)
    middle = np.median(np.lib.stride_tricks.sliding_window_view(residual, size), axis=1)
    steps = middle[size:] - middle[:-size]
    # against the steps to either side: a smooth misfit is no jump
    sharp = steps[size:-size] - (steps[: -2 * size] + steps[2 * size :]) / 2 if len(steps) > 2 * size else steps[:0]
    jump = float(sharp[np.argmax(np.abs(sharp))]) if len(sharp) else 0.0
    jumped = abs(jump) > max(JUMP * level, 9 * noise * np.sqrt(2 / size))
    smooth = np.convolve(loss, np.ones(3) / 3, mode="valid")
    rise = float(smooth[-1] - smooth.min())
    if jumped:
        return Silence(
            "change point",
            f"The loss jumped by {jump:+.3f} nats where the learning rate does not explain it (new data, "
            "a restart, a spike?): there is a forecast again when the jump is long past.",
        )
    if rise > max(RISE * level, 6 * noise / np.sqrt(3)):
        return Silence("diverging", f"The loss has risen by {rise:.3f} nats from its lowest.")
    return None
