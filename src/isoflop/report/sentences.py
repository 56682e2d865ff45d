"""The headline of a report in plain sentences: the law and its optimum, what supports them and what does not.

Whether the law extrapolates is tested: fitted to the smaller runs, it predicts the larger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.figures import RunCurve, Study
from isoflop.figures.study import BEYOND, CONSTANTS, kinds_of
from isoflop.figures.text import counted, listed, name_of, sentence
from isoflop.fit.approaches import approach_3
from isoflop.fit.drifting_law import SPLIT_SD
from isoflop.fit.holdout import Extrapolation, held_out
from isoflop.fit.plan import expected_loss
from isoflop.fit.posterior import Posterior, posterior_of_runs
from isoflop.fit.robust import describe_outliers
from isoflop.fit.trust import Trust, trust_of
from isoflop.fit.uncertainty import FEW
from isoflop.forecast import logged_forecast
from isoflop.laws import short
from isoflop.laws.quantities import interval

ALIKE = 0.03
"""Of an exponent: over a factor of 1000 in compute it makes a fifth of a size."""
TELLING = 4 * SPLIT_SD
"""Width of an interval of a, within which published sweeps lie: that a wider one overlaps others supports nothing."""
NEAR = 0.03
"""Share of the loss: a law that one run in ten lies farther from does not describe them well."""


@dataclass(frozen=True)
class Headline:
    """Sentences: the result, the first one by itself; what supports it; what speaks against relying on it."""

    says: tuple[str, ...]
    sure: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()


def holdout(study: Study) -> Extrapolation | str:
    """Fit the smaller runs and predict the larger ones; or the reason why that is not possible."""
    if study.law is None or study.fit is None:
        return "there is no law to hold against runs"
    return held_out({**study.columns, "C": study.C}, study.fit)


def headline(study: Study, held: Extrapolation | str) -> Headline:
    """The headline of a study, whose hold-out test (`holdout`) gave `held`."""
    if study.law is None or study.scatter is None:
        return Headline((*_no_law(study), *_under_way(study.curves)))
    N, D, L = (study.columns[name] for name in ("N", "D", "loss"))
    own = posterior_of_runs(N, D, study.C, L, labels=kinds_of(study.counted))
    trust = trust_of((study.C, N, D, L), study.fit, own, held=held)
    sure, unsure = [], []
    half, nine = (f"{off:.2%}" for off in study.scatter)
    if study.scatter[1] <= NEAR:
        sure.append(f"Half of the runs lie within {half} of the law, nine in ten within {nine}.")
    else:
        unsure.append(f"The law leaves much open: half of the runs lie within {half} of it, nine in ten within {nine}.")
    if isinstance(held, str):
        unsure.append(sentence(f"It was not tested on larger runs: {held}"))
    else:
        (sure if trust.predicts else unsure).append(sentence(held.verdict))
    if not trust.describes and study.fit is not None and not study.fit.poor:
        unsure.append(sentence(trust.doubts[0]))
    if (compared := study.compared()) is not None and compared.pairs:
        telling = [row.name for row in compared.rows if row.a_interval and np.ptp(row.a_interval) < TELLING]
        apart = [pair for pair in compared.pairs if not pair.overlap]
        unsure += [
            f"{_short_name(pair.first).capitalize()} and {_short_name(pair.second)} disagree on the exponent of N: "
            "their intervals do not overlap."
            for pair in apart
        ]
        if not apart and len(telling) > 1:
            *names, last = map(_short_name, telling)
            sure.append(f"The intervals of {', '.join(names)} and {last} for the exponent of N overlap.")
    unsure += [*map(sentence, study.doubts), *_outliers(study)]
    grows = [] if trust.predicts is False else _exponents(study)
    near = trust.predicts is False or bool(study.doubts)
    return Headline((_law(study, trust), *grows, _next(study, own, near)), tuple(sure), tuple(unsure))


def power_of_ten(value: float) -> str:
    """Four digits, the largest and smallest with a power of ten.

    >>> power_of_ten(482.01), power_of_ten(12845.6)
    ('482', '1.285·10^4')
    """
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa}·10^{int(exponent)}"


def _law(study: Study, trust: Trust) -> str:
    """The law, and how it fared on larger runs than it was fitted to: only one that predicted them is followed."""
    assert study.fit is not None
    c, n, ended = study.fit.parameters, study.fit.n, len(study.counted)
    runs = f"{n:,} finished runs" if n == ended else f"{n:,} of {ended:,} finished runs"
    law = (
        f"L(N,D) = {c['E']:.3f} + {power_of_ten(c['A'])}/N^{c['alpha']:.3f} + {power_of_ten(c['B'])}/D^{c['beta']:.3f} "
        "nats per token"
    )
    if not trust.describes and not isinstance(trust.held, str) and not trust.held.fails:
        return f"{runs} are fitted by {law}, which does not describe them: do not rely on it."
    if trust.predicts is None:
        why = (
            "not tested on larger runs" if isinstance(trust.held, str) else "its test on the larger runs leaves it open"
        )
        return f"{runs} are fitted by {law}; {why}."
    if not trust.predicts:
        return f"{runs} are fitted by {law}, which fails on the larger runs: do not extrapolate it."
    return f"{runs} follow {law}, which predicted the larger of them from the smaller."


def _outliers(study: Study) -> list[str]:
    """What the constants would be with the runs that the fit left out."""
    fit, whole = study.fit, study.with_outliers
    if fit is None or whole is None:
        return []
    exponents = {"alpha": "α", "beta": "β"}
    moved = [
        f"{exponents.get(name, name)} {power_of_ten(value)} becomes {power_of_ten(whole.parameters[name])}"
        for name, value in fit.parameters.items()
    ]
    names = listed([study.counted[run.row].name for run in fit.left_out])
    return [
        sentence(describe_outliers(fit.left_out, [end.name for end in study.counted])),
        f"With the {counted(len(fit.left_out), 'outlier', 'outliers')} ({names}) in the fit, {', '.join(moved)}.",
    ]


def _exponents(study: Study) -> list[str]:
    law = next((each for each in study.approaches if each.number == 3), None)
    if law is None or "a" not in law.intervals:
        return []
    low, high = law.intervals["a"]
    return [
        f"With more compute C the best size grows as C^{law.a:.3f} ({study.level:.0%} interval {low:.3f} to "
        f"{high:.3f}), the best number of tokens as C^{law.b:.3f}: {_leaning(low, high)}"
    ]


def _leaning(low: float, high: float) -> str:
    if low > 0.5 - ALIKE and high < 0.5 + ALIKE:
        return "size and data should grow nearly alike."
    if low > 0.5:
        return "size should grow faster than data."
    if high < 0.5:
        return "data should grow faster than size."
    return "growing both alike is within that."


def _next(study: Study, own: Posterior, near: bool) -> str:
    """The best size at ten times the largest run's compute, or `near` at it: `fit` and `plan`'s."""
    assert study.law is not None
    largest = float(study.C.max())
    C = largest if near else largest * BEYOND
    own = own.towards(C)
    sizes, line = np.exp(own.log_sizes(C)), own.line(C)
    best = float(np.median(sizes))
    data = float(line.tokens(best))
    loss, between, _ = expected_loss(best, data, own, study.level)
    law = approach_3(study.law, study.level, study.rate)
    (law_N, law_D), ends = law.allocate(C), law.allocate_intervals(C)
    at = (
        f"At the largest run's compute, {C:.2g} FLOPs,"
        if near
        else f"The largest run took {largest:.2g} FLOPs. At {BEYOND:g} times that, {C:.2g} FLOPs,"
    )
    between_N = interval(sizes, study.level)
    apart = ends is not None and (ends[0][0] > between_N[1] or between_N[0] > ends[0][1])
    which = "; the two disagree: plan by the former, which weighs the runs against published sweeps" if apart else ""
    return (
        f"{at} the best is a model of {short(best)} parameters{_within(between_N, short)} on "
        f"{short(data)} tokens{_within(interval(line.tokens(sizes), study.level), short)}, with a loss of {loss:.3f}"
        f"{_within(between, '{:.3f}'.format)}: the posterior's answer, as `isoflop plan --runs` gives it for any "
        f"budget. The law alone (approach 3) says {short(law_N)}{_within(ends and ends[0], short)} on {short(law_D)}"
        f"{which}."
    )


def _within(interval: tuple[float, float] | None, write: Callable[[float], str]) -> str:
    return "" if interval is None else f" ({write(interval[0])} to {write(interval[1])})"


def _no_law(study: Study) -> tuple[str, ...]:
    runs, ended = len(study.ends), len(study.counted)
    if not ended:
        return (f"{counted(runs, 'run', 'runs')}, none finished: there is no scaling law yet.",)
    why = "; ".join(study.doubts) or study.refused
    return (
        f"{counted(ended, 'finished run does', 'finished runs do')} not determine a scaling law.",
        sentence(why.partition(": ")[2] if ended < CONSTANTS + FEW else why),
    )


def _under_way(curves: Sequence[RunCurve], most: int = 3) -> list[str]:
    """Step and last forecast of the latest runs under way."""
    told = []
    for curve in [each for each in curves if each.run.status == "running" and len(each.step)][-most:]:
        planned = curve.run.planned.get("steps")
        of = f" of {planned:,} planned" if isinstance(planned, int) else ""
        text = f"“{name_of(curve.name)}” is at step {int(curve.step[-1]):,}{of}"
        if (last := logged_forecast(curve.step, curve.extra)) is not None:
            text += f"; its last forecast for the end, as of step {last.as_of:,}, is {last.loss:.3f} "
            text += f"({last.low:.3f} to {last.high:.3f}, 80%)"
        told.append(text + ".")
    return told


def _short_name(name: str) -> str:
    return name.partition(" (")[0]
