"""Hugging Face's Trainer: `trainer_state.json`, alone or in an output folder with its checkpoints and config.json.

`training_args.bin` and the other files of a checkpoint are pickles: they are never opened.
"""

from __future__ import annotations

import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

from isoflop.logs.files import ImportProblem, number, plain, read_json, whole
from isoflop.logs.given import Given
from isoflop.logs.logged import Columns, Logged
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


def read(source: str, given: Given) -> list[Logged]:
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
        norm = number(entry.get("grad_norm"))
        hidden = norm is None or not math.isfinite(norm)  # a loss that rounds to 0 has a gradient
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
    fall = any(later < earlier for (_, earlier), (_, later) in pairwise(ordered))
    return dict(ordered[-1:] if fall else ordered)
