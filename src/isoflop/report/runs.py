"""Sources of a report: records and tables of finished runs, with a row, the shared facts and the advice of the runs."""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

from isoflop.advice import Quantity, Reason
from isoflop.figures import RunEnd, Study, ends_of_table
from isoflop.fit.table import read_table
from isoflop.record import SEVERITIES, Digest, Location, RecordError, Run, is_url, read_run, read_stream, record_files
from isoflop.record.reader import without_copies

LARGE = 1 << 20
"""Bytes of a record from which on it is thinned: some 2,000 points, more than a curve among many is drawn with."""
BLOCK = 1 << 20
"""Bytes of a large record that are read at once."""
PER_DOUBLING = 64
"""Points kept of it each time the run doubles: 210 a decade of a logarithmic axis."""


def read_record(path: str) -> tuple[Run, bool]:
    """Read a record, thinned where it is large, and whether it was; RecordError as of `isoflop.record.read_run`."""
    if is_url(path) or not os.path.isfile(path) or os.path.getsize(path) <= LARGE:
        return read_run(path), False
    digest = Digest(PER_DOUBLING)
    try:
        with open(path, "rb", buffering=0) as stream:
            while block := stream.read(BLOCK):
                digest.feed(block)
    except OSError as error:
        raise RecordError(f"Expected a record file that can be read at {path}, got: {error}.") from error
    if digest.problem is not None:
        return read_run(path), False
    return read_stream(io.BytesIO(digest.record()), path), True


@dataclass(frozen=True)
class Sources:
    """Runs of records, oldest first, and rows of tables, each the end of a run."""

    runs: tuple[Run, ...] = ()
    rows: tuple[RunEnd, ...] = ()
    taken: Mapping[str, str] = field(default_factory=dict)  # columns of the tables, by quantity
    problems: tuple[str, ...] = ()  # reasons for files that could not be read
    thinned: int = 0  # number of large records, of which some points were left out


def read_sources(
    paths: Sequence[Location], named: Mapping[str, str] | None = None, where: str | None = None
) -> Sources:
    """Read records, folders of records and CSV tables.

    Args:
        paths: records (.jsonl), folders with some, or URLs of these; every other file is a table.
        named: column of the tables by quantity ("N", "D", "loss", "C").
        where: condition on rows of the tables (`isoflop.fit.table.parse_where`).

    Raises:
        ValueError: a path does not exist, `where` without a table, or none of the files can be read.
    """
    records: dict[str, tuple[Run, bool]] = {}
    rows: list[RunEnd] = []
    taken: dict[str, str] = {}
    problems: list[str] = []
    for path in paths:
        if isinstance(path, Path) and not path.exists():
            raise ValueError(
                f"expected a record, a folder with records or a CSV file, got {path}, which does not exist"
            )
    tables = [path for path in paths if isinstance(path, Path) and not path.is_dir() and path.suffix != ".jsonl"]
    if where is not None and not tables:
        raise ValueError("--where picks rows of CSV tables, and there are records alone: name those that are meant")
    # C is taken where the user names it: by itself a column "flops" may be nominal
    wanted = ("N", "D", "loss", *(["C"] if "C" in (named or {}) else []))
    for path in paths:
        try:
            if path in tables:
                table = read_table([path], wanted, named, where)
                rows += ends_of_table(table.columns, table.rows, table.labels)
                rows += [RunEnd(name, left_out=why) for name, why in table.unused]
                taken |= table.taken
            else:
                for file in record_files((path,), problems.append):
                    _add_record(records, file, problems)
        except (ValueError, OSError) as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    if not records and not rows:
        raise ValueError(
            f"nothing to report on in {', '.join(map(str, paths))}: expected isoflop's records (isoflop-*.jsonl), "
            "folders with some, or CSV tables" + "".join(f"; {problem}" for problem in problems[:3])
        )
    known = without_copies((run for run, _ in records.values()), problems.append)
    runs = sorted(known, key=lambda run: (run.created, run.run_id))
    thinned = sum(thinned for _, thinned in records.values())
    return Sources(tuple(runs), tuple(rows), taken, tuple(problems), thinned)


