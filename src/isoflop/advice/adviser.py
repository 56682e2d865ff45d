"""Runs the evaluators at a log step and says a thing once: when it begins to hold, not while it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from isoflop.advice import curve_rules as curve
from isoflop.advice import curve_rules as hardware
from isoflop.advice import curve_rules as schedule
from isoflop.advice import data_rules as batch
from isoflop.advice import data_rules as data
from isoflop.advice import size_rules as frontier
from isoflop.advice import size_rules as stopping
from isoflop.advice.advice import Advice, Missing, Reason, Severity, Thresholds
from isoflop.advice.run_state import Situation

Evaluator = Callable[[Situation, Thresholds], "Advice | Missing | None"]

AT_START: dict[str, Evaluator] = {"the frontier": frontier.planned}
"""Judged from the plan: once, and again where that changes."""
WHILE_TRAINING: dict[str, Evaluator] = {
    "the schedule": schedule.schedule,  # the learning rates to come are known after some log steps only
    "divergence": curve.diverging,
    "the curve": curve.off_curve,
    "the plateau": curve.plateau,
    "the target": stopping.target,
    "the stopping point": stopping.past_efficient,
    "the batch": batch.batch,
    "the epochs": data.epochs,
    "overfitting": data.overfitting,
    "the hardware": hardware.hardware,
}
EVALUATORS = {**AT_START, **WHILE_TRAINING}
PLANNED = (*AT_START, "the target", "the stopping point")
"""What rests on the planned end."""
AT_ONCE = (Reason.EPOCHS, Reason.SCHEDULE, Reason.FRONTIER, Reason.TOO_LARGE, Reason.TOO_SMALL, Reason.OVERFITTING)
"""Reasons from the plan, or that count a row of findings themselves."""
AGAIN = 0.1
"""Share of the planned run (or 20 log steps) before a reason that had gone is said again."""
AGAIN_LOGS = 20


@dataclass
class _Standing:
    """One evaluator's findings so far."""

    held: int = 0  # log steps in a row
    gone: int = 0
    said_at: int | None = None
    advice: Advice | None = None
    stood: int | None = None  # severity of what stood when the run was interrupted


class Adviser:
    """What stands now, and what is new.

    Args:
        thresholds: when something is said.
        failed: told of an evaluator that raised; it is not asked again.
    """

    def __init__(
        self, thresholds: Thresholds | None = None, failed: Callable[[str, Exception], None] | None = None
    ) -> None:
        self.thresholds = thresholds or Thresholds()
        self._missing: dict[str, Missing] = {}
        self._failed = failed
        self._aside: set[str] = set()
        self._standing: dict[str, _Standing] = {name: _Standing() for name in EVALUATORS}

    @property
    def missing(self) -> dict[str, str]:
        """What can't be judged → why."""
        return {each.what: each.why for each in self._missing.values()}

    @property
    def missing_aloud(self) -> dict[str, str]:
        """Of these what is worth a line while the run goes on."""
        return {each.what: each.why for each in self._missing.values() if not each.quiet}

    @property
    def current(self) -> tuple[Advice, ...]:
        """What has been said and still holds, the gravest first."""
        standing = [each.advice for each in self._standing.values() if each.advice is not None]
        return tuple(sorted(standing, key=lambda advice: (-advice.severity, advice.step)))

    def start(self, run: Situation) -> list[Advice]:
        """Judge the plan: returns what to say."""
        return self._ask(AT_START, run)

    def look(self, run: Situation) -> list[Advice]:
        """Judge the run at a log step: returns what is new."""
        return self._ask(WHILE_TRAINING, run)

    def forget(self, evaluators: Iterable[str]) -> None:
        """What these have said holds no longer, and may be said again."""
        for name in evaluators:
            self._standing[name] = _Standing()
            self._missing.pop(name, None)

    def _ask(self, evaluators: dict[str, Evaluator], run: Situation) -> list[Advice]:
        new = []
        for name, evaluate in evaluators.items():
            if name in self._aside:
                continue
            try:
                found = evaluate(run, self.thresholds)
            except Exception as error:  # one failing evaluator takes no other along
                self._aside.add(name)
                self._standing[name].advice = None
                if self._failed is None:
                    raise
                self._failed(name, error)
                continue
            self._missing.pop(name, None)
            if isinstance(found, Missing):
                self._missing[name] = found
                found = None
            if self._takes(self._standing[name], found, run):
                assert found is not None
                new.append(found)
        return new

    def _takes(self, standing: _Standing, found: Advice | None, run: Situation) -> bool:
        if found is None:
            standing.held, standing.gone = 0, standing.gone + 1
            if standing.gone >= self.thresholds.in_a_row:
                standing.advice = standing.stood = None
            return False
        standing.held, standing.gone = standing.held + 1, 0
        if standing.stood is not None:
            worse = found.severity > standing.stood
            standing.advice, standing.stood = found, None
            return worse
        if standing.advice is not None:
            worse = found.severity > standing.advice.severity
            standing.advice = found if worse else replace(found, step=standing.advice.step)
            return worse
        counted = found.reason in AT_ONCE or (found.severity is Severity.CRITICAL and run.nonfinite > 0)
        if standing.held < self.thresholds.in_a_row and not counted:
            return False
        again = AGAIN * run.total_steps if run.total_steps else AGAIN_LOGS
        if standing.said_at is not None and run.step - standing.said_at < again:
            standing.advice = found
            return False
        standing.advice, standing.said_at = found, run.step
        return True

    def state_dict(self) -> dict[str, Any]:
        """What was said, for a checkpoint: a resumed run does not say it again."""
        said = {name: each.said_at for name, each in self._standing.items() if each.said_at is not None}
        stands = {name: each.stood for name, each in self._standing.items() if each.stood is not None}
        stands |= {name: int(each.advice.severity) for name, each in self._standing.items() if each.advice is not None}
        return {"said": said, "stands": stands}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`."""
        for name, step in state["said"].items():
            if name in self._standing:
                self._standing[name].said_at = int(step)
                self._standing[name].stood = state["stands"].get(name)
