"""An allocation of compute: parameters, tokens, the loss they give, and the intervals of what is uncertain.

What the frontier's functions accept: positive, finite, in units rather than millions; and the words of refusal.

Minima and roots in one variable for many laws side by side: the law itself in row 0, its draws in the rows after.

Every function here takes and returns arrays [rows]; a row without an answer is NaN, and says so to its caller.

The frontier of Hoffmann's law, with what presses on it: inference to be paid for, unique tokens that run out.

L = E + A/N^α + B/D^β. On the frontier the marginal returns per FLOP of N and of D are equal. Without constraints
αA/N^α = βB/D^β (Hoffmann et al. 2022, eq. 4); each inference token adds to the price of a parameter and to none of D
(Sardana et al. 2023), so the right side is multiplied by 1 + fixed/(train·D). Both sides are monotone: one root.

The compute-optimal frontier: how many parameters and how many tokens for a budget, a size, a stock or a loss.

Minimise L(N, D) where C = 6·N·D (Hoffmann et al. 2022, eq. 3). Closed form for Hoffmann's law, numerical on a log scale
for any other law of N and D. Optional everywhere: tokens to be served later (Sardana et al. 2023) and a limited stock
of unique tokens (Muennighoff et al. 2023).

The cost of being off the frontier: compute wasted by a model k times too large or small, and the loss at stake.

How much compute a size wastes: N parameters on D tokens against the cheapest way to the same loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from isoflop.arrays import Array
from isoflop.laws import forms as laws
from isoflop.laws.forms import TRAINING_FLOPS, Convention, Law

Intervals = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Allocation:
    """So many parameters, so many tokens, and what they give.

    Attributes:
        N: parameters, of the law's convention.
        D: training tokens, repeated ones included.
        loss: nats per token.
        flops: training FLOPs.
        tokens_per_param: D/N.
        intervals: (low, high) by attribute, for what the law's draws leave uncertain; None where it has no draws.
        level: of the intervals.
        inference_flops: what serving the tokens asked for costs.
        unique_tokens: the stock, where one was given.
        convention: which parameters N counts.
        notes: what to know before relying on it.
    """

    N: float
    D: float
    loss: float
    flops: float
    tokens_per_param: float
    intervals: Intervals | None = None
    level: float | None = None
    inference_flops: float = 0.0
    unique_tokens: float | None = None
    convention: Convention = "unknown"
    notes: tuple[str, ...] = ()

    @property
    def total_flops(self) -> float:
        """Training and inference FLOPs."""
        return self.flops + self.inference_flops

    @property
    def epochs(self) -> float | None:
        """Passes over the stock of unique tokens; None where none was given."""
        return None if self.unique_tokens is None else max(1.0, self.D / self.unique_tokens)

    def __str__(self) -> str:
        counted = "" if self.convention == "unknown" else f", {self.convention.replace('_', ' ')}"
        lines = [
            ("N", "N", f"parameters{counted}"),
            ("D", "D", "tokens"),
            ("D/N", "tokens_per_param", "tokens per parameter"),
            ("loss", "loss", "nats per token"),
            ("FLOPs", "flops", "to train"),
        ]
        if self.inference_flops:
            lines += [("", "inference_flops", "to serve"), ("", "total_flops", "in all")]
        if self.unique_tokens is not None:
            lines += [("epochs", "epochs", f"over {short(self.unique_tokens)} unique tokens")]
        return "\n".join([*(self._line(*line) for line in lines), *(f"note: {note}" for note in self.notes)])

    def _line(self, label: str, name: str, unit: str) -> str:
        show = {"N": short, "D": short, "loss": "{:.4f}".format, "tokens_per_param": "{:.3g}".format}.get(
            name, "{:.3g}".format
        )
        text = f"{label:<7}{show(getattr(self, name)):>9}  {unit}"
        if self.intervals is None or self.level is None or name not in self.intervals:
            return text
        low, high = self.intervals[name]
        return f"{text}  [{show(low)}, {show(high)}] {self.level:.0%}"


def interval(values: Array, level: float) -> tuple[float, float]:
    """Percentiles (1 ± level)/2 of draws; NaN draws, which have no answer, are left out, infinite ones count."""
    values = values[~np.isnan(values)]
    if not values.size:
        return float("nan"), float("nan")
    ends = [(1 - level) / 2, (1 + level) / 2]
    if np.isfinite(values).all():
        low, high = np.quantile(values, ends)
    else:  # between a number and infinity there is nothing to interpolate
        low, high = np.quantile(values, ends, method="inverted_cdf")
    return float(low), float(high)


def short(count: float) -> str:
    """A count in three digits: 73.2B."""
    for limit, letter in ((1e15, "Q"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if limit * 0.9995 <= count < 1e18:
            return f"{count / limit:.3g}{letter}"
    return f"{count:.3g}"


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


def check_tokens(name: str, value: float) -> float:
    """A token count; ValueError where it is likely counted in thousands or millions."""
    return _counted(name, value, "tokens")


def check_budget(name: str, value: float) -> float:
    """A compute budget in FLOPs; ValueError where it is likely in PF-days or petaFLOPs."""
    number = positive(name, value, "FLOPs")
    if number < SMALLEST_FLOPS:
        raise ValueError(
            f"{name} must be in FLOPs, got {number:g}, less than a thousand parameters on a thousand tokens: "
            f"did you mean PF-days? Multiply by {PF_DAY:g}"
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


def _counted(name: str, value: float, unit: str) -> float:
    number = positive(name, value, unit)
    if number < SMALLEST:
        raise ValueError(
            f"{name} must be counted in {unit}, got {number:g}: did you mean millions? Pass {number * 1e6:g}"
        )
    return number


Function = Callable[[Array], Array]
Loss = Callable[[Array, Array], Array]

GRID = 65
"""Points of the first search, about one a factor of e: a law that is no sum of power laws may have several minima."""
REFINED = (11,) * 12
"""Points of the searches after it; each leaves a fifth of the range."""
BUDGETS = (1e3, 1e40)
"""FLOPs between which a budget is looked for."""


@dataclass(frozen=True)
class Cost:
    """FLOPs(N, D) = N·(train·D + fixed); `fixed` is what a parameter costs whatever D is: 2·D_inference."""

    train: float = 6.0
    fixed: float = 0.0

    def tokens(self, N: Array, C: Array | float) -> Array:
        """D that spends C on N parameters; not positive where the fixed part alone is dearer."""
        return (C / N - self.fixed) / self.train

    def flops(self, N: Array, D: Array) -> Array:
        """All FLOPs of N parameters on D tokens."""
        return N * (self.train * D + self.fixed)


def rows(law: Law) -> dict[str, Array]:
    """Constants [1 + draws] by letter; a constant without draws was held fixed."""
    draws = law.draws or {}
    number = max((np.size(value) for value in draws.values()), default=0)
    return {
        name: np.concatenate([[float(value)], np.broadcast_to(np.asarray(draws.get(name, value), dtype=float), number)])
        for name, value in law.constants.items()
    }


def loss_function(law: Law, unique_tokens: float | None = None) -> Loss:
    """L(N, D) [rows] of a law of N and D, or of N, D and U: U is D, a single epoch, where the stock is unlimited."""
    constants, variables = rows(law), law.form.variables
    if set(variables) not in ({"N", "D"}, {"N", "D", "U"}):
        raise ValueError(
            f"the frontier needs a law of N and D, or of N, D and U; {law.form.name} is one of {', '.join(variables)}: "
            f"fit or choose a law such as besiroglu2024"
        )
    stock = np.inf if unique_tokens is None else unique_tokens

    def loss(N: Array, D: Array) -> Array:
        values = {"N": N, "D": D, "U": np.minimum(stock, D)}
        with np.errstate(all="ignore"):
            return np.asarray(law.form.function(*(values[name] for name in variables), **constants), dtype=float)

    return loss


def best_at_budget(loss: Loss, C: Array, cost: Cost) -> tuple[Array, Array]:
    """N and D [rows] that minimise L where FLOPs(N, D) = C [rows]; NaN where the minimum is not inside 1 ≤ N, 1 ≤ D."""

    def along(log_N: Array) -> Array:
        N = np.exp(log_N)
        return loss(N, cost.tokens(N, C))

    with np.errstate(all="ignore"):
        N = np.exp(minimise(along, np.zeros_like(C), np.log(C / (cost.train + cost.fixed))))
        return N, cost.tokens(N, C)


def best_at_loss(loss: Loss, target: float, number: int, cost: Cost) -> tuple[Array, Array]:
    """N and D [rows] that reach the target with the fewest FLOPs; infinite where no budget does.

    The least loss at a budget falls as the budget grows: the budget at which it passes the target is the least.
    """

    def excess(log_C: Array) -> Array:
        N, D = best_at_budget(loss, np.exp(log_C), cost)
        return loss(N, D) - target

    low, high = (np.full(number, np.log(limit)) for limit in (BUDGETS[0] + cost.fixed, BUDGETS[1]))
    # so small a budget may have no inner minimum yet: upwards to the first that has one
    for _ in range(20):
        missing = np.isnan(excess(low))
        if not missing.any():
            break
        low = np.where(missing, low + 3, low)
    lowest = excess(high)
    N, D = best_at_budget(loss, np.exp(root(excess, low, high, steps=50)), cost)
    return np.where(lowest > 0, np.inf, N), np.where(lowest > 0, np.inf, D)


def minimise(function: Function, low: Array, high: Array) -> Array:
    """Where the function is least in [low, high], [rows]: ever finer grids; NaN at an end of the range.

    The function takes [points, rows]. As near as function values can tell points apart: √(ε·f/f″), for a loss close to
    its E about 1e-5 in log N.
    """
    inside = np.ones(low.shape, dtype=bool)
    for points in (GRID, *REFINED):
        step = (high - low) / (points - 1)
        values = function(low + np.arange(points)[:, None] * step)
        values = np.where(np.isnan(values), np.inf, values)
        best = values.argmin(axis=0)
        if points == GRID:
            inside = (best > 0) & (best < points - 1) & np.isfinite(values.min(axis=0))
        low, high = low + (best - 1) * step, low + (best + 1) * step
    return np.where(inside, (low + high) / 2, np.nan)


def root(function: Function, low: Array, high: Array, steps: int = 64) -> Array:
    """Where a monotone function crosses zero in [low, high], [rows], by bisection; NaN where it does not."""
    rises = function(high) > 0
    with np.errstate(invalid="ignore"):
        crosses = function(low) * function(high) <= 0
    for _ in range(steps):
        middle = (low + high) / 2
        beyond = (function(middle) > 0) == rises
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.where(crosses, (low + high) / 2, np.nan)


R_D_STAR, R_N_STAR = 15.387756, 5.309743
"""How fast repeated tokens and excess parameters lose value: Muennighoff et al. 2023, digits of their repository."""
REPEATED = (
    f"repeated tokens are worth less after Muennighoff et al. 2023 (R_D* = {R_D_STAR:.4f}, R_N* = {R_N_STAR:.4f}): "
    f"this law does not know U; their runs hardly identify these two, and no interval here includes that"
)


def at_budget(constants: dict[str, Array], C: float, cost: Cost) -> tuple[Array, Array]:
    """N and D [rows] that minimise L where N·(train·D + fixed) = C.

    Closed form without inference (`laws.hoffmann_allocation`); else the root of αA/N^α = βB/D^β·(1 + fixed/(train·D))
    in log D, which falls from +∞ to −∞.
    """
    A, B, alpha, beta = _valid(constants)
    with np.errstate(all="ignore"):
        if cost.fixed == 0:
            return laws.hoffmann_allocation(C * 6 / cost.train, A=A, B=B, alpha=alpha, beta=beta)
        log_prices = np.log(alpha * A) - np.log(beta * B)

        def per_parameter(log_D: Array) -> Array:
            return np.logaddexp(np.log(cost.train) + log_D, np.log(cost.fixed))

        def balance(log_D: Array) -> Array:
            log_share = per_parameter(log_D) - np.log(cost.train) - log_D
            return alpha * (np.log(C) - per_parameter(log_D)) - beta * log_D + log_share - log_prices

        log_D = root(balance, np.full_like(A, -100.0), np.full_like(A, 300.0))
        return np.exp(np.log(C) - per_parameter(log_D)), np.exp(log_D)


def at_reducible(constants: dict[str, Array], reducible: Array, cost: Cost) -> tuple[Array, Array]:
    """N and D [rows] that reach a loss E + `reducible` with the fewest N·(train·D + fixed) FLOPs; infinite from 0 down.

    By the share u of the reducible loss L − E that A/N^α has: u = a = β/(α+β) without inference; else the root of
    αu = β(1−u)·(1 + fixed/(train·D)), sought in logit u.
    """
    A, B, alpha, beta = _valid(constants)
    with np.errstate(all="ignore"):
        log_r = np.log(np.where(reducible > 0, reducible, np.nan))

        def log_D(logit: Array) -> Array:
            return (np.log(B) - log_r + np.logaddexp(0, logit)) / beta

        def balance(logit: Array) -> Array:
            return logit + np.log(alpha / beta) - np.log1p(cost.fixed / cost.train * np.exp(-log_D(logit)))

        logit = np.log(beta / alpha)
        if cost.fixed > 0:
            logit = root(balance, np.full_like(A, -100.0), np.full_like(A, 300.0))
        N, D = np.exp((np.log(A) - log_r + np.logaddexp(0, -logit)) / alpha), np.exp(log_D(logit))
    never = reducible <= 0
    return np.where(never, np.inf, N), np.where(never, np.inf, D)


def repeated_loss(constants: dict[str, Array], unique_tokens: float) -> Loss:
    """L(N', D') [rows] of a Hoffmann law where only so many unique tokens are in stock: `laws.muennighoff_loss`."""

    def loss(N: Array, D: Array) -> Array:
        with np.errstate(all="ignore"):
            return laws.muennighoff_loss(N, D, unique_tokens, **constants, R_D_star=R_D_STAR, R_N_star=R_N_STAR)

    return loss


def repeated_at_budget(constants: dict[str, Array], C: float, cost: Cost, unique_tokens: float) -> tuple[Array, Array]:
    """N and D [rows] that minimise `repeated_loss`: where the stock lasts for an epoch, the optimum without limit.

    Nothing beats that one then: N' ≤ N and D' ≤ D everywhere, and at it both are equal (inference makes N smaller
    for its D, never larger).
    """
    N, D = best_at_budget(repeated_loss(constants, unique_tokens), np.full_like(constants["A"], C), cost)
    free_N, free_D = at_budget(constants, C, cost)
    return np.where(free_D <= unique_tokens, free_N, N), np.where(free_D <= unique_tokens, free_D, D)


def _valid(constants: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
    """A, B, α, β; NaN in rows where one is not positive: their loss has no minimum along a budget."""
    values = np.stack([constants[name] for name in ("A", "B", "alpha", "beta")])
    good = (np.isfinite(values) & (values > 0)).all(axis=0)
    A, B, alpha, beta = np.where(good, values, np.nan)
    return A, B, alpha, beta


INFERENCE_FLOPS = 2.0
"""Per parameter and token: forward alone. Sardana et al. 2023."""


def optimal_allocation(
    law: Law,
    C: float,
    *,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    flops_per_param_token: float = TRAINING_FLOPS,
    level: float = 0.9,
) -> Allocation:
    """N and D of the least loss for a budget.

    Args:
        law: of N and D, or of N, D and U.
        C: FLOPs; training alone, or training and inference together where `inference_tokens` are given.
        inference_tokens: tokens to be served, prompts included, at 2·N FLOPs each (Sardana et al. 2023).
        unique_tokens: the stock that D beyond it repeats (Muennighoff et al. 2023); None: it does not run out.
        flops_per_param_token: 6 for training a dense model.
        level: of the intervals, percentiles of the optima by the law's draws.

    Returns:
        The allocation; `loss` is the least one.

    Raises:
        ValueError: numbers that are not positive and finite or in the wrong unit; a law of other variables; a law whose
            loss has no minimum along the budget.

    >>> from isoflop.laws.forms import HOFFMANN, Law
    >>> law = Law(HOFFMANN, {"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347311, "beta": 0.367172})
    >>> print(optimal_allocation(law, 5.76e23))
    N          73.2B  parameters
    D          1.31T  tokens
    D/N         17.9  tokens per parameter
    loss      1.9739  nats per token
    FLOPs   5.76e+23  to train
    """
    C = check_budget("C", C)
    asked = Asked(law, inference_tokens, unique_tokens, flops_per_param_token, level)
    N, D = asked.at_budget(C)
    return asked.allocation(
        N, D, ("N", "D", "tokens_per_param", "loss") + (("flops", "inference_flops") if inference_tokens else ())
    )


def allocation_at_loss(
    law: Law,
    loss: float,
    *,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    flops_per_param_token: float = TRAINING_FLOPS,
    level: float = 0.9,
) -> Allocation:
    """N and D that reach a loss with the least compute, inference included where it is given.

    Args and errors as `optimal_allocation`; loss in nats per token. Closed form for Hoffmann's law, one root with
    inference; any other law by the budget at which its least loss is this one. An interval that ends in infinity says
    that some draws never reach the loss.

    Raises:
        ValueError: also where no compute reaches the loss: it is no higher than E, or the unique tokens do not suffice.
    """
    loss = positive("loss", loss, "nats per token")
    asked = Asked(law, inference_tokens, unique_tokens, flops_per_param_token, level)
    N, D = asked.at_loss(loss)
    if np.isinf(N[0]):
        lowest = (
            f"its irreducible loss E is {law.constants['E']:.4g}" if "E" in law.constants else "it has a lower bound"
        )
        stock = (
            "" if unique_tokens is None else f" and {short(unique_tokens)} unique tokens bear only so much repetition"
        )
        raise ValueError(
            f"no compute reaches a loss of {loss:g} nats per token by this law: {lowest}{stock}; ask for a higher loss"
        )
    varies = ("N", "D", "tokens_per_param", "flops") + (("inference_flops", "total_flops") if inference_tokens else ())
    return asked.allocation(N, D, varies, loss=loss)


def allocation_at_tokens(
    law: Law,
    C: float,
    D: float,
    *,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    flops_per_param_token: float = TRAINING_FLOPS,
    level: float = 0.9,
) -> Allocation:
    """N and the loss for a budget and a given number of training tokens. Args and errors as `optimal_allocation`."""
    C, D = check_budget("C", C), check_tokens("D", D)
    asked = Asked(law, inference_tokens, unique_tokens, flops_per_param_token, level)
    N = C / float(asked.cost.flops(np.asarray(1.0), np.asarray(D)))
    if N < 1:
        raise ValueError(
            f"a budget of {C:g} FLOPs is too small for a parameter on {short(D)} tokens: raise C or lower D"
        )
    return asked.allocation(*asked.point(N, D), ("loss",))


class Asked:
    """A law and what presses on it, checked: the solvers by row, and the result from the rows."""

    def __init__(
        self,
        law: Law,
        inference_tokens: float = 0.0,
        unique_tokens: float | None = None,
        flops_per_param_token: float = TRAINING_FLOPS,
        level: float = 0.9,
    ) -> None:
        self.law, self.level = law, check_level(level)
        train = positive("flops_per_param_token", flops_per_param_token, "FLOPs per parameter and token")
        self.cost = Cost(train, INFERENCE_FLOPS * check_inference_tokens(inference_tokens))
        self.stock = None if unique_tokens is None else check_tokens("unique_tokens", unique_tokens)
        self.constants = rows(law)
        self.number = len(next(iter(self.constants.values())))
        self.closed = law.form.name == "hoffmann"
        self.repeats = self.closed and self.stock is not None
        self.loss: Loss = loss_function(law, self.stock)
        if self.repeats:
            assert self.stock is not None
            self.loss = repeated_loss(self.constants, self.stock)
        elif self.stock is not None and "U" not in law.form.variables:
            raise ValueError(
                f"the law {law.form.name} does not know unique tokens: leave out unique_tokens, or pass a law of N, D "
                f"and U, or a hoffmann law, to which Muennighoff's effective N and D are applied"
            )

    def point(self, N: float, D: float) -> tuple[Array, Array]:
        """The same N and D for every row."""
        return np.full(self.number, N), np.full(self.number, D)

    def at_budget(self, C: float) -> tuple[Array, Array]:
        """N and D [rows] of the least loss for C FLOPs."""
        if self.repeats:
            assert self.stock is not None
            return repeated_at_budget(self.constants, C, self.cost, self.stock)
        if self.closed:
            return at_budget(self.constants, C, self.cost)
        return best_at_budget(self.loss, np.full(self.number, C), self.cost)

    def at_loss(self, loss: float) -> tuple[Array, Array]:
        """N and D [rows] that reach a loss with the fewest FLOPs."""
        if self.closed:
            N, D = at_reducible(self.constants, loss - self.constants["E"], self.cost)
            if not self.repeats or (self.stock is not None and bool(np.all(self.stock >= D))):
                return N, D
        return best_at_loss(self.loss, loss, self.number, self.cost)

    def allocation(self, N: Array, D: Array, varies: tuple[str, ...], loss: float | None = None) -> Allocation:
        """The result at N and D [rows]; intervals of what `varies`."""
        if not (N[0] >= 1 and D[0] >= 1):
            raise ValueError(
                f"the law {self.law.form.name} has no optimum here with at least one parameter and one token: its "
                f"exponents must be positive and the budget or the loss within its range"
            )
        with np.errstate(invalid="ignore"):
            values = {
                "N": N,
                "D": D,
                "loss": self.loss(N, D) if loss is None else np.full(self.number, loss),
                "flops": self.cost.train * N * D,
                "tokens_per_param": D / N,
                "inference_flops": self.cost.fixed * N,
                "total_flops": self.cost.flops(N, D),
            }
        notes = [REPEATED] if self.repeats and self.stock is not None and D[0] > self.stock else []
        for number, what in ((np.isinf(N).sum(), "never reach this loss"), (np.isnan(N).sum(), "have no optimum here")):
            if number:
                notes.append(f"{number} of the law's {self.number - 1} draws {what}")
        drawn = self.number > 1
        return Allocation(
            **{name: float(values[name][0]) for name in ("N", "D", "loss", "flops", "tokens_per_param")},
            intervals={name: interval(values[name][1:], self.level) for name in varies} if drawn else None,
            level=self.level if drawn else None,
            inference_flops=float(values["inference_flops"][0]),
            unique_tokens=self.stock,
            convention=self.law.convention,
            notes=tuple(notes),
        )


@dataclass(frozen=True)
class SizeCost:
    """What a model k times the optimal size costs.

    Attributes:
        k: size over optimal size.
        N: parameters, k times the optimum.
        D: training tokens at the same budget.
        compute_factor: compute with which this size reaches the optimal loss, over the budget; infinite where it never
            does.
        excess_loss: loss at the same budget above the optimal one, nats per token.
        loss: loss at the same budget, nats per token.
        intervals: (low, high) of `compute_factor` and `excess_loss`, each draw against its own optimum; None where the
            law has no draws.
        level: of the intervals.
    """

    k: float
    N: float
    D: float
    compute_factor: float
    excess_loss: float
    loss: float
    intervals: Intervals | None = None
    level: float | None = None

    def __str__(self) -> str:
        factor, loss = f"{self.compute_factor:.3g}× the compute", f"{self.excess_loss:.3g} nats per token"
        if self.intervals is not None and self.level is not None:
            (a, b), (c, d) = self.intervals["compute_factor"], self.intervals["excess_loss"]
            factor += f" [{a:.3g}, {b:.3g}]"
            loss += f" [{c:.3g}, {d:.3g}] {self.level:.0%}"
        return f"{self.k:.3g}× the optimal size: {factor} for the optimal loss, or {loss} more at the same compute"


def cost_of_size(
    law: Law, C: float, k: float, *, flops_per_param_token: float = TRAINING_FLOPS, level: float = 0.9
) -> SizeCost:
    """What it costs to train k times the compute-optimal number of parameters.

    For L = E + A/N^α + B/D^β the factor is k·(1 + (β/α)·(1 − k^−α))^(−1/β), whatever C: Kaplan et al. 2020, eq. B.16,
    where S and α_S stand for D and β; by α_N = 0.077, α_S = 0.76 it is 1.16 at k = 0.6 and 1.20 at 2.2 (figure 12).

    Args:
        law: of N and D; of N, D and U as with unlimited unique tokens.
        C: budget, training FLOPs.
        k: size over optimal size.
        flops_per_param_token: 6 for training a dense model.
        level: of the intervals.

    Raises:
        ValueError: as `optimal_allocation`.

    >>> from isoflop.laws.forms import HOFFMANN, Law
    >>> law = Law(HOFFMANN, {"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347311, "beta": 0.367172})
    >>> print(cost_of_size(law, 5.76e23, 2))
    2× the optimal size: 1.15× the compute for the optimal loss, or 0.00485 nats per token more at the same compute
    """
    C, k = check_budget("C", C), positive("k", k, "times the optimal size")
    asked = Asked(law, flops_per_param_token=flops_per_param_token, level=level)
    level, constants, loss = asked.level, asked.constants, asked.loss
    best_N, best_D = asked.at_budget(C)
    closed = asked.closed
    factor = _hoffmann_factor(constants["alpha"], constants["beta"], k) if closed else _factor(loss, best_N, best_D, k)
    if not np.isfinite(best_N[0]):
        raise ValueError(
            f"the law {law.form.name} has no optimum inside this budget of {C:g} FLOPs: nothing to be off from"
        )
    here = loss(k * best_N, best_D / k)
    excess = here - loss(best_N, best_D)
    drawn = len(excess) > 1
    uncertain = {"compute_factor": factor, "excess_loss": excess}
    return SizeCost(
        k=k,
        N=float(k * best_N[0]),
        D=float(best_D[0] / k),
        compute_factor=float(factor[0]),
        excess_loss=float(excess[0]),
        loss=float(here[0]),
        intervals={name: interval(values[1:], level) for name, values in uncertain.items()} if drawn else None,
        level=level if drawn else None,
    )


def _hoffmann_factor(alpha: Array, beta: Array, k: float) -> Array:
    with np.errstate(all="ignore"):
        left = 1 - beta / alpha * np.expm1(-alpha * np.log(k))
        return np.where(left > 0, k * np.where(left > 0, left, np.nan) ** (-1 / beta), np.inf)


def _factor(loss: Loss, best_N: Array, best_D: Array, k: float) -> Array:
    """N·D over the optimum's, for D at which k times the optimal N reaches the optimal loss."""
    target = loss(best_N, best_D)

    def excess(log_factor: Array) -> Array:
        return loss(k * best_N, best_D * np.exp(log_factor)) - target

    widest = np.full_like(best_N, 60.0)
    factor = k * np.exp(root(excess, -widest, widest))
    return np.where(excess(widest) > 0, np.inf, factor)


@dataclass(frozen=True)
class Waste:
    """By a law and its draws; the law's row is first.

    Attributes:
        extra: compute over the cheapest way to this loss, less 1 [1 + draws].
        N, D: parameters and tokens of that way [1 + draws].
        cost: FLOPs of the plan, serving included.
    """

    extra: Array
    N: Array
    D: Array
    cost: float

    def at_least(self, sure: float) -> float:
        """Extra compute that is exceeded with this probability."""
        return float(np.quantile(self.extra[1:], 1 - sure))

    def saved(self, level: float) -> tuple[float, float, float]:
        """Share of the compute that the cheapest way saves: value, low, high."""
        low, high = interval(self.extra[1:], level)
        return tuple(extra / (1 + extra) for extra in (float(self.extra[0]), low, high))  # type: ignore[return-value]


def waste_of(law: Law, N: float, D: float, inference_tokens: float = 0.0) -> Waste:
    """What N parameters on D tokens cost over the cheapest way to the same loss.

    L = E + A/N^α + B/D^β, cost 6·N·D + 2·N·D_inference. E drops out: the same reducible loss is asked of every size.

    Args:
        law: Hoffmann's form; its draws carry the uncertainty.
        N: parameters.
        D: training tokens.
        inference_tokens: to be served.

    >>> from isoflop.laws.forms import HOFFMANN, Law
    >>> law = Law(HOFFMANN, {"E": 1.8, "A": 478.0, "B": 2143.0, "alpha": 0.347, "beta": 0.367})
    >>> waste = waste_of(law, 73.2e9 * 4, 1.31e12 / 4)  # four times Chinchilla's optimum
    >>> f"{waste.extra[0]:.0%} more than {waste.N[0] / 1e9:.0f}B parameters need"
    '94% more than 52B parameters need'
    """
    constants, cost = rows(law), Cost(TRAINING_FLOPS, INFERENCE_FLOPS * inference_tokens)
    A, B, alpha, beta = (constants[name] for name in ("A", "B", "alpha", "beta"))
    best_N, best_D = at_reducible(constants, A * N**-alpha + B * D**-beta, cost)
    given = N * (cost.train * D + cost.fixed)
    return Waste(np.maximum(given / cost.flops(best_N, best_D) - 1, 0.0), best_N, best_D, given)