def _add_record(records: dict[str, tuple[Run, bool]], file: str, problems: list[str]) -> None:
    real = file if is_url(file) else os.path.realpath(file)
    try:
        if real not in records:
            records[real] = read_record(file)
    except RecordError as error:
        problems.append(str(error))


@dataclass(frozen=True)
class RunRow(RunEnd):
    """A run in the report's table: its end, its C as measured or 6·N·D, and what its record says beside it."""

    C: float | None = None
    step: int | None = None
    planned: int | None = None
    status: str = ""  # "": a row of a table

    @property
    def measured(self) -> bool:
        """Whether C was counted during training."""
        return self.flops is not None

    @property
    def ratio(self) -> float | None:
        """Tokens per parameter."""
        return None if not self.N or self.D is None else self.D / self.N


def run_rows(study: Study) -> tuple[RunRow, ...]:
    """A row for each run of a study: records first, then tables; outliers of the fit among those left out."""
    far = {id(study.counted[run.row]): run for run in (study.fit.left_out if study.fit is not None else ())}
    rows = []
    for end, C, curve in zip_longest(study.ends, study.end_flops, study.curves):
        known: dict[str, Any] = dict(vars(end))
        if id(end) in far:
            known["left_out"] = f"outlier: the law expects a loss of {far[id(end)].expected:.4g}"
        if curve is not None:
            planned = curve.run.planned.get("steps")
            known["step"] = int(curve.step[-1]) if len(curve.step) else None
            known |= {"planned": planned if type(planned) is int else None, "status": curve.run.status}
        rows.append(RunRow(**known, C=float(C) if math.isfinite(C) else None))
    return tuple(rows)


# -- facts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """Something that runs share: its name, its value, and in how many runs it holds."""

    name: str
    value: str
    runs: int


def text_of(value: object, longest: int = 4000) -> str:
    """A recorded value where it is a text, cut; else ""."""
    return value[:longest] if isinstance(value, str) else ""


def number_of(value: object) -> float | None:
    """A recorded value where it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def _items(value: object) -> list[Any]:
    return value[:50] if isinstance(value, list) else []


def commit_of(run: Run) -> str:
    """The first twelve digits of the git commit, and whether files differed from it; "": unknown."""
    git = run.git or {}
    commit = text_of(git.get("commit"))[:12]
    return f"{commit} with uncommitted changes" if commit and git.get("dirty") else commit


def device_of(run: Run) -> str:
    """Number and name of the devices and their precision; "": unknown."""
    size, name = run.device.get("world_size"), text_of(run.device.get("name"))
    kind = text_of(run.device.get("dtype")) or text_of(run.device.get("precision"))
    many = f"{size} × " if isinstance(size, int) and size > 1 else ""
    return f"{many}{name}{f', {kind}' if kind else ''}" if name else ""


def _reasons(run: Run) -> list[str]:
    reasons = run.counting.get("reasons")
    return [f"{method}: {reason}" for method, reason in reasons.items()] if isinstance(reasons, dict) else []


_FACTS: tuple[tuple[str, Callable[[Run], Sequence[str | None]]], ...] = (
    ("FLOPs", lambda run: [text_of(run.counting.get("method"))]),
    ("FLOPs, convention", lambda run: [text_of(run.counting.get("convention"))]),
    ("not in a better way because", _reasons),
    ("operators without a formula", lambda run: [", ".join(map(str, _items(run.counting.get("uncounted"))))]),
    ("parameters", lambda run: [run.parameters_method]),
    ("losses", lambda run: [f"{name}: {unit}" for name, unit in run.loss_units.items()]),
    ("git commit", lambda run: [commit_of(run)]),
    ("trainer", lambda run: [run.framework]),
    ("model", lambda run: [text_of(run.model.get("class"))]),
    ("tokenizer", lambda run: [run.tokenizer]),
    ("data", lambda run: [run.data]),
    ("device", lambda run: [device_of(run)]),
)


def facts(runs: Sequence[Run]) -> tuple[Fact, ...]:
    """How FLOPs, parameters and tokens were counted; the code, libraries and machines."""
    found = [(name, [value for run in runs for value in values(run)]) for name, values in _FACTS]
    libraries = dict.fromkeys(name for run in runs for name in run.versions)
    found += [(name, [run.versions.get(name) for run in runs]) for name in libraries]
    return tuple(
        Fact(name, value, number)
        for name, values in found
        for value, number in Counter(value for value in values if value).most_common()
    )


# -- advice ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecordedAdvice:
    """An `Advice` as a run's record has it: values of the right kinds and of bounded length, else none."""

    run: str
    step: int
    time: float | None  # seconds since 1970
    severity: str  # one of `SEVERITIES`, or ""
    reason: str
    what: str
    label: str  # "Do"; of a run that has ended "Next time"
    do: str
    numbers: tuple[Quantity, ...]
    saves: tuple[Quantity, ...]
    basis: tuple[str, ...]
    probability: float | None
    level: float | None

    @property
    def why(self) -> str:
        """The reason in words."""
        known = Reason.__members__.get(self.reason.upper())
        return known.value if known else self.reason.replace("_", " ")

    @property
    def order(self) -> tuple[float, int]:
        """By time, then by step."""
        return self.time or 0.0, self.step


