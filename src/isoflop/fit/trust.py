"""Whether a law of own runs is to be trusted: one judgement, which every command that fits runs shows.

Three questions: does one law describe the runs, does it predict the larger of them from the smaller, and how far beyond
them is it asked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.drifting_law import SIZE_SD
from isoflop.fit.holdout import Extrapolation, held_out
from isoflop.fit.law_fit import LawFit
from isoflop.fit.posterior import Posterior, posterior_of_runs
from isoflop.fit.robust import POOR, seed_noise

FAR = 1e2
"""A factor of compute beyond the largest run from which on that is said first. Doubt: a choice."""


@dataclass(frozen=True)
class Trust:
    """What speaks against a law of own runs.

    Attributes:
        misfit: scatter of ln L over what seeds alone give, the larger of the fitted law's and the posterior's; None:
            too few runs to tell.
        scatter: of ln L.
        held: the law of the smaller runs held against the larger ones, or why that is not possible.
        reach: compute that is asked for over that of the largest run.
    """

    misfit: float | None
    scatter: float
    held: Extrapolation | str
    reach: float = 1.0

    @property
    def describes(self) -> bool:
        """Whether the runs follow one law, as far as can be told."""
        return self.misfit is None or self.misfit <= POOR

    @property
    def predicts(self) -> bool | None:
        """Whether the law may be relied on beyond the runs (`Extrapolation.trusted`); None: not tested, or unclear."""
        return None if isinstance(self.held, str) else self.held.trusted and self.describes

    @property
    def doubts(self) -> tuple[str, ...]:
        """In a few words each, the worst first."""
        said = []
        if not self.describes:
            said.append(
                f"your runs follow no one law: they scatter by {self.scatter:.1%} about it, {self.misfit:.0f} times as "
                "much as seeds do"
            )
        if isinstance(self.held, Extrapolation) and self.held.fails:
            inside, runs = round((self.held.inside or 0.0) * len(self.held.loss)), len(self.held.loss)
            said.append(
                f"the law of your smaller runs fails on the larger ones: {inside} of {runs} in its "
                f"{self.held.fit.level:.0%} intervals, off by {np.median(np.abs(self.held.error)):.1%}"
            )
        if self.reach > FAR:
            said.append(f"{self.reach:,.0f} times the compute of your largest run")
        return tuple(said)


def trust_of(
    columns: tuple[Array, Array, Array, Array],
    fitted: LawFit | None,
    posterior: Posterior | None = None,
    *,
    asked: float = 0.0,
    held: Extrapolation | str | None = None,
) -> Trust:
    """The judgement.

    Args:
        columns: C, N, D and loss of all runs, each [n].
        fitted: Hoffmann's law fitted to them; None: it could not be.
        posterior: of the runs; default: computed here.
        asked: FLOPs of the budget that the law is asked for; 0: of none.
        held: the hold-out test, where it is there already.
    """
    C, N, D, loss = columns
    posterior = posterior or posterior_of_runs(N, D, C, loss)
    misfits = [each.misfit for each in (fitted, posterior) if each is not None and each.misfit is not None]
    misfit = max(misfits, default=None)
    if held is None:
        held = "no law fits" if fitted is None else held_out({"C": C, "N": N, "D": D, "loss": loss}, fitted)
    if isinstance(held, Extrapolation) and held.misfit is not None:
        misfit = max(misfit or 0.0, held.misfit)
    return Trust(misfit, (misfit or 0.0) * float(np.median(seed_noise(loss) / loss)), held, asked / float(C.max()))


def describe_open(posterior: Posterior, alone: bool) -> tuple[str, ...]:
    """That own runs hardly say which size is best, and why; none where they do.

    Args:
        posterior: of the runs.
        alone: whether a fit to the runs by themselves has a best size.
    """
    if posterior.telling:
        return ()
    if not alone:
        return (
            "your runs do not determine the best size: train at least three sizes at one budget, the best of them in "
            "the middle",
        )
    why = (
        f"they scatter about the law by {np.median(posterior.noise):.1%}"
        if posterior.misfit is not None and posterior.misfit > POOR
        else "what all of them share, an untuned rate or a long warm-up, would move the best sizes of all budgets, "
        "and no fit to them alone shows that"
    )
    return (
        f"your runs narrow the best size little: at {posterior.largest:.2g} FLOPs it stays open by a factor of "
        f"{np.exp(posterior.spread):.3g}, by published sweeps alone {np.exp(SIZE_SD):.3g}; {why}",
    )
