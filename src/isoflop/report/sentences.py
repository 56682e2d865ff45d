"""What the runs say, in plain words: the law and what follows from it, what is sure of that and what is not.

Does the law reach beyond the runs it is fitted to? Fitted to the smaller ones, it predicts the larger ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.figures.study import BEYOND, Study
from isoflop.figures.text import counted, name_of
from isoflop.fit.approaches import approach_3
from isoflop.fit.fit_law import LawFit
from isoflop.fit.holdout import TELLING, Extrapolation, extrapolation
from isoflop.fit.runs import RunCurve
from isoflop.fit.search import FEW
from isoflop.laws.frontier import optimal_allocation, short

ALIKE = 0.03
"""Of an exponent: over a factor of 1000 in compute it makes a fifth of a size."""

NEAR = 0.03
"""Share of the loss: a law that one run in ten lies farther from does not describe them well."""


@dataclass(frozen=True)
class Headline:
    """Sentences.

    Attributes:
        says: the result, the first one by itself.
        sure: what can be built upon.
        unsure: what can't, and why.
    """

    says: tuple[str, ...]
    sure: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()


def headline(study: Study, held: Extrapolation | str) -> Headline:
    """The headline of a study.

    Args:
        study: of the runs.
        held: what predicting the larger runs from the smaller came to (`holdout`).
    """
    if study.fit is None or study.law is None:
        return Headline((*_no_law(study), *_under_way(study.curves)))
    says, sure, unsure = [_law(study)], [], []
    exponent = next((each for each in study.approaches if each.name.startswith("approach 3")), None)
    if exponent is not None and "a" in exponent.intervals:
        (low, high), D = exponent.intervals["a"], exponent.b
        says.append(
            f"With more compute C the best size grows as C^{exponent.a:.3f} ({study.level:.0%} interval {low:.3f} to "
            f"{high:.3f}), the best number of tokens as C^{D:.3f}: {_leaning(low, high)}"
        )
    says.append(_next(study))
    half, nine = scatter(study.fit)
    if nine <= NEAR:
        sure.append(f"Half of the runs lie within {half:.2%} of the law, nine in ten within {nine:.2%}.")
    else:
        unsure.append(
            f"The law leaves much open: half of the runs lie within {half:.2%} of it, nine in ten within {nine:.2%}."
        )
    if isinstance(held, str):
        unsure.append(f"It was not tested on larger runs: {_sentence(held, capital=False)}")
    else:
        (sure if held.trusted else unsure).append(_sentence(held.verdict))
    compared = study.compared()
    if compared is not None and compared.pairs:
        apart = [pair for pair in compared.pairs if not pair.overlap]
        names = [_short_name(row.name) for row in compared.rows]
        if apart:
            unsure += [
                f"{_short_name(pair.first).capitalize()} and {_short_name(pair.second)} disagree on the exponent of N: "
                "their intervals do not overlap."
                for pair in apart
            ]
        else:
            sure.append(f"The intervals of {_and(names)} for the exponent of N overlap.")
    unsure += [_sentence(text) for text in study.doubts]
    return Headline(tuple(says), tuple(sure), tuple(unsure))


def scatter(fit: LawFit) -> tuple[float, float]:
    """How far runs lie off their law, |L/L̂ − 1|: half of them at most the first, nine in ten the second."""
    half, nine = np.quantile(np.abs(np.expm1(-fit.residuals)), [0.5, 0.9])
    return float(half), float(nine)


def power_of_ten(value: float) -> str:
    """Four digits, the largest and smallest with a power of ten.

    >>> power_of_ten(482.01), power_of_ten(12845.6)
    ('482', '1.285·10^4')
    """
    if 1e-3 <= abs(value) < 1e4:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.3e}".split("e")
    return f"{mantissa}·10^{int(exponent)}"


def _law(study: Study) -> str:
    assert study.fit is not None
    c = study.fit.parameters
    return (
        f"{counted(study.fit.n, 'finished run follows', 'finished runs follow')} L(N,D) = {c['E']:.3f} + "
        f"{power_of_ten(c['A'])}/N^{c['alpha']:.3f} + {power_of_ten(c['B'])}/D^{c['beta']:.3f} nats per token."
    )


def _leaning(low: float, high: float) -> str:
    if low > 0.5 - ALIKE and high < 0.5 + ALIKE:
        return "size and data should grow nearly alike."
    if low > 0.5:
        return "size should grow faster than data."
    if high < 0.5:
        return "data should grow faster than size."
    return "growing both alike is within that."


def _next(study: Study) -> str:
    """The optimum at ten times the largest run's compute, or at it where the law is doubtful."""
    assert study.law is not None
    largest = float(study.C.max())
    C = largest if study.doubts else largest * BEYOND
    best = approach_3(study.law, study.level, study.rate)
    loss = optimal_allocation(study.law, C, level=study.level, flops_per_param_token=study.rate)
    ends = best.allocate_intervals(C)  # as in the table of the approaches

    def within(interval: tuple[float, float] | None, write: Callable[[float], str]) -> str:
        return "" if interval is None else f" ({write(interval[0])} to {write(interval[1])})"

    N, D = best.allocate(C)
    at = (
        f"At the largest run's compute, {C:.2g} FLOPs," if study.doubts else f"At {BEYOND:g} times that, {C:.2g} FLOPs,"
    )
    return (
        ("" if study.doubts else f"The largest run took {largest:.2g} FLOPs. ")
        + f"{at} the law's best is a model of {short(N)} parameters{within(ends and ends[0], short)} on {short(D)} "
        + f"tokens{within(ends and ends[1], short)}, with a loss of {loss.loss:.3f}"
        + f"{within((loss.intervals or {}).get('loss'), '{:.3f}'.format)}."
    )


