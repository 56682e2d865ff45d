"""Import of other tools' logs: found below the paths, read, completed with what the user says.

The tool that wrote a file is recognised by the content, so files may have any name.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from statistics import median

from isoflop.console import listed
from isoflop.logs import table, tensorboard, trackers, trainers
from isoflop.logs.convert import Doubt, Imported, NoLoss, assembled
from isoflop.logs.counts import SizeOf, size_of_config
from isoflop.logs.files import ImportProblem, csv_rows, dialect_of, head, plain, unpacked
from isoflop.logs.given import UNITS, Answers, Given
from isoflop.logs.logged import Logged
from isoflop.logs.names import role_of
from isoflop.logs.siblings import joined, without_copies, without_parts, without_ranks
from isoflop.logs.steps import by_step
from isoflop.record.lines import Problems
from isoflop.record.paths import describe_links, is_link_out, is_record
from isoflop.record.run import RecordError, Run

READERS: dict[str, Callable[[str, Given], list[Logged]]] = {
    "huggingface": trainers.read_trainer_state,
    "tensorboard": tensorboard.read,
    "lightning": table.read_lightning,
    "wandb": trackers.read_wandb_file,
    "wandb-api": trackers.read_wandb,
    "mlflow": trackers.read_mlflow_folder,
    "mlflow-api": trackers.read_mlflow,
    "trackio": trackers.read_trackio,
    "table": table.read,
    "lines": trainers.read,
}
"""Each reads a file, a folder or an address; `ImportProblem`: no such log, a broken one, or its client is missing."""
KINDS = tuple(reader for reader in READERS if "-" not in reader)
"""Kinds of logs, as `--from` names them."""
Source = tuple[str, str]  # a reader, and what it is to read
TABLES, LINES = (".csv", ".tsv", ".parquet", ".db"), (".jsonl", ".log", ".txt", ".out", ".ndjson")
EXPECTED = (
    "expected a Trainer's output or trainer_state.json, TensorBoard's event files, Lightning's metrics.csv, an offline "
    "run or a CSV export of W&B, MLflow's mlruns, trackio's database, a CSV or Parquet table, lines of JSON or a "
    "trainer's output with steps and losses, or a folder with some"
)
MOST_WITHOUT = 5  # Sets of columns without a loss, each named
NO_LOSSES = "no loss is in them: name its column with --loss COLUMN (an evaluation's with --loss eval/val=COLUMN)"
QUESTIONS = {
    "params": ("N is", "--params 124M (or --config config.json)", "--params NAME=124M", "fit and plan can't use"),
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
    """Runs, problems and questions of an import."""

    imported: tuple[Imported, ...]  # the runs, with what there is to say of each
    problems: tuple[str, ...]  # what could not be read, with file and line
    questions: tuple[str, ...]  # what is not in the logs, with the option that gives it
    refused: int = 0  # runs that were found, and could not be imported

    @property
    def runs(self) -> tuple[Run, ...]:
        """The runs alone."""
        return tuple(one.run for one in self.imported)


def import_runs(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    given: Given | None = None,
    *,
    kind: str | None = None,
    leave_out: Sequence[Path] = (),
    size_of: SizeOf | None = size_of_config,
) -> ImportResult:
    """Read other tools' logs; docs/import.md says what comes from where. `write_run` writes a run as a record.

    Args:
        paths: files, folders that are searched, `wandb:entity/project[/run]`, `mlflow:<tracking URI>[#experiment]`.
        given: what the user says of runs whose logs don't.
        kind: one of `KINDS`, where the content is not to be asked.
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
    names: dict[tuple[str, ...], None] = {}
    columns: set[str] = set()
    problems: list[str] = []
    refused: dict[str, list[str]] = {}  # sources by cause
    without: dict[str, list[tuple[Logged, NoLoss]]] = {}  # runs without a loss, by source
    read = _logs(
        [os.fspath(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)],
        _Search(kind, given, leave_out),
        problems,
    )
    for logged in joined(read):
        names[logged.names] = None
        columns.update(logged.columns, logged.columns.unused, logged.labels, logged.settings, logged.groups)
        columns.update(role.name for name in logged.columns if (role := role_of(name)) and role.kind == "loss")
        before, answers = len(problems), given.of(logged.names)
        problems.extend(logged.problems)
        try:
            one = assembled(_with_groups(by_step(logged, given.step), answers), answers, size_of, problems)
        except NoLoss as problem:
            without.setdefault(logged.source, []).append((logged, problem))
            del problems[before + 1 :]  # of a file that is no log, each cell would be one
        except ImportProblem as problem:
            refused.setdefault(problem.cause, []).append(logged.source)
        except RecordError as problem:
            problems.append(str(problem))
        else:
            imported.setdefault(one.run.run_id, one)
    kinds = len({lack.cause for empty in without.values() for _, lack in empty})
    for source, empty in without.items():
        if empty[0][0].ends and any(one.source == source for one in imported.values()):  # a table's other rows have one
            problems.append(f"{source}: no loss in {listed([logged.name for logged, _ in empty])}: left out")
            continue
        for _, lack in empty:  # a folder may hold a file a metric: one line then
            refused.setdefault(NO_LOSSES if kinds > MOST_WITHOUT else lack.cause, []).append(source)
    for cause, sources in refused.items():
        problems.append(f"{listed([*dict.fromkeys(sources)], most=1)}: {cause}")
    if names:
        problems.extend(given.of_nobody(names, columns))
    found, parts = without_parts(without_ranks(without_copies(tuple(imported.values()))))
    found = _named_apart(found)
    questions = (*_questions(found), *_doubts(found), *_ungrouped(found, given.group), *_early(found), *parts)
    return ImportResult(found, tuple(dict.fromkeys(problems)), questions, sum(map(len, refused.values())))


