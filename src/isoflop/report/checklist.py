"""Checklist of what a scaling-law paper must report, answered from the records and the fit as far as they tell it.

The questions follow the checklist of Li, Kudugunta and Zettlemoyer 2025, "(Mis)Fitting: A Survey of Scaling Laws"
(arXiv:2502.18969), in our own words and in its four parts: the law, the training, the measurements, the fit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

import isoflop
from isoflop.arrays import Array
from isoflop.figures import RunCurve, Study
from isoflop.figures.study import compute_label
from isoflop.figures.text import counted, counted_as, loss_label, parameters
from isoflop.fit.approaches import BINS
from isoflop.fit.fit_law import DELTA
from isoflop.fit.holdout import Extrapolation
from isoflop.laws import short
from isoflop.report.runs import commit_of, device_of, number_of, text_of

SOURCE = "Li, Kudugunta, Zettlemoyer 2025 (arXiv:2502.18969)"
State = Literal["answered", "partly", "open"]
Answer = tuple[str, str, State]
"""A question, its answer and state."""


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        part: of the checklist.
        question: what must be reported.
        answer: what the records and this fit tell; of what they don't, what to state.
        state: "answered", "partly" (something is left to state), "open" (the records do not tell).
    """

    part: str
    question: str
    answer: str
    state: State


def checklist(study: Study, held: Extrapolation | str) -> tuple[Item, ...]:
    """The checklist filled in for a study.

    Args:
        study: of the runs.
        held: result of `holdout`.
    """
    parts = {
        "The law": _law(study),
        "The training": _training(study),
        "The measurements": _measurements(study),
        "The fit": _fit(study, held),
    }
    return tuple(Item(part, *answer) for part, answers in parts.items() for answer in answers)


# -- the law -----------------------------------------------------------------------------------------------------------


def _law(study: Study) -> list[Answer]:
    variables = (
        f"N: parameters, {counted_as(study.convention)}; D: training tokens, processed less padding; "
        f"L: {loss_label(study.loss)}, nats per token"
    )
    in_table = "N, D and L as the table has them: state which parameters N counts, and L of what"
    return [
        ("Form of the law", "L(N,D) = E + A/N^α + B/D^β (Hoffmann et al. 2022, eq. 2)", "answered"),
        ("Variables", variables, "answered") if study.curves else ("Variables", in_table, "partly"),
        ("Constants that are fitted", "E, A, B, α, β; none is held fixed", "answered"),
        (
            "What the form assumes",
            "an irreducible loss, and one term each for finite size and finite data that do not interact; no learning "
            "rate, batch size or repeated data in it",
            "answered",
        ),
    ]


# -- the training ------------------------------------------------------------------------------------------------------


def _training(study: Study) -> list[Answer]:
    known: State = "answered" if study.counted else "open"
    return [
        ("Number of models and runs", _how_many(study), known),
        ("Range of sizes, data and compute", _ranges(study), known),
        *(_of_runs(study, *question) for question in _OF_RUNS[:1]),
        _repeats(study.curves),
        *(_of_runs(study, *question) for question in _OF_RUNS[1:]),
        _code(study.curves),
    ]


def _how_many(study: Study) -> str:
    if not study.counted:
        return "no run has finished"
    sizes = len({end.N for end in study.counted})
    left = len(study.ends) - len(study.counted)
    more = f"; {counted(left, 'further run is', 'further runs are')} left out (see the data)" if left else ""
    return f"{counted(len(study.counted), 'finished run', 'finished runs')} of {counted(sizes, 'size', 'sizes')}{more}"


def _ranges(study: Study) -> str:
    N, D = study.columns["N"], study.columns["D"]
    columns: tuple[tuple[str, Array, str, Callable[[float], str]], ...] = (
        ("N", N, "parameters", short),
        ("D", D, "tokens", short),
        ("D/N", D / N, "tokens per parameter", short),
        ("C", study.C, "FLOPs", "{:.3g}".format),
    )
    told = [
        f"{name} {write(values.min())} to {write(values.max())} {unit}"
        for name, values, unit, write in columns
        if len(values)
    ]
    return "; ".join(told) or "no run has finished"


def _repeats(curves: Sequence[RunCurve]) -> Answer:
    question = "Is data repeated?"
    unique = [number_of(curve.run.options.get("unique_tokens")) for curve in curves]
    if not curves or not all(unique):
        return _unanswered(question, "how many tokens are unique (unique_tokens= records it)")
    seen = [float(curve.tokens[-1]) if len(curve.tokens) else 0.0 for curve in curves]
    most = max(tokens / value for tokens, value in zip(seen, unique, strict=True) if value)
    return question, f"at most {most:.3g} epochs" if most > 1 else "no: every run saw less than one epoch", "answered"


