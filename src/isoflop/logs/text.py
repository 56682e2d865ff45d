"""Logs in lines: JSON objects of any loop, and what trainers print (Megatron-LM, torchtitan, nanochat, nanoGPT).

A line counts if it tells a step and a loss. Lines without a step are searched for what holds for the whole run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isoflop.logs.files import head, open_bytes, stem
from isoflop.logs.logged import ImportProblem, Logged
from isoflop.logs.names import role_of, words
from isoflop.logs.rows import NO_OPTIONS, Options, Rows, json_cells, printed_cells
from isoflop.logs.table import logged_of
from isoflop.record.lines import Problems, bounded_lines

JSON = ""
"""A name in the cells of a JSON object, whose losses may have no step."""
_EVALUATES = {"validation", "validate", "valid", "val", "eval", "evaluation", "test"}
CALLED = ("trainer_log", "log", "metrics", "train", "train_log", "logs", "output", "stdout", "history", "results")
"""Names of files that say nothing of the run: its folder does."""


def is_lines(path: Path, options: Options = NO_OPTIONS) -> bool:
    """True if one of the first lines of a file tells a step and a loss."""
    for raw in head(path, 1 << 18).splitlines():
        cells = _cells(raw)
        if cells is not None and _is_point(cells, options):
            return True
    return False


def read(source: str | os.PathLike[str], options: Options = NO_OPTIONS) -> list[Logged]:
    """Read a log in lines; those that hold nothing of use are passed over.

    Raises:
        ImportProblem: it can't be read, or none of its lines tells a step and a loss.
    """
    path = Path(source)
    problems = Problems(str(path))
    rows = Rows(problems, options)
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
    found = logged_of(rows.runs(called), "lines", str(path), called, problems, rows)
    for logged in found:
        object.__setattr__(logged, "settings", settings)
    return found


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open_bytes(path) as stream:
        for number, raw in enumerate(bounded_lines(stream), 1):
            for part in (raw or b"").split(b"\r"):
                if (cells := _cells(part)) is not None:
                    yield number, cells


def _cells(raw: bytes) -> dict[str, Any] | None:
    """The quantities of a line: of a JSON object, alone or behind a prefix, or as printed."""
    start = raw.find(b"{")
    if start >= 0:
        try:
            value = json.loads(raw[start:])
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            cells = {**json_cells(value), JSON: None}
            prefix = raw[:start].decode("utf-8", "replace")
            told = next((word for word in words(prefix)[-3:] if word in _EVALUATES), None)
            return {_as_evaluated(name, told): cell for name, cell in cells.items()} if told else cells
        if start == 0:
            return None
    cells = dict(printed_cells(raw.decode("utf-8", "replace")))
    told = next((word for name in cells if _is_step_of(name) for word in words(name) if word in _EVALUATES), None)
    first = next((name for name in cells if _plain_step(name) != name or _is_step_role(name)), None)
    named = {("step" if name == first else name): cell for name, cell in cells.items()}
    if told is None:
        return named or None
    return {_as_evaluated(name, told): cell for name, cell in named.items()}


def _is_step_role(name: str) -> bool:
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


def _as_evaluated(name: str, told: str) -> str:
    role = role_of(name)
    return f"{told}/{name}" if role is not None and role.kind == "loss" and role.name == "train" else name


def _has_step(cells: dict[str, Any]) -> bool:
    return any(map(_is_step_role, cells))


def _is_point(cells: dict[str, Any], options: Options) -> bool:
    losses = any(
        name in options.named or ((role := role_of(name)) is not None and role.kind in ("loss", "own"))
        for name in cells
    )
    return losses and (_has_step(cells) or JSON in cells or bool(options.named & {*cells}))


def _setting(name: str) -> str:
    """The name of a setting as printed, in a form that other loggers use."""
    role = role_of(name)
    if role is not None and role.kind == "size":
        return "total_params"
    return "_".join(words(name))[:100]
