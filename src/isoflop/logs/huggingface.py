"""Hugging Face's Trainer: `trainer_state.json`, alone or in an output folder with its checkpoints and config.json.

`training_args.bin` and the other files of a checkpoint are pickles: they are never opened.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from isoflop.logs.files import number, read_json, whole
from isoflop.logs.logged import Columns, ImportProblem, Logged, Problems, plain, wanted

STATE = "trainer_state.json"
ONCE = ("train_loss", "total_flos", "train_runtime")
"""Of the run's last entry: a mean over the whole run is no point of its curve."""


def looks_like(folder: Path) -> bool:
    """Whether a folder is a Trainer's output: a state in it or in a checkpoint below it."""
    return (folder / STATE).is_file() or any((one / STATE).is_file() for one in _checkpoints(folder))


def read(path: str | os.PathLike[str], want: Callable[[str], bool] = wanted) -> list[Logged]:
    """Read an output folder, or one state.

    Of several states (checkpoints and the folder's own) the one with most steps tells the curve; a broken one is told
    and passed over. The others tell at which step how many FLOPs were done.

    Raises:
        ImportProblem: there is no state that can be read.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    candidates = [path] if not path.is_dir() else [one / STATE for one in (folder, *_checkpoints(folder))]
    states: list[tuple[Path, dict[str, Any]]] = []
    failures: list[str] = []
    for candidate in candidates:
        if path.is_dir() and not candidate.is_file():
            continue
        try:
            states.append((candidate, _state(candidate)))
        except ImportProblem as problem:
            failures.append(str(problem))
    if not states:
        raise ImportProblem("; ".join(failures) or f"{path}: expected a {STATE} in it or in its checkpoint-*, got none")
    place, state = max(states, key=lambda item: item[1]["global_step"])
    if path.name == STATE:  # of a checkpoint: the run is the folder it lies in
        folder = folder.parent if folder.name.startswith("checkpoint-") else folder
    notes: list[str] = []
    problems = Problems(str(place))
    columns = _columns(state, problems, notes, want)
    if len(states) > 1:
        notes.append(f"of {len(states)} states the latest was read: {place.relative_to(path)}")
    total, planned = state["global_step"], whole(state.get("max_steps")) or None
    configs = (place.parent / "config.json", folder / "config.json")
    return [
        Logged(
            kind="huggingface",
            source=str(path),
            key=os.path.realpath(folder),
            name=plain(Path(os.path.abspath(folder)).name) or "run",
            columns=columns,
            settings={
                key: state[key]
                for key in ("train_batch_size", "num_train_epochs", "logging_steps")
                if isinstance(state.get(key), (int, float))
            },
            config=next((str(config) for config in configs if config.is_file()), None),
            total_flos=_flos(states, total),
            planned_steps=planned,
            status="completed" if planned is None or total >= planned else "interrupted",
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
    if not isinstance(state.get("log_history"), list) or whole(state.get("global_step")) is None:
        raise ImportProblem(f'{path}: expected a Trainer\'s state with "log_history" and "global_step", got neither')
    state["global_step"] = whole(state["global_step"])
    return state


def _columns(state: dict[str, Any], problems: Problems, notes: list[str], want: Callable[[str], bool]) -> Columns:
    columns = Columns()
    zeros: list[int] = []
    for index, entry in enumerate(state["log_history"]):
        step = whole(entry.get("step")) if isinstance(entry, dict) else None
        if step is None:
            problems.add(f", log_history[{index}]", "an object with a step", entry)
            continue
        for name, value in entry.items():
            if name in ONCE or not want(name):
                continue
            if (found := number(value)) is None:
                problems.add(f", log_history[{index}]", f"{plain(name)} to be a number", value)
                continue
            if name in ("loss", "isoflop/loss") and found == 0.0:
                found = math.nan
                if name == "loss":
                    zeros.append(step)
            columns.add(name, step, found)
    if zeros:
        more = f" and {len(zeros) - 5} more" if len(zeros) > 5 else ""
        notes.append(
            f"loss 0.0 at step {', '.join(map(str, zeros[:5]))}{more}: the Trainer logs a NaN loss so "
            "(logging_nan_inf_filter); taken as NaN"
        )
    return columns


def _flos(states: list[tuple[Path, dict[str, Any]]], last: int) -> dict[int, float]:
    """FLOPs by step, of the states that lie on one curve: none is larger than a later one's."""
    found: dict[int, float] = {}
    for _, state in states:
        flos = number(state.get("total_flos"))
        if flos and math.isfinite(flos) and flos > 0 and 0 < state["global_step"] <= last:
            found[state["global_step"]] = max(flos, found.get(state["global_step"], 0.0))
    ordered = sorted(found.items())
    if any(later[1] < earlier[1] for earlier, later in pairwise(ordered)):
        ordered = ordered[-1:]
    return dict(ordered)
