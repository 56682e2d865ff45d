"""`fit_law` for a law that is no sum of powers: the same result, from `general`'s search."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from isoflop.fit.fitting.data import Runs
from isoflop.fit.fitting.general import flat_directions, optima, polish
from isoflop.fit.fitting.identified import FEW
from isoflop.fit.fitting.newton import Array
from isoflop.fit.fitting.numeric import Values, general_draws
from isoflop.fit.fitting.result import LawFit
from isoflop.fit.fitting.uncertainty import Progress, intervals, nothing
from isoflop.fit.law import Convention, Form, Law

SEARCH = 0.7
"""Share of the time that the search for optima takes."""
MOST_DRAWS = 400
"""Some 5 ms each."""


def fit_general(
    form: Form,
    runs: Runs,
    delta: float,
    fixed: Mapping[str, float],
    level: float,
    draws: int,
    seed: int,
    convention: Convention,
    progress: Progress = nothing,
) -> LawFit:
    """Fit any form by its values; see `fit_law` for the arguments.

    Raises:
        ValueError: a constant that the form does not have, or none left to fit.
    """
    for name in fixed:
        if name not in form.constants:
            raise ValueError(f"expected one of the law's constants {', '.join(form.constants)}, got {name!r}")
    if set(fixed) == set(form.constants):
        raise ValueError("all constants are fixed: nothing is left to fit")
    law = Values(form, runs.variables, np.log(runs.loss), dict(fixed))
    found = optima(law, runs.weights, delta, seed=seed, progress=lambda share: progress(SEARCH * share))
    theta, objective = found[0]
    drawn = general_draws(law, theta, runs.weights, delta, min(draws, MOST_DRAWS), seed)
    # for the constants that the residuals were fitted with
    drawn = theta + (drawn - theta) * np.sqrt(len(runs) / max(len(runs) - len(theta), 1))
    flat = flat_directions(law, theta, runs.weights, delta, drawn, found)
    few = len(runs) < len(theta) + FEW

    def whole(values: Array) -> dict[str, Array]:
        free = dict(zip(law.free, np.exp(values.T), strict=True))
        return {name: free.get(name, np.full(len(values), fixed.get(name, np.nan))) for name in form.constants}

    spread = whole(drawn)
    point = {name: float(value[0]) for name, value in whole(theta[None]).items()}
    unknown = {name for name in law.free if few or any(name in text.split(":")[0].split() for text in flat)}
    errors = {name: 0.0 if name in fixed else float(values.std()) for name, values in spread.items()}

    def influence() -> Array:
        moved = []
        for left_out in range(len(runs)):
            weights = runs.weights.copy()
            weights[left_out] = 0
            moved.append(polish(law, theta, weights, delta, rounds=1)[0])
        return (np.array(moved) - theta) / np.maximum(drawn.std(axis=0), 1e-300)

    said = [f"{len(runs)} runs for {len(theta)} constants: no interval is to be trusted"] if few else []
    return LawFit(
        law=Law(form, point, convention, None if unknown else spread, f"fitted to {len(runs)} runs"),
        parameters=point,
        standard_errors=errors | dict.fromkeys(unknown, np.inf),
        intervals=intervals(spread, level) | dict.fromkeys(unknown, (0.0, np.inf)),
        level=level,
        covariance=np.cov(np.stack(list(spread.values()))),
        objective=objective,
        delta=delta,
        n=len(runs),
        residuals=law.residuals(theta),
        warnings=(*runs.warnings, *said, *flat),
        draws=spread,
        influence=influence,
    )
