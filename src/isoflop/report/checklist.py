"""What a scaling-law paper must report, answered from the records where they tell it, and left open where they don't.

The questions follow the checklist of Li, Kudugunta and Zettlemoyer 2025, "(Mis)Fitting: A Survey of Scaling Laws"
(arXiv:2502.18969), in our own words and in its four parts: the law, the training, the measurements, the fit.

A question of the checklist, and how what runs say becomes its answer.

The checklist's second part: what was trained, on what, and how, as the records tell it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import isoflop
from isoflop.figures.study import Study, compute_label
from isoflop.figures.text import counted, loss_label, parameters
from isoflop.fit.approaches import BINS
from isoflop.fit.fit_law import DELTA
from isoflop.fit.holdout import Extrapolation
from isoflop.fit.runs import RunCurve
from isoflop.laws.frontier import short
from isoflop.record.run import Run
from isoflop.report.runs import extent
from isoflop.report.sentences import scatter

State = Literal["answered", "partly", "open"]


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


def told(part: str, question: str, answer: str, state: State = "answered") -> Item:
    """An answer that is known."""
    return Item(part, question, answer, state)


def unanswered(part: str, question: str, what: str) -> Item:
    """What records do not tell; `what` is to be stated."""
    return Item(part, question, f"Not recorded. Please state {what}.", "open")


def from_records(part: str, question: str, values: Iterable[str | None], what: str, always: str = "") -> Item:
    """An answer from what the records say, one text each; `what` is to be stated where they don't."""
    values = [value or "" for value in values]
    said = [value for value in values if value]
    stated = ". ".join(text for text in (always, summed(said, len(values)) if said else "") if text)
    if said and len(said) == len(values):
        return Item(part, question, stated, "answered")
    if not stated:
        return unanswered(part, question, what)
    missing = (
        f"Not recorded{f' for {len(values) - len(said)} of {len(values)} runs' if said else ''}: please state {what}."
    )
    return Item(part, question, f"{stated}. {missing}", "partly")


def summed(values: Sequence[str], of: int, most: int = 4) -> str:
    """What several runs say: the text where it is one, else the commonest with their numbers."""
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    if len(counts) == 1:
        return next(iter(counts)) + (f" ({len(values)} of {of} runs)" if len(values) < of else "")
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    more = f"; and {len(ranked) - most} more" if len(ranked) > most else ""
    return "; ".join(f"{value} ({counted(n, 'run', 'runs')})" for value, n in ranked[:most]) + more


def training_items(study: Study, runs: Sequence[Run]) -> list[Item]:
    """Of a study and the records of its runs."""
    part = "The training"
    items = [
        told(part, "Number of models and runs", _how_many(study), "answered" if study.counted else "open"),
        told(part, "Range of sizes, data and compute", _ranges(study), "answered" if study.counted else "open"),
        from_records(part, "Training data", [run.data for run in runs], "the data set, its version and mixture"),
        _repeats(part, study.curves),
        from_records(part, "Tokenizer", [run.tokenizer for run in runs], "the tokenizer and its vocabulary"),
        from_records(
            part,
            "How parameters are counted",
            [run.parameters_method and f"{parameters(study.convention)}; {run.parameters_method}" for run in runs],
            "which parameters N counts (with embeddings? with the output head?)",
        ),
        from_records(
            part,
            "How compute is counted",
            [_counted(run) for run in runs],
            "whether attention, embeddings and recomputation are in it",
            always=f"compute on every axis: {compute_label(study)}; the law itself is of N and D",
        ),
        _optimizer(part, runs),
        from_records(part, "Learning rates", _rates(study.curves), "peak, warm-up and final learning rate of each run"),
        from_records(part, "Schedule", [_schedule(run) for run in runs], "the learning-rate schedule"),
        from_records(part, "Batch size", _batches(study.curves), "tokens a step, and whether it changes with scale"),
        from_records(part, "Shape of the models", [_shape(run) for run in runs], "depth, width, heads, context length"),
        from_records(part, "Precision and hardware", [_hardware(run) for run in runs], "precision and hardware"),
        _code(part, runs),
    ]
    return items


def _how_many(study: Study) -> str:
    if not study.counted:
        return "no run has finished"
    sizes = len({end.N for end in study.counted})
    left = len(study.ends) - len(study.counted)
    more = f"; {counted(left, 'further run is', 'further runs are')} left out (see the data)" if left else ""
    return f"{counted(len(study.counted), 'finished run', 'finished runs')} of {counted(sizes, 'size', 'sizes')}{more}"


