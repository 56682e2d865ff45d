"""Logs that trainers write: Hugging Face's `trainer_state.json`, JSON objects of any loop, and printed lines.

The Trainer's state lies alone or in an output folder with its checkpoints and config.json; `training_args.bin` and the
other files of a checkpoint are pickles: they are never opened. Of lines (also Megatron-LM's, torchtitan's, nanochat's,
nanoGPT's) one counts if it tells a step and a loss; those without a step are searched for what holds for the whole run.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.console import listed
from isoflop.logs.files import (
    Dialect,
    ImportProblem,
    decoded,
    dialect_of,
    flat,
    head,
    json_object,
    number,
    open_bytes,
    plain,
    read_json,
    stem,
    whole,
)
from isoflop.logs.given import Given
from isoflop.logs.logged import Column, Columns, Logged
from isoflop.logs.names import TRAINING, kind_of, role_of, words
from isoflop.logs.steps import SHARED
from isoflop.logs.table import Rows
from isoflop.record.lines import Problems

STATE = "trainer_state.json"
ONCE = ("train_loss", "total_flos", "train_runtime")
"""Of the run's last entry: a mean over the whole run is no point of its curve."""
SETTINGS = ("train_batch_size", "num_train_epochs", "logging_steps", "max_steps")


def is_output(folder: Path) -> bool:
    """True for a Trainer's output folder: a state in it or in a checkpoint below it."""
    return any(state.is_file() for state in _states(folder))


def _states(folder: Path) -> list[Path]:
    try:
        return [folder / STATE, *(one / STATE for one in sorted(folder.glob("checkpoint-*")) if one.is_dir())]
    except OSError:
        return [folder / STATE]


def read_trainer_state(source: str, given: Given) -> list[Logged]:
    """Read an output folder, or one state.

    Of several states (checkpoints and the folder's own) the one with most steps gives the curve, the others give FLOPs
    at their steps. A broken one is a problem, and is skipped.
    """
    path = Path(source)
    states: list[tuple[Path, dict[str, Any]]] = []
    told: list[str] = []
    for candidate in [one for one in _states(path) if one.is_file()] if path.is_dir() else [path]:
        try:
            state = read_json(candidate)
            if not isinstance(state.get("log_history"), list) or whole(state.get("global_step")) is None:
                raise ImportProblem(
                    f'{candidate}: expected a Trainer\'s state with "log_history" and "global_step", got neither'
                )
            states.append((candidate, {**state, "global_step": whole(state["global_step"])}))
        except ImportProblem as problem:
            told.append(str(problem))
    if not states:
        raise ImportProblem("; ".join(told) or f"{path}: expected a {STATE} in it or in its checkpoint-*, got none")
    latest, state = max(states, key=lambda item: item[1]["global_step"])
    folder = path if path.is_dir() else path.parent
    if path.name == STATE and folder.name.startswith("checkpoint-"):  # the run is the folder it lies in
        folder = folder.parent
    problems = Problems(str(latest))
    columns, notes = _columns(state, given, problems)
    if len(states) > 1:
        notes.append(f"of {len(states)} states the latest was read")
    planned = whole(state.get("max_steps"))
    configs = (latest.parent / "config.json", folder / "config.json")
    return [
        Logged(
            kind="huggingface",
            source=str(path),
            key=os.path.realpath(folder),
            name=Path(os.path.abspath(folder)).name,
            columns=columns,
            settings={name: state[name] for name in SETTINGS if isinstance(state.get(name), (int, float))},
            config=next((str(config) for config in configs if config.is_file()), None),
            total_flos=_flos(states, state["global_step"]),
            status="completed" if not planned or state["global_step"] >= planned else "interrupted",
            done=state["global_step"],
            averaged=True,
            notes=tuple(notes),
            problems=(*told, *problems.all()),
        )
    ]


