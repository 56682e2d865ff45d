"""Laws that are sums of powers, as a fitter sees them: which constants multiply, which are exponents, what is fixed.

L = Σₖ cₖ / xₖ^eₖ, where a term without a variable is the irreducible loss E. Runs may belong to groups (datasets, model
families) that share some constants and have others of their own: each run knows, for each term, which constant is its
coefficient and which its exponent.

What is known of a law's constants before any run: Gaussian priors, weighed against the runs by the runs' own noise.

Huber's Σ w·ρ(r) is no likelihood: its scale means nothing. Times ω = E ψ′ / E ψ² its curvature is the information that
the runs carry about the constants, and the variance of its slope too (Huber 1964), so that it can be added to
½((constant − mean)/sd)². The noise behind ω comes from the residuals, and the fit and it are found in turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import erf, exp, pi, sqrt

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.fit.newton import Problem

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Term:
    """coefficient / variable^exponent; a constant where there is no variable."""

    coefficient: str
    variable: str | None = None
    exponent: str | None = None


@dataclass(frozen=True)
class PowerSum:
    """A sum of terms over n runs.

    Attributes:
        terms: of the formula.
        names: of the constants, those of groups as "E[c4]", in the order of θ (coefficients there as logarithms).
        is_exponent: which of these are exponents [parameters].
        logs: ln of each term's variable [n, terms], 0 where it has none.
        centre: of the logs: θ's coefficients are those at the centre, where they are least correlated [parameters].
        coefficient, exponent: index into the constants by run and term [n, terms]; −1: none.
        fixed: constants that are not fitted.
    """

    terms: tuple[Term, ...]
    names: tuple[str, ...]
    is_exponent: NDArray[np.bool_]
    logs: Array
    coefficient: Indices
    exponent: Indices
    fixed: Mapping[str, float]

    @property
    def free(self) -> Indices:
        """Indices of the constants that are fitted."""
        return np.array([i for i, name in enumerate(self.names) if name not in self.fixed], dtype=np.int64)

    @property
    def free_names(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.names[i] for i in self.free)

    def centres(self) -> Array:
        """Mean ln x of the runs that a coefficient belongs to [parameters]; 0 for exponents and constants."""
        centre = np.zeros(len(self.names))
        for i in np.flatnonzero(~self.is_exponent):
            mine = self.coefficient == i
            centre[i] = self.logs[mine].mean()
        return centre

    def problem(self, log_loss: Array) -> Problem:
        """The design for Newton over the free constants, coefficients at the centres."""
        n, terms = self.logs.shape
        rows = np.arange(n)
        whole = np.zeros((n, terms, len(self.names)))
        centre = self.centres()
        for k in range(terms):
            whole[rows, k, self.coefficient[:, k]] = 1
            has = self.exponent[:, k] >= 0
            shift = self.logs[:, k] - centre[self.coefficient[:, k]]
            # a fixed coefficient is fixed at ln x = 0, not at the centre
            is_fixed = np.array([self.names[c] in self.fixed for c in self.coefficient[:, k]])
            shift = np.where(is_fixed, self.logs[:, k], shift)
            whole[rows[has], k, self.exponent[has, k]] = -shift[has]
        known = np.array([self._theta_of(name, value) for name, value in self.fixed.items()])
        places = [self.names.index(name) for name in self.fixed]
        offset = whole[:, :, places] @ known if places else np.zeros((n, terms))
        return Problem(np.ascontiguousarray(whole[:, :, self.free]), offset, log_loss)

    def _theta_of(self, name: str, value: float) -> float:
        return value if self.is_exponent[self.names.index(name)] else float(np.log(value))

    def constants(self, theta: Array) -> Array:
        """From θ of the free constants [rows, free] to all constants in the formula's units [rows, parameters]."""
        values = np.empty((len(theta), len(self.names)))
        values[:, self.free] = theta
        for name, value in self.fixed.items():
            values[:, self.names.index(name)] = value
        centre = self.centres()
        result = values.copy()
        for i in self.free:
            if not self.is_exponent[i]:
                run, term = np.argwhere(self.coefficient == i)[0]
                slope = self.exponent[run, term]
                lifted = values[:, i] + (values[:, slope] * centre[i] if slope >= 0 else 0)
                result[:, i] = power_sum_exp(lifted)
        return result


def power_sum_exp(logarithms: Array) -> Array:
    """Within 1e±150, so that squares stay finite: a constant out there is not known anyway."""
    return np.exp(np.clip(logarithms, -345, 345))


