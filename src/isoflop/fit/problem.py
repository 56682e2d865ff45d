"""The runs of a fit as a minimiser sees them: ln L̂ − ln L as a function of θ, with its derivatives.

A law that is a sum of powers, L = Σₖ cₖ/xₖ^eₖ, has exact ones: ln L̂ᵢ = ln Σₖ exp(tᵢₖ), where each term's logarithm
tᵢₖ = Σₚ Xᵢₖₚ·θₚ is linear in θ = (ln E, ln A, α, …). Runs may belong to groups (datasets, model families) that share
some constants and have others of their own. Any other law is known by its values: θ holds the logarithms of its
constants, and derivatives are differences. Everything after this module is the same for both.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.fit.runs import Runs
from isoflop.laws.forms import Form

State = tuple[Array, Array]
"""Residuals [rows, n], and what their derivatives need [rows, …]."""
EXPONENTS = ("alpha", "beta", "gamma", "eta")
"""What the names of exponents begin with: a factor that is nothing to a coefficient is all there is to them."""


def huber(residuals: Array, delta: float) -> Array:
    """½r² where |r| ≤ δ, else δ·(|r| − ½δ): Huber 1964, as Hoffmann et al. 2022 use it (section 3.3)."""
    size = np.abs(residuals)
    inside = np.minimum(size, delta)
    return inside * (size - 0.5 * inside)


def bounded_exp(logarithms: Array) -> Array:
    """Within 1e±150, so that squares stay finite: a constant out there is not known anyway."""
    return np.exp(np.clip(logarithms, -345, 345))


class Problem(ABC):
    """A law over n runs.

    Attributes:
        names: of the constants, those of groups as "E[c4]".
        is_exponent: which of these are exponents.
        fixed: constants that are not fitted.
        free: indices of those that are, in the order of θ.
        log_loss: ln L [n].
    """

    def __init__(self, form: Form, names: Sequence[str], fixed: Mapping[str, float], log_loss: Array) -> None:
        for name, value in fixed.items():
            check_constant(form, name)
            if name not in names:
                raise ValueError(f"fixed: expected one of {', '.join(names)}, got {name!r}")
            if not 0 < value < np.inf:
                raise ValueError(f"fixed {name}: expected a positive number, got {value!r}")
        if set(names) == set(fixed):
            raise ValueError("every constant is fixed: nothing is left to fit")
        self.form, self.names, self.fixed, self.log_loss = form, tuple(names), dict(fixed), log_loss
        self.is_exponent = np.array([name.startswith(EXPONENTS) for name in names])
        self.free = np.array([i for i, name in enumerate(names) if name not in fixed], dtype=np.int64)

    @property
    def free_names(self) -> tuple[str, ...]:
        """Names of the constants that are fitted."""
        return tuple(self.names[i] for i in self.free)

    @abstractmethod
    def state(self, theta: Array) -> State:
        """At θ [rows, free]."""

    @abstractmethod
    def slope(self, state: State) -> Array:
        """Derivative of ln L̂ by θ at the first row of a state [n, free]."""

    @abstractmethod
    def derivatives(self, state: State, weights: Array, delta: float) -> tuple[Array, Array]:
        """Gradient [rows, free] and Hessian [rows, free, free] of Σ w·huber."""

    @abstractmethod
    def constants(self, theta: Array) -> Array:
        """All constants in the formula's units [rows, constants], from θ [rows, free]."""

    def residuals(self, theta: Array) -> Array:
        """Ln L̂ − ln L: θ [rows, free] → [rows, n]."""
        return self.state(theta)[0]

    def objective(self, theta: Array, weights: Array, delta: float) -> Array:
        """Σ w·huber: θ [rows, free] → [rows]."""
        return (weights * huber(self.residuals(theta), delta)).sum(axis=1)


def is_of(constant: str, name: str) -> bool:
    """Whether a name is that of a form's constant, or of a group's own: "E[c4]" is of "E"."""
    return name == constant or (name.startswith(f"{constant}[") and name.endswith("]"))


