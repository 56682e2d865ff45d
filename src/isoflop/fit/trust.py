"""Whether a law of own runs is to be trusted: one judgement, which every command that fits runs shows.

Three questions: does one law describe the runs, does it predict the larger of them from the smaller, and how far beyond
them is it asked.

A ladder's runs (`described`) are judged by the noise of seeds, and the largest rung is held out. A fit takes what its
law leaves over for noise, and wider intervals then hold whatever the law misses: the noise of seeds (`SEED`) stands in
for it. And the runs are held against the same law with a term in ln N·ln D beside it: an exponent of the data that
moves with the size (or terms of size and data that mix otherwise, as without an irreducible loss in Kaplan et al. 2020,
eq. 1.5) shows there first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.fit.drifting_law import SIZE_SD, gradient, log_loss, pulls, slopes
from isoflop.fit.holdout import Extrapolation, fitted_up_to
from isoflop.fit.law_fit import LawFit
from isoflop.fit.likelihood import MISFIT, misfit, run_covariance
from isoflop.fit.posterior import FEWEST_TO_JUDGE, Posterior, floorless, posterior_of_runs
from isoflop.fit.robust import POOR, kept_rows, seed_noise

FAR = 1e2
"""A factor of compute beyond the largest run from which on that is said first. Doubt: a choice."""
ODDS = np.log(2.0)
"""Ln of how much likelier runs must be by another law: of 112 worlds with an irreducible loss none are by one without,
of 16 without it 15 are (`benchmarks/ladder_misfits.py`)."""
SEED = 0.002
"""Standard deviation of ln L between seeds: .1–.3% (Porian et al. 2024; Hoffmann et al. 2022)."""
FEWEST_BELOW = 5
"""Runs below the larger ones from which these can be predicted."""
LEVEL = 0.9
"""Of the intervals of the larger runs, whatever level is asked: a verdict does not change with it."""
FEWEST_PREDICTED = 3
"""Larger runs below which their being inside shows nothing: intervals hold one run by chance."""
SURPRISING = 0.05
"""Probability of as few runs inside their intervals from which on it is no accident."""


class Verdict(Enum):
    """Whether the law extrapolates to the larger runs."""

    HOLDS = "the law predicted them"
    UNDECIDED = "too few runs to distinguish a law that does not extrapolate from chance"
    FAILS = "the law does NOT extrapolate: do not rely on it"


@dataclass(frozen=True)
class Predicted:
    """One of the larger runs: its loss, and what the fit without these expected, with an interval."""

    name: str
    loss: float
    expected: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether the loss lies in the interval."""
        return self.low <= self.loss <= self.high


@dataclass(frozen=True)
class LeftOut:
    """The larger runs, predicted by the posterior of the others.

    Attributes:
        runs: the larger ones.
        fitted_runs: the others.
        reach: their budget over the largest that was fitted.
        level: of the intervals.
        chance: probability of as few runs inside their intervals if the law holds.
    """

    runs: tuple[Predicted, ...]
    fitted_runs: int
    reach: float
    level: float
    chance: float

    @property
    def inside(self) -> int:
        """Runs inside their interval."""
        return sum(run.inside for run in self.runs)

    @property
    def error(self) -> float:
        """Median of |expected/loss − 1|."""
        return float(np.median([abs(run.expected / run.loss - 1) for run in self.runs]))

    @property
    def passed(self) -> bool:
        """Whether so many inside are no surprise."""
        return self.chance >= SURPRISING

    @property
    def fails(self) -> bool:
        """Whether fewer lie inside than the law's draws explain."""
        return not self.passed

    @property
    def verdict(self) -> Verdict:
        """Whether the law extrapolates."""
        if not self.passed:
            return Verdict.FAILS
        few = len(self.runs) < FEWEST_PREDICTED or 2 * self.inside < len(self.runs)
        return Verdict.UNDECIDED if few else Verdict.HOLDS


def leave_out(
    columns: tuple[Array, Array, Array, Array],
    larger: NDArray[np.bool_],
    names: Sequence[object] | None = None,
    noise: float | None = None,
) -> LeftOut | str:
    """The larger runs, predicted by the posterior of the others; or why that is not possible.

    All predictions share the law's error, so runs leave their intervals together: the chance comes from draws.

    Args:
        columns: C, N, D and loss of all runs, each [n].
        larger: which runs are predicted [n].
        names: of the runs [n].
        noise: of ln L of a run about the law; default: that of the others' posterior, a seed's at least.
    """
    C, N, D, loss = columns
    if (~larger).sum() < FEWEST_BELOW or not larger.any():
        return f"{len(C)} runs are too few to predict the larger ones of them"
    below = posterior_of_runs(N[~larger], D[~larger], C[~larger], loss[~larger])
    noise = noise or max(float(np.median(below.noise)), SEED)
    rows = np.flatnonzero(larger).tolist()
    law = np.stack([below.losses(N[i], D[i]) for i in rows], axis=1)
    own = run_covariance(N[larger], D[larger], noise) - run_covariance(N[larger], D[larger], 0.0)
    drawn = law + np.random.default_rng(0).standard_normal(law.shape) @ np.linalg.cholesky(own).T
    low, middle, high = np.quantile(drawn, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2], axis=0)
    hits = ((low <= np.log(loss[larger])) & (np.log(loss[larger]) <= high)).sum()
    chance = float(np.mean(((low <= drawn) & (drawn <= high)).sum(axis=1) <= hits))
    runs = tuple(
        Predicted(str(i if names is None else names[i]), float(loss[i]), *np.exp([middle[k], low[k], high[k]]).tolist())
        for k, i in enumerate(rows)
    )
    return LeftOut(runs, int((~larger).sum()), float(C[larger].max() / C[~larger].max()), LEVEL, chance)