def power_sum(
    terms: Sequence[Term],
    data: Mapping[str, Array],
    groups: Sequence[str] | None = None,
    own: Sequence[str] = (),
    fixed: Mapping[str, float] | None = None,
) -> PowerSum:
    """Set a sum of powers up for some runs.

    Args:
        terms: of the law.
        data: its variables [n], positive.
        groups: group of each run [n].
        own: constants of which each group has its own; the others are shared.
        fixed: constants held at a value.

    Raises:
        ValueError: a constant that the law does not have, or can't have such a value; none is left to fit.
    """
    base = [name for term in terms for name in (term.coefficient, term.exponent) if name is not None]
    for name in (*own, *(fixed or {})):
        if name.partition("[")[0] not in base:
            raise ValueError(f"expected one of the law's constants {', '.join(base)}, got {name!r}")
    if own and groups is None:
        raise ValueError(f"own={list(own)} expects groups=, a label for each run")
    for name, value in (fixed or {}).items():
        if not 0 < value < np.inf:
            raise ValueError(f"fixed {name}: expected a positive number, got {value!r}")
    n = len(next(iter(data.values())))
    labels = ["" for _ in range(n)] if groups is None else [str(group) for group in groups]
    names: list[str] = []
    exponents: list[bool] = []
    for term in terms:
        for constant, is_exponent in ((term.coefficient, False), (term.exponent, True)):
            if constant is None:
                continue
            for full in [f"{constant}[{group}]" for group in dict.fromkeys(labels)] if constant in own else [constant]:
                if full not in names:
                    names.append(full)
                    exponents.append(is_exponent)
    for name in fixed or {}:
        if name not in names:
            raise ValueError(f"fixed: expected one of {', '.join(names)}, got {name!r}")
    if set(names) == set(fixed or {}):
        raise ValueError("every constant is fixed: nothing is left to fit")
    place = {name: i for i, name in enumerate(names)}

    def index(name: str | None) -> Indices:
        if name is None:
            return np.full(n, -1, dtype=np.int64)
        return np.array([place[f"{name}[{group}]" if name in own else name] for group in labels], dtype=np.int64)

    return PowerSum(
        tuple(terms),
        tuple(names),
        np.array(exponents),
        np.column_stack([np.log(data[term.variable]) if term.variable else np.zeros(n) for term in terms]),
        np.column_stack([index(term.coefficient) for term in terms]),
        np.column_stack([index(term.exponent) for term in terms]),
        dict(fixed or {}),
    )


FIRST_NOISE, LEAST_NOISE = 1e-2, 1e-6
"""Of ln L. The noise is looked for from above: from below, a fit through every run would confirm that there is none."""
RESTS = 0.9
"""Standard deviation after the runs over that before them from which on a constant rests on its prior."""
LOGARITHM = "ln "


@dataclass(frozen=True)
class Prior:
    """k Gaussians on linear forms of θ, or on their exponentials (E itself, where θ has ln E).

    Attributes:
        names: of the constants, one each [k]; those of a logarithm without the "ln ".
        form, offset: u = form·θ + offset [k, free], [k].
        lifted: whether the Gaussian is on exp(u) [k].
        mean, sd: [k], or means [rows, k] where each row of θ has its own.
        plain: names of those on the constant itself.
        scale: 1/ω, what a unit of the Gaussians' exponent is in units of Σ w·huber.
    """

    names: tuple[str, ...]
    form: Array
    offset: Array
    lifted: NDArray[np.bool_]
    mean: Array
    sd: Array
    plain: tuple[str, ...] = ()
    scale: float = 1.0

    def of(self, rows: NDArray[np.int64]) -> Prior:
        """For some rows of θ."""
        return replace(self, mean=self.mean[rows]) if self.mean.ndim > 1 else self

    def _pull(self, theta: Array) -> tuple[Array, Array]:
        """(value − mean)/sd and d value/du, both [rows, k]."""
        u = theta @ self.form.T + self.offset
        value = np.where(self.lifted, np.exp(np.minimum(u, 300)), u)
        return (value - self.mean) / self.sd, np.where(self.lifted, value, 1.0)

    def penalty(self, theta: Array) -> Array:
        """½((value − mean)/sd)², summed and scaled [rows]."""
        z, _ = self._pull(theta)
        return 0.5 * self.scale * (z**2).sum(axis=1)

    def derivatives(self, theta: Array) -> tuple[Array, Array]:
        """Of `penalty`: gradient [rows, free] and Hessian [rows, free, free]."""
        z, slope = self._pull(theta)
        pull = self.scale * z * slope / self.sd
        curve = self.scale * (slope / self.sd) ** 2 + np.where(self.lifted, pull, 0)
        return pull @ self.form, np.einsum("rk,kp,kq->rpq", curve, self.form, self.form)

    def rows(self, theta: Array) -> Array:
        """The Gaussians as runs with noise 1 at θ [free]: derivatives of value/sd [k, free]."""
        _, slope = self._pull(theta[None])
        return (slope[0] / self.sd)[:, None] * self.form

    def drawn(self, rng: np.random.Generator, draws: int) -> Array:
        """Means, as uncertain as the prior is [draws, k]."""
        return self.mean + self.sd * rng.standard_normal((draws, len(self.sd)))


