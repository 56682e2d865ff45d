"""`fit_law` for a law that is no sum of powers: the same result, from `general`'s search."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from isoflop.fit.fitting.data import Runs
from isoflop.fit.fitting.general import flat_directions, optima
from isoflop.fit.fitting.identified import too_few
from isoflop.fit.fitting.newton import Array
from isoflop.fit.fitting.numeric import Values
from isoflop.fit.fitting.result import LawFit, described
from isoflop.fit.fitting.uncertainty import Progress, draw, influence, nothing
from isoflop.fit.law import Convention, Form

SEARCH = 0.7
"""Share of the time that the search for optima takes."""
MOST_DRAWS = 400
"""Some 5 ms each."""
FARTHEST = 200.0
"""Draws of ln R_D* run off where nothing holds them: so far that exp still has a value."""


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
    drawn = np.clip(draw(law, theta, runs.weights, delta, min(draws, MOST_DRAWS), seed), -FARTHEST, FARTHEST)
    flat = flat_directions(law, theta, runs.weights, delta, drawn, found)
    few = too_few(len(runs), len(theta))

    def whole(values: Array) -> dict[str, Array]:
        free = dict(zip(law.free, np.exp(values.T), strict=True))
        return {name: free.get(name, np.full(len(values), fixed.get(name, np.nan))) for name in form.constants}

    said = [f"{len(runs)} runs for {len(theta)} constants: no interval is to be trusted"] if few else []
    return described(
        form,
        {name: float(value[0]) for name, value in whole(theta[None]).items()},
        whole(drawn),
        law.residuals(theta),
        fixed=fixed,
        unknown={name for name in law.free if few or any(name in text.split(":")[0].split() for text in flat)},
        level=level,
        convention=convention,
        objective=objective,
        delta=delta,
        warnings=(*runs.warnings, *said, *flat),
        influence=partial(influence, law, theta, runs.weights, delta, drawn),
    )
