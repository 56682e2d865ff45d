"""A ladder's plan: its runs, and what it is expected to tell.

Plain values to a ladder's plan, strictly: every error names the field's path, what was expected and what came.

The YAML file that carries a ladder's plan to whoever trains its runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from isoflop.record.run import PREFERRED_N

PLAN_VERSION = 1
"""Of the file's layout; a reader refuses another."""
CONVENTIONS = PREFERRED_N
"""Counts of N that every run states (`isoflop.flops.parameters`)."""


class PlanError(ValueError):
    """A plan that can't be read; the text names the field, what was expected and what came."""


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One run of the ladder, trained from the start with a learning-rate schedule that ends at its own last step.

    Attributes:
        name: unique in the plan, fit for a folder's name.
        rung: which budget it belongs to, 0 the smallest.
        config: the model: "family", "depth", "width", "heads", "head_dim", "mlp_width", "vocab_size",
            "sequence_length", "tied" … (`isoflop.ladder.sizes`), plain values only.
        parameters: N by convention (`CONVENTIONS`).
        tokens: D, a whole number of steps: steps · batch_tokens.
        batch_tokens: tokens of an optimizer step, a whole number of sequences.
        steps: optimizer steps.
        warmup_steps: of them with a rising learning rate.
        learning_rate: peak, of Adam's kind of optimizer.
        flops: model FLOPs of its training, forward and backward, attention in full.
        seed: of its weights and its order of data.
    """

    name: str
    rung: int
    config: Mapping[str, Any]
    parameters: Mapping[str, int]
    tokens: int
    batch_tokens: int
    steps: int
    warmup_steps: int
    learning_rate: float
    flops: float
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values: what the YAML holds, and what `train(config)` is called with."""
        return _plain(asdict(self))


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the design is expected to tell of one quantity at the target, before a FLOP is spent.

    Attributes:
        estimate: by what is known before the ladder.
        low, high: the interval that the ladder's fit is expected to give about it, at the plan's level.
        even_low, even_high: the same for an even grid of sizes and budgets with the same spend and number of runs.
    """

    estimate: float
    low: float
    high: float
    even_low: float | None = None
    even_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class LadderPlan:
    """The runs that tell most about the target for the spend.

    Attributes:
        target_flops: budget of the run that is sized.
        spend_flops: what the ladder may cost; `flops` is what its runs cost.
        family: of the models, such as "gpt2" or "llama".
        vocab_size: entries of the tokenizer.
        sequence_length: tokens.
        convention: which parameters N counts in `expected` and in fits.
        runs: smallest rung first.
        level: of the expected intervals.
        expected: by quantity, "N_opt", "D_opt" and "loss" (nats per token).
        rules: by what they decide ("sizes", "learning_rate", "batch", "schedule", "design"): the rule and its source.
        warnings: what to know before relying on it.
        unique_tokens: the stock of data; None: unlimited.
        history_runs: finished runs whose information the design counts on.
    """

    target_flops: float
    spend_flops: float
    family: str
    vocab_size: int
    sequence_length: int
    convention: str
    runs: tuple[PlannedRun, ...]
    level: float
    expected: Mapping[str, Expected]
    rules: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    unique_tokens: float | None = None
    history_runs: int = 0

    @property
    def flops(self) -> float:
        """Training FLOPs of all runs."""
        return math.fsum(run.flops for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the object in the YAML file and of `--json`."""
        return {"version": PLAN_VERSION, **_plain(asdict(self))}


