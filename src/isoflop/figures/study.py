"""A study of runs, which figures, tab and report are made from: the runs' ends, the law fitted to them, the approaches.

L(N,D) is drawn only where the runs determine it. The axes that figures share are here too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from isoflop.arrays import Array
from isoflop.console import by_reason
from isoflop.figures.figure import Axis, Scale, Shades
from isoflop.figures.text import Indices, counted, listed, loss_label, parameters, unique_names
from isoflop.fit.approaches import ApproachComparison, NoApproach, compare_approaches, posterior_approach, side_by_side
from isoflop.fit.law_fit import LawFit, fit_law
from isoflop.fit.optimal_line import Approach
from isoflop.fit.posterior import Posterior, posterior_of_runs
from isoflop.fit.robust import describe_outliers, kept_rows
from isoflop.fit.runs import RunCurve, RunEnd, check_runs, curve_of_run, end_of_curve, ends_before
from isoflop.fit.sources import describe_alike, groups_of, shared_loss, tells_kinds
from isoflop.fit.uncertainty import FEW, Gap
from isoflop.laws import PF_DAY, Law, Published, published, short
from isoflop.laws.forms import compute_of, typical_rate
from isoflop.lookup import need
from isoflop.record import Run, common_n


@lru_cache(maxsize=16)
def law_of(
    ends: tuple[RunEnd, ...], convention: str, level: float, draws: int
) -> tuple[LawFit | None, tuple[str, ...], str]:
    """The law, doubts about it, the reason why there is none. Cached: while runs train, those that ended stay."""
    if not ends:
        return None, (), "there is no finished run with its size, its tokens and a loss"
    if len(ends) < CONSTANTS + FEW:
        few = f"{counted(len(ends), 'finished run is', 'finished runs are')} too few to determine L(N,D)"
        return None, (), f"{few}: it takes {CONSTANTS + FEW} or more, of several sizes and numbers of tokens"
    columns = {name: np.array([getattr(end, name) for end in ends], dtype=float) for name in ("N", "D", "loss")}
    called = [end.name for end in ends]
    options: dict[str, Any] = {"level": level, "draws": draws, "convention": convention, "rows": called}
    try:
        # odd numbers are no doubts of the law: the runs are what they are
        odd = check_runs(columns, ("N", "D"), rows=called, convention=convention).warnings
        fitted = fit_law("hoffmann", columns, **options, labels=kinds_of(ends))
    except ValueError as reason:
        return None, (), str(reason)
    known = {*odd, describe_outliers(fitted.left_out, called)}  # that single runs are left out is no doubt of the law
    doubts = tuple(text for text in fitted.warnings if text not in known)
    spans = {name for each in fitted.unknown if each.gap is Gap.SPAN for name in each.names}
    if fitted.law.draws is None or spans & {"alpha", "beta"}:
        return fitted, doubts, "the runs do not determine L(N,D): " + "; ".join(doubts)
    return fitted, doubts, ""


def ends_of_table(
    columns: Mapping[str, ArrayLike],
    names: Sequence[str] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
) -> tuple[RunEnd, ...]:
    """Rows of a table of finished runs, such as `isoflop.fit.table.read_table` gives.

    Args:
        columns: "N" parameters, "D" tokens, "loss" nats per token; "C" FLOPs where they were counted.
        names: what to call each row.
        labels: other columns, which tell kinds of rows.
    """
    N, D, L = (np.asarray(columns[name], dtype=float) for name in ("N", "D", "loss"))
    C = np.asarray(columns["C"], dtype=float) if "C" in columns else np.full(len(N), np.nan)
    called = names or [f"row {i + 1}" for i in range(len(N))]
    kinds = [tuple((name, cells[i]) for name, cells in (labels or {}).items()) for i in range(len(N))]
    return tuple(
        RunEnd(str(name), float(n), float(d), float(loss), float(c) if np.isfinite(c) else None, kinds=kind)
        for name, n, d, loss, c, kind in zip(called, N, D, L, C, kinds, strict=True)
    )


def kinds_of(ends: tuple[RunEnd, ...]) -> dict[str, list[str]]:
    """Cells of the columns that tell kinds of runs, each [n]."""
    found = [dict(end.kinds) for end in ends]
    names = dict.fromkeys(name for each in found for name in each)
    columns = {name: [each.get(name, "") for each in found] for name in names}
    return {name: cells for name, cells in columns.items() if tells_kinds(name, cells)}


PUBLISHED = ("hoffmann2022-approach1", "besiroglu2024", "kaplan2020-allocation", "deepseek2024")
"""Laid beside one's own frontier."""
NO_LAW = "no law L(N,D) is fitted to these runs"
"""Where the reason stands beside it."""
CONSTANTS = 5
"""Of L(N,D) = E + A/N^α + B/D^β."""
LEVEL, DRAWS = 0.9, 1000
"""As `isoflop fit` has them, so that figure and table agree."""
BEYOND = 10.0
"""A factor of compute over the largest run to which a law is drawn, dashed."""