def _logs(paths: Iterable[str], search: _Search, problems: list[str]) -> Iterator[Logged]:
    """Runs that the readers find; a source that they can't read is a problem."""
    for path in paths:
        try:
            for reader, source in search.at(path):
                try:
                    yield from READERS[reader](source, search.given)
                except RecordError as problem:
                    problems.append(str(problem))
                except OSError as error:
                    problems.append(f"{source}: expected to be able to read it, got {error}")
        except ImportProblem as problem:
            problems.append(str(problem))
    problems.extend(search.links)


def _with_groups(logged: Logged, answers: Answers) -> Logged:
    """The run with what it is grouped by: columns of its file, hyperparameters, or columns of the table of answers."""
    known = {**logged.settings, **logged.groups, **answers.groups}
    asked = {name: plain(str(known[name])) for name in answers.given.group if name in known}
    return replace(logged, groups={**logged.groups, **answers.groups, **asked})


def _ungrouped(found: tuple[Imported, ...], groups: Sequence[str]) -> Iterator[str]:
    """One question a group that some runs lack."""
    for name in groups:
        lacking = [one.run.name for one in found if name not in one.run.extra["imported"].get("groups", {})]
        if 0 < len(lacking) < len(found):
            yield (
                f"--group {name}: {len(lacking)} of {len(found)} runs have no such column or hyperparameter "
                f"({listed(lacking)}); they are kept, without a group. To answer: --table runs.csv with the columns "
                f"run,{name}."
            )


STILL, OVER = 0.2, 2.5
"""A run ended early where its rate is still that part of its peak, and so many times what most runs end at."""


def _early(found: tuple[Imported, ...]) -> Iterator[str]:
    """Runs without a plan in the log that end in the middle of their decay, where most others end behind it."""
    ends = {}
    for one in found:
        rates = [point.lr for point in one.run.points if point.lr]
        if not one.run.planned and one.run.status == "completed" and rates:
            ends[one.run.name] = rates[-1] / max(rates)
    usual = median(ends.values()) if ends else 1.0
    early = [name for name, end in ends.items() if end > max(OVER * usual, STILL)]
    if early and 4 * len(early) <= len(ends):
        shares = listed([f"{name} ({ends[name]:.0%} of its peak rate)" for name in early])
        yield (
            f"the log ends in the middle of the decay of {shares}, where most runs end at {usual:.0%}: was it stopped? "
            "It is taken as finished. To answer: --table runs.csv with the columns run,total_steps."
        )


