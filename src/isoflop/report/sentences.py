"""What a report says: its headline in plain sentences, and the checklist of what a scaling-law paper must report.

The headline is the law and its optimum, what supports them and what does not. Whether the law extrapolates is tested:
fitted to the smaller runs, it predicts the larger ones.

The questions follow the checklist of Li, Kudugunta and Zettlemoyer 2025, "(Mis)Fitting: A Survey of Scaling Laws"
(arXiv:2502.18969), in our own words and in its four parts: the law, the training, the measurements, the fit. They stand
in `checklist.yaml`; answered here are those that each run's record, and the fit, answer for themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

import isoflop
from isoflop.figures import RunCurve, Study
from isoflop.figures.study import BEYOND, CONSTANTS, compute_label
from isoflop.figures.text import counted, counted_as, listed, loss_label, name_of, sentence
from isoflop.fit.approaches import BINS, POSTERIOR, Row, approach_3
from isoflop.fit.drifting_law import SPLIT_SD
from isoflop.fit.holdout import Extrapolation, held_out
from isoflop.fit.law_fit import DELTA
from isoflop.fit.plan import expected_loss
from isoflop.fit.posterior import Posterior
from isoflop.fit.robust import describe_outliers
from isoflop.fit.trust import Trust, trust_of
from isoflop.fit.uncertainty import FEW
from isoflop.forecast import logged_forecast
from isoflop.laws import short
from isoflop.laws.quantities import interval
from isoflop.report.runs import commit_of, device_of, number_of, text_of

ALIKE = 0.03
"""Of an exponent: over a factor of 1000 in compute it makes a fifth of a size."""
TELLING = 4 * SPLIT_SD
"""Width of an interval of a, within which published sweeps lie: that a wider one overlaps others supports nothing."""
NEAR = 0.03
"""Share of the loss: a law that one run in ten lies farther from does not describe them well."""


@dataclass(frozen=True)
class Headline:
    """Sentences: the result, the first one by itself; what supports it; what speaks against relying on it.

    `C`: FLOPs that the best size is named for.
    """

    says: tuple[str, ...]
    sure: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    C: float | None = None


def holdout(study: Study) -> Extrapolation | str:
    """Fit the smaller runs and predict the larger ones; or the reason why that is not possible."""
    if study.law is None or study.fit is None:
        return "there is no law to hold against runs"
    return held_out({**study.columns, "C": study.C}, study.fit)


def headline(study: Study, held: Extrapolation | str) -> Headline:
    """The headline of a study, whose hold-out test (`holdout`) gave `held`."""
    own = study.posterior
    if own is None or study.scatter is None:
        return Headline((*_no_law(study), *_under_way(study.curves)))
    N, D, L = (study.columns[name] for name in ("N", "D", "loss"))
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
    near = trust.predicts is False or bool(study.doubts)
    C = float(study.C.max()) * (1 if near else BEYOND)
    if (compared := study.compared(C)) is not None and len(study.approaches) > 1:
        rows = compared.rows[1:]  # of the approaches: the posterior rests on the same runs as they do
        telling = [row.name for row in rows if row.a_interval and np.ptp(row.a_interval) < TELLING]
        apart = [pair for pair in compared.pairs if not pair.overlap and POSTERIOR not in (pair.first, pair.second)]
        unsure += [
            f"{_short_name(pair.first).capitalize()} and {_short_name(pair.second)} disagree on the exponent of N: "
            "their intervals do not overlap."
            for pair in apart
        ]
        if not apart and len(telling) > 1:
            *names, last = map(_short_name, telling)
            sure.append(f"The intervals of {', '.join(names)} and {last} for the exponent of N overlap.")
    unsure += [*map(sentence, study.doubts), *_outliers(study)]
    grows = [] if trust.predicts is False or compared is None else [_exponents(compared.rows[0], study.level)]
    return Headline((_law(study, trust), *grows, _next(study, own, C)), tuple(sure), tuple(unsure), C)


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
        described = "which does not describe them, or they are noisier than usual: do not rely on it"
        return f"{runs} are fitted by {law}, {described}."
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


def _exponents(best: Row, level: float) -> str:
    """By the posterior, as the best size."""
    low, high = best.a_interval or (best.a, best.a)
    return (
        f"With more compute C the best size grows as C^{best.a:.3f} ({level:.0%} interval {low:.3f} to "
        f"{high:.3f}), the best number of tokens as C^{best.b:.3f}: {_leaning(low, high)}"
    )


def _leaning(low: float, high: float) -> str:
    """What the interval of a says, wherever in it the estimate lies.

    >>> [_leaning(*ends) for ends in ((0.49, 0.52), (0.54, 0.6), (0.51, 0.6))]
    ['size and data should grow nearly alike.', 'size should grow faster than data.', \
'size should grow faster than data, or nearly alike.']
    >>> _leaning(0.44, 0.62)
    'which of them should grow faster is open.'
    """
    if low > 0.5 - ALIKE and high < 0.5 + ALIKE:
        return "size and data should grow nearly alike."
    if low > 0.5:
        return "size should grow faster than data" + (", or nearly alike." if low < 0.5 + ALIKE else ".")
    if high < 0.5:
        return "data should grow faster than size" + (", or nearly alike." if high > 0.5 - ALIKE else ".")
    return "which of them should grow faster is open."


def _next(study: Study, own: Posterior, C: float) -> str:
    """The best size at a budget, by the posterior, as of `fit` and `plan`; the law alone beside it."""
    assert study.law is not None
    largest = float(study.C.max())
    near = largest == C
    own = own.towards(C)
    sizes, line = np.exp(own.log_sizes(C)), own.line(C)
    best = float(np.median(sizes))
    data = float(line.tokens(best))
    N, D, L = (study.columns[name] for name in ("N", "D", "loss"))
    trust = trust_of((study.C, N, D, L), None, own, asked=C)
    loss, between, _ = expected_loss(best, data, own, study.level, trust.missed)
    planned = "as `isoflop plan --runs` gives it for any budget"
    if not trust.describes:
        planned = "where `isoflop plan --runs` takes the published size, for the runs scatter too far about one law"
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
        f"{_within(between, '{:.3f}'.format)}: the posterior's answer, {planned}. "
        f"The law alone (approach 3) says {short(law_N)}{_within(ends and ends[0], short)} on {short(law_D)}"
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
    told, bare = [], []
    for curve in [each for each in curves if each.run.status == "running" and len(each.step)][-most:]:
        planned = curve.run.planned.get("steps")
        of = f" of {planned:,} planned" if isinstance(planned, int) else ""
        text = f"“{name_of(curve.name)}” is at step {int(curve.step[-1]):,}{of}"
        if (last := logged_forecast(curve.step, curve.extra)) is not None:
            text += f"; its last forecast for the end, as of step {last.as_of:,}, is {last.loss:.3f} "
            told.append(text + f"({last.low:.3f} to {last.high:.3f}, 80%).")
        else:
            bare.append(text)
    return [*told, *(["; ".join(bare) + "."] if bare else [])]


def _short_name(name: str) -> str:
    return name.partition(" (")[0]


SOURCE = "Li, Kudugunta, Zettlemoyer 2025 (arXiv:2502.18969)"
State = Literal["answered", "partly", "open"]


@dataclass(frozen=True)
class Item:
    """One question: what the records and the fit answer; of what they don't, what to state."""

    part: str  # of the checklist
    question: str
    answer: str
    state: State  # "partly": something is left to state; "open": the records do not tell


