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
from isoflop.figures.text import counted, counted_as, loss_label, parameters
from isoflop.fit.envelope import BINS
from isoflop.fit.holdout import Extrapolation
from isoflop.fit.law_fit import DELTA
from isoflop.laws import short
from isoflop.report.runs import commit_of, device_of, number_of, text_of

SOURCE = "Li, Kudugunta, Zettlemoyer 2025 (arXiv:2502.18969)"
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


def checklist(study: Study, held: Extrapolation | str) -> tuple[Item, ...]:
    """The checklist filled in for a study.

    Args:
        study: of the runs.
        held: result of `holdout`.
    """
    values = {
        "study": study,
        "held": held,
        "compared": study.compared(),
        "left": len(study.ends) - len(study.counted),
        "ranges": _ranges(study),
        "epochs": _epochs(study.curves),
        "commits": [commit for curve in study.curves if (commit := commit_of(curve.run))],
        "delta": DELTA,
        "bins": BINS,
        "version": isoflop.__version__,
    }
    asked = [(part, entry) for part, entries in _questions().items() for entry in entries]
    return tuple(
        Item(part, entry["question"], *_answer(study, entry, values))
        for part, entry in asked
        if "when" not in entry or _jinja().compile_expression(entry["when"])(**values)
    )


def _answer(study: Study, entry: Mapping[str, str], values: Mapping[str, Any]) -> tuple[str, State]:
    answer, missing = (
        _jinja().from_string(entry.get(name, "")).render(values).strip() for name in ("answer", "missing")
    )
    if "runs" in entry:
        return _of_runs([_OF_RUNS[entry["runs"]](study, curve) for curve in study.curves], answer, missing)
    if "state" in entry:
        return answer, _jinja().compile_expression(entry["state"])(**values)
    if not answer:
        return f"Not recorded. Please state {missing}.", "open"
    return (f"{answer}. Please state {missing}.", "partly") if missing else (answer, "answered")


def _of_runs(found: Sequence[str | None], always: str, missing: str) -> tuple[str, State]:
    """An answer from what each record says, and what is known without them."""
    told = [value for value in found if value]
    stated = [text for text in (always, summed(told, len(found))) if text]
    if told and len(told) == len(found):
        return ". ".join(stated), "answered"
    if not stated:
        return f"Not recorded. Please state {missing}.", "open"
    which = f" for {len(found) - len(told)} of {len(found)} runs" if told else ""
    return ". ".join([*stated, f"Not recorded{which}: please state {missing}."]), "partly"


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


_OF_RUNS: Mapping[str, Callable[[Study, RunCurve], str | None]] = {
    "data": lambda _, curve: curve.run.data,
    "tokenizer": lambda _, curve: curve.run.tokenizer,
    "counting": _counting,
    "compute": _compute,
    "optimizer": _optimizer,
    "rate": _rate,
    "schedule": _schedule,
    "batch": _batch,
    "shape": _shape,
    "device": lambda _, curve: device_of(curve.run),
}
"""Answers of each record for its run, by their name in `checklist.yaml`."""
