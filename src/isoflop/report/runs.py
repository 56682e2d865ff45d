"""What a report is made from: records, rows of tables; what can't be read is named, and the rest goes on.

One record for the report: all of a usual one; of one with very many points so many each time they double.

The data that a report rests on: a row for each run, and how what is in them was counted and made.
"""

from __future__ import annotations

import io
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from isoflop.figures.study import Study
from isoflop.figures.text import counted
from isoflop.fit.runs import RunEnd, ends_of_table, read_table
from isoflop.laws.forms import compute_of
from isoflop.record.paths import Location, is_url
from isoflop.record.reader import read_run, read_stream, record_files
from isoflop.record.run import RecordError, Run
from isoflop.record.thinned import Digest

LARGE = 1 << 20
"""Bytes of a record from which on it is thinned: some 2,000 points, more than a curve among many is drawn with."""
BLOCK = 1 << 20
"""Bytes of a large record that are read at once."""
PER_DOUBLING = 64
"""Points kept of it each time the run doubles: 210 a decade of a logarithmic axis."""


@dataclass(frozen=True)
class Recorded:
    """A record as the report takes it.

    Attributes:
        run: with its points, thinned where there are very many.
        thinned: whether points were left out.
    """

    run: Run
    thinned: bool = False


def read_record(path: str) -> Recorded:
    """Read one.

    Raises:
        RecordError: as `isoflop.record.read_run`.
    """
    if is_url(path) or not os.path.isfile(path) or os.path.getsize(path) <= LARGE:
        return Recorded(read_run(path))
    digest = Digest(PER_DOUBLING)
    try:
        with open(path, "rb", buffering=0) as stream:
            while block := stream.read(BLOCK):
                digest.feed(block)
    except OSError as error:
        raise RecordError(f"Expected a record file that can be read at {path}, got: {error}.") from error
    if digest.problem is not None:
        return Recorded(read_run(path))
    return Recorded(read_stream(io.BytesIO(digest.record()), path), True)


@dataclass(frozen=True)
class Sources:
    """What was read.

    Attributes:
        records: oldest first.
        rows: of the tables, each a finished run.
        taken: which columns of the tables were what; empty without tables.
        problems: what could not be read, and why.
    """

    records: tuple[Recorded, ...] = ()
    rows: tuple[RunEnd, ...] = ()
    taken: Mapping[str, str] | None = None
    problems: tuple[str, ...] = ()


def read_sources(
    paths: Sequence[Location], named: Mapping[str, str] | None = None, where: str | None = None
) -> Sources:
    """Read records, folders of records and CSV tables.

    Args:
        paths: records (.jsonl), folders with some, or URLs of these; every other file is a table.
        named: column of the tables by what it is ("N", "D", "loss", "C").
        where: rows of the tables to take (`fit.fitting.where`).

    Raises:
        ValueError: a path that does not exist, or nothing that can be read in any.
    """
    for path in paths:
        if isinstance(path, Path) and not path.exists():
            raise ValueError(
                f"expected a record, a folder with records or a CSV file, got {path}, which does not exist"
            )
    records: dict[str, Recorded] = {}
    rows: list[RunEnd] = []
    taken: dict[str, str] = {}
    problems: list[str] = []
    for path in paths:
        if isinstance(path, str) or path.is_dir() or path.suffix == ".jsonl":
            for file in record_files((path,), problems.append):
                real = file if is_url(file) else os.path.realpath(file)
                try:
                    if real not in records:
                        records[real] = read_record(file)
                except RecordError as error:
                    problems.append(str(error))
            continue
        try:
            found, columns = _table(path, named or {}, where)
        except (ValueError, OSError) as error:
            problems.append(str(error) if str(path) in str(error) else f"{path}: {error}")
        else:
            rows += found
            taken |= columns
    if not records and not rows:
        expected = "isoflop's records (isoflop-*.jsonl), folders with some, or CSV tables"
        raise ValueError(
            f"nothing to report on in {', '.join(map(str, paths))}: expected {expected}"
            + "".join(f"; {problem}" for problem in problems[:3])
        )
    by_age = sorted(records.values(), key=lambda each: (each.run.created, each.run.run_id))
    return Sources(tuple(by_age), tuple(rows), taken or None, tuple(problems))


def _table(path: Path, named: Mapping[str, str], where: str | None) -> tuple[tuple[RunEnd, ...], Mapping[str, str]]:
    wanted = ("N", "D", "loss")
    # C is taken where the user names it: by itself a column "flops" may be nominal
    table = read_table([path], (*wanted, "C") if "C" in named else wanted, named, where)
    return ends_of_table(table.columns, table.rows), table.taken


