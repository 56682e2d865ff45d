"""A forecaster fed with a curve that is there already: a recorded run under way, or the first part of a finished one."""

from __future__ import annotations

import math

import numpy as np

from isoflop.fit.forecast.curves import FinishedRun
from isoflop.fit.forecast.online import OnlineForecaster
from isoflop.fit.forecast.priors import DEFAULT_PRIORS, Priors


def fed(run: FinishedRun, priors: Priors = DEFAULT_PRIORS, at: float | None = None) -> OnlineForecaster:
    """The forecaster after a curve's points.

    Args:
        run: the curve and its plan.
        priors: of the forecast.
        at: the part of the plan that is seen; None: all there is.
    """
    curve = OnlineForecaster(
        N=run.N, batch_tokens=run.batch_tokens, optimizer=run.optimizer, domain=run.domain, priors=priors
    )
    count = np.ones(len(run.steps)) if run.count is None else run.count
    limit = math.inf if at is None else at * run.total_steps
    for step, tokens, lr, loss, n in zip(run.steps, run.tokens, run.lr, run.loss, count, strict=True):
        if step <= limit:
            curve.add(int(step), float(tokens), None if np.isnan(lr) else float(lr), float(loss), int(max(n, 1)))
    return curve