def _columns(state: dict[str, Any], given: Given, problems: Problems) -> tuple[Columns, list[str]]:
    """The history's columns, and a note on losses of 0."""
    columns = Columns(given.named)
    zeros: list[int] = []
    # isoflop's scalars are in few entries; its loss is the Trainer's, which is in all
    ours = any(isinstance(entry, dict) and "isoflop/loss" in entry for entry in state["log_history"])
    for index, entry in enumerate(state["log_history"]):
        problems.at = f", log_history[{index}]"
        step = whole(entry.get("step")) if isinstance(entry, dict) else None
        if step is None:
            if not isinstance(entry, dict) or "loss" in entry:  # predictions after the run have no step
                problems.add("an object with a step", entry)
            continue
        if ours and "loss" in entry:
            entry = {"isoflop/loss": entry["loss"], **entry}
        hidden = _hides_nan(entry)
        for name, cell in entry.items():
            value = number(cell)
            if name in ("loss", "isoflop/loss") and value == 0.0 and hidden:
                columns.add(name, step, math.nan)
                zeros += [step] if name == "loss" else []
            elif name in ONCE or name.startswith("predict_") or cell in ("", None) or not columns.keeps(name):
                continue
            elif value is None:
                problems.add(f"{plain(name, 40)} to be a number", cell)
            else:
                columns.add(name, step, value)
    if not zeros:
        return columns, []
    return columns, [
        f"loss 0.0 at step {listed([*map(str, zeros)], 5)}: the Trainer logs a NaN loss so "
        "(logging_nan_inf_filter); taken as NaN"
    ]


def _hides_nan(entry: dict[str, Any]) -> bool:
    """True where a loss of 0 is the Trainer's NaN: a loss that rounds to 0 has a gradient."""
    norm = number(entry.get("grad_norm"))
    return norm is None or not math.isfinite(norm)


def _flos(states: list[tuple[Path, dict[str, Any]]], last: int) -> dict[int, float]:
    """FLOPs by step, of the states that lie on one curve: none is larger than a later one's."""
    found: dict[int, float] = {}
    for _, state in states:
        flos = number(state.get("total_flos"))
        if flos and math.isfinite(flos) and flos > 0 and 0 < state["global_step"] <= last:
            found[state["global_step"]] = max(flos, found.get(state["global_step"], 0.0))
    ordered = sorted(found.items())
    fall = any(later < earlier for (_, earlier), (_, later) in pairwise(ordered))
    return dict(ordered[-1:] if fall else ordered)


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
    (re.compile(r"\bon:train (\d+(?:\.\d+)?k?)it/\S+"), lambda found: f"|step {found[1]}|"),
    (re.compile(r"^\[batch=(\d+)/\d+\](?=:?$)"), lambda found: f"|step {found[1]}]"),
    (re.compile(r"^Step\.\.\. \((\d+) \|"), lambda found: f"|step {found[1]}|"),
    (re.compile(r"\blogging_writer\.py:\d+\] \[(\d+)\] "), lambda found: f"|step {found[1]}|"),
    (re.compile(r"\bIter(?:ation)?(?:\(train\))? ?\[ *(\d+)/\d+\] *"), lambda found: f"|step {found[1]}|"),
    (re.compile(r"\bloss is (?=\d)"), lambda found: "loss "),
    (re.compile(r"\btrain_inner \| epoch \d+: +(\d+) / \d+ "), lambda found: f"train_inner | minibatch {found[1]} "),
    (re.compile(r"\b(\d+)/ *\d+ batches\b"), lambda found: f"|step {found[1]}|"),
    (re.compile(r"\b(\d+)/\d+ \[\d[\d:]*<[\d:?]+,[^,\]]*"), lambda found: f"|step {found[1]}|"),
    (re.compile(r"\bSaving dict for global step (\d+): global_step = \1\b"), lambda found: f"|eval step {found[1]}"),
    (re.compile(r"^\| *([A-Za-z][\w ]*?) *\| *([\d,.]+) *\|?$"), lambda found: f"{found[1]}: {found[2]}"),
)
"""Lines that do not say what they tell, as some that do.

Of llm.c, build-nanogpt, levanter, Composer, Flax, CLU, Ignite and MMEngine, MindSpore, fairseq (whose epoch's mean has
the same names), tqdm, TensorFlow's Estimator, a table of settings.
"""
_SET = re.compile(r"\bon (\w+) set\b|\bon '(\w+)' subset\b")
"""Megatron's `validation loss at iteration 10 on test set`, fairseq's `valid on 'valid1' subset`."""
_MARK = re.compile(
    r"(?:^|[\[(|<]|\d\s|[:=]) *(eval|val|valid|validation|validate|evaluation|test|dev|heldout|held-out)"
    r"(?= *(?:[\])>|,]|[:=](?! *(?:(?:n/?a|none|null|nan|false|true|off|on)\b|[\d.+-]|$))"
    r"|(?:results?|metrics|epoch|step)\b))"
    r"|(?<= - )(eval|val|valid|validation|test|dev)(?= - )",
    re.IGNORECASE,
)
"""A word that marks a whole line as an evaluation's: `[VAL]`, `| valid |`, `(eval)`, `Test:`, `phase: valid,`."""
_BAR = re.compile(r"\s*\d+%\|[^|]*\| *(\d+)/(\d+) \[")
"""A progress bar without a name, such as the Trainer's: the step, and of how many."""
SAMPLE = 1 << 18
MAX_DOCUMENT = 1 << 28