def check_constant(form: Form, name: str) -> None:
    """ValueError unless the form has this constant, which may be a group's own."""
    if not any(is_of(constant, name) for constant in form.constants):
        raise ValueError(f"expected one of the law's constants {', '.join(form.constants)}, got {name!r}")


def problem_of(
    form: Form,
    runs: Runs,
    fixed: Mapping[str, float],
    groups: Sequence[str] | None = None,
    own: Sequence[str] = (),
) -> Problem:
    """Set a law up over runs.

    Args:
        form: of the law.
        runs: checked.
        fixed: constants held at a value.
        groups: group of each run [n].
        own: constants of which each group has its own; the others are shared.

    Raises:
        ValueError: a constant that the law does not have, or can't have such a value; none is left to fit; groups of a
            law that is no sum of powers.
    """
    if form.name in TERMS:
        return PowerSum(form, runs, fixed, groups, own)
    if groups is not None or own:
        raise ValueError(f"{form.name} is no sum of powers: groups= and own= are not for it")
    return ByDifferences(form, runs.variables, np.log(runs.loss), fixed)


# -- sums of powers ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """coefficient/variable^exponent, the constant itself where there is no variable.

    A coefficient that is a `scale` is in the variable's unit: (coefficient/variable)^exponent.
    """

    coefficient: str
    variable: str | None = None
    exponent: str | None = None
    scale: bool = False


TERMS: dict[str, tuple[Term, ...]] = {
    "hoffmann": (Term("E"), Term("A", "N", "alpha"), Term("B", "D", "beta")),
    "kaplan-n": (Term("N_c", "N", "alpha_N", scale=True),),
    "kaplan-d": (Term("D_c", "D", "alpha_D", scale=True),),
    "kaplan-c": (Term("C_c", "C", "alpha_C", scale=True),),
    "kaplan-ns": (Term("N_c", "N", "alpha_N", scale=True), Term("S_c", "S_min", "alpha_S", scale=True)),
    "schaipp": (Term("E"), Term("A_N", "N", "alpha"), Term("A_B", "B", "beta"), Term("A_S", "S", "gamma")),
}
"""Forms that are sums of powers."""


class PowerSum(Problem):
    """A sum of powers. θ holds exponents, and logarithms of the coefficients at the centre of the runs.

    There, at the mean ln x of its runs, a coefficient is least correlated with its exponent.

    Attributes:
        terms: of the formula.
        logs: ln of each term's variable [n, terms], 0 where it has none.
        coefficient, exponent: index of each run's constants by term [n, terms]; −1: none.
        slopes: of each coefficient the index of its exponent [constants]; −1: it has none.
        centre: ln x at which θ has a coefficient [constants].
    """

    def __init__(
        self,
        form: Form,
        runs: Runs,
        fixed: Mapping[str, float],
        groups: Sequence[str] | None = None,
        own: Sequence[str] = (),
    ) -> None:
        for name in own:
            check_constant(form, name)
        if own and groups is None:
            raise ValueError(f"own={list(own)} expects groups=, a label for each run")
        self.terms = TERMS[form.name]
        self.scales = any(term.scale for term in self.terms)
        if self.scales and any(not name.startswith(EXPONENTS) for name in fixed):
            raise ValueError(f"{form.name}: only the exponent can be fixed, got fixed={dict(fixed)}")
        n = len(runs)
        labels = [""] * n if groups is None else [str(group) for group in groups]
        constants = [name for term in self.terms for name in (term.coefficient, term.exponent) if name is not None]
        called = {name: [f"{name}[{label}]" for label in labels] if name in own else [name] * n for name in constants}
        names = list(dict.fromkeys(full for name in constants for full in called[name]))
        super().__init__(form, names, fixed, np.log(runs.loss))
        place = {name: i for i, name in enumerate(names)}

        def indices(name: str | None) -> NDArray[np.int64]:
            return np.array([-1] * n if name is None else [place[full] for full in called[name]], dtype=np.int64)

        self.coefficient = np.column_stack([indices(term.coefficient) for term in self.terms])
        self.exponent = np.column_stack([indices(term.exponent) for term in self.terms])
        self.logs = np.column_stack(
            [np.log(runs.variables[term.variable]) if term.variable else np.zeros(n) for term in self.terms]
        )
        self._centre()
        self._design()

    def _centre(self) -> None:
        self.slopes, self.centre = np.full(len(self.names), -1), np.zeros(len(self.names))
        for i in np.flatnonzero(~self.is_exponent):
            mine = self.coefficient == i
            slopes = np.unique(self.exponent[mine])
            self.slopes[i] = slopes[0]
            # a fixed coefficient is fixed at ln x = 0, and one that several exponents share is theirs there alone
            if len(slopes) == 1 and self.names[i] not in self.fixed:
                self.centre[i] = self.logs[mine].mean()

    def _design(self) -> None:
        n, terms = self.logs.shape
        whole = np.zeros((n, terms, len(self.names)))
        every = np.arange(n)
        for k in range(terms):
            whole[every, k, self.coefficient[:, k]] = 1
            has = np.flatnonzero(self.exponent[:, k] >= 0)
            whole[has, k, self.exponent[has, k]] = self.centre[self.coefficient[has, k]] - self.logs[has, k]
        held = [self.names.index(name) for name in self.fixed]
        known = [
            value if self.is_exponent[self.names.index(name)] else np.log(value) for name, value in self.fixed.items()
        ]
        self.offset = whole[:, :, held] @ np.array(known) if held else np.zeros((n, terms))
        self.design = np.ascontiguousarray(whole[:, :, self.free])
        self._offset = np.ascontiguousarray(self.offset.T)
        self._by_term = np.ascontiguousarray(np.swapaxes(self.design, 0, 1))
        # each term has few constants: small products, which BLAS does not spread over threads
        self._own = [np.flatnonzero(each.any(axis=0)) for each in self._by_term]
        self._slopes = [each[:, own] for each, own in zip(self._by_term, self._own, strict=True)]
        self._pairs, places = [], []
        for k, m in itertools.combinations_with_replacement(range(terms), 2):
            pairs = [(p, q) for p in self._own[k] for q in self._own[m] if k != m or p <= q]
            P, Q = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
            self._pairs.append((k, m, self._by_term[k][:, P] * self._by_term[m][:, Q]))
            places.append((P, Q))
        self._places = tuple(np.concatenate(each) for each in zip(*places, strict=True))  # no constant is of two terms

    def state(self, theta: Array) -> State:
        """Residuals [rows, n] and the terms' shares of L̂ [rows, terms, n]."""
        share = np.empty((len(theta), *self._offset.shape))
        for k, own in enumerate(self._own):
            np.matmul(theta[:, own], self._slopes[k].T, out=share[:, k])
        share += self._offset
        highest = share.max(axis=1, keepdims=True)
        share -= highest
        np.exp(share, out=share)
        total = share.sum(axis=1, keepdims=True)
        share /= total
        return (highest + np.log(total))[:, 0] - self.log_loss, share

    def slope(self, state: State) -> Array:
        """Derivative of ln L̂ by θ at the first row of a state [n, free]."""
        return np.einsum("kn,knp->np", state[1][0], self._by_term)

    def derivatives(self, state: State, weights: Array, delta: float) -> tuple[Array, Array]:
        """Gradient [rows, free] and Hessian [rows, free, free] of Σ w·huber."""
        residuals, share = state
        pull = np.clip(residuals, -delta, delta)
        curve = weights * (pull == residuals)
        pull *= weights
        curve -= pull
        gradient = np.zeros((len(share), len(self.free)))
        hessian = np.zeros((*gradient.shape, len(self.free)))
        pulled = [pull * share[:, k] for k in range(share.shape[1])]
        curved = [curve * share[:, k] for k in range(share.shape[1])]
        for own, slopes, part in zip(self._own, self._slopes, pulled, strict=True):
            gradient[:, own] = part @ slopes
        parts = []
        for k, m, products in self._pairs:
            part = curved[k] * share[:, m]
            if k == m:
                part += pulled[k]
            parts.append(part @ products)
        P, Q = self._places
        hessian[:, P, Q] = hessian[:, Q, P] = np.concatenate(parts, axis=1)
        return gradient, hessian

    def constants(self, theta: Array) -> Array:
        """All constants in the formula's units [rows, constants], from θ [rows, free]."""
        values = np.empty((len(theta), len(self.names)))
        values[:, self.free] = theta
        for name, value in self.fixed.items():
            values[:, self.names.index(name)] = value
        result = values.copy()
        for i in self.free[~self.is_exponent[self.free]]:
            # the last column is no exponent's
            slope = values[:, self.slopes[i]] if self.slopes[i] >= 0 else np.ones(len(values))
            logarithm = values[:, i] + self.centre[i] * slope
            result[:, i] = bounded_exp(logarithm / slope if self.scales else logarithm)
        return result


