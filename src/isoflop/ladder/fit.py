"""The law of a ladder's finished runs, and what the run at the target should be: size, data, batch and loss.

The posterior of the runs (`isoflop.fit.posterior`) answers. Beside it stand Hoffmann et al.'s three approaches, whether
the law describes the runs at all (`isoflop.fit.trust`), and the worth of one more rung.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from functools import cached_property
from pathlib import PurePath
from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.console import Shown
from isoflop.fit.approaches import ApproachComparison, Row, compare_approaches, side_by_side
from isoflop.fit.drifting_law import RATIO, SPLIT, SPLIT_SD, BudgetLine
from isoflop.fit.law_fit import fit_law
from isoflop.fit.optimal_line import quantile
from isoflop.fit.own_runs import known_of
from isoflop.fit.posterior import Posterior, posterior_of_runs
from isoflop.fit.robust import Outlier, kept_rows
from isoflop.fit.runs import RunCurve, RunEnd, curve_of_run, end_of_curve, unfinished
from isoflop.fit.sources import common_loss, loss_names
from isoflop.fit.trust import FAR, Described, Verdict, by_steps, described
from isoflop.ladder.design import RungWorth, worth_of_a_rung
from isoflop.ladder.plan import LadderPlan, read_plan
from isoflop.laws.forms import compute_of
from isoflop.laws.papers import published
from isoflop.laws.quantities import short
from isoflop.record.paths import check_location, location_of
from isoflop.record.reader import read_runs
from isoflop.record.run import DEFAULT_N, Run

FEWEST = 6
"""Runs that are fitted: fewer tell less than the prior."""
SEVERAL = 3
"""Sizes."""
BATCH_RULES = ("steplaw2025", "deepseek2024", "porian2024")
"""The first gives the batch, all of them the interval: they differ by more than the tokens are uncertain."""
NEAR = 3.0
"""A factor of the largest budget within which runs are held against its optimum."""
SMALL = 1e7
"""Parameters below which laws have hardly been tested."""
DRAWS = 400
"""Of approach 3's bootstrap."""
NAME, WITHOUT = "ladder (law with prior)", "no run (20 tokens per parameter)"


@dataclass(frozen=True)
class FinishedRuns:
    """The finished runs of a ladder.

    Attributes:
        runs: their ends, by rising compute; `flops` as measured, else 6·N·D.
        curves: what they recorded on the way.
        loss_name: `train` or eval/<name>.
        convention: which parameters N counts.
        left_out: records that do not count, and why.
        missing: names of planned runs without a finished record.
    """

    runs: tuple[RunEnd, ...]
    curves: tuple[RunCurve, ...]
    loss_name: str
    convention: str = DEFAULT_N
    left_out: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[Array, Array, Array, Array]:
        """N, D, C and losses [runs]."""
        table = np.array([[run.N, run.D, run.flops, run.loss] for run in self.runs], dtype=float).reshape(-1, 4)
        return table[:, 0], table[:, 1], table[:, 2], table[:, 3]

    def without(self, outliers: Sequence[Outlier]) -> FinishedRuns:
        """The same but for runs far off the law of the others."""
        said = tuple(
            f"{self.runs[run.row].name}: far off the law of the others, loss {run.loss:.4g} for {run.expected:.4g}"
            for run in outliers
        )
        kept = kept_rows(len(self.runs), outliers).tolist()
        curves = tuple(self.curves[row] for row in kept) if self.curves else ()
        runs = tuple(self.runs[row] for row in kept)
        return replace(self, runs=runs, curves=curves, left_out=(*self.left_out, *said))