def _ranges(study: Study) -> str:
    ends = study.counted
    columns = (
        ("N", [end.N for end in ends], "parameters"),
        ("D", [end.D for end in ends], "tokens"),
        ("D/N", [end.D / end.N if end.D and end.N else None for end in ends], "tokens per parameter"),
        ("C", list(study.C), "FLOPs"),
    )
    said = []
    for name, values, unit in columns:
        between = extent(values)
        if between is not None:
            low, high = (f"{value:.3g}" if unit == "FLOPs" else short(value) for value in between)
            said.append(f"{name} {low} to {high} {unit}")
    return "; ".join(said) or "no run has finished"


def _repeats(part: str, curves: Sequence[RunCurve]) -> Item:
    question = "Is data repeated?"
    unique = [_number(curve.run.options.get("unique_tokens")) for curve in curves]
    if not curves or not all(unique):
        return unanswered(part, question, "how many tokens are unique (unique_tokens= records it)")
    seen = [float(curve.tokens[-1]) if len(curve.tokens) else 0.0 for curve in curves]
    most = max(tokens / value for tokens, value in zip(seen, unique, strict=True) if value)
    return told(part, question, f"at most {most:.3g} epochs" if most > 1 else "no: every run saw less than one epoch")


def _counted(run: Run) -> str:
    method, convention = _text(run.counting.get("method")), _text(run.counting.get("convention"))
    return f"Recorded beside it: {method} ({convention})" if method and convention else method


def _optimizer(part: str, runs: Sequence[Run]) -> Item:
    keys = ("class", "betas", "eps", "weight_decay", "momentum")
    said = [
        ", ".join(
            f"{value}" if key == "class" else f"{key.replace('_', ' ')} {value}"
            for key in keys
            if (value := (run.optimizer or {}).get(key)) is not None
        )
        for run in runs
    ]
    return from_records(part, "Optimizer and its settings", said, "optimizer, betas, weight decay, gradient clipping")


def _rates(curves: Sequence[RunCurve]) -> list[str]:
    said = []
    for curve in curves:
        known = curve.lr[curve.lr == curve.lr]
        said.append(f"highest {known.max():.3g}" if len(known) else "")
    return said


def _schedule(run: Run) -> str:
    """The plan's shape, where it was asked for; else the scheduler's name."""
    name, plan = _text(run.planned.get("schedule")), run.planned.get("learning_rates")
    steps, rates = (plan.get("steps"), plan.get("lr")) if isinstance(plan, dict) else (None, None)
    if not (isinstance(steps, list) and isinstance(rates, list) and len(steps) == len(rates) > 1):
        return name
    known = [(_number(step), _number(rate)) for step, rate in zip(steps, rates, strict=True)]
    fine = [(step, rate) for step, rate in known if step is not None and rate is not None]
    peak = max((rate for _, rate in fine), default=0.0)
    if peak <= 0:
        return name
    risen = next(step for step, rate in fine if rate >= 0.999 * peak)
    shape = f"highest from step {risen:,.0f} on, {fine[-1][1] / peak:.0%} of that at the end"
    return f"{name}: {shape}" if name else shape


def _batches(curves: Sequence[RunCurve]) -> list[str]:
    said = []
    for curve in curves:
        known = curve.batch[curve.batch == curve.batch]
        said.append(f"{known.mean():,.0f} tokens a step" if len(known) else "")
    return said


_SHAPE = (
    ("layers", ("num_hidden_layers", "n_layer", "num_layers", "n_layers", "layers", "depth")),
    ("width", ("hidden_size", "n_embd", "d_model", "dim", "width")),
    ("heads", ("num_attention_heads", "n_head", "n_heads", "heads")),
    ("context", ("max_position_embeddings", "n_positions", "block_size", "context", "max_seq_len")),
)


def _shape(run: Run) -> str:
    config = run.model.get("config")
    if not isinstance(config, dict):
        return ""
    found = [
        f"{value:g} {what}" if what in ("layers", "heads") else f"{what} {value:g}"
        for what, names in _SHAPE
        if (value := next((v for name in names if (v := _number(config.get(name)))), None)) is not None
    ]
    return ", ".join(found)


def _hardware(run: Run) -> str:
    device = run.device
    parts = (_text(device.get("name")), _text(device.get("precision")) or _text(device.get("dtype")))
    return ", ".join(part for part in parts if part)


def _code(part: str, runs: Sequence[Run]) -> Item:
    commits = [
        _text((run.git or {}).get("commit"))[:12]
        + (" (with uncommitted changes)" if (run.git or {}).get("dirty") else "")
        for run in runs
        if _text((run.git or {}).get("commit"))
    ]
    question, missing = "Training code", "where the training code can be had"
    if not commits:
        return unanswered(part, question, missing)
    return Item(part, question, f"git commit {summed(commits, len(runs))}. Please state {missing}.", "partly")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