@dataclass(frozen=True)
class Trust:
    """What speaks against a law of own runs.

    Attributes:
        misfit: scatter of ln L about the posterior's law over what seeds alone give; None: too few runs to tell.
        scatter: of ln L.
        held: the law of the smaller runs held against the larger ones, or why that is not possible.
        reach: compute that is asked for over that of the largest run.
        floorless: ln of how much likelier the runs are by a law without an irreducible loss; None: too few to tell.
    """

    misfit: float | None
    scatter: float
    held: Extrapolation | LeftOut | str
    reach: float = 1.0
    floorless: float | None = None

    @property
    def has_floor(self) -> bool:
        """Whether the law's irreducible loss is nothing that the runs argue against."""
        return self.floorless is None or bool(self.floorless <= ODDS)

    @property
    def describes(self) -> bool:
        """Whether the runs follow one law, as far as can be told."""
        return self.misfit is None or self.misfit <= POOR

    @property
    def predicts(self) -> bool | None:
        """Whether the law may be relied on beyond the runs; None: not tested, or unclear."""
        if isinstance(self.held, LeftOut):
            holds = {Verdict.HOLDS: True, Verdict.FAILS: False, Verdict.UNDECIDED: None}[self.held.verdict]
            return self.describes and holds
        return None if isinstance(self.held, str) else self.held.trusted and self.describes

    @property
    def missed(self) -> float:
        """What the posterior of the smaller runs misses of the larger ones, ln L per e-fold of compute; 0: nothing."""
        held = self.held
        return held.error / max(math.log(held.reach), 1.0) if isinstance(held, LeftOut) and held.fails else 0.0

    @property
    def doubts(self) -> tuple[str, ...]:
        """In a few words each, the worst first."""
        said = []
        if not self.describes:
            said.append(
                f"your runs follow no one law, or are noisier than usual: they scatter by {self.scatter:.1%} about it, "
                f"{self.misfit:.0f} times the {self.scatter / (self.misfit or 1.0):.1%} that seeds usually give"
            )
        held = self.held
        fails = None
        if isinstance(held, Extrapolation) and held.fails:
            inside = round((held.inside or 0.0) * len(held.loss))
            fails = inside, len(held.loss), held.fit.level, float(np.median(np.abs(held.error)))
        elif isinstance(held, LeftOut) and held.fails:
            fails = held.inside, len(held.runs), held.level, held.error
        if fails is not None:
            said.append(
                "the law of your smaller runs fails on the larger ones: {} of {} in its {:.0%} intervals, off by "
                "{:.1%}".format(*fails)
            )
        if not self.has_floor:
            said.append(
                "your runs fit a law without an irreducible loss better (Kaplan et al. 2020): larger runs may reach "
                "lower losses than stated"
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
    held: Extrapolation | LeftOut | str | None = None,
) -> Trust:
    """The judgement.

    Args:
        columns: C, N, D and loss of all runs, each [n].
        fitted: Hoffmann's law fitted to them, where its constants are the answer.
        posterior: of the runs; default: computed here.
        asked: FLOPs of the budget that the law is asked for; 0: of none.
        held: the hold-out test, where it is there already; default: of the posterior.
    """
    C, N, D, loss = columns
    posterior = posterior or posterior_of_runs(N, D, C, loss)
    kept = kept_rows(len(C), posterior.left_out)
    if held is None:
        held = leave_out((C[kept], N[kept], D[kept], loss[kept]), C[kept] > fitted_up_to(C[kept]))
    misfits = [
        each.misfit for each in (fitted, posterior, held) if isinstance(each, Posterior | LawFit | Extrapolation)
    ]
    misfit = max((each for each in misfits if each is not None), default=None)
    return Trust(
        misfit,
        (misfit or 0.0) * float(np.median(seed_noise(loss) / loss)),
        held,
        asked / float(C.max()),
        floorless(N[kept], D[kept], C[kept], loss[kept], posterior) if len(kept) >= FEWEST_TO_JUDGE else None,
    )


def describe_open(posterior: Posterior, alone: bool) -> tuple[str, ...]:
    """That own runs hardly say which size is best, and why; none where they do."""
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


