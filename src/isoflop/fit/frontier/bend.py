"""Whether the frontier bends: log N_opt as a quadratic in log C against the straight line."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import fdtrc

BUDGETS = 4
"""Three budgets fix a parabola and leave nothing to judge it by."""
SIGNIFICANT = 0.05
ROUNDING = 1e-12
"""Of log N: a noise-free line is a line."""


@dataclass(frozen=True)
class Bend:
    """The frontier's curvature and how sure it is; None where there are too few budgets.

    Attributes:
        budgets: how many different ones.
        curvature: d²(ln N_opt)/d(ln C)²: by how much the exponent a changes while C grows e-fold; negative: large
            budgets want smaller models than the line says.
        standard_error: of the curvature.
        p_value: of an F test of the quadratic against the line, normal errors of equal size in ln N_opt.
        exponent: of the line, a in N_opt ∝ C^a.
    """

    budgets: int
    curvature: float | None = None
    standard_error: float | None = None
    p_value: float | None = None
    exponent: float | None = None

    @property
    def bends(self) -> bool | None:
        """Whether p < 0.05; None where there are too few budgets."""
        return None if self.p_value is None else self.p_value < SIGNIFICANT

    def __str__(self) -> str:
        if self.curvature is None or self.standard_error is None or self.p_value is None:
            return f"not enough budgets: {self.budgets}, and a bend needs at least {BUDGETS}"
        verdict = "the frontier bends" if self.bends else "no bend is seen"
        ten = np.log(10)
        return (
            f"{verdict}: the exponent {self.exponent:.3f} changes by {self.curvature * ten:+.4f} ± "
            f"{self.standard_error * ten:.4f} per decade of compute (F test against a line: p = {self.p_value:.2g})"
        )


def bend(C: ArrayLike, N_opt: ArrayLike) -> Bend:
    """Whether optimal sizes follow one power law of compute.

    Hoffmann et al. 2022, appendix E, see their frontier bend down between its first and last third, and leave it out of
    their fits. No bend seen in few budgets or a narrow range is no proof of a line: the standard error says how much.

    Args:
        C: budgets in FLOPs, [n].
        N_opt: compute-optimal parameters, [n].

    Raises:
        ValueError: arrays of different lengths, numbers that are not positive and finite (the row is named).

    >>> print(bend([1e18, 1e19, 1e20], [1e8, 3e8, 9e8]))
    not enough budgets: 3, and a bend needs at least 4
    """
    budgets, sizes = (np.atleast_1d(np.asarray(values, dtype=float)) for values in (C, N_opt))
    if budgets.ndim != 1 or budgets.shape != sizes.shape:
        raise ValueError(
            f"C and N_opt must be lists of the same length, got shapes {budgets.shape} and {sizes.shape}: "
            f"pass one optimal size a budget"
        )
    for name, values in (("C", budgets), ("N_opt", sizes)):
        wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if wrong.size:
            raise ValueError(
                f"{name} must be positive and finite, got {values[wrong[0]]:g} in row {wrong[0]}: "
                f"correct it or leave the row out"
            )
    different = len(np.unique(budgets))
    if different < BUDGETS:
        return Bend(different)
    x, y = np.log(budgets), np.log(sizes)
    x = x - x.mean()
    line, quadratic = np.vander(x, 2), np.vander(x, 3)
    straight, curved = (np.linalg.lstsq(design, y, rcond=None)[0] for design in (line, quadratic))
    left_by_line, left = (
        float(((y - design @ fit) ** 2).sum()) for design, fit in ((line, straight), (quadratic, curved))
    )
    freedom = len(y) - 3
    variance = max(left, len(y) * (ROUNDING * np.abs(y).max()) ** 2) / freedom
    F = max(0.0, left_by_line - left) / variance
    spread = float(np.linalg.inv(quadratic.T @ quadratic)[0, 0])
    return Bend(
        budgets=different,
        curvature=2 * float(curved[0]),
        standard_error=2 * float(np.sqrt(variance * spread)),
        p_value=float(fdtrc(1, freedom, F)),
        exponent=float(straight[0]),
    )
