"""What carries a ladder's runs: processes of this machine, Ray, Slurm; each imports its package when it runs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from isoflop.ladder.attempt import Job


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the runs may use.

    Attributes:
        workers: runs at one time; None: as many as there are processors or devices for.
        cpus_per_run: processors of each.
        gpus_per_run: devices of each; a part of one under Ray alone.
        retries: further attempts at a run that fails, or whose process dies.
        slurm: options of the scheduler by name: partition, time, account …
        folder: of this machine, for what the engine itself keeps.
    """

    workers: int | None = None
    cpus_per_run: int = 1
    gpus_per_run: float = 0.0
    retries: int = 1
    slurm: Mapping[str, str] = field(default_factory=dict)
    folder: Path = Path("runs")


ENGINES = ("ray", "slurm", "local")


class Engine(Protocol):
    """Makes attempts at all jobs, each again as often as it may be; a run that fails does not stop the others."""

    def __call__(self, jobs: Sequence[Job], resources: Resources, ended: Callable[[str], None]) -> None:
        """`ended` is called with a run's name when no further attempt at it is made.

        Raises:
            ValueError: its package is not installed, or an option that it can't take.
        """
        ...


def engine_of(name: str) -> Engine:
    """The engine of a name: "local", "ray" or "slurm".

    Raises:
        ValueError: there is none of this name.
    """
    if name not in ENGINES:
        raise ValueError(f"--engine: expected {', '.join(ENGINES)}, got {name!r}")
    engine: Engine = importlib.import_module(f"{__name__}.{name}").run
    return engine