def recorded_advice(run: Run) -> list[RecordedAdvice]:
    """The advice that a run got during training."""
    return [_advice(run, item) for item in run.advice]


NEXT_TIME = {
    "overfitting": "take more data, fewer epochs, a smaller model or more regularisation; of this run keep the "
    "checkpoint with the lowest evaluation loss.",
    "past_efficient": "spend this compute on a larger model and fewer tokens.",
    "target": "plan for a loss within reach, or with more compute (`isoflop plan`).",
    "diverging": "lower the learning rate or skip the data at that step; go on from a checkpoint before it.",
    "plateau": "look at the data, the learning rate and the precision from there on; if the loss is as low as this "
    "data allows, end earlier.",
    "epochs": "take more data, or fewer epochs.",
}
"""What to do after a run has ended, where the advice was to stop it: by reason."""


def _advice(run: Run, item: Mapping[str, Any]) -> RecordedAdvice:
    severity, reason, what, do = (text_of(item.get(name)) for name in ("severity", "reason", "what", "do"))
    step, time, probability, level = (number_of(item.get(name)) for name in ("step", "time", "probability", "level"))
    ended = run.status != "running"
    return RecordedAdvice(
        run=run.name or run.run_id,
        step=int(step or 0),
        time=time,
        severity=severity if severity in SEVERITIES else "",
        reason=reason,
        what=what,
        label="Next time" if ended else "Do",
        do=NEXT_TIME.get(reason, do) if ended and do else do,
        numbers=_quantities(item.get("numbers")),
        saves=_quantities(item.get("saves")),
        basis=tuple(filter(None, map(text_of, _items(item.get("basis"))))),
        probability=probability if 0 <= (probability or 0) <= 1 else None,
        level=level,
    )


def _quantities(given: object) -> tuple[Quantity, ...]:
    found = []
    for row in _items(given):
        if isinstance(row, dict) and (value := number_of(row.get("value"))) is not None:
            ends = number_of(row.get("low")), number_of(row.get("high"))
            found.append(Quantity(text_of(row.get("name")), value, text_of(row.get("unit")), *ends))
    return tuple(found)


def latest_advice(runs: Iterable[Run], most: int = 200) -> tuple[RecordedAdvice, ...]:
    """The advice of all runs by time, the latest pieces."""
    return tuple(sorted((each for run in runs for each in recorded_advice(run)), key=lambda each: each.order)[-most:])