def _doubts(found: tuple[Imported, ...]) -> Iterator[str]:
    """One question a kind of doubt, with the first run that it is about."""
    by_kind: dict[tuple[str, ...], list[tuple[Imported, Doubt]]] = {}
    for one in found:
        for doubt in one.doubts:
            by_kind.setdefault((*doubt.of, doubt.answer), []).append((one, doubt))
    for (one, doubt), *others in by_kind.values():
        more = f" (and {len(others)} more)" if others else ""
        kept = "the loss is kept as it is" if doubt.of == ("loss",) else f"left out: {', '.join(doubt.of)}"
        how = f" To answer: {doubt.answer}." if doubt.answer else ""
        yield f"{one.source}, run {one.run.name}: {doubt.text}{more}; {kept}.{how}"


def _named_apart(found: tuple[Imported, ...]) -> tuple[Imported, ...]:
    """Runs of one name get their sources' folders in front, so that figures and tables tell them apart."""
    names = Counter(one.run.name for one in found)
    result = []
    for one in found:
        name = one.run.name
        if names[name] > 1 and os.path.exists(one.source):
            source = Path(os.path.abspath(one.source))
            above = [Path(os.path.abspath(each.source)) for each in found if each.run.name == name]
            depth = len(Path(os.path.commonpath(above)).parts)  # of the folder that all of them lie in
            first = Path(source.parts[depth]).stem if depth < len(source.parts) else source.stem
            one = replace(one, run=replace(one.run, name=f"{first}/{name}"))
        result.append(one)
    return tuple(result)


def _questions(found: tuple[Imported, ...]) -> Iterator[str]:
    """One question a missing quantity, for all runs that lack it."""
    for what, (subject, option, by_name, without) in QUESTIONS.items():
        lacking = [one for one in found if what in one.missing and all(what not in doubt.of for doubt in one.doubts)]
        if not lacking:
            continue
        hints = list(dict.fromkeys(one.hint for one in lacking if what == "tokens" and one.hint))[:2]
        where, how, them = lacking[0].source, option, "the run"
        if len(lacking) > 1:
            some = listed([one.run.name for one in lacking])
            many = "the" if len(lacking) == len(found) else f"{len(lacking)} of"
            where, them = f"{many} {len(found)} runs ({some})", "these runs"
            how = f"{option}, for single runs with {by_name} or --table runs.csv (run,params,tokens_per_step)"
        yield " ".join([f"{subject} not in {where}: give it with {how}.", *hints, f"Without it {without} {them}."])