def _code(curves: Sequence[RunCurve]) -> Answer:
    """A commit says which code, not where it can be had."""
    question, missing = "Training code", "where the training code can be had"
    commits = [commit for curve in curves if (commit := commit_of(curve.run))]
    if not commits:
        return _unanswered(question, missing)
    return question, f"git commit {_summed(commits, len(curves))}. Please state {missing}.", "partly"


def _counting(study: Study, curve: RunCurve) -> str | None:
    if curve.run.parameters_method is None:
        return None
    return f"{parameters(study.convention)}; {curve.run.parameters_method}"


def _compute(study: Study, curve: RunCurve) -> str:
    method, convention = (text_of(curve.run.counting.get(name)) for name in ("method", "convention"))
    return f"Recorded beside it: {method} ({convention})" if method and convention else method


def _optimizer(study: Study, curve: RunCurve) -> str:
    known = curve.run.optimizer or {}
    named = [known["class"]] if known.get("class") is not None else []
    settings = ("betas", "eps", "weight_decay", "momentum")
    named += [f"{key.replace('_', ' ')} {known[key]}" for key in settings if known.get(key) is not None]
    return ", ".join(map(str, named))


def _rate(study: Study, curve: RunCurve) -> str:
    known = curve.lr[np.isfinite(curve.lr)]
    return f"highest {known.max():.3g}" if len(known) else ""


def _schedule(study: Study, curve: RunCurve) -> str:
    """The shape of the planned learning rates, where they are recorded; else the scheduler's name."""
    name, plan = text_of(curve.run.planned.get("schedule")), curve.run.planned.get("learning_rates")
    steps, rates = (plan.get("steps"), plan.get("lr")) if isinstance(plan, dict) else (None, None)
    if not (isinstance(steps, list) and isinstance(rates, list) and len(steps) == len(rates) > 1):
        return name
    known = [(number_of(step), number_of(rate)) for step, rate in zip(steps, rates, strict=True)]
    fine = [(step, rate) for step, rate in known if step is not None and rate is not None]
    peak = max((rate for _, rate in fine), default=0.0)
    if peak <= 0:
        return name
    risen = next(step for step, rate in fine if rate >= 0.999 * peak)
    shape = f"highest from step {risen:,.0f} on, {fine[-1][1] / peak:.0%} of that at the end"
    return f"{name}: {shape}" if name else shape


def _batch(study: Study, curve: RunCurve) -> str:
    known = curve.batch[np.isfinite(curve.batch)]
    return f"{known.mean():,.0f} tokens a step" if len(known) else ""


_SHAPE = (
    ("{:g} layers", ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "layers", "depth")),
    ("width {:g}", ("hidden_size", "n_embd", "d_model", "dim", "width")),
    ("{:g} heads", ("num_attention_heads", "n_head", "n_heads", "heads")),
    ("context {:g}", ("max_position_embeddings", "n_positions", "block_size", "context", "max_seq_len")),
)


def _shape(study: Study, curve: RunCurve) -> str:
    config = curve.run.model.get("config")
    if not isinstance(config, dict):
        return ""
    values = [(text, next(filter(None, map(number_of, map(config.get, names))), None)) for text, names in _SHAPE]
    return ", ".join(text.format(value) for text, value in values if value is not None)


_OF_RUNS: tuple[tuple[str, str, Callable[[Study, RunCurve], str | None]], ...] = (
    ("Training data", "the data set, its version and mixture", lambda _, curve: curve.run.data),
    ("Tokenizer", "the tokenizer and its vocabulary", lambda _, curve: curve.run.tokenizer),
    (
        "How parameters are counted",
        "which parameters N counts (with embeddings? with the output head?)",
        _counting,
    ),
    ("How compute is counted", "whether attention, embeddings and recomputation are in it", _compute),
    ("Optimizer and its settings", "optimizer, betas, weight decay, gradient clipping", _optimizer),
    ("Learning rates", "peak, warm-up and final learning rate of each run", _rate),
    ("Schedule", "the learning-rate schedule", _schedule),
    ("Batch size", "tokens a step, and whether it changes with scale", _batch),
    ("Shape of the models", "depth, width, heads, context length", _shape),
    ("Precision and hardware", "precision and hardware", lambda _, curve: device_of(curve.run)),
)
"""Questions that each record answers for its run: the question, what to state where it does not, the answer."""


