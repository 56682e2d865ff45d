"""The ladder: plan small runs, train them, and learn from them what the large run should be. No torch, no trainer.

Nothing is imported before it is used: the processes that train a ladder's runs load neither SciPy nor the design.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.ladder.fit import LadderFit, fit_ladder_runs
    from isoflop.ladder.plan import Expected, LadderPlan, PlanError, PlannedRun, plan_text, read_plan, write_plan
    from isoflop.ladder.planning import plan_ladder
    from isoflop.ladder.run import LadderRun, run_ladder

__all__ = [
    "Expected",
    "LadderFit",
    "LadderPlan",
    "LadderRun",
    "PlanError",
    "PlannedRun",
    "fit_ladder_runs",
    "plan_ladder",
    "plan_text",
    "read_plan",
    "run_ladder",
    "write_plan",
]

_HOME = {
    "LadderFit": "fit",
    "fit_ladder_runs": "fit",
    "plan_ladder": "planning",
    "LadderRun": "run",
    "run_ladder": "run",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in __all__:
        return getattr(import_module(f"isoflop.ladder.{_HOME.get(name, 'plan')}"), name)
    raise AttributeError(f"module 'isoflop.ladder' has no attribute {name!r}")
