"""What a forecast comes to: a loss with its interval, or silence with the reason."""

from __future__ import annotations

from dataclasses import dataclass

NU = 5.0
"""Degrees of freedom of the Student t that a forecast's error is taken to follow (measured: docs/forecast.md)."""

T80 = 1.4758840488
"""Half-width of the 80% interval over the scale: the t distribution's 90% point."""

PASSING = ("warm-up", "too few points", "interval too wide")
"""Reasons for silence that time may mend; of others the user is told at once."""


@dataclass(frozen=True)
class Forecast:
    """The loss forecast at a step.

    Attributes:
        loss: median, nats per token.
        low, high: the central interval that holds the loss with probability `level`.
        sd: scale of the Student t with `nu` degrees of freedom that describes the error, nats.
        level: probability of the interval.
        step: the optimizer step it is for.
        estimator: the method's name in `ESTIMATORS`.
        basis: what it rests on, in words.
        nu: degrees of freedom.
    """

    loss: float
    low: float
    high: float
    sd: float
    level: float
    step: int
    estimator: str
    basis: tuple[str, ...] = ()
    nu: float = NU

    @property
    def normal(self) -> tuple[float, float]:
        """Mean and standard deviation of the normal nearest to it, for comparing runs."""
        return self.loss, self.sd * (self.nu / (self.nu - 2)) ** 0.5

    def probability_below(self, other: Forecast | float) -> float:
        """The probability that this run ends below `other`, taken as independent; a number is a certain loss."""
        from scipy.special import stdtr  # slow to import

        loss, sd = other.normal if isinstance(other, Forecast) else (float(other), 0.0)
        scale = (self.normal[1] ** 2 + sd**2) ** 0.5 * ((self.nu - 2) / self.nu) ** 0.5
        return float(stdtr(self.nu, (loss - self.loss) / scale))

    def __str__(self) -> str:
        return f"loss {self.loss:.4f} at step {self.step:,} ({self.level:.0%}: {self.low:.4f} to {self.high:.4f})"


@dataclass(frozen=True)
class Silence:
    """No forecast: a stable `reason` to branch on, and a `message` that says what is missing."""

    reason: str
    message: str

    def __str__(self) -> str:
        return f"no forecast ({self.reason}): {self.message}"


def forecast_of(
    loss: float, sd: float, *, level: float, step: int, estimator: str, basis: tuple[str, ...] = (), nu: float = NU
) -> Forecast:
    """A forecast from its median and scale, with the interval of a Student t."""
    if not 0 < level < 1:
        raise ValueError(f"level is the probability of the interval, between 0 and 1; got {level}.")
    from scipy.special import stdtrit  # slow to import

    half = float(stdtrit(nu, 0.5 + level / 2)) * sd
    return Forecast(loss, loss - half, loss + half, sd, level, step, estimator, basis, nu)