def read_finished(
    paths: Iterable[str | os.PathLike[str]],
    *,
    plan: LadderPlan | None = None,
    loss: str | None = None,
    convention: str = DEFAULT_N,
) -> FinishedRuns:
    """Read the records of a ladder.

    Args:
        paths: records, folders with some, or URLs of either.
        plan: whose runs they are; those that it does not name are left out.
        loss: `train` or eval/<name>; default: an evaluation that all finished runs have, else the training loss.
        convention: which parameters N counts.

    Raises:
        ValueError: a path does not exist, or no finished run has the loss.
        RecordError: a URL needs a package that is not installed, or is of no known kind.
    """
    sources = [location_of(path) for path in paths]
    for source in sources:
        check_location(source)
        if not isinstance(source, str) and not source.exists():
            raise ValueError(f"expected a record or a folder with records, got {source}, which does not exist")
    planned = None if plan is None else [run.name for run in plan.runs]
    left_out: list[str] = []
    finished: list[tuple[str, Run]] = []
    for run in read_runs(*sources, on_problem=left_out.append):
        name = _planned_name(run, planned or ())
        why = unfinished(run)
        if planned is not None and name not in planned:
            why = "the plan does not name it"
        elif planned is not None and not why and any(name == other for other, _ in finished):
            why = "another record of it is finished too"
        if why:
            left_out.append(f"{name}: {why}")
        else:
            finished.append((name, run))
    names = {name for _, run in finished for name in loss_names(run)}
    if loss is not None and finished and loss not in names:
        raise ValueError(f"--loss: expected one of {', '.join(sorted(names))}, got {loss!r}")
    loss = loss or common_loss(run for _, run in finished)
    found: list[tuple[RunEnd, RunCurve]] = []
    for name, run in finished:
        curve = curve_of_run(run)
        end = end_of_curve(curve, loss, convention)
        if end.left_out:
            left_out.append(f"{name}: {end.left_out}")
        else:
            C = compute_of(end.N or math.nan, end.D or math.nan, end.flops or math.nan)
            found.append((replace(end, name=name, flops=float(C)), curve))
    found.sort(key=lambda pair: (pair[0].flops or 0.0, pair[0].N or 0.0))
    ends = tuple(end for end, _ in found)
    missing = tuple(name for name in planned or () if name not in {end.name for end in ends})
    return FinishedRuns(ends, tuple(curve for _, curve in found), loss, convention, tuple(left_out), missing)


def _planned_name(run: Run, planned: Sequence[str]) -> str:
    """The planned name that the record carries, as its own or as its folder's; else its own."""
    folders = PurePath(run.path).parts[-4:-1] if run.path else ()
    return next((name for name in (run.name, *reversed(folders)) if name in planned), run.name or run.run_id)


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float