SOURCE = "Li, Kudugunta, Zettlemoyer 2025 (arXiv:2502.18969)"


def checklist(study: Study, held: Extrapolation | str) -> tuple[Item, ...]:
    """The checklist filled in for a study.

    Args:
        study: of the runs.
        held: what `holdout` found.
    """
    runs = [curve.run for curve in study.curves]
    return (*_law(study), *training_items(study, runs), *_measured(study, runs), *_fit(study, held))


# -- the law -----------------------------------------------------------------------------------------------------------


def _law(study: Study) -> list[Item]:
    part = "The law"
    fixed = "none is held fixed"
    return [
        told(part, "Form of the law", "L(N,D) = E + A/N^α + B/D^β (Hoffmann et al. 2022, eq. 2)"),
        told(
            part,
            "Variables",
            f"N: parameters, {parameters(study.convention).removeprefix('N ')}; D: training tokens, processed less "
            f"padding; L: {loss_label(study.loss)}, nats per token"
            if study.curves
            else "N, D and L as the table has them: state which parameters N counts, and L of what",
            "answered" if study.curves else "partly",
        ),
        told(part, "Constants that are fitted", f"E, A, B, α, β; {fixed}"),
        told(
            part,
            "What the form assumes",
            "an irreducible loss, and one term each for finite size and finite data that do not interact; no learning "
            "rate, batch size or repeated data in it",
        ),
    ]


# -- the measurements --------------------------------------------------------------------------------------------------


def _measured(study: Study, runs: Sequence[Run]) -> list[Item]:
    part = "The measurements"
    if not runs:
        metric = unanswered(
            part, "Metric, and on what data", "which loss the table holds, and on what data it was evaluated"
        )
        points = told(
            part, "Points of each run", "one row a run, as the table has it: state which checkpoint", "partly"
        )
    else:
        label = loss_label(study.loss)
        metric = Item(
            part, "Metric, and on what data", f"{label}, nats per token. Please state on what data.", "partly"
        )
        how = "the mean over the last 5% of its steps" if study.loss == "train" else "its last evaluation"
        points = told(
            part, "Points of each run", f"one, at its end: {how}; approach 1 uses whole curves, of unfinished runs too"
        )
    return [
        metric,
        points,
        told(
            part,
            "What is done to the measurements",
            "the law is fitted to ln L; nothing is interpolated or centred"
            + (f"; approach 1 takes means of each curve in {BINS} bins, even in ln C" if runs else ""),
        ),
        unanswered(part, "Are checkpoints and raw measurements open?", "where they can be had"),
    ]


# -- the fit -----------------------------------------------------------------------------------------------------------


def _fit(study: Study, held: Extrapolation | str) -> list[Item]:
    part, fit = "The fit", study.fit
    left = [end for end in study.ends if end.left_out]
    out = f"no: {counted(len(left), 'run is', 'runs are')} left out, with the reason in the data" if left else "yes"
    items = [
        told(part, "Objective", f"Σ Huber(ln L̂ − ln L), δ = {DELTA:g}; all runs weigh alike"),
        told(
            part,
            "Algorithm",
            "variable projection over the exponents (Czech et al. 2026), then Newton's method with exact derivatives "
            f"on all five constants, δ lowered step by step; isoflop {isoflop.__version__}",
        ),
        told(
            part,
            "Initialisation",
            "a grid of 20 × 20 exponents from 0.02 to 3, the coefficients by weighted least squares; Newton starts "
            "from the best five that lie apart",
        ),
        told(part, "Are all runs used?", out),
    ]
    if fit is None:
        return [*items, told(part, "Uncertainty, goodness of fit, validation", f"no law: {study.refused}", "open")]
    half, nine = scatter(fit)
    objective = (
        f"objective {fit.objective:.4g}; half of the runs within {half:.2%} of the law, nine in ten within {nine:.2%}"
    )
    state: State
    if study.law is None:
        sure, state = f"the runs do not determine the constants: {study.refused}", "partly"
    else:
        sure, state = f"{study.level:.0%} intervals from {study.draws:,} fits to resampled runs", "answered"
    compared = study.compared()
    agree = "" if compared is None else "; ".join(compared.warnings)
    having = counted(len(study.approaches), "has an opinion", "have an opinion")
    others = f"of Hoffmann et al.'s three approaches {having}" + (f"; {agree}" if agree else "")
    return [
        *items,
        told(part, "Uncertainty", sure, state),
        told(part, "Goodness of fit", objective),
        told(part, "Other ways to the same exponents", others, "answered" if len(study.approaches) > 1 else "partly"),
        told(part, "Prediction of runs that were held back", f"not made: {held}", "open")
        if isinstance(held, str)
        else told(part, "Prediction of runs that were held back", held.verdict),
    ]
