"""The ladder: plan small runs, train them, and learn from them what the large run should be. No torch, no trainer.

Nothing is imported before it is used: the processes that train a ladder's runs load neither SciPy nor the design.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.ladder.attempt import (
        AttemptFailed,
        Folders,
        Held,
        RunState,
        folders_of,
        hold,
        job_of,
        latest_checkpoint,
        state_of,
        write_status,
    )
    from isoflop.ladder.check import Described, LeftOut, Predicted, Verdict
    from isoflop.ladder.design import Bounds, Problem, Rung, best_design, even_grid, worth_of
    from isoflop.ladder.fit import Doubt, FinishedRuns, LadderFit, fit_finished, fit_ladder_runs, read_finished
    from isoflop.ladder.plan import ExpectedInterval, LadderPlan, PlanError, PlannedRun, read_plan, write_plan
    from isoflop.ladder.planning import designed, ladder_problem, plan_ladder
    from isoflop.ladder.rules import FEWEST_STEPS, all_steps, batch_rule, batch_sequences, covers, peak_rate, rate_rule
    from isoflop.ladder.run import LadderRun, Resources, local_slots, run_ladder, slurm_parameters
    from isoflop.ladder.sizes import Family, Shape, family_of, size_grid

__all__ = [
    "FEWEST_STEPS",
    "AttemptFailed",
    "Bounds",
    "Described",
    "Doubt",
    "ExpectedInterval",
    "Family",
    "FinishedRuns",
    "Folders",
    "Held",
    "LadderFit",
    "LadderPlan",
    "LadderRun",
    "LeftOut",
    "PlanError",
    "PlannedRun",
    "Predicted",
    "Problem",
    "Resources",
    "RunState",
    "Rung",
    "Shape",
    "Verdict",
    "all_steps",
    "attempt",
    "batch_rule",
    "batch_sequences",
    "best_design",
    "covers",
    "designed",
    "even_grid",
    "family_of",
    "fit_finished",
    "fit_ladder_runs",
    "folders_of",
    "hold",
    "job_of",
    "ladder_problem",
    "latest_checkpoint",
    "local_slots",
    "peak_rate",
    "plan_ladder",
    "rate_rule",
    "read_finished",
    "read_plan",
    "run_ladder",
    "size_grid",
    "slurm_parameters",
    "state_of",
    "worth_of",
    "write_plan",
    "write_status",
]  # fmt: skip

__getattr__ = face(
    __name__,
    {
        "attempt": "AttemptFailed Folders Held RunState folders_of hold job_of latest_checkpoint state_of write_status",
        "check": "Described LeftOut Predicted Verdict",
        "design": "Bounds Problem Rung best_design even_grid worth_of",
        "fit": "Doubt FinishedRuns LadderFit fit_finished fit_ladder_runs read_finished",
        "plan": "ExpectedInterval LadderPlan PlanError PlannedRun read_plan write_plan",
        "planning": "designed ladder_problem plan_ladder",
        "rules": "FEWEST_STEPS all_steps batch_rule batch_sequences covers peak_rate rate_rule",
        "run": "LadderRun Resources local_slots run_ladder slurm_parameters",
        "sizes": "Family Shape family_of size_grid",
    },
)