SEED_SD = 0.4
"""Of the logarithm of `SEED`."""
FORM, FORM_SD = 0.004, 0.5
"""By which ln L may be off the law's form at a factor of 2 from 20 tokens per parameter: half of the fit's prior."""
MOVES = 0.03
"""Standard deviation of the change of β per e-fold of N that the runs are held against: .07 of .35 over a decade."""
MOVING = math.log(2.0)
"""Ln of how much likelier the runs must be with that term: of 60 worlds of the law's own kind 2 are (3%)."""
RUNG = 1.5
"""A factor of the largest budget within which runs are its rung."""


@dataclass(frozen=True)
class Described:
    """Whether the law describes the runs that it was fitted to.

    Attributes:
        odds: ln of how much likelier they are with β that moves with N.
        moves: the change of β per e-fold of N that they ask for.
        trust: what is asked of any runs; of a ladder the largest rung is held out.
    """

    odds: float
    moves: float
    trust: Trust

    @property
    def left_out(self) -> LeftOut | None:
        """The largest rung, predicted without it; None: too few runs are left."""
        return self.trust.held if isinstance(self.trust.held, LeftOut) else None

    @property
    def noise(self) -> float:
        """Scatter about the law over that of seeds; 0: too few runs to tell."""
        return self.trust.misfit or 0.0

    @property
    def moving(self) -> bool:
        """Whether β moves with N."""
        return self.odds > MOVING

    @property
    def noisy(self) -> bool:
        """Whether the runs scatter far more than seeds do."""
        return not self.trust.describes

    @property
    def well(self) -> bool:
        """Whether nothing speaks against the law."""
        predicts = self.left_out is None or self.left_out.passed
        return predicts and self.trust.has_floor and not (self.moving or self.noisy)


def described(
    names: list[str], N: Array, D: Array, C: Array, loss: Array, posterior: Posterior, asked: float
) -> Described:
    """Hold the law against runs [n] of these names, for a target of `asked` FLOPs."""
    held = leave_out((C, N, D, loss), C.max() / RUNG <= C, names, SEED)
    trust = trust_of((C, N, D, loss), None, posterior, asked=asked, held=held)
    return Described(*_moving(N, D, loss, posterior), trust)


def _moving(N: Array, D: Array, loss: Array, posterior: Posterior) -> tuple[float, float]:
    """Ln odds that β moves with N, and how much: by Gaussians about the mode, over the best noise of each."""
    from scipy.optimize import minimize  # half of a command's start, which a plan without runs need not wait for

    theta, x, y = posterior.mode[None], posterior.origin.x(N), posterior.origin.y(D)
    slope, prior, off = slopes(theta, x, y)[0], gradient(pulls, theta)[0], pulls(theta)[0]
    constants = np.linalg.inv(prior.T @ prior + np.diag([1.0, *np.zeros(slope.shape[1] - 1)]))
    law = slope @ constants @ slope.T
    left = np.log(loss) - log_loss(theta, x, y)[0] + slope @ constants @ prior.T @ off  # over the prior's own law
    of_data = -slope[:, 2] * x * y  # ∂ ln L/∂ ln B times what a change of β per e-fold of N does to ln B
    still = run_covariance(N, D, 0.0) - MISFIT**2 * np.diag(misfit(N, D)) + law
    own, form = run_covariance(N, D, 1.0) - run_covariance(N, D, 0.0), np.diag(misfit(N, D))

    def unlikely(scales: Array, moves: float) -> float:
        factor = np.linalg.cholesky(_covariance(scales, moves))
        u = np.linalg.solve(factor, left)
        z = (scales - np.log([SEED, FORM])) / [SEED_SD, FORM_SD]
        return float(0.5 * (u @ u + z @ z) + np.log(np.diag(factor)).sum())

    def _covariance(scales: Array, moves: float) -> Array:
        s, tau = np.exp(2 * np.asarray(scales))
        return np.asarray(s * own + tau * form + still + moves**2 * np.outer(of_data, of_data))

    found = [
        minimize(unlikely, np.log([SEED, FORM]), (moves,), "Nelder-Mead", options={"xatol": 1e-2, "fatol": 1e-2})
        for moves in (0.0, MOVES)
    ]
    weights = np.linalg.solve(_covariance(found[1].x, 0.0), of_data)
    return float(found[0].fun - found[1].fun), float(weights @ left / (weights @ of_data + MOVES**-2))


FOLLOWS = 0.5
"""Correlation of what the law misses with ln steps from which on steps explain it."""


def by_steps(ends: Sequence[float], N: Array, D: Array, loss: Array, posterior: Posterior) -> dict[str, float]:
    """How many steps runs [n] have (`ends`), where these are few and explain what the law misses; else empty."""
    from isoflop.laws.recipes import FEWEST_STEPS, warmup_of  # reads the published laws, which few commands need

    steps = np.array(ends)
    beyond = [int(count) - warmup_of(int(count)) for count in ends]
    if min(beyond, default=FEWEST_STEPS) >= FEWEST_STEPS or np.ptp(steps) == 0:
        return {}
    follows = float(np.corrcoef(posterior.residuals(N, D, loss)[0], np.log(steps))[0, 1])
    known = {"least": float(steps.min()), "most": float(steps.max()), "enough": float(FEWEST_STEPS)}
    return known if follows > FOLLOWS else {}