def _of_runs(study: Study, question: str, what: str, answer: Callable[[Study, RunCurve], str | None]) -> Answer:
    found = [answer(study, curve) for curve in study.curves]
    told = [value for value in found if value]
    stated = [_summed(told, len(found))] if told else []
    if answer is _compute:  # the axes tell it without a record too
        stated.insert(0, f"compute on every axis: {compute_label(study)}; the law itself is of N and D")
    if told and len(told) == len(found):
        return question, ". ".join(stated), "answered"
    if not stated:
        return _unanswered(question, what)
    which = f" for {len(found) - len(told)} of {len(found)} runs" if told else ""
    return question, ". ".join([*stated, f"Not recorded{which}: please state {what}."]), "partly"


def _unanswered(question: str, what: str) -> Answer:
    return question, f"Not recorded. Please state {what}.", "open"


def _summed(values: Sequence[str], of: int, most: int = 4) -> str:
    """What several runs say: the text where it is one, else the commonest with their numbers."""
    ranked = Counter(values).most_common()
    if len(ranked) == 1:
        return values[0] + (f" ({len(values)} of {of} runs)" if len(values) < of else "")
    more = f"; and {len(ranked) - most} more" if len(ranked) > most else ""
    return "; ".join(f"{value} ({counted(n, 'run', 'runs')})" for value, n in ranked[:most]) + more


# -- the measurements --------------------------------------------------------------------------------------------------


def _measurements(study: Study) -> list[Answer]:
    metric, points = "Metric, and on what data", "Points of each run"
    done = "the law is fitted to ln L; nothing is interpolated or centred"
    if study.curves:
        how = "the mean over the last 5% of its steps" if study.loss == "train" else "its last evaluation"
        answers: list[Answer] = [
            (metric, f"{loss_label(study.loss)}, nats per token. Please state on what data.", "partly"),
            (points, f"one, at its end: {how}; approach 1 uses whole curves, of unfinished runs too", "answered"),
        ]
        done += f"; approach 1 takes means of each curve in {BINS} bins, even in ln C"
    else:
        answers = [
            _unanswered(metric, "which loss the table holds, and on what data it was evaluated"),
            (points, "one row a run, as the table has it: state which checkpoint", "partly"),
        ]
    return [
        *answers,
        ("What is done to the measurements", done, "answered"),
        _unanswered("Are checkpoints and raw measurements open?", "where they can be had"),
    ]


# -- the fit -----------------------------------------------------------------------------------------------------------


def _fit(study: Study, held: Extrapolation | str) -> list[Answer]:
    left = len(study.ends) - len(study.counted)
    used = f"no: {counted(left, 'run is', 'runs are')} left out, with the reason in the data" if left else "yes"
    answers: list[Answer] = [
        ("Objective", f"Σ Huber(ln L̂ − ln L), δ = {DELTA:g}; all runs weigh alike", "answered"),
        (
            "Algorithm",
            "variable projection over the exponents (Czech et al. 2026), then Newton's method with exact derivatives "
            f"on all five constants, δ lowered step by step; isoflop {isoflop.__version__}",
            "answered",
        ),
        (
            "Initialisation",
            "a grid of 20 × 20 exponents from 0.02 to 3, the coefficients by weighted least squares; Newton starts "
            "from the best five that lie apart",
            "answered",
        ),
        ("Are all runs used?", used, "answered"),
    ]
    if study.fit is None or study.scatter is None:
        return [*answers, ("Uncertainty, goodness of fit, validation", f"no law: {study.refused}", "open")]
    return [
        *answers,
        _uncertainty(study),
        (
            "Goodness of fit",
            f"objective {study.fit.objective:.4g}; half of the runs within {study.scatter[0]:.2%} of the law, nine in "
            f"ten within {study.scatter[1]:.2%}",
            "answered",
        ),
        _other_approaches(study),
        ("Prediction of runs that were held back", f"not made: {held}", "open")
        if isinstance(held, str)
        else ("Prediction of runs that were held back", held.verdict, "answered"),
    ]


def _uncertainty(study: Study) -> Answer:
    if study.law is None:
        return "Uncertainty", f"the runs do not determine the constants: {study.refused}", "partly"
    return "Uncertainty", f"{study.level:.0%} intervals from {study.draws:,} fits to resampled runs", "answered"


def _other_approaches(study: Study) -> Answer:
    compared = study.compared()
    having = counted(len(study.approaches), "has an opinion", "have an opinion")
    others = "; ".join([f"of Hoffmann et al.'s three approaches {having}", *(compared.warnings if compared else ())])
    return "Other ways to the same exponents", others, "answered" if len(study.approaches) > 1 else "partly"
