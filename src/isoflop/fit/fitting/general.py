"""Fit a law that is no sum of powers (Muennighoff's with repeated data, Kaplan's L(N,D)): slower, by its values alone.

Constants are searched in logarithms between plausible bounds: a grid or a Sobol sequence sees the basins, Gauss–Newton
goes down from the best that lie apart, and the best of those are polished (L-BFGS-B, then Nelder & Mead's simplex,
which needs no derivative at Huber's kinks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import least_squares, minimize

from isoflop.fit.fitting.newton import Array, minimise
from isoflop.fit.fitting.numeric import Values
from isoflop.fit.fitting.search import apart
from isoflop.fit.fitting.uncertainty import Progress, nothing

BOUNDS: dict[str, tuple[float, float]] = {
    "E": (1e-2, 10.0),
    "A": (1.0, 1e6),
    "B": (1.0, 1e6),
    "alpha": (0.02, 3.0),
    "beta": (0.02, 3.0),
    "N_c": (1e6, 1e18),
    "D_c": (1e6, 1e18),
    "S_c": (1.0, 1e8),
    "alpha_N": (0.01, 1.0),
    "alpha_D": (0.01, 1.0),
    "alpha_S": (0.05, 3.0),
    "R_D_star": (0.1, 1e4),
    "R_N_star": (0.1, 1e4),
}
"""Where a constant is looked for."""
_DRAWS = 4096
EXPONENTS = ("alpha", "beta", "gamma", "eta")
"""What the names of exponents begin with: a factor that is nothing to a coefficient is all there is to them."""
SAME = 0.01
"""Relative difference of objectives below which no optimum is preferred. On Muennighoff et al. 2023's 182 runs the
published optimum, at a sixth of the best R_D*, is 0.13% above the best; other draws of the runs move both by ±5%."""
DESCENT = 60
"""Steps down from a start, before those that ended together are one."""
HOPELESS = 1.1
"""Objective over the best beyond which a minimum is not taken to its last digit."""
ROUNDING = 1e-6
"""Of ln L: a difference of objectives by residuals that small is none either."""
SPAN, EXPONENT_SPAN = 100.0, 4.0
"""Highest over lowest of 90% of the draws from which on a constant is not identified."""
APART = 3.0
"""Factor between two optima's values of a constant from which on they are different answers."""


def optima(
    law: Values, weights: Array, delta: float, keep: int = 8, seed: int = 0, progress: Progress = nothing
) -> list[tuple[Array, float]]:
    """Minima found, the best first: (θ, objective). Others than the first are local, or say that little is identified.

    Raises:
        ValueError: a constant without bounds to look between.
    """
    unknown = [name for name in law.free if name not in BOUNDS]
    if unknown:
        raise ValueError(f"{law.form.name}: {', '.join(unknown)} can't be fitted; hold it with fixed=")
    low, high = (np.log([BOUNDS[name][side] for name in law.free]) for side in (0, 1))
    if len(law.free) <= 2:
        axes = [np.linspace(a, b, 40) for a, b in zip(low, high, strict=True)]
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(law.free))
    else:
        from scipy.stats import qmc  # takes .4 s, which who only draws figures need not wait for

        points = qmc.scale(qmc.Sobol(len(law.free), seed=seed).random(_DRAWS), low, high)
    found: list[tuple[Array, float]] = []
    # a wide δ shows the basins, the asked one the minima at its kinks
    for half, (width, distance) in enumerate(((max(delta, 1e-2), 12), (delta, 24))):
        values = np.concatenate([law.objectives(part, weights, width) for part in np.array_split(points, 32)])
        starts = points[apart(points, values, (high - low) / distance, 4 * keep)]
        # the best start need not lie in the best basin: a narrow one shows only from inside
        starts, values = minimise(law, starts, weights[None], width, widest=0.0, tolerance=1e-6, steps=DESCENT)
        chosen = starts[apart(starts, values, (high - low) / 1000, keep)]
        chosen, values = minimise(law, chosen, weights[None], delta, widest=0.0, tolerance=1e-6)
        for done, (theta, value) in enumerate(zip(chosen, values.tolist(), strict=True)):
            progress((half + (done + 1) / (len(chosen) + 1)) / 2)
            if value < HOPELESS * values.min():
                theta, value = polish(law, theta, weights, delta)
            if all(np.abs(theta - other).max() > 1e-3 for other, _ in found):
                found.append((theta, value))
    return sorted(found, key=lambda item: item[1])