def checklist(study: Study, held: Extrapolation | str) -> tuple[Item, ...]:
    """The checklist filled in for a study, whose hold-out test (`holdout`) gave `held`."""
    values = {
        "study": study,
        "held": held,
        "compared": study.compared(),
        "left": len(study.ends) - (len(study.counted) if study.fit is None else study.fit.n),
        "ranges": _ranges(study),
        "epochs": _epochs(study.curves),
        "commits": list(filter(None, (commit_of(curve.run) for curve in study.curves))),
        "delta": DELTA,
        "bins": BINS,
        "version": isoflop.__version__,
    }
    return tuple(
        Item(part, entry["question"], *_answer(study, entry, values))
        for part, entries in _questions().items()
        for entry in entries
        if "when" not in entry or _jinja().compile_expression(entry["when"])(**values)
    )


def _answer(study: Study, entry: Mapping[str, str], values: Mapping[str, Any]) -> tuple[str, State]:
    """What is known without the records and what each of them says; what is missing of it."""
    answer, missing = (
        _jinja().from_string(entry.get(name, "")).render(values).strip() for name in ("answer", "missing")
    )
    if "state" in entry:
        return answer, _jinja().compile_expression(entry["state"])(**values)
    found = [_OF_RUNS[entry["runs"]](curve) for curve in study.curves] if "runs" in entry else []
    told = [value for value in found if value]
    stated = [text for text in (answer, summed(told, len(found))) if text]
    if not stated:
        return f"Not recorded. Please state {missing}.", "open"
    if not missing or len(told) == len(found) > 0:
        return ". ".join(stated), "answered"
    which = f" for {len(found) - len(told)} of {len(found)} runs" if told else ""
    state = f"Not recorded{which}: please state" if "runs" in entry else "Please state"
    return ". ".join([*stated, f"{state} {missing}."]), "partly"


def summed(values: Sequence[str], of: int, most: int = 4) -> str:
    """What several runs say: the text where it is one, else the commonest with their numbers."""
    ranked = Counter(values).most_common()
    if len(ranked) <= 1:
        return "".join(values[:1]) + (f" ({len(values)} of {of} runs)" if 0 < len(values) < of else "")
    more = f"; and {len(ranked) - most} more" if len(ranked) > most else ""
    return "; ".join(f"{value} ({counted(n, 'run', 'runs')})" for value, n in ranked[:most]) + more


