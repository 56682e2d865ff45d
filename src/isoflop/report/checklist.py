"""Checklist of what a scaling-law paper must report, answered from the records and the fit as far as they tell it.

The questions follow the checklist of Li, Kudugunta and Zettlemoyer 2025, "(Mis)Fitting: A Survey of Scaling Laws"
(arXiv:2502.18969), in our own words and in its four parts: the law, the training, the measurements, the fit. They stand
in `checklist.yaml`; this module answers those that each run's record answers for itself.
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
from isoflop.figures.study import compute_label
from isoflop.figures.text import counted, counted_as, loss_label
from isoflop.fit.approaches import BINS
from isoflop.fit.holdout import Extrapolation
from isoflop.fit.law_fit import DELTA
from isoflop.laws import short
from isoflop.report.runs import commit_of, device_of, number_of, text_of

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
    unique = [number_of(curve.run.options.get("unique_tokens")) for curve in curves]
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
