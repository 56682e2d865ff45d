"""Plain values to a ladder's plan, strictly: every error names the field's path, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from isoflop.ladder.plan import CONVENTIONS, PLAN_VERSION, Expected, LadderPlan, PlanError, PlannedRun

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
