"""What the frontier's functions accept: positive, finite, in units rather than millions; and the words of refusal."""

from __future__ import annotations

import math

SMALLEST = 1e3
"""Parameters or tokens: fewer than a thousand are no language model, but very likely thousands or millions of them."""
SMALLEST_FLOPS = 6 * SMALLEST**2
PF_DAY = 8.64e19
"""FLOPs in a petaFLOP/s-day: Kaplan et al. 2020, section 1.3."""


def positive(name: str, value: float, unit: str) -> float:
    """The value as a float; ValueError unless it is positive and finite."""
    number = float(value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"{name} must be a positive, finite number of {unit}, got {value!r}: pass {unit} as one number"
        )
    return number


def parameters(name: str, value: float) -> float:
    """A parameter count; ValueError where it is likely counted in thousands or millions."""
    return _counted(name, value, "parameters")


def tokens(name: str, value: float) -> float:
    """A token count; ValueError where it is likely counted in thousands or millions."""
    return _counted(name, value, "tokens")


def budget(name: str, value: float) -> float:
    """A compute budget in FLOPs; ValueError where it is likely in PF-days or petaFLOPs."""
    number = positive(name, value, "FLOPs")
    if number < SMALLEST_FLOPS:
        raise ValueError(
            f"{name} must be in FLOPs, got {number:g}, less than a thousand parameters on a thousand tokens: "
            f"did you mean PF-days? Multiply by {PF_DAY:g}"
        )
    return number


def inference_tokens(value: float) -> float:
    """Tokens served over the model's life, 0 for none."""
    return 0.0 if value == 0 else tokens("inference_tokens", value)


def level(value: float) -> float:
    """The level of an interval, between 0 and 1."""
    number = float(value)
    if not 0 < number < 1:
        raise ValueError(f"level must lie between 0 and 1, got {value!r}: pass 0.9 for 90% intervals")
    return number


def _counted(name: str, value: float, unit: str) -> float:
    number = positive(name, value, unit)
    if number < SMALLEST:
        raise ValueError(
            f"{name} must be counted in {unit}, got {number:g}: did you mean millions? Pass {number * 1e6:g}"
        )
    return number
