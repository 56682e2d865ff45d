"""The data that a report rests on: a row for each run, and how what is in them was counted and made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.fit.laws import compute_of
from isoflop.record import Run
from isoflop.show.figures import Study
from isoflop.show.figures.words import counted


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