def _no_law(study: Study) -> tuple[str, ...]:
    runs, ended = len(study.ends), len(study.counted)
    if not ended:
        return (f"{counted(runs, 'run', 'runs')}, none finished: there is no scaling law to tell yet.",)
    why = study.refused.removeprefix("the runs do not determine L(N,D): ")
    return f"{counted(ended, 'finished run does', 'finished runs do')} not determine a scaling law.", _sentence(why)


def _under_way(curves: Sequence[RunCurve], most: int = 3) -> list[str]:
    """Where the latest runs that have not ended stand."""
    said = []
    for curve in [each for each in curves if each.run.status != "completed" and len(each.step)][-most:]:
        planned = curve.run.planned.get("steps")
        of = f" of {planned:,} planned" if isinstance(planned, int) else ""
        text = f"“{name_of(curve.name)}” is at step {int(curve.step[-1]):,}{of}"
        forecast = [_last(curve, name) for name in ("forecast_loss", "forecast_low", "forecast_high")]
        if all(value is not None for value in forecast):
            loss, low, high = forecast
            text += f"; its last forecast for the end is {loss:.3f} ({low:.3f} to {high:.3f}, 80%)"
        said.append(text + ".")
    return said


def _last(curve: RunCurve, name: str) -> float | None:
    values = curve.extra.get(name)
    known = [] if values is None else values[~(values != values)]
    return float(known[-1]) if len(known) else None


def _short_name(name: str) -> str:
    return name.split(" (")[0]


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _sentence(text: str, capital: bool = True) -> str:
    text = text.strip()
    text = text[:1].upper() + text[1:] if capital else text
    return text if text.endswith((".", "!", "?")) else f"{text}."


PART = 0.7
"""Share of the runs that is fitted to."""
CONSTANTS = 5
"""Of L(N,D) = E + A/N^α + B/D^β."""
DRAWS = 300
"""Enough to tell whether a run lies inside its interval."""


def holdout(study: Study) -> Extrapolation | str:
    """The law of the smaller runs held against the larger ones; or why that can't be done."""
    if study.fit is None or study.law is None:
        return "there is no law to hold against runs"
    C = study.C
    below = float(np.quantile(C, PART, method="lower"))
    fitted, held = int((below >= C).sum()), int((below < C).sum())
    if fitted < CONSTANTS + FEW or held < TELLING:
        return (
            f"{len(C)} runs are too few to keep some back: it takes {CONSTANTS + FEW} to fit and {TELLING} larger ones"
        )
    try:
        return extrapolation(
            "hoffmann", {**study.columns, "C": C}, below, level=study.level, draws=DRAWS, convention=study.convention
        )
    except ValueError as error:
        return str(error)