def is_lines(path: Path, given: Given) -> bool:
    """True if one of the first lines of a file, or its document of JSON, tells a step and a loss."""
    start = head(path, SAMPLE)
    lines = start.decode(dialect_of(start).encoding, "replace").splitlines()
    found = _document(path, start) or _quantities(lines)
    return any(_is_point(cells, given) for _, cells in found)


def read(source: str, given: Given) -> list[Logged]:
    """Read a log in lines, or a document of JSON; lines that hold nothing of use are passed over."""
    path = Path(source)
    rows = Rows(Problems(str(path)), given)
    settings: dict[str, Any] = {}
    start, bars, forms = head(path, SAMPLE), _Bars(), _Forms()
    with open_bytes(path) as stream:
        lines = decoded(
            stream, Dialect(dialect_of(start).encoding), Problems("")
        )  # bytes that are no text: passed over
        for line, cells in _document(path, start) or _quantities(bars.passing(lines), _marks_tell(start, given)):
            if JSON in cells and bars.seen and _is_point(cells, given) and not _has_step(cells):
                bars.rows.append((line, cells, {}))
            elif _is_point(cells, given) or (len(rows) and _has_step(cells)):
                forms.add(cells, len(rows))
                rows.add(cells, line)
            elif not _has_step(cells):
                for name, value in cells.items():
                    settings.setdefault(_setting(name), value)
    total = bars.total()
    for line, cells, after in bars.rows:
        rows.add(cells if total is None else {"step": after[total], **cells}, line)
    if total is not None:
        settings = {"max_steps": total, **settings}
    if not len(rows):
        raise ImportProblem(f"{path}: expected lines with a step and a loss, got none")
    _join_steps(rows.columns)
    called = stem(path) if stem(path) not in CALLED else Path(os.path.abspath(path)).parent.name
    repeated = forms.left_out(rows.columns)
    runs = rows.runs("lines", str(path), called, settings=settings, averaged=total is not None)
    return [replace(run, notes=(*run.notes, *repeated)) for run in runs]


