"""The YAML file that carries a ladder's plan to whoever trains its runs."""

from __future__ import annotations

from pathlib import Path

from isoflop.ladder.plan import LadderPlan, PlanError
from isoflop.ladder.plan_fields import plan_from


def write_plan(plan: LadderPlan, path: Path | str) -> None:
    """Write a plan as YAML."""
    Path(path).write_text(plan_text(plan), encoding="utf-8")


def plan_text(plan: LadderPlan) -> str:
    """The plan as YAML."""
    import yaml

    return yaml.safe_dump(plan.as_dict(), sort_keys=False, allow_unicode=True, width=120)


def read_plan(path: Path | str) -> LadderPlan:
    """Read a plan.

    Raises:
        PlanError: no YAML, another version, a field that is missing, unknown or of another kind, or runs that
            contradict themselves; the text names the file and the field's path.
        OSError: the file can't be opened.
    """
    import yaml

    try:
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: expected a ladder's plan in YAML, got something else: {error}") from None
    try:
        return plan_from(found)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
