"""The ladder: plan small runs, read what they tell, size the large one. NumPy and SciPy; no torch, no trainer."""

from isoflop.ladder.fit import LadderFit, fit_ladder_runs
from isoflop.ladder.plan import Expected, LadderPlan, PlanError, PlannedRun, plan_text, read_plan, write_plan
from isoflop.ladder.planning import plan_ladder

__all__ = [
    "Expected",
    "LadderFit",
    "LadderPlan",
    "PlanError",
    "PlannedRun",
    "fit_ladder_runs",
    "plan_ladder",
    "plan_text",
    "read_plan",
    "write_plan",
]
