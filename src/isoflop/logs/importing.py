"""Import of other tools' logs: found below the paths, read, completed with what the user says.

The tool that wrote a file is recognised by the content, so files may have any name.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isoflop.logs import huggingface, mlflow, table, tensorboard, wandb
from isoflop.logs.convert import Imported, assembled
from isoflop.logs.counts import SizeOf, size_of_config
from isoflop.logs.files import csv_rows, head
from isoflop.logs.given import UNITS, Given
from isoflop.logs.logged import ImportProblem, Logged
from isoflop.record.lines import Problems
from isoflop.record.run import RecordError, Run

READERS: dict[str, Callable[..., list[Logged]]] = {
    "huggingface": huggingface.read,
    "tensorboard": tensorboard.read,
    "lightning": table.read_lightning,
    "wandb": wandb.read_offline,
    "wandb-api": wandb.read,
    "wandb-export": table.read,
    "mlflow": mlflow.read_folder,
    "mlflow-api": mlflow.read,
    "table": table.read,
}
KINDS = tuple(reader for reader in READERS if "-" not in reader)
"""Kinds of logs, as `--from` names them."""
Source = tuple[str, str]
"""A reader and what it is to read."""
EXPECTED = (
    "expected a Trainer's output or trainer_state.json, TensorBoard's event files, Lightning's metrics.csv, an offline "
    "run or a CSV export of W&B, MLflow's mlruns, a CSV or Parquet table, or a folder with some"
)
QUESTIONS = {
    "params": (
        "N is",
        "--params 124M (or --config config.json)",
        "--params NAME=124M",
        "fit and plan can't use",
    ),
    "tokens": (
        "The number of tokens is",
        "--tokens-per-step 524288",
        "--tokens-per-step NAME=524288",
        "the loss is known by step alone: fit, plan, backtest and rank can't use",
    ),
}
"""Missing quantity → its subject, the option, the option by run, and what can't be done without it."""


@dataclass(frozen=True)
class ImportResult:
    """Runs, problems and questions of an import.

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
    leave_out: Sequence[Path] = (),
    size_of: SizeOf | None = size_of_config,
) -> ImportResult:
    """Read other tools' logs; docs/import.md says what comes from where. `write_run` writes a run as a record.

    Args:
        paths: files, folders that are searched, `wandb:entity/project[/run]`, `mlflow:<tracking URI>[#experiment]`.
        given: what the user says of runs whose logs don't.
        kind: huggingface, tensorboard, lightning, wandb, mlflow or table, where the content is not to be asked.
        step: the column of steps of a plain table.
        leave_out: files that are no runs, such as a table of answers.
        size_of: counts a model by its config.json; None: no config.json is read.

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
    imported: dict[str, Imported] = {}
    names: set[tuple[str, ...]] = set()
    problems: list[str] = []
    for logged in _logs(paths, given, kind, step, leave_out, problems):
        names.add(logged.names)
        problems.extend(logged.problems)
        try:
            one = assembled(logged, given.of(logged.names), size_of, problems)
        except RecordError as problem:
            problems.append(str(problem))
        else:
            imported.setdefault(one.run.run_id, one)
    if names:
        problems.extend(given.of_nobody(names))
    found = _named_apart(tuple(imported.values()))
    return ImportResult(found, tuple(dict.fromkeys(problems)), _questions(found))


def _logs(
    paths: Iterable[str | os.PathLike[str]],
    given: Given,
    kind: str | None,
    step: str | None,
    leave_out: Sequence[Path],
    problems: list[str],
) -> Iterable[Logged]:
    """Runs that the readers find; a source that they can't read is a problem."""
    named = frozenset(given.loss.values())
    for path in paths:
        try:
            sources = find(os.fspath(path), kind, leave_out)
        except ImportProblem as problem:
            problems.append(str(problem))
            continue
        for reader, source in sources:
            read = READERS[reader]
            try:
                yield from read(source, named, step) if read is table.read else read(source, named)
            except RecordError as problem:
                problems.append(str(problem))
            except OSError as error:
                problems.append(f"{source}: expected to be able to read it, got {error}")


def _named_apart(found: tuple[Imported, ...]) -> tuple[Imported, ...]:
    """Runs of one name get their sources' folders in front, so that figures and tables tell them apart."""
    names = Counter(one.run.name for one in found)
    result = []
    for one in found:
        if names[one.run.name] > 1 and os.path.exists(one.source):
            parent = Path(os.path.abspath(one.source)).parent.name
            one = replace(one, run=replace(one.run, name=f"{parent}/{one.run.name}"))
        result.append(one)
    return tuple(result)


def _questions(found: tuple[Imported, ...]) -> tuple[str, ...]:
    """One question a missing quantity, for all runs that lack it."""
    asked = []
    for what, (subject, option, by_name, without) in QUESTIONS.items():
        lacking = [one for one in found if what in one.missing]
        if not lacking:
            continue
        hints = list(dict.fromkeys(one.hint for one in lacking if what == "tokens" and one.hint))[:2]
        if len(lacking) == 1:
            where, how, them = lacking[0].source, option, "the run"
        else:
            some = ", ".join(one.run.name for one in lacking[:4]) + (", …" if len(lacking) > 4 else "")
            many = "the" if len(lacking) == len(found) else f"{len(lacking)} of"
            where, them = f"{many} {len(found)} runs ({some})", "these runs"
            how = f"{option}, for single runs with {by_name} or --table runs.csv (run,params,tokens_per_step)"
        asked.append(
            " ".join([f"{subject} not in {where}: give it with {how}.", *hints, f"Without it {without} {them}."])
        )
    return tuple(asked)


