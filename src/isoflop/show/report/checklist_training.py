"""The checklist's second part: what was trained, on what, and how, as the records tell it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isoflop.record import Run
from isoflop.show.figures import RunCurve, Study
from isoflop.show.figures.axes import compute_label
from isoflop.show.figures.words import counted, parameters, short
from isoflop.show.report.checklist_item import Item, from_records, summed, told, unanswered
from isoflop.show.report.runs import extent


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
