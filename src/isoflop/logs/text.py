"""Logs in lines: JSON objects of any loop, and what trainers print (Megatron-LM, torchtitan, nanochat, nanoGPT).

A line counts if it tells a step and a loss. Lines without a step are searched for what holds for the whole run.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.logs.files import Dialect, ImportProblem, decoded, dialect_of, flat, head, json_object, open_bytes, stem
from isoflop.logs.logged import Column, Columns, Logged
from isoflop.logs.names import kind_of, role_of, words
from isoflop.logs.rows import Options, Rows
from isoflop.record.lines import Problems

JSON = ""  # A name in the cells of a JSON object, whose losses may have no step
_STEPS = {"step", "iter", "iteration", "updates"}
_EVALUATES = {"validation", "validate", "valid", "val", "eval", "evaluation", "test"}
CALLED = ("trainer_log", "log", "metrics", "train", "train_log", "logs", "output", "stdout", "history", "results")
"""Names of files that say nothing of the run: its folder does."""
_NUMBER = r"[+-]?\d[\d,]*(?:\.\d*)?(?:[eE][+-]?\d+)?(?:[kKMBT](?![A-Za-z]))?|[+-]?(?:nan|inf)\b(?! [A-Za-z])"
_PAIR = re.compile(rf"([A-Za-z][A-Za-z0-9_ ()/%.-]*?)\s*[:= ]\s*({_NUMBER})(?![A-Za-z]*/[A-Za-z])")
_INNER = re.compile(rf"\s+([A-Za-z][\w /().-]*?)\s*[:=]\s*({_NUMBER})\s*")
"""A line of a block (OLMo): indented, one quantity."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LLM_C = {"tel": "val_loss", "trl": "train_loss"}
_FORMS = (
    (re.compile(r"^s:(\d+) (t[er]l):"), lambda found: f"|step {found[1]} {_LLM_C[found[2]]} "),
    (re.compile(r"^(\d+) (train|val) (?=\d+\.\d+$)"), lambda found: f"|step {found[1]} {found[2]}_loss "),
    (re.compile(r"\bon:train (\d+)(?:\.0)?it/\S+"), lambda found: f"|step {found[1]}|"),
)
"""Of llm.c's main.log, build-nanogpt, levanter: lines that don't say what they tell, as lines that do."""
SAMPLE = 1 << 18


def is_lines(path: Path, options: Options) -> bool:
    """True if one of the first lines of a file tells a step and a loss."""
    start = head(path, SAMPLE)
    lines = start.decode(dialect_of(start).encoding, "replace").splitlines()
    return any(_is_point(cells, options) for _, cells in _quantities(lines))


def read(source: str, options: Options) -> list[Logged]:
    """Read a log in lines; those that hold nothing of use are passed over."""
    path = Path(source)
    rows = Rows(Problems(str(path)), options)
    settings: dict[str, Any] = {}
    dialect = Dialect(dialect_of(head(path)).encoding)
    with open_bytes(path) as stream:
        lines = decoded(stream, dialect, Problems(""))  # bytes that are no text are passed over
        for line, cells in _quantities(lines):
            if _is_point(cells, options) or (len(rows) and _has_step(cells)):
                rows.add(cells, line)
            elif not _has_step(cells):
                for name, value in cells.items():
                    settings.setdefault(_setting(name), value)
    if not len(rows):
        raise ImportProblem(f"{path}: expected lines with a step and a loss, got none")
    _join_steps(rows.columns)
    called = stem(path) if stem(path) not in CALLED else Path(os.path.abspath(path)).parent.name
    return rows.runs("lines", str(path), called, settings=settings)


def _join_steps(columns: Columns) -> None:
    """One column of steps, where lines of one kind call it otherwise than lines of another."""
    names = [name for name in columns if kind_of(name) == "step" and not (columns[name].arrays()[1] % 1).any()]
    rows = np.concatenate([columns[name].arrays()[0] for name in names]) if len(names) > 1 else np.empty(0)
    if len(rows) and len(np.unique(rows)) == len(rows):
        steps = np.concatenate([columns.pop(name).arrays()[1] for name in names])
        columns["step"] = joined = Column()
        order = np.argsort(rows)
        joined.extend(rows[order].tolist(), steps[order].tolist())


def _quantities(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers of lines, or of the first of a block, with what they tell."""
    block: tuple[int, dict[str, Any]] | None = None
    for number, line in enumerate(lines, 1):
        for part in line.split("\r"):
            if block is not None and (inner := _INNER.fullmatch(_COLOUR.sub("", part))):
                block[1][inner[1]] = inner[2].replace(",", "")
                continue
            if block is not None:
                yield block
            block, cells = None, _cells(part)
            if cells and part.rstrip().endswith("]") and _has_step(cells):
                block = number, cells
            elif cells:
                yield number, cells
    if block is not None:
        yield block


def _cells(line: str) -> dict[str, Any]:
    """The quantities of a line: of a JSON object, alone or behind a prefix, or as printed; none: it tells none."""
    start = line.find("{")
    value = _object(line[start:]) if start >= 0 else None
    if value is not None:
        cells = {**flat(value), JSON: None}
        told = next((word for word in words(line[:start])[-3:] if word in _EVALUATES), None)
    elif start == 0:
        return {}
    else:
        cells = dict(printed_cells(line))
        of_steps = [words(name) for name in cells if {*words(name)} & _STEPS]
        told = next((word for found in of_steps for word in found if word in _EVALUATES), None)
    return {_as_evaluated(_plain_step(name), told): cell for name, cell in cells.items()}


def _object(text: str) -> dict[str, Any] | None:
    """The object of JSON, or of Python as the Trainer prints it."""
    if text.startswith("{'"):
        text = text.replace("'", '"').replace(": nan", ": NaN")
    return json_object(text)


def printed_cells(text: str) -> dict[str, str]:
    """The quantities that a line of a program's output tells, `name: value` or `name value` with anything between.

    >>> printed_cells("iter 100: loss 3.25, time 120.5ms")
    {'iter': '100', 'loss': '3.25', 'time': '120.5'}
    """
    text = _COLOUR.sub("", text)[:4000]
    for form, told in _FORMS:
        text = form.sub(told, text)
    found: dict[str, str] = {}
    for name, value in _PAIR.findall(text):
        found.setdefault(name.rpartition(" - ")[2].strip(), value.replace(",", ""))
    return found


def _plain_step(name: str) -> str:
    """`validation loss at iteration`, `validate step` and `valid_num_updates` are steps."""
    found = words(name)
    return found[-1] if {*found[-1:]} & _STEPS and {*found} & _EVALUATES else name


def _as_evaluated(name: str, told: str | None) -> str:
    role = role_of(name) if told else None
    return f"{told}/{name}" if role is not None and role.kind == "loss" and role.name == "train" else name


def _has_step(cells: dict[str, Any]) -> bool:
    return any(kind_of(name) == "step" for name in cells)


def _is_point(cells: dict[str, Any], options: Options) -> bool:
    losses = any(name in options.named or kind_of(name) in ("loss", "own") for name in cells)
    return losses and (_has_step(cells) or JSON in cells or bool(options.named & {*cells}))


def _setting(name: str) -> str:
    """The name of a setting as printed, in a form that other loggers use."""
    return "total_params" if kind_of(name) == "size" else "_".join(words(name))[:100]
