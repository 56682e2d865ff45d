"""Other tools' logs as isoflop's `Run`s: found, read, completed with what the user says. Nothing is written here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.record.run import RecordError, Run

from . import huggingface, lightning, mlflow_api, mlflow_files, table, tensorboard, wandb_api
from .assemble import Imported, assembled
from .find import KINDS, find
from .given import UNITS, Given
from .logged import Logged
from .names import wanted
from .problem import ImportProblem
from .questions import named_apart, questions
from .sized import Counter

_READERS: dict[str, Callable[..., list[Logged]]] = {
    "huggingface": huggingface.read,
    "tensorboard": tensorboard.read,
    "lightning": lightning.read,
    "wandb": wandb_api.read_offline,
    "wandb-api": wandb_api.read,
    "mlflow": mlflow_files.read,
    "mlflow-api": mlflow_api.read,
    "table": table.read,
}


@dataclass(frozen=True)
class ImportResult:
    """What was found.

    Attributes:
        imported: the runs, with what there is to say of each.
        problems: what could not be read, with file and line.
        questions: what is not in the logs, with the option that gives it.
    """

    imported: tuple[Imported, ...] = ()
    problems: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs alone."""
        return tuple(one.run for one in self.imported)


def import_runs(
    paths: Iterable[str | os.PathLike[str]],
    given: Given | None = None,
    *,
    kind: str | None = None,
    step: str | None = None,
    counter: Counter | None = None,
    leave_out: Sequence[Path] = (),
) -> ImportResult:
    """Read other tools' logs.

    Args:
        paths: files, folders that are searched, `wandb:entity/project[/run]`, `mlflow:<tracking URI>[#experiment]`.
        given: what the user says of runs whose logs don't.
        kind: one of `find.KINDS`, where the content is not to be asked.
        step: the column of steps of a plain table.
        counter: counts a model configuration; None: config.json is not read.
        leave_out: files that are no runs, such as a table of answers.

    Returns:
        The runs; those that lack N or tokens too, if they have a loss. What is broken is in `problems`.

    Raises:
        ImportProblem: `kind` or a unit that there is not.
    """
    given = given or Given()
    if kind is not None and kind not in KINDS:
        raise ImportProblem(f"--from: expected one of {', '.join(KINDS)}, got {kind!r}")
    for unit in given.loss_unit.values():
        if unit not in UNITS:
            raise ImportProblem(f"--loss-unit: expected one of {', '.join(UNITS)}, got {unit!r}")
    named = frozenset(given.loss.values())
    imported: dict[str, Imported] = {}
    problems: list[str] = []
    names: set[tuple[str, ...]] = set()
    for path in paths:
        try:
            sources = find(os.fspath(path), kind, leave_out)
        except ImportProblem as problem:
            problems.append(str(problem))
            continue
        for reader, source in sources:
            for logged in _read(reader, source, named, step, problems):
                names.add(logged.names)
                problems.extend(logged.problems)
                try:
                    one = assembled(logged, given, counter, problems)
                except RecordError as problem:
                    problems.append(str(problem))
                else:
                    imported.setdefault(one.run.run_id, one)
    if names:
        problems.extend(given.of_nobody(names))
    found = named_apart(tuple(imported.values()))
    return ImportResult(found, tuple(dict.fromkeys(problems)), questions(found))


def _read(reader: str, source: str, named: frozenset[str], step: str | None, problems: list[str]) -> list[Logged]:
    """What a reader finds; what it can't is told. `named`: columns that the user wants."""
    if reader == "wandb" and os.path.isfile(source) and source.lower().endswith(".csv"):
        reader = "table"  # an export
    options: dict[str, Any] = {"step": step} if reader == "table" else {}
    try:
        return _READERS[reader](source, lambda name: name in named or wanted(name), **options)
    except RecordError as problem:
        problems.append(str(problem))
    except OSError as error:
        problems.append(f"{source}: expected to be able to read it, got {error}")
    return []
