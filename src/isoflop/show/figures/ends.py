"""Where runs ended: what a law is fitted to; of each that does not count, why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.fit.ends import at_end, unfinished
from isoflop.show.figures.curve import RunCurve


@dataclass(frozen=True)
class RunEnd:
    """The end of a run; unknown is None.

    Attributes:
        name: for people.
        N: parameters, of the study's convention.
        D: tokens.
        loss: nats per token: of the training loss the mean over the last 5% of its steps, of an evaluation the last.
        flops: training FLOPs as measured.
        run_id: of its record; None: a row of a table.
        left_out: why it does not count as a finished run; "": it does.
    """

    name: str
    N: float | None = None
    D: float | None = None
    loss: float | None = None
    flops: float | None = None
    run_id: str | None = None
    left_out: str = ""


def end_of_curve(curve: RunCurve, loss: str, convention: str) -> RunEnd:
    """The end of a recorded run.

    Args:
        curve: the run.
        loss: `train` or eval/<name>.
        convention: which parameters N counts.
    """
    N = curve.size(convention)
    known = np.flatnonzero(curve.known(loss, curve.tokens))
    values = curve.losses.get(loss, np.empty(0))
    fine = known[np.isfinite(values[known])]
    why = unfinished(curve.run, int(curve.step[-1]) if len(curve.step) else 0)
    if not len(fine):
        return RunEnd(curve.name, N, run_id=curve.run_id, left_out=why or f"it has no loss {loss!r} with its tokens")
    last = fine[at_end(curve.step[fine], loss)]
    if not why and N is None:
        why = f"its parameters ({convention.replace('_', ' ')}) are not known"
    if not why and known[-1] != fine[-1]:
        why = "its last loss is no finite number"
    flops = float(curve.flops[fine[-1]])
    return RunEnd(
        curve.name,
        N,
        float(curve.tokens[fine[-1]]),
        float(values[last].mean()),
        flops if np.isfinite(flops) else None,
        curve.run_id,
        why,
    )


def ends_of_table(columns: Mapping[str, ArrayLike], names: Sequence[str] | None = None) -> tuple[RunEnd, ...]:
    """Rows of a table of finished runs, such as `isoflop.fit.fitting.table.read_table` gives.

    Args:
        columns: "N" parameters, "D" tokens, "loss" nats per token; "C" FLOPs where they were counted.
        names: what to call each row.
    """
    N, D, L = (np.asarray(columns[name], dtype=float) for name in ("N", "D", "loss"))
    C = np.asarray(columns["C"], dtype=float) if "C" in columns else np.full(len(N), np.nan)
    called = names or [f"row {i + 1}" for i in range(len(N))]
    return tuple(
        RunEnd(str(name), float(n), float(d), float(loss), float(c) if np.isfinite(c) else None)
        for name, n, d, loss, c in zip(called, N, D, L, C, strict=True)
    )


def said(loss: str) -> str:
    """A loss in a sentence."""
    return "a training loss" if loss == "train" else f"the loss {loss!r}"