@dataclass(frozen=True)
class Study:
    """Runs and what they say together. What is fitted is computed when it is first asked for, and kept.

    Attributes:
        budgets: nominal budgets of isoFLOP profiles in FLOPs; None: by the runs' own compute.
        alike: that losses of different names may be one evaluation; "": they are not, or the user named the loss.
    """

    curves: tuple[RunCurve, ...] = field(repr=False)  # the runs, oldest first
    ends: tuple[RunEnd, ...] = field(repr=False)  # where they ended, runs first, then rows of tables
    loss: str  # which loss: `train` or eval/<name>
    convention: str  # which parameters N counts
    level: float = LEVEL  # of every interval
    draws: int = DRAWS  # resamples behind them
    budgets: tuple[float, ...] | None = None
    published: tuple[Published, ...] = ()  # laws to lay beside
    alike: str = ""

    def __repr__(self) -> str:
        return f"<Study of {counted(len(self.ends), 'run', 'runs')}, {len(self.counted):,} in the fit: {self.loss}>"

    @cached_property
    def counted(self) -> tuple[RunEnd, ...]:
        """The ends that a law is fitted to."""
        return tuple(end for end in self.ends if not end.left_out)

    @cached_property
    def uncounted(self) -> dict[str, list[str]]:
        """Names of the ends that do not count, by the reason."""
        return by_reason((end.name, end.left_out) for end in self.ends if end.left_out)

    @property
    def left_out(self) -> str:
        """Which ends do not count, and why, in a sentence; "": all do."""
        told = "; ".join(f"{listed(names)} ({reason})" for reason, names in self.uncounted.items())
        number = len(self.ends) - len(self.counted)
        alike = f" {self.alike}." if self.alike else ""
        return told and f"{counted(number, 'run does', 'runs do')} not count in a fit: {told}.{alike}"

    @property
    def nothing(self) -> str:
        """Why no end counts; "": some do."""
        if self.counted:
            return ""
        return "no finished run with its size, its tokens and a loss" + (f". {self.left_out}" if self.ends else "")

    @cached_property
    def columns(self) -> dict[str, Array]:
        """N, D and loss of the counted ends."""
        return {
            name: np.array([getattr(end, name) for end in self.counted], dtype=float) for name in ("N", "D", "loss")
        }

    @cached_property
    def C(self) -> Array:
        """Training FLOPs of the counted ends: as measured, else 6·N·D."""
        return self.end_flops[[not end.left_out for end in self.ends]]

    @cached_property
    def end_flops(self) -> Array:
        """Training FLOPs of all ends: as measured, else 6·N·D; NaN where neither is known."""
        N, D, flops = (np.array([getattr(end, name) or np.nan for end in self.ends]) for name in ("N", "D", "flops"))
        return np.asarray(compute_of(N, D, flops))

    @cached_property
    def rate(self) -> float:
        """C/(N·D) that the counted ends typically took: a law of N and D is drawn on the compute axis with it."""
        return typical_rate(self.C, self.columns["N"], self.columns["D"])

    def flops(self, curve: RunCurve) -> Array:
        """A run's compute by point: as measured, else 6·N·D; NaN where neither is known."""
        return compute_of(curve.size(self.convention) or np.nan, curve.tokens, curve.flops)

    @cached_property
    def by_formula(self) -> tuple[str, ...]:
        """Names of the runs whose compute was not measured, so that 6·N·D stands for it."""
        curves = {curve.run_id: curve.is_measured for curve in self.curves}
        return tuple(end.name for end in self.with_compute if not curves.get(end.run_id or "", end.flops is not None))

    @cached_property
    def with_compute(self) -> tuple[RunEnd, ...]:
        """The ends whose compute is known."""
        return tuple(end for end, known in zip(self.ends, np.isfinite(self.end_flops), strict=True) if known)

    @cached_property
    def unsound(self) -> dict[str, str]:
        """Why the law does not rest on a run that has ended: it stopped early, diverged, or lies far off; by run."""
        far = [self.counted[run.row] for run in self.fit.left_out] if self.fit is not None else []
        outliers = {end.run_id: "far off the law" for end in far}
        why = {curve.run_id: curve.run.stopped or curve.rose or outliers.get(curve.run_id) for curve in self.curves}
        return {run: text for run, text in why.items() if text}

    @cached_property
    def _fitted(self) -> tuple[LawFit | None, tuple[str, ...], str]:
        return law_of(self.counted, self.convention, self.level, self.draws)

    @property
    def fit(self) -> LawFit | None:
        """L(N,D) = E + A/N^α + B/D^β fitted to the counted ends; None: `refused` says why."""
        return self._fitted[0]

    @cached_property
    def fitted_rows(self) -> Indices:
        """Which counted ends the fit kept, in the order of its residuals."""
        return kept_rows(len(self.counted), () if self.fit is None else self.fit.left_out)

    @cached_property
    def with_outliers(self) -> LawFit | None:
        """The fit of all counted ends; None: none was left out as an outlier."""
        if self.fit is None or not self.fit.left_out:
            return None
        columns = {name: tuple(values.tolist()) for name, values in self.columns.items()}
        return fit_law("hoffmann", columns, draws=2, convention=self.fit.law.convention, keep_outliers=True)

    @property
    def scatter(self) -> tuple[float, float] | None:
        """`LawFit.distances`; None: no fit."""
        return None if self.fit is None else self.fit.distances

    @property
    def doubts(self) -> tuple[str, ...]:
        """What the runs do not tell of the law: it is not drawn beyond them."""
        return self._fitted[1]

    @property
    def refused(self) -> str:
        """Why there is no law to draw; "": there is."""
        return self._fitted[2]

    @property
    def no_law(self) -> str:
        """The same in short, for a figure; the fit's own place tells the rest."""
        return self.refused.partition(": ")[0]

    @property
    def law(self) -> Law | None:
        """The fitted law, where it may be drawn."""
        return None if self.refused or self.fit is None else self.fit.law

    @cached_property
    def _approaches(self) -> tuple[tuple[Approach, ...], tuple[NoApproach, ...]]:
        curves = (
            (N, self.flops(curve), curve.losses[self.loss], curve.tokens)
            for curve in self.curves
            if (N := curve.size(self.convention)) is not None and self.loss in curve.losses
        )
        columns = (self.C, *(self.columns[name] for name in ("N", "D", "loss")))
        return side_by_side(
            tuple(column[self.fitted_rows] for column in columns),  # type: ignore[arg-type]
            self.law or NO_LAW,
            curves=curves,
            budgets=self.budgets,
            level=self.level,
            convention=self.convention,  # type: ignore[arg-type]
        )

    @property
    def approaches(self) -> tuple[Approach, ...]:
        """Those of Hoffmann et al.'s three that the runs allow."""
        return self._approaches[0]

    @property
    def without(self) -> tuple[NoApproach, ...]:
        """Why an approach is not among them."""
        return self._approaches[1]

    @cached_property
    def posterior(self) -> Posterior | None:
        """Of the counted runs: by it `fit` and `plan` name a best size; None: there is no law to draw."""
        if self.law is None or self.fit is None:
            return None
        N, D, L = (self.columns[name] for name in ("N", "D", "loss"))
        left_out = self.fit.left_out or None
        return posterior_of_runs(N, D, self.C, L, labels=kinds_of(self.counted), left_out=left_out)

    def fit_all(self) -> None:
        """Fit now, in this thread, what would be fitted when it is first asked for."""
        _ = self._fitted, self._approaches, self.posterior

    def with_fit_of(self, earlier: Study, waiting: str) -> Study:
        """These curves with the fit of an earlier study of some of them, while a new fit is made.

        Ends that it does not rest on are left out because of `waiting`.
        """
        rests = {end.run_id: end for end in earlier.counted}
        ends = tuple(rests.get(end.run_id) or replace(end, left_out=end.left_out or waiting) for end in self.ends)
        made = replace(self, ends=ends, loss=earlier.loss, convention=earlier.convention)
        earlier.fit_all()
        vars(made).update({name: getattr(earlier, name) for name in ("_fitted", "_approaches", "posterior")})
        return made

    def compared(self, C: float | None = None) -> ApproachComparison | None:
        """The posterior, and the approaches beside it, at ten times the largest run's compute by default."""
        if not self.approaches:
            return None
        C = float(self.C.max()) * BEYOND if C is None else C
        own = () if self.posterior is None else (self.posterior.towards(C),)
        leads = (posterior_approach(each, each.line(C), self.level) for each in own)
        return compare_approaches((*leads, *self.approaches), C)

    @cached_property
    def shades(self) -> Array:
        """Of each end, 0 to 1 by its size among all; evenly spaced, so that runs of one size can be told apart."""
        order = sorted(range(len(self.ends)), key=lambda i: (self.ends[i].N or 0.0, i))
        found = np.full(len(order), 0.5)
        if len(order) > 1:
            found[order] = np.linspace(0, 1, len(order))
        return found

    @cached_property
    def shade(self) -> dict[str | None, float]:
        """The same by run."""
        return {end.run_id: float(shade) for end, shade in zip(self.ends, self.shades, strict=True)}

    @cached_property
    def counted_shades(self) -> Array:
        """Of the counted ends."""
        return self.shades[[not end.left_out for end in self.ends]]

    def sizes(self) -> Shades | None:
        """What the shades stand for: sizes, at five of them."""
        N = sorted(end.N or 0.0 for end in self.ends)
        unknown = any(not end.N and end.run_id for end in self.ends)  # a table's row without a size is drawn nowhere
        if len(N) < 2 or N[-1] <= 0 or N[0] == N[-1]:
            return None
        shades: dict[str, list[float]] = {}  # by size as it is written: one tick, in the middle of its runs
        for i, size in enumerate(N):
            if size or unknown:
                shades.setdefault(short(size) if size else "unknown", []).append(i / (len(N) - 1))
        every = [(float(np.mean(at)), text) for text, at in shades.items()]
        at = np.unique(np.linspace(0, len(every) - 1, min(len(every), 5)).round().astype(int))
        ticks = tuple(every[i] for i in at)
        return Shades(parameters(self.convention), ticks)