def polish(law: Values, theta: Array, weights: Array, delta: float, rounds: int = 4) -> tuple[Array, float]:
    """From θ to the minimum nearby."""
    scale = max(law.objective(theta, weights, delta), 1e-300)

    def value(point: Array) -> float:
        return law.objective(point, weights, delta) / scale

    best = minimize(value, theta, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-12})
    for _ in range(rounds):
        before = best.fun
        tolerances = {"xatol": 1e-8, "fatol": 1e-14, "maxiter": 4000, "maxfev": 4000, "adaptive": True}
        tried = minimize(value, best.x, method="Nelder-Mead", options=tolerances)
        best = tried if tried.fun <= best.fun else best
        if before - best.fun <= 1e-12 * before:
            break
    best_value = float(best.fun) * scale
    if np.abs(law.residuals(best.x)).max() < delta:
        # all within δ: squares, which Gauss and Newton finish to the last digit
        finished = least_squares(
            lambda x: np.sqrt(weights) * law.residuals(x), best.x, xtol=1e-15, ftol=1e-15, gtol=1e-15
        )
        value_there = law.objective(finished.x, weights, delta)
        if value_there < best_value:
            return finished.x, value_there
    return best.x, best_value


def flat_directions(
    law: Values,
    theta: Array,
    weights: Array,
    delta: float,
    draws: Array | None = None,
    found: Sequence[tuple[Array, float]] | None = None,
) -> list[str]:
    """Which constants the runs do not identify, in sentences; empty: nothing to say.

    Three signs: 90% of the draws span more than a factor of 100 (of an exponent: 4); held at ten times or a tenth of
    its value (an exponent: twice, half) with the others fitted anew, a constant raises the objective by less than 1%;
    optima within 1% of the best lie a factor of 3 apart. A minimum that is not found hides a flat direction, so
    silence proves nothing.

    Args:
        law: the fit's runs.
        theta: its optimum [free].
        weights: of the runs [n].
        delta: of Huber's loss.
        draws: of θ [draws, free], from `uncertainty.draw`.
        found: what `optima` returned; by default it is called.
    """
    found = optima(law, weights, delta) if found is None else found
    best = min([law.objective(theta, weights, delta), *(value for _, value in found)])
    enough = best * (1 + SAME) + 0.5 * ROUNDING**2 * float(weights.sum())
    said = []
    for i, name in enumerate(law.free):
        signs = _signs(law, i, theta, weights, delta, draws, best, enough)
        if signs:
            said.append(f"{name} = {np.exp(theta[i]):.3g} is not identified: {'; '.join(signs)}")
    near = [(other, value) for other, value in found if value <= enough]
    for i, name in enumerate(law.free):
        at = sorted((float(np.exp(other[i])), _excess(value, best)) for other, value in near)
        if len(at) > 1 and at[-1][0] > APART * at[0][0]:
            places = ", ".join(f"{value:.3g}{excess}" for value, excess in at)
            said.append(f"{len(at)} optima within {SAME:.0%} of the best objective differ in {name}: {places}")
    return said


def _signs(
    law: Values, i: int, theta: Array, weights: Array, delta: float, draws: Array | None, best: float, enough: float
) -> list[str]:
    """Why constant i would not be identified, from its draws and from holding it elsewhere."""
    name = law.free[i]
    is_exponent = name.startswith(EXPONENTS)
    signs = []
    if draws is not None and len(draws):
        low, high = np.exp(np.quantile(draws[:, i], [0.05, 0.95]))
        if high > (EXPONENT_SPAN if is_exponent else SPAN) * low:
            signs.append(f"90% of its draws run from {low:.2g} to {high:.2g}")
    factor = 2.0 if is_exponent else 10.0
    for text, times in ((f"{factor:g} times as much", factor), (f"1/{factor:g} of it", 1 / factor)):
        held = replace(law, fixed={**law.fixed, name: float(np.exp(theta[i]) * times)})
        rest = np.delete(theta, i)
        value = polish(held, rest, weights, delta, rounds=1)[1] if rest.size else held.objective(rest, weights, delta)
        if value <= enough:
            signs.append(f"{text} fits as well{_excess(value, best)}")
    return signs


def _excess(value: float, best: float) -> str:
    """How far an objective is above the best; nothing where it is the best, or both are 0 but for rounding."""
    relative = value / max(best, 1e-300) - 1
    return f" ({relative:+.2%})" if 1e-6 < relative <= SAME else ""
