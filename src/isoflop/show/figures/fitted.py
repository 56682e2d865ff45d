"""L(N,D) fitted to the ends of runs, and whether it may be drawn: not where the runs leave it open."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from isoflop.fit.fitting.data import check_runs
from isoflop.fit.fitting.fit_law import fit_law
from isoflop.fit.fitting.result import LawFit
from isoflop.show.figures.ends import RunEnd

OPEN = 4.0
"""A factor between the 5% and the 95% point of an exponent's draws, from which on `fit_law` too calls it open."""


@lru_cache(maxsize=16)
def law_of(
    ends: tuple[RunEnd, ...], convention: str, level: float, draws: int
) -> tuple[LawFit | None, tuple[str, ...], str]:
    """The law, what is doubtful about it, why there is none. Kept: while runs train, those that ended stay."""
    if not ends:
        return None, (), "there is no finished run with its size, its tokens and a loss"
    columns = {name: np.array([getattr(end, name) for end in ends], dtype=float) for name in ("N", "D", "loss")}
    try:
        called = [end.name for end in ends]
        odd = check_runs(columns, ("N", "D"), rows=called).warnings  # of the numbers: the runs are what they are
        fitted = fit_law(
            "hoffmann",
            columns,
            level=level,
            draws=draws,
            convention=convention,  # type: ignore[arg-type]
            rows=called,
        )
    except ValueError as reason:
        return None, (), str(reason)
    doubts = tuple(text for text in fitted.warnings if text not in odd)
    if fitted.law.draws is None or any(_open(fitted, name) for name in ("alpha", "beta")):
        return fitted, doubts, "the runs do not determine L(N,D): " + "; ".join(doubts)
    return fitted, doubts, ""


def _open(fitted: LawFit, exponent: str) -> bool:
    """Whether the draws of an exponent spread so far that the frontier is anybody's guess."""
    low, high = np.quantile(fitted.draws[exponent], [0.05, 0.95])
    return bool(high > OPEN * low)
