"""What a fit returns: the law, how sure it is, and what the runs do not tell."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from isoflop.fit.fitting.newton import Array
from isoflop.fit.frontier.allocation import interval
from isoflop.fit.law import Convention, Form, Law


@dataclass(frozen=True)
class LawFit:
    """A law fitted to runs.

    Attributes:
        law: with the fitted constants and draws of them (of the first group, where groups have constants of their own;
            no draws where constants are not identified).
        parameters: constants by name; "E[c4]" is a group's own.
        standard_errors: standard deviations of the draws; infinite where nothing can be said.
        intervals: percentile intervals of the draws, at `level`; from 0 to infinity where nothing can be said.
        level: of the intervals.
        covariance: of the draws, in the order of `parameters`; fixed ones have none (0).
        objective: Σ w·huber(ln L̂ − ln L), or Σ w·|ln L̂ − ln L|.
        delta: of Huber's loss; 0: absolute deviations.
        n: runs.
        residuals: ln L̂ − ln L [n].
        warnings: what the runs do not tell, and what is odd about them.
    """

    law: Law
    parameters: Mapping[str, float]
    standard_errors: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    level: float
    covariance: Array = field(repr=False)
    objective: float
    delta: float
    n: int
    residuals: Array = field(repr=False)
    warnings: tuple[str, ...]
    draws: Mapping[str, Array] = field(repr=False)
    influence: Callable[[], Array] = field(repr=False)
    """Leave one out: () → change of each free constant [n, free] in standard errors, when a run is left out."""

    def __str__(self) -> str:
        lines = [f"{self.law.form.text}   n = {self.n}, objective {self.objective:.6g}"]
        for name, value in self.parameters.items():
            low, high = self.intervals[name]
            error = f"± {self.standard_errors[name]:<10.3g} {self.level:.0%}: {low:.4g} … {high:.4g}"
            lines.append(f"  {name:8} {value:<12.6g} {error}")
        return "\n".join(lines + [f"  ! {warning}" for warning in self.warnings])


def described(
    form: Form,
    point: Mapping[str, float],
    draws: Mapping[str, Array],
    residuals: Array,
    *,
    fixed: Collection[str],
    unknown: Collection[str],
    level: float,
    convention: Convention,
    objective: float,
    delta: float,
    warnings: tuple[str, ...],
    influence: Callable[[], Array],
) -> LawFit:
    """A fit from its point and draws, both by constant; of `unknown` ones nothing is known, `fixed` have no error."""
    group = next((name[name.index("[") :] for name in point if "[" in name), "")

    def of_first(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values.get(name + group, values.get(name)) for name in form.constants}

    errors = {name: 0.0 if name in fixed else float(values.std()) for name, values in draws.items()}
    between = {name: interval(values, level) for name, values in draws.items()}
    source = f"fitted to {len(residuals)} runs"
    return LawFit(
        law=Law(form, of_first(point), convention, None if unknown else of_first(draws), source),
        parameters=point,
        standard_errors=errors | dict.fromkeys(unknown, np.inf),
        intervals=between | dict.fromkeys(unknown, (0.0, np.inf)),
        level=level,
        covariance=np.cov(np.stack(list(draws.values()))).reshape(len(draws), len(draws)),
        objective=objective,
        delta=delta,
        n=len(residuals),
        residuals=residuals,
        warnings=warnings,
        draws=draws,
        influence=influence,
    )