@dataclass(frozen=True)
class _Search:
    """Finds the runs at a path: of one kind (None: of any), but for files that are left out."""

    kind: str | None
    given: Given
    leave_out: Sequence[Path]
    links: list[str] = field(default_factory=list)

    def at(self, path: str) -> list[Source]:
        """The runs at a path; links to folders in a folder are not followed, which `links` notes."""
        for prefix, reader in ((trackers.WANDB, "wandb-api"), (trackers.MLFLOW, "mlflow-api")):
            if path.startswith(prefix):
                return [(reader, path)]
        top = Path(path)
        if not top.exists():
            raise ImportProblem(f"{path} does not exist")
        if not top.is_dir():
            return [(self._reader_of(top, self.kind), path)]
        hidden = {os.path.realpath(one) for one in self.leave_out}
        found = [source for source in self._below(top) if os.path.realpath(source[1]) not in hidden]
        if not found:
            of_kind = f" of the kind {self.kind}" if self.kind else ""
            own = "; isoflop's own records in it are read as they are" if any(top.rglob("isoflop-*.jsonl")) else ""
            linked = f"; {self.links.pop()}" if self.links else ""
            raise ImportProblem(f"{path}: no log{of_kind} in it: {EXPECTED}{own}{linked}")
        return found

    def _below(self, top: Path) -> Iterator[Source]:
        """The runs in a folder and the folders below it, in the order of their names."""
        folders: list[tuple[Path, bool]] = [(top, False)]
        links: list[str] = []
        while folders:
            folder, of_trainer = folders.pop()
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                continue
            files = [entry.name for entry in entries if os.path.isfile(entry)]  # no links to nowhere, or in circles
            inside = list(self._in(folder, files, of_trainer))
            yield from inside
            kinds = {reader for reader, _ in inside}
            if kinds & {"mlflow", "wandb"}:
                continue
            of_trainer = of_trainer or "huggingface" in kinds
            passed = tuple(path.name for path in tensorboard.parts_of(folder)) if "tensorboard" in kinds else ()
            links += [entry.path for entry in entries if is_link_out(entry.path, top)]
            for entry in reversed(entries):
                checkpoint = of_trainer and entry.name.startswith("checkpoint-")
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".") and not checkpoint:
                    folders += [(folder / entry.name, of_trainer)] if entry.name not in passed else []
        if links:
            self.links.append(describe_links(top, links))

    def _in(self, folder: Path, files: list[str], of_trainer: bool) -> Iterator[Source]:
        """The runs that a folder itself holds. Event files beside a better source of the same run are left out."""
        only = self.kind
        if only in (None, "huggingface") and trainers.is_output(folder):
            yield "huggingface", str(folder)
            of_trainer = only is None
        if only in (None, "mlflow") and trackers.is_mlflow_run(folder):
            yield "mlflow", str(folder)
            return
        if only in (None, "wandb") and any(name.endswith(".wandb") for name in files):
            yield "wandb", str(folder)
            return
        better = of_trainer
        for file in (folder / name for name in files) if not of_trainer else ():
            ending = unpacked(file).suffix.lower()
            if ending in (*TABLES, *LINES):
                try:
                    reader = self._reader_of(file, None)
                except ImportProblem:
                    if ending in LINES:
                        continue  # a folder holds many texts that are no logs
                    reader = "table"  # which says what is wrong
                if only in (None, reader.partition("-")[0]):
                    yield reader, str(file)
                    better = better or reader == "lightning"
        if better or only not in (None, "tensorboard") or (only is None and _recorded(folder, files)):
            return
        if any(tensorboard.is_event_file(name) for name in files) or tensorboard.parts_of(folder):
            yield "tensorboard", str(folder)

    def _reader_of(self, path: Path, kind: str | None) -> str:
        """The reader of a file, by the kind that the user calls it or by its content."""
        start = head(path)
        if start.startswith(trackers.SQLITE) and kind in (None, "mlflow", "trackio"):
            return "trackio" if kind == "trackio" or (kind is None and trackers.is_trackio(path)) else "mlflow-api"
        if kind == "wandb" and not start.startswith(trackers.MAGIC) and path.suffix.lower() == ".csv":
            return "table"
        if kind is not None:
            return kind
        if start.startswith((trackers.MAGIC, table.PARQUET)):
            return "wandb" if start.startswith(trackers.MAGIC) else "table"
        if tensorboard.is_events(start):
            return "tensorboard"
        got = _no_text(start)
        if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
            if path.name == trainers.STATE or b'"log_history"' in start:
                return "huggingface"
            if b'"isoflop"' in start and b'"header"' in start:
                raise ImportProblem(f"{path}: is a record of isoflop's own: the commands read it as it is")
            got = "JSON of another kind"
        by_ending = unpacked(path).suffix.lower() in TABLES
        if got in (None, "JSON of another kind") and not by_ending and trainers.is_lines(path, self.given):
            return "lines"
        if got is None and (by_ending or _is_table(path)):
            return "lightning" if table.is_lightning(path) else "table"
        got = got or "text that is no table, without lines of steps and losses"
        raise ImportProblem(f"{path} is {got}: {EXPECTED}")


def _recorded(folder: Path, files: Sequence[str]) -> bool:
    """Whether a folder's events are of a run that isoflop recorded: its record is there, or above files of its own."""
    events = [name for name in files if tensorboard.is_event_file(name)]
    above = bool(events) and all(name.endswith(".isoflop") for name in events)
    records = [folder / name for name in files if is_record(name)]
    records += folder.parent.glob("isoflop-*.jsonl") if above else ()
    return any(b'"imported":' not in head(record, 1 << 20) for record in records)


def _no_text(start: bytes) -> str | None:
    """What a file is that begins so, if that is no text."""
    if not start:
        return "an empty file"
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "a compressed file: unpack it"
    return "a file of another kind" if b"\0" in start and dialect_of(start).encoding != "utf-16" else None


def _is_table(path: Path) -> bool:
    """True for text whose first rows have the same number of cells, more than one."""
    rows = list(islice(csv_rows(path, Problems(str(path))), 5))
    told = [cell for cell in rows[0] if re.search(r"[=:]\s*[\d.]|\s[\d.]+\s*$", cell)] if rows else []
    names = bool(rows) and 2 * len(told) < len(rows[0]) and not any("=" in cell for cell in told)
    return names and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1