def given_runs(runs: Any) -> list[Any]:
    """Runs as a list; ValueError where they are something else."""
    given = list(runs) if isinstance(runs, Iterable) and not isinstance(runs, str) else [runs]
    for run in given:
        need("runs", isinstance(run, Run | RunCurve), "runs, as read_runs(…) gives them", run)
    return given


def study(
    runs: Iterable[Run | RunCurve] = (),
    *,
    table: Sequence[RunEnd] = (),
    loss: str | None = None,
    convention: str | None = None,
    level: float = LEVEL,
    draws: int = DRAWS,
    budgets: ArrayLike | None = None,
    beside: Sequence[str] = PUBLISHED,
) -> Study:
    """Runs made ready for figures; what is fitted is fitted when it is first asked for.

    Args:
        runs: as read from their records; or already as columns (`curve_of_run`), which a reader that follows growing
            files keeps.
        table: ends of runs without a curve (`ends_of_table`).
        loss: `train` or eval/<name>; default: an evaluation's that all runs have, else that of most runs. Of tables
            alone: what their loss is called.
        convention: which parameters N counts; default: with the output head, or the next of `PREFERRED_N`
            that all runs state.
        level: of the intervals.
        draws: resamples behind them.
        budgets: nominal budgets of isoFLOP profiles, FLOPs.
        beside: names of published laws.
    """
    given = given_runs(runs)
    curves = _told_apart([run if isinstance(run, RunCurve) else curve_of_run(run) for run in given])
    alike = ""
    if loss is None:
        loss = shared_loss(_losses_to_end(curves)) if curves else "final loss"
        alike = describe_alike([curve.losses for curve in curves], loss)
    convention = convention or common_n(curve.run.parameters for curve in curves)
    kinds = groups_of([curve.run for curve in curves])
    ends = tuple(
        replace(end_of_curve(curve, loss, convention), kinds=tuple(mine.items()))
        for curve, mine in zip(curves, kinds, strict=True)
    )
    return Study(
        curves=curves,
        ends=(*ends, *table),
        loss=loss,
        convention=convention,
        level=level,
        draws=draws,
        budgets=None if budgets is None else tuple(float(value) for value in np.atleast_1d(np.asarray(budgets))),
        published=tuple(published(name) for name in beside),
        alike=alike,
    )