def _plain(value: Any) -> Any:
    """Without tuples and numpy's numbers, which YAML's safe dialect does not know."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if hasattr(value, "item") else value


T = TypeVar("T")
Reader = Callable[[str, object], Any]


def plan_from(found: object) -> LadderPlan:
    """The plan that plain values hold.

    Raises:
        PlanError: a field is missing, unknown or of another kind, or runs contradict themselves.
    """
    values = dict(_mapping("the plan", found))
    version = values.pop("version", None)
    if version != PLAN_VERSION:
        raise PlanError(f"version: expected {PLAN_VERSION}, got {version!r}: plan the ladder anew with this isoflop")
    plan = _object(LadderPlan, "", values, _PLAN)
    names = [run.name for run in plan.runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PlanError(f"runs: expected a name of its own for each, got {twice[0]!r} more than once")
    return plan


def _object(kind: type[T], path: str, found: object, readers: Mapping[str, Reader]) -> T:
    values = _mapping(path or "the plan", found)
    for name in values:
        if name not in readers:
            raise PlanError(f"{_join(path, name)}: unknown field; expected one of {', '.join(readers)}")
    for each in fields(kind):  # type: ignore[arg-type]
        if each.name not in values and each.default is MISSING and each.default_factory is MISSING:
            raise PlanError(f"{_join(path, each.name)}: missing")
    return kind(**{name: readers[name](_join(path, name), value) for name, value in values.items()})


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _mapping(path: str, found: object) -> Mapping[str, object]:
    if not isinstance(found, Mapping):
        raise PlanError(f"{path}: expected fields by name, got {_shown(found)}")
    return {str(name): value for name, value in found.items()}


def _shown(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '…'}"


def _text(path: str, found: object) -> str:
    if not isinstance(found, str) or not found:
        raise PlanError(f"{path}: expected a text, got {_shown(found)}")
    return found


def _name(path: str, found: object) -> str:
    name = _text(path, found)
    if name in (".", "..") or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise PlanError(f"{path}: expected letters, digits, '-', '_' and '.', fit for a folder, got {name!r}")
    return name


def _whole(least: int) -> Reader:
    def read(path: str, found: object) -> int:
        if isinstance(found, bool) or not isinstance(found, int | float) or found != found // 1 or found < least:
            raise PlanError(f"{path}: expected a whole number of at least {least}, got {_shown(found)}")
        return int(found)

    return read


def _positive(path: str, found: object) -> float:
    if isinstance(found, str):  # YAML 1.1 reads 1e21 as a text: it wants 1.0e+21
        with suppress(ValueError):
            found = float(found)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
        raise PlanError(f"{path}: expected a positive number, got {_shown(found)}")
    return float(found)


def _share(path: str, found: object) -> float:
    value = _positive(path, found)
    if value >= 1:
        raise PlanError(f"{path}: expected a probability between 0 and 1, got {value!r}")
    return value


def _optional(reader: Reader) -> Reader:
    return lambda path, found: None if found is None else reader(path, found)


def _one_of(*known: str) -> Reader:
    def read(path: str, found: object) -> str:
        if found not in known:
            raise PlanError(f"{path}: expected one of {', '.join(known)}, got {_shown(found)}")
        return str(found)

    return read


def _list(path: str, found: object) -> list[object]:
    if not isinstance(found, list | tuple):
        raise PlanError(f"{path}: expected a list, got {_shown(found)}")
    return list(found)


def _texts(path: str, found: object) -> tuple[str, ...]:
    return tuple(_text(f"{path}[{i}]", item) for i, item in enumerate(_list(path, found)))


def _rules(path: str, found: object) -> dict[str, str]:
    return {name: _text(_join(path, name), value) for name, value in _mapping(path, found).items()}


def _parameters(path: str, found: object) -> dict[str, int]:
    counts = _mapping(path, found)
    for name in CONVENTIONS:
        if name not in counts:
            raise PlanError(f"{_join(path, name)}: missing")
    return {name: _whole(1)(_join(path, name), value) for name, value in counts.items()}


def _run(path: str, found: object) -> PlannedRun:
    run = _object(PlannedRun, path, found, _RUN)
    if run.tokens != run.steps * run.batch_tokens:
        raise PlanError(
            f"{path}.tokens: expected steps · batch_tokens = {run.steps * run.batch_tokens}, got {run.tokens}: change "
            "steps and tokens together"
        )
    if run.warmup_steps >= run.steps:
        raise PlanError(f"{path}.warmup_steps: expected fewer than the {run.steps} steps, got {run.warmup_steps}")
    return run


def _runs(path: str, found: object) -> tuple[PlannedRun, ...]:
    items = _list(path, found)
    if not items:
        raise PlanError(f"{path}: expected at least one run, got none")
    return tuple(_run(f"{path}[{i}]", item) for i, item in enumerate(items))


def _interval(path: str, found: object) -> Expected:
    known: dict[str, Reader] = {
        "estimate": _positive,
        "low": _positive,
        "high": _positive,
        "even_low": _optional(_positive),
        "even_high": _optional(_positive),
    }
    return _object(Expected, path, found, known)


def _expected(path: str, found: object) -> dict[str, Expected]:
    return {name: _interval(_join(path, name), value) for name, value in _mapping(path, found).items()}


_RUN: dict[str, Reader] = {
    "name": _name,
    "rung": _whole(0),
    "config": lambda path, found: dict(_mapping(path, found)),
    "parameters": _parameters,
    "tokens": _whole(1),
    "batch_tokens": _whole(1),
    "steps": _whole(1),
    "warmup_steps": _whole(0),
    "learning_rate": _positive,
    "flops": _positive,
    "seed": _whole(0),
}
_PLAN: dict[str, Reader] = {
    "target_flops": _positive,
    "spend_flops": _positive,
    "family": _text,
    "vocab_size": _whole(1),
    "sequence_length": _whole(1),
    "convention": _one_of(*CONVENTIONS),
    "runs": _runs,
    "level": _share,
    "expected": _expected,
    "rules": _rules,
    "warnings": _texts,
    "unique_tokens": _optional(_positive),
    "history_runs": _whole(0),
}


def write_plan(plan: LadderPlan, path: Path | str) -> None:
    """Write a plan as YAML."""
    Path(path).write_text(plan_text(plan), encoding="utf-8")


def plan_text(plan: LadderPlan) -> str:
    """The plan as YAML."""
    import yaml

    return yaml.safe_dump(plan.as_dict(), sort_keys=False, allow_unicode=True, width=120)


def read_plan(path: Path | str) -> LadderPlan:
    """Read a plan.

    Raises:
        PlanError: no YAML, another version, a field that is missing, unknown or of another kind, or runs that
            contradict themselves; the text names the file and the field's path.
        OSError: the file can't be opened.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: expected a ladder's plan in YAML, got something else: {error}") from None
    try:
        return plan_from(found)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
