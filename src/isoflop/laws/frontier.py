"""The compute-optimal frontier of a law: N and D for a budget or a loss, and how much compute another size wastes.

Minimise L(N, D) where C = 6·N·D (Hoffmann et al. 2022, eq. 3). Optional everywhere: tokens to be served later (Sardana
et al. 2023) and a limited stock of unique tokens (Muennighoff et al. 2023). Every draw of the law's constants has its
own optimum: the intervals are percentiles of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from isoflop.arrays import Array
from isoflop.console import Shown
from isoflop.laws.forms import FORMS, HOFFMANN, TRAINING_FLOPS, Convention, Law, effective_amounts
from isoflop.laws.optimum import (
    Cost,
    best_at_budget,
    best_at_loss,
    hoffmann_at_budget,
    hoffmann_at_reducible,
    rows,
)
from isoflop.laws.papers import Published, law_and_source
from isoflop.laws.quantities import (
    check_budget,
    check_inference_tokens,
    check_level,
    check_tokens,
    interval,
    positive,
    short,
)

Intervals = Mapping[str, tuple[float, float]]

INFERENCE_FLOPS = 2.0
"""Per parameter and token: forward alone. Sardana et al. 2023."""
MOST_STEPS, CLOSE = 40, 1e-6
"""Of the search for the budget of which training takes so many FLOPs; of the logarithm of these."""
R_D_STAR, R_N_STAR = 15.387756, 5.309743
REPETITION = {"R_D_star": np.array(R_D_STAR), "R_N_star": np.array(R_N_STAR)}
"""How fast repeated tokens and excess parameters lose value: Muennighoff et al. 2023, digits of their repository."""
REPEATED = (
    f"repeated tokens are worth less after Muennighoff et al. 2023 (R_D* = {R_D_STAR:.3g}, R_N* = {R_N_STAR:.3g}), "
    "which their runs hardly determine: no interval of N, D or a published law's loss includes that"
)


@dataclass(frozen=True)
class Allocation(Shown):
    """So many parameters, so many tokens, and what they give.

    Attributes:
        intervals: (low, high) by attribute, for what the law's draws leave uncertain; None where it has no draws.
    """

    N: float  # parameters, of the law's convention
    D: float  # training tokens, repeated ones included
    loss: float  # nats per token; NaN: unknown
    flops: float  # training FLOPs
    tokens_per_param: float  # D/N
    intervals: Intervals | None = None
    level: float | None = None  # of the intervals
    inference_flops: float = 0.0  # what serving the tokens asked for costs
    unique_tokens: float | None = None  # the stock, where one was given
    convention: Convention = "unknown"  # which parameters N counts
    notes: tuple[str, ...] = ()  # what to know before relying on it

    @property
    def total_flops(self) -> float:
        """Training and inference FLOPs."""
        return self.flops + self.inference_flops

    @property
    def epochs(self) -> float | None:
        """Passes over the stock of unique tokens; None where none was given."""
        return None if self.unique_tokens is None else max(1.0, self.D / self.unique_tokens)

    def lines(self) -> list[str]:
        """Each quantity with its unit, and its interval where it was not given."""
        counted = "" if self.convention == "unknown" else f", {self.convention.replace('_', ' ')}"
        shown = [("N", "N", f"parameters{counted}"), ("D", "D", "tokens")]
        shown += [("D/N", "tokens_per_param", "tokens per parameter"), ("loss", "loss", "nats per token")]
        shown += [("FLOPs", "flops", "to train")]
        if self.inference_flops:
            shown += [("", "inference_flops", "to serve"), ("", "total_flops", "in all")]
        if self.unique_tokens is not None:
            once = self.epochs == 1
            over = f"{self.D / self.unique_tokens:.0%} of " if once else "over "
            shown += [("epochs", "epochs", f"{over}{short(self.unique_tokens)} unique tokens")]
        lines = []
        for label, name, unit in shown:
            show = {"N": short, "D": short, "loss": "{:.4f}".format}.get(name, "{:.3g}".format)
            low, high = (self.intervals or {}).get(name, (0.0, 0.0))
            between = f"  [{show(low)}, {show(high)}] {self.level:.0%}" if low < high else ""
            if not np.isnan(value := getattr(self, name)):
                lines.append(f"{label:<7}{show(value):>9}  {unit}{between}")
        return lines

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Frontier:
    """A law, and what presses on its optimum.

    Attributes:
        unique_tokens: the stock that D beyond it repeats (Muennighoff et al. 2023); None: it does not run out.

    Raises:
        ValueError: numbers that are not positive and finite or in the wrong unit; a law of other variables.
    """

    law: Law  # of N and D, or of N, D and U
    inference_tokens: float = 0.0  # tokens to be served, prompts included, at 2·N FLOPs each (Sardana et al. 2023)
    unique_tokens: float | None = None
    flops_per_param_token: float = TRAINING_FLOPS  # 6 for training a dense model
    level: float = 0.9  # of the intervals, percentiles of the optima by the law's draws

    def __post_init__(self) -> None:
        check_level(self.level)
        positive("flops_per_param_token", self.flops_per_param_token, "FLOPs per parameter and token")
        check_inference_tokens(self.inference_tokens)
        form = self.law.form
        if set(form.variables) not in ({"N", "D"}, {"N", "D", "U"}):
            raise ValueError(
                f"the frontier needs a law of N and D, or of N, D and U; {form.name} is one of "
                f"{', '.join(form.variables)}: fit or choose a law such as besiroglu2024"
            )
        if self.unique_tokens is not None:
            check_tokens("unique_tokens", self.unique_tokens)
            if not self._closed and "U" not in form.variables:
                raise ValueError(
                    f"the law {form.name} does not know unique tokens: leave out unique_tokens, or pass a law of N, D "
                    "and U, or a hoffmann law, to which Muennighoff's effective N and D are applied"
                )

    @cached_property
    def cost(self) -> Cost:
        """Price of N parameters on D tokens, serving included."""
        return Cost(float(self.flops_per_param_token), INFERENCE_FLOPS * self.inference_tokens)

    @cached_property
    def constants(self) -> Mapping[str, Array]:
        """Of the law and its draws [1 + draws]."""
        return rows(self.law)

    def loss(self, N: Array, D: Array) -> Array:
        """Nats per token [1 + draws] at N, D [1 + draws]; U is D, a single epoch, where the stock does not run out."""
        form, constants = self.law.form, self.constants
        U = D if self.unique_tokens is None else np.minimum(self.unique_tokens, D)
        if self._closed and self.unique_tokens is not None:
            form, constants = FORMS["muennighoff"], {**constants, **REPETITION}
        with np.errstate(all="ignore"):
            return form.at({"N": N, "D": D, "U": U}, constants)

    def seen_once(self, N: float, D: float) -> tuple[float, float]:
        """N and D, all of its tokens unique, that N on D of this stock are worth by a law of Hoffmann's form."""
        constants = {name: np.asarray(self.law.constants[name]) for name in ("A", "B", "alpha", "beta")} | REPETITION
        stock = D if self.unique_tokens is None else self.unique_tokens
        (here, tokens), (free, _) = (effective_amounts(*map(np.asarray, (N, D, U)), **constants) for U in (stock, D))
        return float(N * here / free), float(tokens)

    @property
    def _closed(self) -> bool:
        """Whether the optimum of an endless stock has a closed form."""
        return self.law.form.name == HOFFMANN.name

    @property
    def _rows(self) -> int:
        return len(next(iter(self.constants.values())))

    def at_budget(self, C: float, training: float = math.inf) -> Allocation:
        """N and D of the least loss for C FLOPs, training and inference together where there is any.

        `training`: the most FLOPs of training, where a deadline allows no more. An optimum that takes more moves along
        that limit, to the size that is best there or the largest that the budget can serve.
        """
        N, D = self._best(check_budget("C", C))
        if np.any(late := self.cost.train * N * D > training):
            held = replace(self, inference_tokens=0.0)._best(training)[0]
            with np.errstate(divide="ignore"):
                held = np.minimum(held, (C - training) / self.cost.fixed if self.cost.fixed else math.inf)
            N, D = np.where(late, held, N), np.where(late, training / (self.cost.train * held), D)
        varies = ("N", "D", "tokens_per_param", "loss")
        return self._allocation(N, D, varies + (("flops", "inference_flops") if self.cost.fixed else ()))

    def at_tokens(self, C: float, D: float) -> Allocation:
        """N and the loss for a budget of C FLOPs and a given number of training tokens."""
        C, D = check_budget("C", C), check_tokens("D", D)
        N = C / float(self.cost.flops(np.asarray(1.0), np.asarray(D)))
        if N < 1:
            raise ValueError(
                f"a budget of {C:g} FLOPs is too small for a parameter on {short(D)} tokens: raise C or lower D"
            )
        return self._allocation(np.full(self._rows, N), np.full(self._rows, D), ("loss",))

    def at_training(self, training: float) -> Allocation:
        """N and D of which training takes so many FLOPs, and whose loss no others reach with fewer, serving included.

        Every draw has its own, and so its own FLOPs in all. Training takes a share of a budget that grows with it, if
        slowly, so the budget that is corrected by what training misses comes near quickly.
        """
        training = check_budget("training", training)
        total = training + self.cost.fixed * replace(self, inference_tokens=0.0)._best(training)[0]
        with np.errstate(all="ignore"):
            for _ in range(MOST_STEPS):
                N, D = self._best(total)
                missed = training / (self.cost.train * N * D)
                total = total * missed
                if not np.any(np.abs(np.log(missed)) > CLOSE):
                    break
        varies = ("N", "D", "tokens_per_param", "loss")
        return self._allocation(
            N, training / (self.cost.train * N), varies + (("inference_flops",) * bool(self.cost.fixed))
        )

    def at_loss(self, loss: float) -> Allocation:
        """N and D that reach a loss (nats per token) with the least compute, inference included.

        An interval that ends in infinity says that some draws never reach the loss.

        Raises:
            ValueError: no compute reaches it: it is no higher than E, or the unique tokens do not suffice.
        """
        loss = positive("loss", loss, "nats per token")
        N, D = self._cheapest(loss)
        if np.isinf(N[0]):
            E = self.law.constants.get("E")
            lowest = "it has a lower bound" if E is None else f"its irreducible loss E is {E:.4g}"
            if self.unique_tokens is not None:
                lowest += f" and {short(self.unique_tokens)} unique tokens bear only so much repetition"
            raise ValueError(
                f"no compute reaches a loss of {loss:g} nats per token by this law: {lowest}; ask for a higher loss"
            )
        varies = ("N", "D", "tokens_per_param", "flops")
        return self._allocation(N, D, varies + (("inference_flops", "total_flops") if self.cost.fixed else ()), loss)

    def _best(self, C: Array | float) -> tuple[Array, Array]:
        """N and D [rows] of the least loss for C FLOPs [rows].

        Nothing beats the optimum of an endless stock where the stock lasts for an epoch of it: N' ≤ N and D' ≤ D
        everywhere, and there both are equal (inference makes N smaller for its D, never larger).
        """
        if self._closed:
            free_N, free_D = hoffmann_at_budget(self.constants, C, self.cost)
            if self.unique_tokens is None:
                return free_N, free_D
        N, D = best_at_budget(self.loss, np.broadcast_to(C, self._rows), self.cost)
        if not self._closed or self.unique_tokens is None:
            return N, D
        lasts = free_D <= self.unique_tokens
        return np.where(lasts, free_N, N), np.where(lasts, free_D, D)

    def _cheapest(self, loss: float) -> tuple[Array, Array]:
        """N and D [rows] that reach a loss with the fewest FLOPs."""
        if self._closed:
            N, D = hoffmann_at_reducible(self.constants, loss - self.constants["E"], self.cost)
            if self.unique_tokens is None or bool(np.all(self.unique_tokens >= D)):
                return N, D
        return best_at_loss(self.loss, loss, self._rows, self.cost)

    def _allocation(self, N: Array, D: Array, varies: tuple[str, ...], loss: float | None = None) -> Allocation:
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
                "loss": self.loss(N, D) if loss is None else np.full(self._rows, loss),
                "flops": self.cost.train * N * D,
                "tokens_per_param": D / N,
                "inference_flops": self.cost.fixed * N,
                "total_flops": self.cost.flops(N, D),
            }
        drawn = self._rows > 1
        repeats = self._closed and self.unique_tokens is not None and D[0] > self.unique_tokens
        counts = ((np.isinf(N).sum(), "never reach this loss"), (np.isnan(N).sum(), "have no optimum here"))
        missing = [f"{number} of the law's {self._rows - 1} draws {what}" for number, what in counts if number]
        return Allocation(
            **{name: float(values[name][0]) for name in ("N", "D", "loss", "flops", "tokens_per_param")},
            intervals={name: interval(values[name][1:], self.level) for name in varies} if drawn else None,
            level=self.level if drawn else None,
            inference_flops=float(values["inference_flops"][0]),
            unique_tokens=self.unique_tokens,
            convention=self.law.convention,
            notes=(*([REPEATED] if repeats else []), *missing),
        )


