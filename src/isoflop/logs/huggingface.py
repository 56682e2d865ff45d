"""Hugging Face's Trainer: `trainer_state.json`, alone or in an output folder with its checkpoints and config.json.

`training_args.bin` and the other files of a checkpoint are pickles: they are never opened.
"""

from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

from isoflop.logs.files import ImportProblem, number, read_json, whole
from isoflop.logs.logged import Columns, Logged
from isoflop.logs.rows import Options
from isoflop.record.lines import Problems

STATE = "trainer_state.json"
ONCE = ("train_loss", "total_flos", "train_runtime")
"""Of the run's last entry: a mean over the whole run is no point of its curve."""
SETTINGS = ("train_batch_size", "num_train_epochs", "logging_steps", "max_steps")


def is_output(folder: Path) -> bool:
    """True for a Trainer's output folder: a state in it or in a checkpoint below it."""
    return any((one / STATE).is_file() for one in (folder, *_checkpoints(folder)))


def read(source: str, options: Options) -> list[Logged]:
    """Read an output folder, or one state.

    Of several states (checkpoints and the folder's own) the one with most steps gives the curve, the others give FLOPs
    at their steps. A broken one is a problem, and is skipped.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    candidates = [one / STATE for one in (path, *_checkpoints(path))] if path.is_dir() else [path]
    states: list[tuple[Path, dict[str, Any]]] = []
    failures: list[str] = []
    for candidate in candidates:
        if candidate == path or candidate.is_file():
            try:
                states.append((candidate, _state(candidate)))
            except ImportProblem as problem:
                failures.append(str(problem))
    if not states:
        raise ImportProblem("; ".join(failures) or f"{path}: expected a {STATE} in it or in its checkpoint-*, got none")
    latest, state = max(states, key=lambda item: item[1]["global_step"])
    if path.name == STATE and folder.name.startswith("checkpoint-"):  # the run is the folder it lies in
        folder = folder.parent
    problems = Problems(str(latest))
    columns, notes = _columns(state, options, problems)
    if len(states) > 1:
        notes.append(f"of {len(states)} states the latest was read: {latest.relative_to(path)}")
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
            averaged=True,
            notes=tuple(notes),
            problems=(*failures, *problems.all()),
        )
    ]


def _checkpoints(folder: Path) -> list[Path]:
    try:
        return sorted(one for one in folder.glob("checkpoint-*") if one.is_dir())
    except OSError:
        return []


def _state(path: Path) -> dict[str, Any]:
    state = read_json(path)
    step = whole(state.get("global_step"))
    if not isinstance(state.get("log_history"), list) or step is None:
        raise ImportProblem(f'{path}: expected a Trainer\'s state with "log_history" and "global_step", got neither')
    return {**state, "global_step": step}


def _columns(state: dict[str, Any], options: Options, problems: Problems) -> tuple[Columns, list[str]]:
    """The history's columns, and a note on losses of 0."""
    columns = Columns(options.named)
    zeros: list[int] = []
    for index, entry in enumerate(state["log_history"]):
        problems.at = f", log_history[{index}]"
        step = whole(entry.get("step")) if isinstance(entry, dict) else None
        if step is None:
            if not isinstance(entry, dict) or "loss" in entry:  # predictions after the run have no step
                problems.add("an object with a step", entry)
            continue
        norm = number(entry.get("grad_norm"))
        hidden = norm is None or not math.isfinite(norm)  # a loss that rounds to 0 has a gradient
        for name, value in entry.items():
            if name in ("loss", "isoflop/loss") and number(value) == 0.0 and hidden:
                columns.add(name, step, math.nan)
                zeros += [step] if name == "loss" else []
            elif name not in ONCE and not name.startswith("predict_"):
                columns.read(name, step, value, problems)
    if not zeros:
        return columns, []
    more = f" and {len(zeros) - 5} more" if len(zeros) > 5 else ""
    return columns, [
        f"loss 0.0 at step {', '.join(map(str, zeros[:5]))}{more}: the Trainer logs a NaN loss so "
        "(logging_nan_inf_filter); taken as NaN"
    ]


def _flos(states: list[tuple[Path, dict[str, Any]]], last: int) -> dict[int, float]:
    """FLOPs by step, of the states that lie on one curve: none is larger than a later one's."""
    found: dict[int, float] = {}
    for _, state in states:
        flos = number(state.get("total_flos"))
        if flos and math.isfinite(flos) and flos > 0 and 0 < state["global_step"] <= last:
            found[state["global_step"]] = max(flos, found.get(state["global_step"], 0.0))
    ordered = sorted(found.items())
    if any(later < earlier for (_, earlier), (_, later) in pairwise(ordered)):
        ordered = ordered[-1:]
    return dict(ordered)
