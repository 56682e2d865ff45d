"""The ladder: plan small runs, train them, and learn from them what the large run should be. No torch, no trainer.

Nothing is imported before it is used: the processes that train a ladder's runs load neither SciPy nor the design.
"""

# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.ladder.fit import FinishedRuns, LadderFit, fit_ladder_runs, read_finished
    from isoflop.ladder.plan import ExpectedInterval, LadderPlan, PlanError, PlannedRun, read_plan, write_plan
    from isoflop.ladder.planning import plan_ladder
    from isoflop.ladder.recipe import TrainingRecipe, flops_with_attention, recipe_of
    from isoflop.ladder.run import LadderRun, run_ladder
    from isoflop.ladder.sizes import Family, Shape, family_of, size_grid

__getattr__ = face(
    __name__,
    {
        "fit": "FinishedRuns LadderFit fit_ladder_runs read_finished",
        "plan": "ExpectedInterval LadderPlan PlanError PlannedRun read_plan write_plan",
        "planning": "plan_ladder",
        "recipe": "TrainingRecipe flops_with_attention recipe_of",
        "run": "LadderRun run_ladder",
        "sizes": "Family Shape family_of size_grid",
    },
)