def optimal_allocation(
    law: str | Law | Published,
    C: float,
    *,
    inference_tokens: float = 0.0,
    unique_tokens: float | None = None,
    flops_per_param_token: float = TRAINING_FLOPS,
    level: float = 0.9,
) -> Allocation:
    """N and D of the least loss for a budget.

    Args:
        law: of N and D, or of N, D and U; or the name of a published one.
        C: FLOPs; training alone, or training and inference together where `inference_tokens` are given.
        inference_tokens, unique_tokens, flops_per_param_token, level: as `Frontier`.

    Raises:
        ValueError: as `Frontier`; a law whose loss has no minimum along the budget.

    >>> law = Law(HOFFMANN, {"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347311, "beta": 0.367172})
    >>> print(optimal_allocation(law, 5.76e23))
    N          73.2B  parameters
    D          1.31T  tokens
    D/N         17.9  tokens per parameter
    loss      1.9739  nats per token
    FLOPs   5.76e+23  to train
    """
    return Frontier(law_and_source(law)[0], inference_tokens, unique_tokens, flops_per_param_token, level).at_budget(C)


# -- off the frontier --------------------------------------------------------------------------------------------------


def size_factor(law: Law, k: float) -> Array:
    """Compute with which k times the optimal size reaches the optimal loss, over the least [1 + draws].

    For L = E + A/N^α + B/D^β it is k·(1 + (β/α)·(1 − k^−α))^(−1/β), whatever the budget, and infinite where the size
    never reaches that loss: Kaplan et al. 2020, eq. B.16, where S and α_S stand for D and β.

    >>> law = Law(HOFFMANN, {"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347311, "beta": 0.367172})
    >>> size_factor(law, 2.0).round(3)
    array([1.148])
    """
    constants, k = rows(law), positive("k", k, "times the optimal size")
    alpha, beta = constants["alpha"], constants["beta"]
    with np.errstate(all="ignore"):
        left = 1 - beta / alpha * np.expm1(-alpha * np.log(k))
        return np.where(left > 0, k * np.where(left > 0, left, np.nan) ** (-1 / beta), np.inf)