def estimate(values: Array, level: float) -> Estimate:
    """Median and interval of draws."""
    low, middle, high = np.quantile(values, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Estimate(float(middle), float(low), float(high))


def spanning(held: Array, free: Array, level: float) -> Estimate:
    """Median of draws that are held to 20 tokens per parameter at the target; an interval that spans others' too.

    Held, the best size is off by less where the runs say little. But optima that last do differ: on worlds of 6 to 70
    tokens per parameter the interval of the held draws alone holds in 65% for nominal 90%, this one in 90%.
    """
    one, other = estimate(held, level), estimate(free, level)
    return Estimate(one.value, min(one.low, other.low), max(one.high, other.high))


class Doubt(Enum):
    """Reasons to rely less on a fit, to be completed by the numbers of a `FitWarning`."""

    MOVES = (
        "the law does not describe these runs: they are {odds:.0f} times likelier if β changes by {moves:+.3f} per "
        "e-fold of N. Do not extrapolate it: rates or batches that suit some sizes less, or another law (Kaplan's, "
        "without an irreducible loss), look like this"
    )
    NOISY = (
        "the law does not describe these runs, or they are noisier than usual: they scatter about it {noise:.1f} times "
        "as much as seeds usually do. Look at the runs that are farthest from it, and train one of them again with "
        "another seed"
    )
    FLOORLESS = (
        "the law does not describe these runs: they are {floorless:.0f} times likelier by a law without an irreducible "
        "loss (Kaplan et al. 2020). Do not extrapolate it: larger runs will reach lower losses than it says"
    )
    FEW_STEPS = (
        "the law does not describe these runs: with {least:,.0f} to {most:,.0f} steps, losses follow their number, "
        "which explains what the law misses. Train for {enough:,.0f} or more beyond warm-up (ladder plan --min-steps)"
    )
    NOT_PREDICTED = (
        "the law does not describe these runs: from the smaller ones it does not predict the largest rung to within "
        "the noise of seeds. Do not extrapolate it"
    )
    OPTIMUM_ABOVE = (
        "the optimum at the largest budget, about {short[best]} parameters, is larger than all runs there (up to "
        "{short[edge]}): the runs do not enclose it, and the answer relies on the prior: add larger models"
    )
    OPTIMUM_BELOW = (
        "the optimum at the largest budget, about {short[best]} parameters, is smaller than all runs there (from "
        "{short[edge]} on): the runs do not enclose it, and the answer relies on the prior: add smaller models"
    )
    FAR = "the target is {reach:,.0f} times the largest run's compute: its bend on the way is by a prior alone"
    BELOW = "the target is smaller than the largest run: this is no extrapolation, look at the runs around it"
    TRAINING_LOSS = (
        "the loss is the training loss at each run's end, noise and repeated data in it: an evaluation is better"
    )
    MISSING = "planned runs without a finished record: {runs:.0f}; the intervals are wider for it"
    SMALL = "models below 10M parameters: the law may bend on the way up"


@dataclass(frozen=True)
class FitWarning:
    """A doubt with its numbers; `str()` says it."""

    doubt: Doubt
    numbers: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        sizes = {name: short(value) for name, value in self.numbers.items()}
        return self.doubt.value.format(**self.numbers, short=sizes)


@dataclass(frozen=True)
class LadderFit(Shown):
    """The answer of a ladder about its target.

    Attributes:
        target_flops: budget of the target run.
        level: of every interval.
        N_opt, D_opt: parameters and tokens of the least loss; tokens_per_param their ratio.
        batch: tokens a step at D_opt, by published rules.
        loss: of a run of N_opt on D_opt, nats per token, its noise and the law's uncertainty included.
        exponents: α and β at the largest budget, and a = ln N_opt per ln C from there to the target.
        noise: standard deviation of a run's ln L.
        check: whether the law describes the runs.
        rung: the worth of one more rung; None: it would be as dear as the target.
        finished: the runs that it is based on, and why others are left out.
        warnings: reasons to rely less on it.
    """

    target_flops: float
    level: float
    N_opt: Estimate
    D_opt: Estimate
    tokens_per_param: Estimate
    batch: Estimate
    loss: Estimate
    exponents: Mapping[str, Estimate]
    noise: Estimate
    check: Described
    rung: RungWorth | None
    finished: FinishedRuns
    warnings: tuple[FitWarning, ...]
    posterior: Posterior = field(repr=False, compare=False)
    target: BudgetLine = field(repr=False, compare=False)

    def __str__(self) -> str:
        return "\n".join([*self.lines(), *(f"! {warning}" for warning in self.warnings)])

    def lines(self) -> list[str]:
        """The target, and each estimate with its interval."""
        runs, beyond = len(self.finished.runs), self.target_flops / self.posterior.largest
        rows: list[tuple[str, Estimate, Callable[[float], str], str]] = [
            ("N", self.N_opt, short, "parameters, with the head"),
            ("D", self.D_opt, short, "tokens"),
            ("D/N", self.tokens_per_param, "{:.3g}".format, "tokens per parameter"),
            ("batch", self.batch, short, "tokens a step, by published rules"),
            ("loss", self.loss, "{:.4f}".format, "nats per token, its noise included"),
        ]
        for name, label, what in (
            ("alpha", "α", "at the largest budget"),
            ("beta", "β", "at the largest budget"),
            ("a", "a", "N ∝ C^a from the largest run on"),
        ):
            if name in self.exponents:
                rows.append((label, self.exponents[name], "{:.3f}".format, what))
        texts = [
            (f"{label:<6}{write(each.value):>9}  [{write(each.low)}, {write(each.high)}]", what)
            for label, each, write, what in rows
        ]
        return [
            f"at {self.target_flops:.3g} FLOPs, {beyond:,.3g} times the largest of {runs} runs "
            f"({self.finished.loss_name}), {self.level:.0%} intervals",
            *(f"{text:<40} {what}" for text, what in texts),
            f"next: {self.conclusion}",
        ]

    def loss_of(self, N: float, D: float) -> Estimate:
        """Loss to expect of one run of N parameters (counted as the ladder's) on D tokens.

        The posterior's median, and an interval that knows of what laws miss beyond a ladder.
        """
        return estimate(np.exp(self.posterior.run_losses(N, D)), self.level)

    @cached_property
    def approaches(self) -> ApproachComparison:
        """This law's and Hoffmann et al.'s three, side by side at the target; and why some of these are missing."""
        finished, level = self.finished, self.level
        N, D, C, L = finished.columns
        law = fit_law("hoffmann", {"N": N, "D": D, "loss": L}, level=level, draws=DRAWS).law
        curves = (
            (size, curve.flops, curve.losses["train"], curve.tokens)
            for curve in finished.curves
            if (size := curve.size(finished.convention)) and "train" in curve.losses
        )
        found, without = side_by_side(
            (C, N, D, L),
            law if law.draws is not None else "these runs alone leave constants of the law open",
            posterior=(self.posterior, self.target),
            curves=curves,
            level=level,
        )
        found = tuple(replace(each, name=NAME) if each.number == 0 else each for each in found)
        compared = compare_approaches(found, self.target.C, without)
        own, *others = compared.rows  # the answer's intervals, which span the posterior's with and without its prior
        of_N, of_D = ((each.low, each.high) for each in (self.N_opt, self.D_opt))
        return replace(compared, rows=(replace(own, N_interval=of_N, D_interval=of_D), *others, self._known))

    @property
    def _known(self) -> Row:
        """What published sweeps say without these runs."""
        prior, reach = known_of(curve.run for curve in self.finished.curves), quantile(self.level)
        sd, slope = prior.at(self.target.C)[1], self.target.slope
        N = self.target.size_of_ratio(RATIO)
        D = float(self.target.tokens(N))
        of_N, of_D = ((x * math.exp(-reach * s), x * math.exp(reach * s)) for x, s in ((N, sd), (D, slope * sd)))
        of_a = SPLIT - reach * SPLIT_SD, SPLIT + reach * SPLIT_SD
        return Row(WITHOUT, SPLIT, of_a, 1 - SPLIT, (1 - of_a[1], 1 - of_a[0]), N, of_N, D, of_D)

    @property
    def conclusion(self) -> str:
        """What to do next."""
        doubts = [warning.doubt for warning in self.warnings]
        if not self.check.well:
            return (
                f"do not size the target by this law, which does not describe the runs: see to the warnings first; "
                f"{RATIO:g} tokens per parameter ({short(self._known.N)} on {short(self._known.D)}) need no law"
            )
        if Doubt.OPTIMUM_ABOVE in doubts or Doubt.OPTIMUM_BELOW in doubts:
            models = "larger" if Doubt.OPTIMUM_ABOVE in doubts else "smaller"
            return f"train {models} models at the largest budget first: these runs do not enclose the best size"
        if Doubt.BELOW in doubts:
            return "the target needs no law: take the best of the runs around it"
        if self.rung is not None and self.rung.go:
            return "train one more rung first"
        untested = self.check.left_out is None or self.check.left_out.verdict is not Verdict.HOLDS
        return "train the target" + ("; no test on the largest rung supports its loss" if untested else "")

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the object of `--json`, None for what is unknown; docs/ladder.md documents the keys."""
        answers = ("N_opt", "D_opt", "tokens_per_param", "batch", "loss", "noise")
        row_keys = ("name", "a", "a_interval", "N", "N_interval", "D", "D_interval")
        check, rung = self.check.left_out, self.rung
        compared = self.approaches
        runs = [{key: getattr(run, key) for key in ("name", "N", "D", "flops", "loss")} for run in self.finished.runs]
        return {
            "target_flops": self.target_flops,
            "level": self.level,
            **{name: asdict(getattr(self, name)) for name in answers},
            "exponents": {name: asdict(value) for name, value in self.exponents.items()},
            "approaches": [{key: getattr(row, key) for key in row_keys} for row in compared.rows],
            "without_opinion": [str(each) for each in compared.without],
            "described": {
                **{name: getattr(self.check, name) for name in ("well", "moving", "noisy", "odds", "moves", "noise")},
                "floorless": not self.check.trust.has_floor,
            },
            "leave_largest_out": None
            if check is None
            else {
                "runs": [asdict(run) for run in check.runs],
                **{key: getattr(check, key) for key in ("fitted_runs", "reach", "inside", "chance", "passed")},
            },
            "one_more_rung": None if rung is None else {**asdict(rung), "go": rung.go, "saved_flops": rung.saved_flops},
            "conclusion": self.conclusion,
            "loss_name": self.finished.loss_name,
            "runs": runs,
            "left_out": list(self.finished.left_out),
            "missing": list(self.finished.missing),
            "warnings": [str(warning) for warning in self.warnings],
        }


def fit_ladder_runs(
    runs: Sequence[str | os.PathLike[str]],
    *,
    plan: LadderPlan | str | os.PathLike[str] | None = None,
    target_flops: float | None = None,
    loss: str | None = None,
    level: float = 0.8,
) -> LadderFit:
    """Fit the records of a ladder.

    Args:
        runs: records, or folders with some.
        plan: the plan, or its file: it names the runs and the target.
        target_flops: budget of the target run; default: the plan's.
        loss: `train` or eval/<name>; default: an evaluation that all finished runs have, else the training loss.
        level: of the intervals.

    Raises:
        ValueError: no target; a plan that can't be read; fewer than six finished runs or three sizes, with the reasons.
    """
    if plan is not None and not isinstance(plan, LadderPlan):
        plan = read_plan(os.fspath(plan))
    target_flops = target_flops or (plan.target_flops if plan is not None else None)
    if target_flops is None:
        raise ValueError("expected a target: pass the plan (--plan plan.yaml) or its FLOPs (--flops 1e21)")
    if not 0 < level < 1:
        raise ValueError(f"level= expects a probability between 0 and 1, got {level!r}")
    convention = DEFAULT_N if plan is None else plan.convention
    return fit_finished(read_finished(runs, plan=plan, loss=loss, convention=convention), target_flops, level)


def fit_finished(finished: FinishedRuns, target_flops: float, level: float = 0.8) -> LadderFit:
    """The same from runs that are read already. Errors as `fit_ladder_runs`."""
    N, D, C, L = finished.columns
    if len(N) < FEWEST or len(set(N)) < SEVERAL:
        reasons = (*finished.left_out, *(f"{name}: no record" for name in finished.missing))
        raise ValueError(
            f"expected at least {FEWEST} finished runs of {SEVERAL} sizes, got {len(N)} of {len(set(N))}"
            + "".join(f"\n  {reason}" for reason in reasons)
        )
    raw = posterior_of_runs(N, D, C, L)
    finished = finished.without(raw.left_out)
    N, D, C, L = finished.columns
    posterior = raw.towards(target_flops)
    target = raw.line(target_flops)
    log_N = posterior.sizes(target)
    pairs = [(N, np.asarray(target.tokens(N))) for N in (np.exp(log_N), np.exp(raw.sizes(target)))]
    (held_N, held_D), (free_N, free_D) = pairs
    N_opt, D_opt = spanning(held_N, free_N, level), spanning(held_D, free_D, level)
    check = described([run.name for run in finished.runs], N, D, C, L, raw, target_flops)
    return LadderFit(
        target_flops=target_flops,
        level=level,
        N_opt=N_opt,
        D_opt=D_opt,
        tokens_per_param=spanning(held_D / held_N, free_D / free_N, level),
        batch=_batch(D_opt, N_opt, target_flops),
        loss=estimate(np.exp(posterior.run_losses(N_opt.value, float(target.tokens(N_opt.value)))), level),
        exponents=_exponents(posterior, target, log_N, level),
        noise=estimate(posterior.noise, level),
        check=check,
        rung=worth_of_a_rung(posterior, target, N, D),
        finished=finished,
        warnings=tuple(_warnings(finished, posterior, target, check)),
        posterior=posterior,
        target=target,
    )


def _batch(D: Estimate, N: Estimate, flops: float) -> Estimate:
    """Tokens a step at a run of D tokens: Step Law's; the interval spans published rules and D's interval."""
    laws = [law for name in BATCH_RULES if (law := published(name).batch_law) is not None]
    value, low, high = (
        [float(law(N=size, D=tokens, C=flops)) for law in laws]
        for size, tokens in ((N.value, D.value), (N.low, D.low), (N.high, D.high))
    )
    return Estimate(value[0], min(low), max(high))


def _exponents(posterior: Posterior, target: BudgetLine, log_N: Array, level: float) -> dict[str, Estimate]:
    found = {
        "alpha": estimate(np.exp(posterior.draws[:, 3]), level),
        "beta": estimate(np.exp(posterior.draws[:, 4]), level),
    }
    if 1.01 * posterior.largest < target.C:
        step = math.log(target.C / posterior.largest)
        found["a"] = estimate((log_N - posterior.sizes(target.at(posterior.largest))) / step, level)
    return found


def _warnings(
    finished: FinishedRuns, posterior: Posterior, target: BudgetLine, check: Described
) -> Iterable[FitWarning]:
    N, D, C, L = finished.columns
    if not check.well:
        told = {"odds": math.exp(min(check.odds, 99)), "moves": check.moves, "noise": check.noise}
        told["floorless"] = math.exp(min(check.trust.floorless or 0.0, 99))
        told |= (few := by_steps([curve.step[-1] for curve in finished.curves], N, D, L, posterior))
        found = (bool(few), not check.trust.has_floor, check.moving, check.noisy, True)
        which = (Doubt.FEW_STEPS, Doubt.FLOORLESS, Doubt.MOVES, Doubt.NOISY, Doubt.NOT_PREDICTED)[found.index(True)]
        yield FitWarning(which, told)
    best = float(np.exp(np.median(posterior.sizes(target.at(posterior.largest)))))
    there = N[posterior.largest / NEAR <= C]
    if best >= there.max():
        yield FitWarning(Doubt.OPTIMUM_ABOVE, {"best": best, "edge": float(there.max())})
    elif best <= there.min():
        yield FitWarning(Doubt.OPTIMUM_BELOW, {"best": best, "edge": float(there.min())})
    reach = check.trust.reach
    if reach > FAR:
        yield FitWarning(Doubt.FAR, {"reach": reach})
    if reach < 1:
        yield FitWarning(Doubt.BELOW)
    if finished.loss_name == "train":
        yield FitWarning(Doubt.TRAINING_LOSS)
    if finished.missing:
        yield FitWarning(Doubt.MISSING, {"runs": len(finished.missing)})
    if float(N.min()) < SMALL:
        yield FitWarning(Doubt.SMALL)
