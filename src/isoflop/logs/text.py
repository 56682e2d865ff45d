"""Logs in lines: JSON objects of any loop, and what trainers print (Megatron-LM, torchtitan, nanochat, nanoGPT).

A line counts if it tells a step and a loss. Lines without a step are searched for what holds for the whole run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.logs.files import Dialect, ImportProblem, decoded, dialect_of, flat, head, open_bytes, stem
from isoflop.logs.logged import Logged
from isoflop.logs.names import role_of, words
from isoflop.logs.rows import NO_OPTIONS, Options, Rows
from isoflop.record.lines import Problems

JSON = ""
"""A name in the cells of a JSON object, whose losses may have no step."""
_EVALUATES = {"validation", "validate", "valid", "val", "eval", "evaluation", "test"}
CALLED = ("trainer_log", "log", "metrics", "train", "train_log", "logs", "output", "stdout", "history", "results")
"""Names of files that say nothing of the run: its folder does."""
_PAIR = re.compile(
    r"([A-Za-z][A-Za-z0-9_ ()/%.-]*?)\s*[:= ]\s*"
    r"([+-]?\d[\d,]*(?:\.\d*)?(?:[eE][+-]?\d+)?(?:[kMBT](?![A-Za-z]))?|[+-]?(?:nan|inf)\b(?! [A-Za-z]))"
    r"(?![A-Za-z]*/[A-Za-z])"
)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
SAMPLE = 1 << 18


def is_lines(path: Path, options: Options = NO_OPTIONS) -> bool:
    """True if one of the first lines of a file tells a step and a loss."""
    start = head(path, SAMPLE)
    lines = start.decode(dialect_of(start).encoding, "replace").splitlines()
    return any((cells := _cells(line)) is not None and _is_point(cells, options) for line in lines)


def read(source: str | os.PathLike[str], options: Options = NO_OPTIONS) -> list[Logged]:
    """Read a log in lines; those that hold nothing of use are passed over.

    Raises:
        ImportProblem: it can't be read, or none of its lines tells a step and a loss.
    """
    path = Path(source)
    rows = Rows(Problems(str(path)), options)
    settings: dict[str, Any] = {}
    for line, cells in _lines(path):
        if _is_point(cells, options) or (len(rows) and _has_step(cells)):
            rows.add(cells, line)
        elif not _has_step(cells):
            for name, value in cells.items():
                settings.setdefault(_setting(name), value)
    if not len(rows):
        raise ImportProblem(f"{path}: expected lines with a step and a loss, got none")
    called = stem(path) if stem(path) not in CALLED else Path(os.path.abspath(path)).parent.name
    return rows.runs("lines", str(path), called, settings=settings)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    dialect = Dialect(dialect_of(head(path)).encoding)
    problems = Problems("")  # bytes that are no text are passed over, as are lines that say nothing
    with open_bytes(path) as stream:
        for number, line in enumerate(decoded(stream, dialect, problems), 1):
            for part in line.split("\r"):
                if (cells := _cells(part)) is not None:
                    yield number, cells


def _cells(line: str) -> dict[str, Any] | None:
    """The quantities of a line: of a JSON object, alone or behind a prefix, or as printed."""
    start = line.find("{")
    if start >= 0:
        try:
            value = json.loads(line[start:])
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            cells = {**flat(value), JSON: None}
            told = next((word for word in words(line[:start])[-3:] if word in _EVALUATES), None)
            return {_as_evaluated(name, told): cell for name, cell in cells.items()}
        if start == 0:
            return None
    cells = dict(printed_cells(line))
    told = next((word for name in cells if _is_step_of(name) for word in words(name) if word in _EVALUATES), None)
    first = next((name for name in cells if _plain_step(name) != name or _is_step(name)), None)
    named = {("step" if name == first else name): cell for name, cell in cells.items()}
    return {_as_evaluated(name, told): cell for name, cell in named.items()} or None


def printed_cells(text: str) -> dict[str, str]:
    """The quantities that a line of a program's output tells, `name: value` or `name value` with anything between.

    >>> printed_cells("iter 100: loss 3.25, time 120.5ms")
    {'iter': '100', 'loss': '3.25', 'time': '120.5'}
    """
    found: dict[str, str] = {}
    for name, value in _PAIR.findall(_COLOUR.sub("", text)[:4000]):
        found.setdefault(name.rpartition(" - ")[2].strip(), value.replace(",", ""))
    return found


def _is_step(name: str) -> bool:
    role = role_of(name)
    return role is not None and role.kind == "step"


def _is_step_of(name: str) -> bool:
    return bool({*words(name)} & {"step", "iter", "iteration", "updates"})


def _plain_step(name: str) -> str:
    """`validation loss at iteration` and `validate step` are steps."""
    found = words(name)
    if found and found[-1] in ("step", "iteration", "iter") and {*found} & _EVALUATES:
        return found[-1]
    return name


def _as_evaluated(name: str, told: str | None) -> str:
    role = role_of(name) if told else None
    return f"{told}/{name}" if role is not None and role.kind == "loss" and role.name == "train" else name


def _has_step(cells: dict[str, Any]) -> bool:
    return any(map(_is_step, cells))


def _is_point(cells: dict[str, Any], options: Options) -> bool:
    losses = any(
        name in options.named or ((role := role_of(name)) is not None and role.kind in ("loss", "own"))
        for name in cells
    )
    return losses and (_has_step(cells) or JSON in cells or bool(options.named & {*cells}))


def _setting(name: str) -> str:
    """The name of a setting as printed, in a form that other loggers use."""
    role = role_of(name)
    return "total_params" if role is not None and role.kind == "size" else "_".join(words(name))[:100]
