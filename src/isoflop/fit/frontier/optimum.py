"""The compute-optimal frontier: how many parameters and how many tokens for a budget, a size, a stock or a loss.

Minimise L(N, D) where C = 6·N·D (Hoffmann et al. 2022, eq. 3). Closed form for Hoffmann's law, numerical on a log scale
for any other law of N and D. Optional everywhere: tokens to be served later (Sardana et al. 2023) and a limited stock
of unique tokens (Muennighoff et al. 2023).
"""

from __future__ import annotations

import numpy as np

from isoflop.fit.frontier import checks as check
from isoflop.fit.frontier import constrained as hoffmann
from isoflop.fit.frontier.allocation import Allocation, interval, short
from isoflop.fit.frontier.solve import Array, Cost, Loss, best_at_budget, best_at_loss, loss_function, rows
from isoflop.fit.law import Law
from isoflop.fit.laws import TRAINING_FLOPS

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

    >>> from isoflop.fit.law import HOFFMANN, Law
    >>> law = Law(HOFFMANN, {"E": 1.817218, "A": 477.826, "B": 2143.417, "alpha": 0.347311, "beta": 0.367172})
    >>> print(optimal_allocation(law, 5.76e23))
    N          73.2B  parameters
    D          1.31T  tokens
    D/N         17.9  tokens per parameter
    loss      1.9739  nats per token
    FLOPs   5.76e+23  to train
    """
    C = check.budget("C", C)
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
    loss = check.positive("loss", loss, "nats per token")
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
    C, D = check.budget("C", C), check.tokens("D", D)
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
        self.law, self.level = law, check.level(level)
        train = check.positive("flops_per_param_token", flops_per_param_token, "FLOPs per parameter and token")
        self.cost = Cost(train, INFERENCE_FLOPS * check.inference_tokens(inference_tokens))
        self.stock = None if unique_tokens is None else check.tokens("unique_tokens", unique_tokens)
        self.constants = rows(law)
        self.number = len(next(iter(self.constants.values())))
        self.closed = law.form.name == "hoffmann"
        self.repeats = self.closed and self.stock is not None
        self.loss: Loss = loss_function(law, self.stock)
        if self.repeats:
            assert self.stock is not None
            self.loss = hoffmann.repeated_loss(self.constants, self.stock)
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
            return hoffmann.repeated_at_budget(self.constants, C, self.cost, self.stock)
        if self.closed:
            return hoffmann.at_budget(self.constants, C, self.cost)
        return best_at_budget(self.loss, np.full(self.number, C), self.cost)

    def at_loss(self, loss: float) -> tuple[Array, Array]:
        """N and D [rows] that reach a loss with the fewest FLOPs."""
        if self.closed:
            N, D = hoffmann.at_reducible(self.constants, loss - self.constants["E"], self.cost)
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
        notes = [hoffmann.REPEATED] if self.repeats and self.stock is not None and D[0] > self.stock else []
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
