"""The planner: a budget as somebody types it, answered as `isoflop plan --runs` answers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from isoflop.fit.frontier.checks import PF_DAY
from isoflop.record import Run

EXPECTED = "a budget in FLOPs, such as 1e21, or in PF-days, such as 10 PF-days"
LONGEST = 40
"""Characters of a budget."""
LEVEL = 0.8
"""Of the intervals, as `isoflop plan` has them."""
_BUDGET = re.compile(
    r"(?P<number>\d[\d,_]*\.?\d*(?:e[+-]?\d{1,3})?|\.\d+)\s*(?P<times>[kmbt])?\s*"
    r"(?P<unit>flops?|pf[\s/-]*s?[\s/-]*days?|pfd)?",
    re.IGNORECASE,
)
_TIMES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def budget_of(text: str) -> float:
    """FLOPs of a budget.

    Raises:
        ValueError: it is none; the message shows one.

    >>> budget_of("1e21"), budget_of("10 PF-days"), budget_of("2.5 pfd")
    (1e+21, 8.64e+20, 2.16e+20)
    """
    shown = text if len(text) <= LONGEST else text[:LONGEST] + "…"
    match = _BUDGET.fullmatch(text.strip()) if len(text) <= LONGEST else None
    if match is None:
        raise ValueError(f"expected {EXPECTED}; got {shown!r}")
    number = float(match["number"].replace(",", "").replace("_", "")) * _TIMES.get((match["times"] or "").lower(), 1.0)
    flops = number * (PF_DAY if (match["unit"] or "").lower().startswith("pf") else 1.0)
    if not (flops > 0 and math.isfinite(flops)):
        raise ValueError(f"expected {EXPECTED}, more than 0 and finite; got {shown!r}")
    return flops


def plan_for(runs: Sequence[Run], text: str) -> dict[str, Any]:
    """Parameters and tokens for a budget, by some runs; without any, by what others showed.

    Raises:
        ValueError: the text is no budget, or the runs can't be used: which and why.
    """
    from isoflop.fit.fitting.table import table_of_runs
    from isoflop.fit.planning.plan import plan

    flops = budget_of(text)
    table = table_of_runs(runs, ("N", "D", "loss")) if runs else None
    answer = plan(
        flops,
        own=None if table is None else {**table.columns, "C": table.C},
        level=LEVEL,
        convention="unknown" if table is None else table.convention,  # type: ignore[arg-type]
        rows=None if table is None else table.rows,
    )
    return {
        "budget": flops,
        "pf_days": flops / PF_DAY,
        "runs": len(table.rows) if table else 0,
        "N": answer.N,
        "D": answer.D,
        "L": answer.L,
        "flops": answer.flops,
        "tokens_per_param": answer.tokens_per_param,
        "intervals": {name: list(ends) for name, ends in (answer.intervals or {}).items()},
        "level": answer.level,
        "n_convention": answer.convention,
        "method": answer.method,
        "notes": [*(f"left out: {text}" for text in (table.left_out if table else ())), *answer.notes],
        "alternatives": [
            {"name": row.name, "N": row.N, "D": row.D, "L": row.L, "n_convention": row.convention}
            for row in answer.alternatives
        ],
    }