class _Forms:
    """Lines by what they tell: some of another form that repeat the step before sum up a part of the run (fairseq)."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, ...], list[int]] = {}
        self.repeats: Counter[tuple[str, ...]] = Counter()
        self.before: str | None = None

    def add(self, cells: dict[str, Any], row: int) -> None:
        """Note a printed line that tells a training loss."""
        if JSON not in cells and any((role := role_of(name)) and role.name == "train" for name in cells):
            form, step = (
                (*sorted(cells),),
                next((cell for name, cell in cells.items() if kind_of(name) == "step"), None),
            )
            self.rows.setdefault(form, []).append(row)
            self.repeats[form] += step == self.before
            self.before = step

    def left_out(self, columns: Columns) -> list[str]:
        """Take the losses of such lines out, where they are few; a note on them."""
        usual = max(map(len, self.rows.values()), default=0)
        forms = [
            form for form, at in self.rows.items() if 2 * self.repeats[form] >= len(at) and len(at) < SHARED * usual
        ]
        rows = np.array([row for form in forms for row in self.rows[form]], dtype=np.int64)
        for name in [name for name in columns if len(rows) and (role := role_of(name)) and role.name == "train"]:
            columns[name] = columns[name].taken(~np.isin(columns[name].arrays()[0], rows))
        told = f"{len(rows):,} lines of another form repeat the step of the line before, such as sums of an epoch"
        return [f"{told}: their losses are left out"] if len(rows) else []


class _Bars:
    """The Trainer's progress bars, from which its printed logs, which have no step, get theirs.

    A log clears the bars and draws them again behind it, so that the next one shows its step. An evaluation has a bar
    of its own, with another total.
    """

    def __init__(self) -> None:
        self.seen = False
        self.rows: list[tuple[int, dict[str, Any], dict[int, int]]] = []  # line, cells, next step by total

    def passing(self, lines: Iterable[str]) -> Iterator[str]:
        """The lines but for bars that tell a step alone."""
        for line in lines:
            parts = line.split("\r") if "%|" in line else [line]
            for index, part in enumerate(parts):
                if (bar := _BAR.match(part)) is None or part[bar.end() :].count(",") > 1:
                    continue
                self.seen, parts[index] = True, ""
                for _, _, after in reversed(self.rows):
                    if int(bar[2]) in after:
                        break
                    after[int(bar[2])] = int(bar[1])
            yield "\r".join(parts)

    def total(self) -> int | None:
        """The steps planned: the total of a bar that is behind each log and rises from one of training to the next."""
        for total in self.rows[0][2] if self.rows else ():
            steps = [after.get(total, -1) for _, _, after in self.rows]
            of_training = [step for step, (_, cells, _) in zip(steps, self.rows, strict=True) if "loss" in cells]
            if (
                min(steps) > 0
                and all(one <= other for one, other in pairwise(steps))
                and len(of_training) == len({*of_training})
            ):
                return total
        return None


def _document(path: Path, start: bytes) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a document of JSON, numbered: a list of objects, or lists of one length by name; none: it is none."""
    first = start.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")[0]
    alone = json_object(first)
    if not first.startswith((b"[", b"{")) or (
        alone and not any(isinstance(one, (list, dict)) for one in alone.values())
    ):
        return []  # lines of JSON, or no JSON at all
    try:
        with open_bytes(path, "JSON", MAX_DOCUMENT) as stream:
            value = json.loads(stream.read())
    except (ImportProblem, ValueError):
        return []
    return [(number, _told(row)) for number, row in enumerate(_rows(value), 1)]


def _told(value: dict[str, Any]) -> dict[str, Any]:
    """The cells of an object; of the Trainer's last words not the means over the whole run."""
    cells = flat(value)
    if {"learning_rate", "epoch"} <= cells.keys() and number(cells.get("loss")) == 0.0 and _hides_nan(cells):
        cells["loss"] = math.nan
    for name, cell in [*cells.items()]:  # ms-swift's `"global_step/max_steps": "10/500"`
        two = kind_of(name) != "step" and name.count("/") == 1  # `train/step` is one already
        if two and isinstance(cell, str) and re.fullmatch(r"\d+/\d+", cell):
            cells |= zip(name.split("/"), cells.pop(name).split("/"), strict=True)
    return {name: cell for name, cell in cells.items() if "train_runtime" not in cells or name not in ONCE} | {
        JSON: None
    }


def _rows(value: Any, name: str = "") -> list[dict[str, Any]]:
    """The rows of a list of objects, of lists of one length by name, or of series by name (ClearML, Sacred)."""
    if isinstance(value, list):
        return value if all(isinstance(one, dict) for one in value) else []
    if not isinstance(value, dict):
        return []
    lists = {key: one for key, one in value.items() if isinstance(one, list) and one and not isinstance(one[0], dict)}
    for steps, values in (("x", "y"), ("steps", "values")):
        if {steps, values} <= {*lists}:
            return [{"step": x, name: y} for x, y in zip(value[steps], value[values], strict=False)]
    if lists and len({len(one) for one in lists.values()}) == 1:
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    return [row for key, one in value.items() for row in _rows(one, f"{name}/{key}".strip("/"))]