def find(path: str, kind: str | None = None, leave_out: Sequence[Path] = ()) -> list[Source]:
    """The runs at a path.

    Args:
        path: a file, a folder that is searched (links to folders in it are not followed), `wandb:…` or `mlflow:…`.
        kind: take it for this, whatever it looks like; of a folder, only such runs in it.
        leave_out: files that are no runs.

    Raises:
        ImportProblem: nothing is there, or nothing that is known.
    """
    for prefix, reader in ((wandb.PREFIX, "wandb-api"), (mlflow.PREFIX, "mlflow-api")):
        if path.startswith(prefix):
            return [(reader, path)]
    top = Path(path)
    if not top.exists():
        raise ImportProblem(f"{path}: {EXPECTED}; it does not exist")
    if not top.is_dir():
        return [(reader_of(top, kind), path)]
    hidden = {os.path.realpath(one) for one in leave_out}
    found = [source for source in _below(top, kind) if os.path.realpath(source[1]) not in hidden]
    if not found:
        of_kind = f" of the kind {kind}" if kind else ""
        raise ImportProblem(f"{path}: {EXPECTED}; there is none{of_kind} in it")
    return found


def reader_of(path: Path, kind: str | None = None) -> str:
    """The reader of a file, by the kind that the user calls it or by its content.

    Raises:
        ImportProblem: it is none of those known.
    """
    start = head(path)
    if start.startswith(mlflow.SQLITE) and kind in (None, "mlflow"):
        return "mlflow-api"
    if kind == "wandb" and not start.startswith(wandb.MAGIC) and path.suffix.lower() == ".csv":
        return "wandb-export"
    if kind is not None:
        return kind
    if start.startswith(wandb.MAGIC):
        return "wandb"
    if start.startswith(table.PARQUET):
        return "table"
    return "tensorboard" if _is_events(start) else _reader_of_text(path, start)


def _reader_of_text(path: Path, start: bytes) -> str:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    got = None
    if text.startswith(b"{"):
        if path.name == huggingface.STATE or b'"log_history"' in start or b'"global_step"' in start:
            return "huggingface"
        if b'"isoflop"' in start and b'"header"' in start:
            raise ImportProblem(f"{path}: is a record of isoflop's own: the commands read it as it is")
        got = "JSON of another kind"
    elif not start:
        got = "an empty file"
    elif b"\0" in start:
        got = "a file of another kind"
    elif b"," not in start.split(b"\n", 1)[0]:
        got = "text whose first line has no commas"
    if got is not None:
        raise ImportProblem(f"{path}: {EXPECTED}; got {got}")
    header = [name.strip() for name in next(csv_rows(path, Problems(str(path))), [""])]
    if table.is_lightning(header, path):
        return "lightning"
    return "wandb-export" if table.exports(header) else "table"


def _is_events(start: bytes) -> bool:
    """True if a file begins with a record of TensorBoard's: a length and the length's checksum."""
    if len(start) < 12:
        return False
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length, checksum = struct.unpack("<QI", start[:12])
    return length < tensorboard.MAX_RECORD and bool(masked_crc32c(start[:8]) == checksum)


def _below(top: Path, only: str | None) -> Iterator[Source]:
    """The runs in a folder and the folders below it, in the order of their names."""
    folders: list[tuple[Path, bool]] = [(top, False)]
    while folders:
        folder, of_trainer = folders.pop()
        inside = list(_in(folder, of_trainer, only))
        yield from inside
        if any(reader in ("mlflow", "wandb") for reader, _ in inside):
            continue
        of_trainer = of_trainer or any(reader == "huggingface" for reader, _ in inside)
        try:
            with os.scandir(folder) as entries:
                deeper = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        if of_trainer:
            deeper = [name for name in deeper if not name.startswith("checkpoint-")]
        folders += [(folder / name, of_trainer) for name in sorted(deeper, reverse=True)]


def _in(folder: Path, of_trainer: bool, only: str | None) -> Iterator[Source]:
    """The runs that a folder itself holds. Event files beside a better source of the same run are left out."""
    if only in (None, "huggingface") and huggingface.is_output(folder):
        yield "huggingface", str(folder)
        of_trainer = only is None
    if only in (None, "mlflow") and mlflow.is_run(folder):
        yield "mlflow", str(folder)
        return
    try:
        files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    except OSError:
        return
    if only in (None, "wandb") and any(file.suffix == ".wandb" for file in files):
        yield "wandb", str(folder)
        return
    better = of_trainer
    for file in files if not of_trainer else ():
        if file.suffix.lower() in (".csv", ".parquet", ".db"):
            try:
                reader = reader_of(file)
            except ImportProblem:
                reader = "table"  # which says what is wrong
            if only in (None, reader.partition("-")[0]):
                yield reader, str(file)
                better = better or reader == "lightning"
    if any(tensorboard.is_event_file(file.name) for file in files) and only in (None, "tensorboard") and not better:
        yield "tensorboard", str(folder)
