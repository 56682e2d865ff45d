"""What the runs say, in plain words: the law and what follows from it, what is sure of that and what is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.fit.fitting.extrapolation_result import Extrapolation
from isoflop.fit.frontier.optimum import optimal_allocation
from isoflop.show.figures import RunCurve, Study
from isoflop.show.figures.study import BEYOND
from isoflop.show.figures.words import counted, short


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
        return Headline((_no_law(study), *_under_way(study.curves)))
    says, sure, unsure = [_law(study)], [], []
    exponent = next((each for each in study.approaches if each.name.startswith("approach 3")), None)
    if exponent is not None and "a" in exponent.intervals:
        (low, high), D = exponent.intervals["a"], exponent.b
        says.append(
            f"With more compute C the best size grows as C^{exponent.a:.2f} ({study.level:.0%} interval {low:.2f} to "
            f"{high:.2f}), the best number of tokens as C^{D:.2f}: {_leaning(low, high)}"
        )
    says.append(_next(study))
    off = sorted(abs(value) for value in study.fit.residuals)
    sure.append(
        f"Half of the {counted(study.fit.n, 'run', 'runs')} lie within {off[len(off) // 2]:.2%} of the law, nine in "
        f"ten within {off[int(0.9 * (len(off) - 1))]:.2%}."
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


def _law(study: Study) -> str:
    assert study.fit is not None
    c = study.fit.parameters
    return (
        f"{counted(study.fit.n, 'finished run follows', 'finished runs follow')} L(N,D) = {c['E']:.3f} + "
        f"{c['A']:.4g}/N^{c['alpha']:.3f} + {c['B']:.4g}/D^{c['beta']:.3f} nats per token."
    )


def _leaning(low: float, high: float) -> str:
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
    where = f"the largest run's compute, {C:.2g} FLOPs," if study.doubts else f"{BEYOND:g} times that, {C:.2g} FLOPs,"
    best = optimal_allocation(study.law, C, level=study.level)

    def between(name: str) -> str:
        ends = best.intervals.get(name) if best.intervals else None
        if ends is None:
            return ""
        texts = [f"{end:.3f}" if name == "loss" else short(end) if math.isfinite(end) else "∞" for end in ends]
        return f" ({texts[0]} to {texts[1]})"

    lead = "At" if study.doubts else f"The largest run took {largest:.2g} FLOPs. At"
    return (
        f"{lead} {where} the law's best is a model of {short(best.N)} parameters{between('N')} on {short(best.D)} "
        f"tokens{between('D')}, with a loss of {best.loss:.3f}{between('loss')}."
    )


def _no_law(study: Study) -> str:
    runs, ended = len(study.ends), len(study.counted)
    if not ended:
        return f"{counted(runs, 'run', 'runs')}, none finished: there is no law of scaling to tell yet."
    return (
        f"{counted(ended, 'finished run does', 'finished runs do')} not determine a law of scaling: "
        f"{_sentence(study.refused, capital=False)}"
    )


def _under_way(curves: Sequence[RunCurve], most: int = 3) -> list[str]:
    """Where the latest runs that have not ended stand."""
    said = []
    for curve in [each for each in curves if each.run.status != "completed" and len(each.step)][-most:]:
        planned = curve.run.planned.get("steps")
        of = f" of {planned:,} planned" if isinstance(planned, int) else ""
        text = f"{curve.name} is at step {int(curve.step[-1]):,}{of}"
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
