"""Answers of the user to what a log does not hold: for all runs, for some by name, or in a table."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from isoflop.logs.files import ImportProblem, amount, csv_rows
from isoflop.logs.names import RUNS, role_of
from isoflop.record.lines import Problems

EVERY = ""
"""The name under which an answer is for every run."""
UNITS = ("nats", "bits", "ppl", "bpb")  # of losses: ppl is the perplexity, bpb bits per byte
BY_RUN = ("params", "tokens_per_step", "flops_per_token", "devices", "seq", "config")  # Answers that may differ by run
_TABLE = {name: name for name in BY_RUN[1:]} | {"batch_tokens": "tokens_per_step", "total_steps": "planned_steps"}
"""Columns of a table of answers, but for N, and what they are."""


@dataclass(frozen=True)
class Answers:
    """Answers for one run; None: not given."""

    parameters: Mapping[str, int]
    tokens_per_step: float | None
    flops_per_token: float | None
    devices: float | None
    seq: float | None
    config: str | None
    planned_steps: float | None
    given: Given  # what holds for all runs


@dataclass(frozen=True, kw_only=True)
class Given:
    """Answers for all runs. A mapping of numbers or files is by run: its name, a pattern (`small-*`), or `EVERY`."""

    params: Mapping[str, float] = field(default_factory=dict)
    tokens_per_step: Mapping[str, float] = field(default_factory=dict)
    flops_per_token: Mapping[str, float] = field(default_factory=dict)
    devices: Mapping[str, float] = field(default_factory=dict)
    seq: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)  # config.json files
    loss: Mapping[str, str] = field(default_factory=dict)  # the column by loss (`train`, `eval/val`)
    loss_unit: Mapping[str, str] = field(default_factory=dict)  # one of `UNITS` by loss; `EVERY`: of all
    step: str | None = None  # the column of optimizer steps
    tokens: str | None = None  # the column of tokens since the run began
    run: Sequence[str] = ()  # columns that together tell runs apart
    group: Sequence[str] = ()  # columns or hyperparameters that are kept of each run, for `isoflop fit --group`
    table: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # rows of `read_answers`, by run

    @property
    def named(self) -> frozenset[str]:
        """Columns that are kept whatever their names say."""
        return frozenset({*self.loss.values(), self.step or "", self.tokens or ""} - {""})

    def of(self, names: Sequence[str]) -> Answers:
        """Answers for the run of these names: an option that names it, else the table, else the option for all."""
        row = next((self.table[name] for name in names if name in self.table), {})
        found: dict[str, Any] = {"planned_steps": row.get("planned_steps")}
        for option in BY_RUN:
            given: Mapping[str, Any] = getattr(self, option)
            patterns = sorted(
                (one for one in given if one != EVERY and _fits(one, names)), key=lambda one: one not in names
            )
            found[option] = given[patterns[0]] if patterns else row.get(option, given.get(EVERY))
        params = found.pop("params")
        parameters = {"N": round(params)} if isinstance(params, float | int) else params or {}
        return Answers(parameters, **found, given=self)

    def of_nobody(self, runs: Collection[Sequence[str]]) -> list[str]:
        """Answers that name no run: a slip of the pen would else go unseen."""
        told = []
        for option in BY_RUN:
            for pattern in getattr(self, option):
                if pattern != EVERY and not any(_fits(pattern, names) for names in runs):
                    some = ", ".join(sorted(names[0] for names in runs)[:5])
                    told.append(f"--{option.replace('_', '-')} {pattern}=…: no run is called so; there are {some}")
        return told


def _fits(pattern: str, names: Sequence[str]) -> bool:
    return any(pattern == name or fnmatchcase(name, pattern) for name in names)


def read_answers(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """A CSV table of answers by run: columns `run`, and of `params`, `tokens_per_step`, … those that are needed.

    Raises:
        ImportProblem: it can't be read, has no column run, or a value is no number: with file and line.
    """
    problems = Problems(os.fspath(path))
    rows = csv_rows(path, problems)
    header = [name.strip() for name in next(rows, [])]
    run = next((name for name in RUNS if name in header), None)
    if run is None:
        raise ImportProblem(f"{path}: expected a column run, and others such as params, got {header!a:.200}")
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        cells = {name: text.strip() for name, text in zip(header, row, strict=False)}
        answers = found[cells.get(run, "")] = {}
        for name, text in cells.items():
            role = role_of(name)
            if not text or (name not in _TABLE and (role is None or role.kind != "size")):
                continue
            value: Any = text if name == "config" else amount(text)
            if value is None:
                raise ImportProblem(f"{path}{problems.at}: expected {name} to be a positive number, got {text[:60]!a}")
            if name in _TABLE:
                answers.setdefault(_TABLE[name], value)
            elif role is not None:
                answers.setdefault("params", {}).setdefault(role.name, round(value * role.factor))
    if told := problems.all():
        raise ImportProblem("; ".join(told[:3]))
    return found
