"""Laws that are sums of powers, as a fitter sees them: which constants multiply, which are exponents, what is fixed.

L = Σₖ cₖ / xₖ^eₖ, where a term without a variable is the irreducible loss E. Runs may belong to groups (datasets, model
families) that share some constants and have others of their own: each run knows, for each term, which constant is its
coefficient and which its exponent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.fitting.newton import Array, Problem

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
                result[:, i] = exp(lifted)
        return result


def exp(logarithms: Array) -> Array:
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
