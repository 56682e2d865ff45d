"""A law known by its values alone as `newton.minimise` wants it: many θ at once, derivatives by differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from isoflop.fit.fitting.newton import Array, huber
from isoflop.fit.law import Form

STEP = 1e-5
"""Of ln of a constant, to both sides."""
_OFF = 1e3
"""A residual where the law has no value."""


@dataclass(frozen=True)
class Values:
    """A law over some runs, as a function of the logarithms of its free constants (`newton.Runs`).

    The Hessian is Gauss and Newton's, which `minimise`'s damping makes up for.
    """

    form: Form
    variables: Mapping[str, Array]
    log_loss: Array
    fixed: Mapping[str, float]

    @property
    def free(self) -> tuple[str, ...]:
        """Constants that are fitted."""
        return tuple(name for name in self.form.constants if name not in self.fixed)

    def residuals(self, theta: Array) -> Array:
        """From ln L̂ − ln L at θ [free] or [rows, free]: [n] or [rows, n]."""
        with np.errstate(all="ignore"):  # where a direction is flat, θ may run off
            values = np.exp(theta.T) if theta.ndim == 1 else np.exp(theta.T)[..., None]
            constants = {**self.fixed, **dict(zip(self.free, values, strict=True))}
            loss = self.form.function(*(self.variables[name] for name in self.form.variables), **constants)
            residuals = np.log(loss) - self.log_loss
        return np.where(np.isfinite(residuals), residuals, _OFF)

    def objective(self, theta: Array, weights: Array, delta: float) -> float:
        """Σ w·huber."""
        return float((weights * huber(self.residuals(theta), delta)).sum())

    def objectives(self, theta: Array, weights: Array, delta: float) -> Array:
        """The same of θ [rows, free]: [rows]."""
        return (weights * huber(self.residuals(theta), delta)).sum(axis=1)

    def state(self, theta: Array) -> tuple[Array, Array]:
        """Residuals [rows, n] and their derivatives by θ [rows, n, free]."""
        slopes = []
        for i in range(theta.shape[1]):
            step = np.zeros(theta.shape[1])
            step[i] = STEP
            slopes.append((self.residuals(theta + step) - self.residuals(theta - step)) / (2 * STEP))
        return self.residuals(theta), np.clip(np.stack(slopes, axis=2), -1e3, 1e3)

    def slope(self, state: Array) -> Array:
        """Derivative of ln L̂ by θ from one row of `state` [n, free]: itself."""
        return state

    def derivatives(self, state: tuple[Array, Array], weights: Array, delta: float) -> tuple[Array, Array]:
        """Gradient [rows, free] and Hessian [rows, free, free] of Σ w·huber."""
        residuals, slope = state
        gradient = ((weights * np.clip(residuals, -delta, delta))[:, None] @ slope)[:, 0]
        curved = (weights * (np.abs(residuals) < delta))[..., None] * slope
        return gradient, np.swapaxes(curved, 1, 2) @ slope