# -- other laws --------------------------------------------------------------------------------------------------------

STEP = 1e-4
"""Of ln of a constant, for differences."""
NO_VALUE, STEEPEST = 1e3, 1e3
"""A residual where the law has no value; bound of its derivatives."""


class ByDifferences(Problem):
    """A law known by its values; θ holds the logarithms of the free constants."""

    def __init__(self, form: Form, variables: Mapping[str, Array], log_loss: Array, fixed: Mapping[str, float]) -> None:
        super().__init__(form, form.constants, fixed, log_loss)
        self.variables = variables

    def residuals(self, theta: Array) -> Array:
        """Ln L̂ − ln L: θ [rows, free] → [rows, n]."""
        with np.errstate(all="ignore"):  # where a direction is flat, θ may run off
            constants = dict(zip(self.names, self.constants(theta).T[..., None], strict=True))
            residuals = np.log(self.form.at(self.variables, constants)) - self.log_loss
        return np.where(np.isfinite(residuals), residuals, NO_VALUE)

    def constants(self, theta: Array) -> Array:
        """All constants [rows, constants], from θ [rows, free]."""
        values = np.empty((len(theta), len(self.names)))
        values[:, self.free] = np.exp(theta)
        for name, value in self.fixed.items():
            values[:, self.names.index(name)] = value
        return values

    def state(self, theta: Array) -> State:
        """Residuals [rows, n], and slope and curvature by θ [rows, n, free, 1 + free]."""
        p = theta.shape[1]
        steps = STEP * np.eye(p)
        here = self.residuals(theta)
        up, down = ([self.residuals(theta + side * step) for step in steps] for side in (1, -1))
        found = np.empty((*here.shape, p, 1 + p))
        for i in range(p):
            found[..., i, 0] = (up[i] - down[i]) / (2 * STEP)
            found[..., i, 1 + i] = (up[i] - 2 * here + down[i]) / STEP**2
            for j in range(i):
                both = self.residuals(theta + steps[i] + steps[j])
                found[..., i, 1 + j] = found[..., j, 1 + i] = (both - up[i] - up[j] + here) / STEP**2
        return here, np.clip(found, -STEEPEST, STEEPEST)

    def slope(self, state: State) -> Array:
        """Derivative of ln L̂ by θ at the first row of a state [n, free]."""
        return state[1][0, ..., 0]

    def derivatives(self, state: State, weights: Array, delta: float) -> tuple[Array, Array]:
        """Gradient [rows, free] and Hessian [rows, free, free] of Σ w·huber."""
        residuals, found = state
        slope, pull = found[..., 0], weights * np.clip(residuals, -delta, delta)
        gradient = (pull[:, None] @ slope)[:, 0]
        curved = (weights * (np.abs(residuals) < delta))[..., None] * slope
        return gradient, np.swapaxes(curved, 1, 2) @ slope + np.einsum("rn,rnpq->rpq", pull, found[..., 1:])
