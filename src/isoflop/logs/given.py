"""Answers of the user to what a log does not hold: for all runs, for some by name, or in a table."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from isoflop.logs.files import ImportProblem, amount, csv_rows, plain
from isoflop.logs.names import RUNS, role_of
from isoflop.record.lines import Problems

EVERY = ""
"""The name under which an answer is for every run."""
UNITS = ("nats", "bits", "ppl", "bpb", "mean")
"""Of losses: ppl is the perplexity, bpb bits per byte, mean a training loss in nats averaged since the start."""
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
    groups: Mapping[str, str]  # the table's further columns
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
    loss: Mapping[str, str] = field(default_factory=dict)  # the column by loss (`train`, `eval/val`), or several,…
    loss_unit: Mapping[str, str] = field(default_factory=dict)  # one of `UNITS` by loss; `EVERY`: of all
    step: str | None = None  # the column of optimizer steps
    tokens: str | None = None  # the column of tokens since the run began
    run: Sequence[str] = ()  # columns that together tell runs apart
    group: Sequence[str] = ()  # columns or hyperparameters that are kept of each run, for `isoflop fit --group`
    table: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # rows of `read_answers`, by run

    @property
    def named(self) -> frozenset[str]:
        """Columns that are kept whatever their names say."""
        losses = (name for text in self.loss.values() for name in either(text))
        return frozenset({*losses, self.step or "", self.tokens or ""} - {""})

    def of(self, names: Sequence[str]) -> Answers:
        """Answers for the run of these names: an option that names it, else the table, else the option for all."""
        row = next((self.table[name] for name in names if name in self.table), {})
        found: dict[str, Any] = {"planned_steps": row.get("planned_steps"), "groups": row.get("groups", {})}
        for option in BY_RUN:
            given: Mapping[str, Any] = getattr(self, option)
            patterns = sorted(
                (one for one in given if one != EVERY and _fits(one, names)), key=lambda one: one not in names
            )
            found[option] = given[patterns[0]] if patterns else row.get(option, given.get(EVERY))
        params = found.pop("params")
        parameters = {"N": round(params)} if isinstance(params, float | int) else params or {}
        return Answers(parameters, **found, given=self)

    def of_nobody(self, runs: Collection[Sequence[str]], columns: Collection[str]) -> list[str]:
        """Answers that match nothing, a line each with the nearest names: a slip of the pen would else go unseen."""
        called = sorted(names[0] for names in runs)
        found = []
        for option in BY_RUN:
            for pattern in getattr(self, option):
                if pattern != EVERY and not any(_fits(pattern, names) for names in runs):
                    option = option.replace("_", "-")
                    found.append(f"--{option} {pattern}=…: no run is called so; {_near(pattern, called)}")
        every = {name for names in runs for name in names}
        odd = [name for name in self.table if name not in every]
        if 0 < len(odd) <= len(self.table) / 2 or (odd and len(odd) == len(self.table)):  # else a table of more runs
            more = f" (and {len(odd) - 3} more)" if len(odd) > 3 else ""
            near = "; ".join(f"{name or 'a blank name'}: {_near(name, called)}" for name in odd[:3])
            found.append(f"--table: {len(odd)} row{' names' if len(odd) == 1 else 's name'} no run: {near}{more}")
        known = {*columns, *(name for row in self.table.values() for name in row.get("groups", ()))} - {""}
        wanted = [("loss", text) for text in self.loss.values()] + [("group", name) for name in self.group]
        for option, text in (*wanted, ("tokens", self.tokens or "")):
            if text and not {*(either(text) if option == "loss" else [text])} & known:
                found.append(f"--{option} {text}: no log has such a column; {_near(text, sorted(known))}")
        return found


def either(text: str) -> list[str]:
    """The columns that an answer names: one, or several of which a log may have any."""
    return [text, *(each for part in text.split(",") if (each := part.strip()) != text)]


def _near(name: str, known: Sequence[str]) -> str:
    """The nearest of some names; of none that is near the first ones."""
    near = get_close_matches(name, known, 3, 0.6)
    return f"is it {' or '.join(near)}?" if near else f"there are {', '.join(known[:5])}"


def _fits(pattern: str, names: Sequence[str]) -> bool:
    return any(pattern == name or fnmatchcase(name, pattern) for name in names)


def read_answers(path: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """A CSV table of answers by run: columns `run`, and of `params`, `tokens_per_step`, … those that are needed.

    Its further columns are kept of each run, for `isoflop fit --group`.

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
            if not text or name == run:
                continue
            if name not in _TABLE and (role is None or role.kind != "size"):
                answers.setdefault("groups", {})[name] = plain(text)
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