@dataclass(frozen=True)
class RunRow:
    """One run; unknown is None.

    Attributes:
        name: a stranger's text.
        N: parameters, of the study's convention.
        D: tokens processed less padding.
        C: training FLOPs, as measured or 6·N·D.
        measured: whether C was counted while it trained.
        loss: nats per token, as the fit takes it.
        step, planned: optimizer steps done and planned.
        status: as its record says; "": a row of a table.
        left_out: why no law is fitted to it; "": it is.
        problems: what its record's reader had to skip.
    """

    name: str
    N: float | None
    D: float | None
    C: float | None
    measured: bool
    loss: float | None
    step: int | None
    planned: int | None
    status: str
    left_out: str
    problems: int = 0

    @property
    def ratio(self) -> float | None:
        """Tokens per parameter."""
        return None if not self.N or self.D is None else self.D / self.N


def run_rows(study: Study) -> tuple[RunRow, ...]:
    """A row for each run of a study: records first, then tables."""
    rows = []
    for i, end in enumerate(study.ends):
        curve = study.curves[i] if i < len(study.curves) else None
        planned = None if curve is None else curve.run.planned.get("steps")
        rows.append(
            RunRow(
                name=end.name,
                N=end.N,
                D=end.D,
                C=_finite(compute_of(end.N or math.nan, end.D or math.nan, end.flops or math.nan)),
                measured=end.flops is not None,
                loss=end.loss,
                step=int(curve.step[-1]) if curve is not None and len(curve.step) else None,
                planned=planned if isinstance(planned, int) else None,
                status="" if curve is None else curve.run.status,
                left_out=end.left_out,
                problems=0 if curve is None else len(curve.run.problems),
            )
        )
    return tuple(rows)


def _finite(value: ArrayLike) -> float | None:
    return float(value) if np.isfinite(value) else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fact:
    """Something that runs share: what it is, what it says, how many runs say so."""

    name: str
    value: str
    runs: int


def counting(runs: Sequence[Run]) -> tuple[Fact, ...]:
    """How FLOPs, parameters and tokens were counted."""
    facts = _shared("FLOPs", (_text(run.counting.get("method")) for run in runs))
    facts += _shared("FLOPs, convention", (_text(run.counting.get("convention")) for run in runs))
    facts += _shared("not in a better way because", (reason for run in runs for reason in _reasons(run)))
    facts += _shared("operators without a formula", (_listed(run.counting.get("uncounted")) for run in runs))
    facts += _shared("parameters", (run.parameters_method or "" for run in runs))
    units = (f"{name}: {unit}" for run in runs for name, unit in run.loss_units.items())
    return tuple(facts + _shared("losses", units))


def provenance(runs: Sequence[Run]) -> tuple[Fact, ...]:
    """Code, libraries and machines."""
    facts = _shared("git commit", (_commit(run) for run in runs))
    facts += _shared("trainer", (run.framework or "" for run in runs))
    facts += _shared("model", (_text(run.model.get("class")) for run in runs))
    facts += _shared("tokenizer", (run.tokenizer or "" for run in runs))
    facts += _shared("data", (run.data or "" for run in runs))
    facts += _shared("device", (_device(run) for run in runs))
    names = dict.fromkeys(name for run in runs for name in run.versions)
    for name in names:
        facts += _shared(name, (run.versions.get(name, "") for run in runs))
    return tuple(facts)


def _shared(name: str, values: Iterable[str]) -> list[Fact]:
    return [Fact(name, value, runs) for value, runs in Counter(filter(None, values)).most_common()]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else ""


def _reasons(run: Run) -> list[str]:
    reasons = run.counting.get("reasons")
    return [f"{method}: {reason}" for method, reason in reasons.items()] if isinstance(reasons, dict) else []


def _commit(run: Run) -> str:
    git = run.git or {}
    commit = _text(git.get("commit"))
    return f"{commit[:12]}{' with uncommitted changes' if git.get('dirty') else ''}" if commit else ""


def _device(run: Run) -> str:
    size = run.device.get("world_size")
    many = f"{size} × " if isinstance(size, int) and size > 1 else ""
    kind = _text(run.device.get("dtype")) or _text(run.device.get("precision"))
    name = _text(run.device.get("name"))
    return f"{many}{name}{f', {kind}' if kind else ''}" if name else ""


def extent(values: Iterable[float | None]) -> tuple[float, float] | None:
    """Least and most of what is known and positive; None: nothing is."""
    known = [value for value in values if value is not None and math.isfinite(value) and value > 0]
    return (min(known), max(known)) if known else None


def thinned_note(thinned: int) -> str:
    """What is said of large records."""
    return f"{counted(thinned, 'large record was', 'large records were')} read in part: evenly by the logarithm of time"