@cache
def _questions() -> dict[str, list[dict[str, str]]]:
    import yaml

    return dict(yaml.safe_load(Path(__file__).with_name("checklist.yaml").read_text(encoding="utf-8")))


@cache
def _jinja() -> Any:
    import jinja2

    room = jinja2.Environment(undefined=jinja2.StrictUndefined)
    room.filters |= {each.__name__: each for each in (counted, counted_as, loss_label, compute_label, summed)}
    return room


# -- answers from the runs ---------------------------------------------------------------------------------------------


def _ranges(study: Study) -> str:
    """Least and most of N, D, D/N and C of the counted runs; "": there are none."""
    if not study.counted:
        return ""
    N, D, C = study.columns["N"], study.columns["D"], study.C
    columns = (("N", N, "parameters"), ("D", D, "tokens"), ("D/N", D / N, "tokens per parameter"))
    ranges = [f"{name} {short(values.min())} to {short(values.max())} {unit}" for name, values, unit in columns]
    return "; ".join([*ranges, f"C {C.min():.3g} to {C.max():.3g} FLOPs"])


def _epochs(curves: Sequence[RunCurve]) -> float | None:
    """Most passes of a run over its data; None: not all records tell."""
    unique = [curve.run.unique_tokens for curve in curves]
    seen = [float(curve.tokens[-1]) if len(curve.tokens) else 0.0 for curve in curves]
    passes = [tokens / value for tokens, value in zip(seen, unique, strict=True) if value]
    return max(passes) if passes and len(passes) == len(curves) else None


def _compute(curve: RunCurve) -> str:
    method, convention = (text_of(curve.run.counting.get(name)) for name in ("method", "convention"))
    return f"Recorded beside it: {method} ({convention})" if method and convention else method


def _optimizer(curve: RunCurve) -> str:
    settings = {"class": "", "betas": "betas ", "eps": "eps ", "weight_decay": "weight decay ", "momentum": "momentum "}
    known = curve.run.optimizer or {}
    return ", ".join(f"{text}{known[key]}" for key, text in settings.items() if known.get(key) is not None)


def _rate(curve: RunCurve) -> str:
    known = curve.lr[np.isfinite(curve.lr)]
    return f"highest {known.max():.3g}" if len(known) else ""


def _schedule(curve: RunCurve) -> str:
    """The shape of the planned learning rates, where they are recorded; else the scheduler's name."""
    name, plan = text_of(curve.run.planned.get("schedule")), curve.run.planned.get("learning_rates")
    steps, rates = (plan.get("steps"), plan.get("lr")) if isinstance(plan, dict) else (None, None)
    if not (isinstance(steps, list) and isinstance(rates, list)):
        return name
    known = [(number_of(step), number_of(rate)) for step, rate in zip(steps, rates, strict=False)]
    fine = [(step, rate) for step, rate in known if step is not None and rate is not None]
    peak = max((rate for _, rate in fine), default=0.0)
    if peak <= 0:
        return name
    risen = next(step for step, rate in fine if rate >= 0.999 * peak)
    shape = f"highest from step {risen:,.0f} on, {fine[-1][1] / peak:.0%} of that at the end"
    return f"{name}: {shape}" if name else shape


def _batch(curve: RunCurve) -> str:
    known = curve.batch[np.isfinite(curve.batch)]
    return f"{known.mean():,.0f} tokens a step" if len(known) else ""


_SHAPE = (
    ("{:g} layers", ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "layers", "depth")),
    ("width {:g}", ("hidden_size", "n_embd", "d_model", "dim", "width")),
    ("{:g} heads", ("num_attention_heads", "n_head", "n_heads", "heads")),
    ("context {:g}", ("max_position_embeddings", "n_positions", "block_size", "context", "max_seq_len")),
)


def _shape(curve: RunCurve) -> str:
    config = curve.run.model.get("config")
    if not isinstance(config, dict):
        return ""
    values = [(text, next(filter(None, map(number_of, map(config.get, names))), None)) for text, names in _SHAPE]
    return ", ".join(text.format(value) for text, value in values if value is not None)


_OF_RUNS: Mapping[str, Callable[[RunCurve], str]] = {
    "data": lambda curve: curve.run.data or "",
    "tokenizer": lambda curve: curve.run.tokenizer or "",
    "counting": lambda curve: curve.run.parameters_method or "",
    "compute": _compute,
    "optimizer": _optimizer,
    "rate": _rate,
    "schedule": _schedule,
    "batch": _batch,
    "shape": _shape,
    "device": lambda curve: device_of(curve.run),
}
"""Answers of each record for its run, by their name in `checklist.yaml`."""
