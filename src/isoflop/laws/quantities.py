"""Quantities that users pass and read: their units, validation, short notation, and percentile intervals.

A count below a thousand is no language model's, but very likely one in thousands or millions: it is refused.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # scalars are checked without NumPy, which takes half of a command's start
    from isoflop.arrays import Array

UNITS = {
    "N": "parameters",
    "D": "tokens",
    "U": "unique tokens",
    "S": "steps",
    "C": "FLOPs",
    "X": "experts",
    "loss": "nats per token",
}
SMALLEST = 1e3
"""Parameters or tokens of a model that was trained."""
LEAST = {"N": SMALLEST, "D": SMALLEST, "U": SMALLEST, "C": 6 * SMALLEST**2}
"""In `UNITS`: less is another unit, such as millions, or PF-days for C."""
PF_DAY = 8.64e19
"""FLOPs of a petaFLOP/s-day: Kaplan et al. 2020, section 1.3."""


def positive(name: str, value: float, unit: str) -> float:
    """One value as a float; ValueError unless it is positive and finite."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive, finite number of {unit}, got {value!r}: check its unit and sign")
    return number


def check_parameters(name: str, value: float, unit: str = "parameters") -> float:
    """A parameter count; ValueError where it is likely counted in thousands or millions."""
    number = positive(name, value, unit)
    if number < SMALLEST:
        raise ValueError(
            f"{name} must be counted in {unit}, got {number:g}: did you mean millions? Pass {number * 1e6:g}"
        )
    return number


def check_tokens(name: str, value: float) -> float:
    """A token count; ValueError where it is likely counted in thousands or millions."""
    return check_parameters(name, value, "tokens")


MOST_FLOPS = 1e40
"""The largest trainings took 1e26 FLOPs; far beyond this, sizes overflow."""


def check_budget(name: str, value: float) -> float:
    """A compute budget in FLOPs; ValueError where it is likely in PF-days or petaFLOPs."""
    number = positive(name, value, "FLOPs")
    if number < LEAST["C"]:
        raise ValueError(
            f"{name} must be in FLOPs, got {number:g}, less than a thousand parameters on a thousand tokens: "
            f"did you mean PF-days? Multiply by {PF_DAY:g}"
        )
    if number > MOST_FLOPS:
        raise ValueError(
            f"{name} must be in FLOPs, got {number:g}, more than {MOST_FLOPS:g}: no training comes near it"
        )
    return number


def check_inference_tokens(value: float) -> float:
    """Tokens served over the model's life, 0 for none."""
    return 0.0 if value == 0 else check_tokens("inference_tokens", value)


def check_level(value: float) -> float:
    """The level of an interval, between 0 and 1."""
    number = float(value)
    if not 0 < number < 1:
        raise ValueError(f"level must lie between 0 and 1, got {value!r}: pass 0.9 for 90% intervals")
    return number


def short(count: float) -> str:
    """A count in three digits.

    >>> short(73.2e9), short(999.7e9)
    ('73.2B', '1T')
    """
    for limit, letter in ((1e15, "Q"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if limit * 0.9995 <= count < 1e18:
            return f"{count / limit:.3g}{letter}"
    return f"{count:.3g}"


def percent(share: float) -> str:
    """A share in two digits or more.

    >>> percent(0.00333), percent(0.03), percent(0.999)
    ('0.33%', '3%', '100%')
    """
    return f"{share:.0%}" if share >= 0.0995 else f"{100 * share:.2g}%"


def interval(values: Array, level: float) -> tuple[float, float]:
    """Percentiles (1 ± level)/2 of draws; NaN draws, which have no answer, are left out, infinite ones count."""
    import numpy as np

    values = values[~np.isnan(values)]
    if not values.size:
        return math.nan, math.nan
    ends = [(1 - level) / 2, (1 + level) / 2]
    # between a number and infinity there is nothing to interpolate
    method = "linear" if np.isfinite(values).all() else "inverted_cdf"
    low, high = np.quantile(values, ends, method=method)  # type: ignore[call-overload]
    return float(low), float(high)