def prior_of(law: PowerSum, given: Mapping[str, tuple[float, float]], coefficients: bool = True) -> Prior | None:
    """Set priors up for the free constants of a sum of powers; None where there are none.

    Args:
        law: set up for the runs.
        given: mean and standard deviation by constant, "alpha" or "E", or by "ln A" for the logarithm of one. A name
            without its group is for each group's own constant.
        coefficients: whether the sum's coefficients are the law's constants; else only exponents can have a prior.

    Raises:
        ValueError: a constant that the law does not have or that is fixed; a mean or a deviation that can't be.
    """
    if not given:
        return None
    centre = law.centres()
    names: list[str] = []
    forms, offsets, lifted, means, sds, plain = [], [], [], [], [], []
    for key, pair in given.items():
        name, in_logarithm = key.removeprefix(LOGARITHM), key.startswith(LOGARITHM)
        mine = [i for i, full in enumerate(law.names) if name in (full, full.partition("[")[0])]
        if not mine:
            known = ", ".join(full if law.is_exponent[i] else f"{full}, ln {full}" for i, full in enumerate(law.names))
            raise ValueError(f"priors: expected one of {known}, got {key!r}")
        mean, sd = _pair(key, pair)
        for i in mine:
            full = law.names[i]
            if full in law.fixed:
                raise ValueError(
                    f"priors: {full} is fixed at {law.fixed[full]:g}: leave its prior out, or don't fix it"
                )
            if law.is_exponent[i] and in_logarithm:
                raise ValueError(f"priors: expected a prior on {full} itself, got one on {key}: leave the ln out")
            if not law.is_exponent[i] and not coefficients:
                raise ValueError(f"priors: of this law only exponents can have one, got {key!r}")
            if not in_logarithm and not mean > 0:
                raise ValueError(f"priors: {key}: expected a positive mean, got {mean!r}")
            form, offset = np.zeros(len(law.names)), 0.0
            form[i] = 1.0
            if not law.is_exponent[i]:  # θ has it at the centre of the runs
                run, term = np.argwhere(law.coefficient == i)[0]
                slope = law.exponent[run, term]
                if slope >= 0 and law.names[slope] in law.fixed:
                    offset = centre[i] * law.fixed[law.names[slope]]
                elif slope >= 0:
                    form[slope] = centre[i]
            names.append(full)
            forms.append(form[law.free])
            offsets.append(offset)
            lifted.append(not law.is_exponent[i] and not in_logarithm)
            means.append(mean)
            sds.append(sd)
            plain += [] if in_logarithm else [full]
    return Prior(
        tuple(names),
        np.array(forms),
        np.array(offsets),
        np.array(lifted),
        np.array(means),
        np.array(sds),
        tuple(plain),
    )


def _pair(key: str, pair: object) -> tuple[float, float]:
    try:
        mean, sd = (float(value) for value in pair)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(f"priors: {key}: expected (mean, standard deviation), got {pair!r}") from None
    if not (np.isfinite(mean) and 0 < sd < np.inf):
        raise ValueError(f"priors: {key}: expected a mean and a positive standard deviation, got {mean!r} and {sd!r}")
    return mean, sd


def weighed(prior: Prior, noise: float, delta: float, weights: Array) -> Prior:
    """The prior on the scale of Σ w·huber with δ, at that noise (standard deviation of ln L, Gaussian about 0).

    Weights count relative to each other, as in resamples of the runs.
    """
    return replace(prior, scale=squared_pull(noise, delta) / straight(noise, delta) * float(_effective(weights)))


def straight(noise: float, delta: float) -> float:
    """E ψ′: the share of residuals within δ."""
    return erf(delta / noise / sqrt(2))


def squared_pull(noise: float, delta: float) -> float:
    """E ψ², ψ = min(max(r, −δ), δ)."""
    z = delta / noise
    inside = straight(noise, delta)
    return noise**2 * (inside - z * sqrt(2 / pi) * exp(-z * z / 2)) + delta**2 * (1 - inside) if z < 30 else noise**2


def _effective(weights: Array) -> float:
    return (weights**2).sum() / weights.sum()


def fitted_by_runs(problem: Problem, theta: Array, weights: Array, prior: Prior, noise: float, delta: float) -> float:
    """How many constants the runs fit, those that rest on a prior counted less: tr (H (H + P)⁻¹)."""
    (_,), (share,) = problem.state(theta[None])
    slope = problem.slope(share)
    information = (slope * (weights / _effective(weights))[:, None]).T @ slope
    information *= straight(noise, delta) ** 2 / squared_pull(noise, delta)
    rows = prior.rows(theta)
    return float(np.trace(information @ np.linalg.pinv(information + rows.T @ rows, hermitian=True)))


def noise_of(residuals: Array, weights: Array, constants: float) -> float:
    """Standard deviation of the runs' noise from residuals of a fit of so many constants; outliers count little.

    The mean absolute deviation, which is right for medians and for means, of residuals clipped at three times the
    deviation that the typical of them shows. A fit near a median passes through as many runs as it has constants: these
    say nothing.
    """
    size = np.sort(np.abs(residuals[weights > 0]))
    passed = min(round(constants), len(size) - 1)
    typical = 1.4826 * float(np.median(size[passed:]))
    left = max(len(size) - constants, 1.0)
    return max(sqrt(pi / 2) * float(np.minimum(size, 3 * typical).sum()) / left, LEAST_NOISE)
