"""Training curves for the commands: isoflop's records, and folders with an index.csv and a file a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.fit.forecast import FinishedRun
    from isoflop.record import Run


@dataclass
class Curves:
    """What was read.

    Attributes:
        published: runs of folders with an index.csv, all finished.
        records: isoflop's records.
        problems: what could not be read, and why.
    """

    published: list[FinishedRun] = field(default_factory=list)
    records: list[Run] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read(paths: Sequence[Path]) -> Curves:
    """Read files and folders.

    Raises:
        ValueError, OSError: a path that is not there, or nothing in any of them.
    """
    from isoflop.fit.forecast import read_curves
    from isoflop.record import read_runs

    found = Curves()
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: expected a record, or a folder with records or an index.csv; it does not exist")
        if (path / "index.csv").is_file():
            found.published.extend(read_curves(path))
        else:
            found.records.extend(read_runs(path, on_problem=found.problems.append))
    if not (found.published or found.records):
        raise ValueError(
            f"no runs in {', '.join(map(str, paths))}: expected isoflop's records (isoflop-*.jsonl), or a folder with "
            "an index.csv" + "".join(f"; {problem}" for problem in found.problems[:3])
        )
    return found