def _join_steps(columns: Columns) -> None:
    """One column of steps, where lines of one kind call it otherwise than lines of another."""
    names = [name for name in columns if kind_of(name) == "step" and not (columns[name].arrays()[1] % 1).any()]
    rows = np.concatenate([columns[name].arrays()[0] for name in names]) if len(names) > 1 else np.empty(0)
    if len(rows) and len(np.unique(rows)) == len(rows):
        steps = np.concatenate([columns.pop(name).arrays()[1] for name in names])
        columns["step"] = joined = Column()
        order = np.argsort(rows)
        joined.steps.extend(rows[order].tolist())
        joined.values.extend(steps[order].tolist())


def _marks_tell(start: bytes, given: Given) -> bool:
    """Whether marks of evaluations tell lines apart: not where most have one (`[test]` of an environment)."""
    lines = start.decode(dialect_of(start).encoding, "replace").splitlines()
    often = Counter(_mark(line) for line in lines if _is_point(_cells(line, marks=False), given))
    return all(count <= often[None] + 1 for count in often.values())


def _mark(line: str) -> str | None:
    """The evaluation that a line is marked as; None: none, or its mark stands behind a loss, as that of a part."""
    mark = _MARK.search(line := _COLOUR.sub("", line))
    if mark is None or any(kind_of(name) == "loss" for name in printed_cells(line[: mark.start()])):
        return None
    return (mark[1] or mark[2]).lower().replace("-", "")


def _quantities(lines: Iterable[str], marks: bool = True) -> Iterator[tuple[int, dict[str, Any]]]:
    """Numbers of lines, or of the first of a block, with what they tell; `marks`: of evaluations count.

    A block goes on to the next line with a step: others in between are not of it.
    """
    block: tuple[int, dict[str, Any]] | None = None
    for at, line in enumerate(lines, 1):
        for part in line.split("\r"):
            if block is not None and (inner := _INNER.fullmatch(_COLOUR.sub("", part))):
                block[1].setdefault(inner[1], inner[2].replace(",", ""))
                continue
            cells = _cells(part, marks)
            heads = bool(cells) and part.rstrip().endswith(("]", "]:")) and _has_step(cells)
            if block is not None and (heads or _has_step(cells)):
                yield block
                block = None
            if heads:
                block = at, cells
            elif cells:
                yield at, cells
    if block is not None:
        yield block


def _cells(line: str, marks: bool = True) -> dict[str, Any]:
    """The quantities of a line: of a JSON object, alone or behind a prefix, or as printed; none: it tells none."""
    start = line.find("{")
    value = _object(line[start:]) if start >= 0 else None
    if value is not None:
        cells = _told(value)
        told = next((word for word in words(line[:start])[-3:] if word in _EVALUATES), None)
    elif start == 0:
        return {}
    else:
        cells = dict(printed_cells(line))
        of_steps = [words(name) for name in cells if {*words(name)} & _STEPS]
        told = next((word for found in of_steps for word in found if word in _EVALUATES), None)
        if marks and not told and not any(TRAINING & {*words(x)} for x in cells):
            told = _mark(line)
        if told and (named := _SET.search(line)) and words(named[1] or named[2])[0] in _EVALUATES:
            told = named[1] or named[2]
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


def _is_point(cells: dict[str, Any], given: Given) -> bool:
    losses = any(name in given.named or kind_of(name) in ("loss", "own") for name in cells)
    return losses and (_has_step(cells) or JSON in cells or bool(given.named & {*cells}))


def _setting(name: str) -> str:
    """The name of a setting as printed, in a form that other loggers use."""
    return "total_params" if kind_of(name) == "size" else "_".join(words(name))[:100]