def _told_apart(curves: Sequence[RunCurve]) -> tuple[RunCurve, ...]:
    """Runs of one name by their folders, or numbered."""
    names = unique_names([curve.name for curve in curves], [curve.run.path for curve in curves])
    return tuple(
        curve if curve.name == name else replace(curve, run=replace(curve.run, name=name))
        for curve, name in zip(curves, names, strict=True)
    )


def _losses_to_end(curves: Sequence[RunCurve]) -> list[list[str]]:
    """The losses of each run that has some: those that it has to its end, else all."""
    steps = [{name: at for name in curve.losses if len(at := curve.steps_of(name, True))} for curve in curves]
    return [
        [name for name, at in mine.items() if not ends_before(curve.run.steps_done, float(at[-1]), name)] or [*mine]
        for curve, mine in zip(curves, steps, strict=True)
        if mine
    ]


PF_DAYS = Scale("PF-days", PF_DAY)


def compute_axis(study: Study) -> Axis:
    """C in FLOPs, with PF-days at the top."""
    return Axis(f"training compute {compute_label(study)}", "FLOPs", second=PF_DAYS)


def compute_label(study: Study) -> str:
    """How the study's compute was counted."""
    unmeasured, runs = len(study.by_formula), len(study.with_compute)
    if unmeasured == runs:
        return f"C = 6·N·D, {parameters(study.convention)}"
    return "C, measured" + (f" (6·N·D for {unmeasured} of {counted(runs, 'run', 'runs')})" if unmeasured else "")


def size_axis(study: Study) -> Axis:
    """N in parameters of the study's convention."""
    return Axis(parameters(study.convention), "parameters")


def tokens_axis() -> Axis:
    """D in tokens."""
    return Axis("D, processed less padding", "tokens")


def loss_axis(study: Study) -> Axis:
    """L in nats per token."""
    return Axis(loss_label(study.loss), "nats per token")
