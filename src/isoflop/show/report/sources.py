"""What a report is made from: records, rows of tables; what can't be read is named, and the rest goes on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from isoflop.fit.fitting.table import read_table
from isoflop.record import RecordError
from isoflop.record.place import Place, is_url
from isoflop.record.read import record_files
from isoflop.show.figures import RunEnd, ends_of_table
from isoflop.show.report.reading import Recorded, read_record


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


def read_sources(paths: Sequence[Place], named: Mapping[str, str] | None = None, where: str | None = None) -> Sources:
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