@dataclass(frozen=True)
class Waste:
    """By a law and its draws, the law's row first [1 + draws]: `extra` compute over the cheapest way to this loss, less
    1, and the `N` and `D` of that way. `cost`: FLOPs of the plan, serving included.
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
    """What N parameters on D tokens cost over the cheapest way to the same loss, by a law of Hoffmann's form.

    Cost 6·N·D + 2·N·D_inference. E drops out: the same reducible loss is asked of every size.

    >>> law = Law(HOFFMANN, {"E": 1.8, "A": 478.0, "B": 2143.0, "alpha": 0.347, "beta": 0.367})
    >>> waste = waste_of(law, 73.2e9 * 4, 1.31e12 / 4)  # four times Chinchilla's optimum
    >>> f"{waste.extra[0]:.0%} more than {waste.N[0] / 1e9:.0f}B parameters need"
    '94% more than 52B parameters need'
    """
    constants, cost = rows(law), Cost(TRAINING_FLOPS, INFERENCE_FLOPS * inference_tokens)
    A, B, alpha, beta = (constants[name] for name in ("A", "B", "alpha", "beta"))
    best_N, best_D = hoffmann_at_reducible(constants, A * N**-alpha + B * D**-beta, cost)
    given = N * (cost.train * D + cost.fixed)
    return Waste(np.maximum(given / cost.flops(best_N, best_D) - 1, 0.0), best_N, best_D, given)
