"""A ladder's plan and its YAML file: the runs to train, and how well the ladder is expected to answer.

Files are read strictly: every error names the field's path, what was expected and what was found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct, ValidationError, convert, field, json

from isoflop.record.run import PREFERRED_N

PLAN_VERSION = 1
"""Layout of the file; other versions are refused."""


Text = Annotated[str, Meta(min_length=1)]
Count = Annotated[int, Meta(ge=1)]
CountFromZero = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0, le=1e300)]


class PlanError(ValueError):
    """A plan that can't be read; the text names the field, what was expected and what was found."""


class PlannedRun(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One run of the ladder, with a learning-rate schedule that ends at its own last step.

    Attributes:
        name: unique in the plan, fit for a folder's name.
        rung: which budget it belongs to, 0 the smallest.
        config: the model: "family", "depth", "width", "heads", "head_dim", "mlp_width", "vocab_size",
            "sequence_length", "tied" … (`isoflop.ladder.sizes`), plain values only.
        parameters: N by convention (`isoflop.record.run.PREFERRED_N`).
        tokens: D, a whole number of steps: steps · batch_tokens.
        batch_tokens: tokens of an optimizer step, a whole number of sequences.
        steps: optimizer steps.
        warmup_steps: of them with a rising learning rate.
        learning_rate: peak, of Adam's kind of optimizer.
        flops: model FLOPs of its training, forward and backward, attention in full.
        seed: of its weights and its order of data.
        decay_steps: last steps in which the rate decays after a constant one; None: from warm-up on.
        branch_of: the longer run of this size whose steps it shares until its decay begins; None: it starts anew.
    """

    name: Text
    rung: CountFromZero
    config: Mapping[str, Any]
    parameters: Mapping[str, Count]
    tokens: Count
    batch_tokens: Count
    steps: Count
    warmup_steps: CountFromZero
    learning_rate: Positive
    flops: Positive
    seed: CountFromZero = 0
    decay_steps: Count | None = None
    branch_of: Text | None = None

    @property
    def first_step(self) -> int:
        """Steps that it shares with the run that it branches off; 0 where it starts anew."""
        return 0 if self.branch_of is None else self.steps - (self.decay_steps or 0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: what the YAML holds, and what `train(config)` is called with."""
        return _plain(self)


class ExpectedInterval(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Expected interval of one quantity at the target after the ladder, known before a FLOP is spent.

    Attributes:
        estimate: before the ladder.
        low, high: the interval that the ladder's fit is expected to give about it, at the plan's level.
        even_low, even_high: the same for an even grid of sizes and budgets with the same spend and number of runs.
        known_low, known_high: what is known without a run; of the loss: of Chinchilla's corpus, not of another.
    """

    estimate: Positive
    low: Positive
    high: Positive
    even_low: Positive | None = None
    even_high: Positive | None = None
    known_low: Positive | None = None
    known_high: Positive | None = None


class LadderPlan(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The runs that tell most about the target for the spend.

    Attributes:
        target_flops: compute budget of the target run.
        spend_flops: what the ladder may cost; `flops` is what its runs cost.
        family: of the models, such as "gpt2" or "llama".
        vocab_size: entries of the tokenizer.
        sequence_length: tokens.
        convention: which parameters N counts in `expected` and in fits.
        runs: smallest rung first.
        level: of the expected intervals.
        expected: by quantity, "N_opt", "D_opt" and "loss" (nats per token).
        rules: by what they decide ("sizes", "learning_rate", "batch", "schedule", "design"): the rule and its source.
        warnings: reasons to rely less on it.
        unique_tokens: the stock of data; None: unlimited.
        history_runs: finished runs whose information the design counts on.
    """

    target_flops: Positive
    spend_flops: Positive
    family: Text
    vocab_size: Count
    sequence_length: Count
    convention: Text
    runs: tuple[PlannedRun, ...]
    level: Positive
    expected: Mapping[str, ExpectedInterval]
    rules: Mapping[str, Text] = field(default_factory=dict)
    warnings: tuple[Text, ...] = ()
    unique_tokens: Positive | None = None
    history_runs: CountFromZero = 0

    @property
    def flops(self) -> float:
        """Training FLOPs of all runs; steps that branches share count once."""
        return math.fsum(run.flops * (1 - run.first_step / run.steps) for run in self.runs)

    def as_dict(self) -> dict[str, Any]:
        """Plain values: the object in the YAML file and of `--json`."""
        return {"version": PLAN_VERSION, **_plain(self)}


def _plain(value: Struct) -> Any:
    """Without tuples and numpy's numbers, which YAML's safe dialect does not know."""
    return json.decode(json.encode(value, enc_hook=lambda number: number.item()))


def _plan_from(found: object) -> LadderPlan:
    values = dict(found) if isinstance(found, dict) else found
    version = values.pop("version", None) if isinstance(values, dict) else PLAN_VERSION
    if version != PLAN_VERSION:
        raise PlanError(f"version: expected {PLAN_VERSION}, got {version!r}: plan the ladder anew with this isoflop")
    try:
        plan = convert(values, LadderPlan, strict=False)  # numbers may be texts: YAML 1.1 reads 1e21 as one
    except ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        raise PlanError(f"{place.strip('.`') or 'the plan'}: {text[0].lower()}{text[1:]}") from None
    if plan.convention not in PREFERRED_N:
        raise _refused("convention", f"one of {', '.join(PREFERRED_N)}", plan.convention)
    if plan.level >= 1:
        raise _refused("level", "a probability between 0 and 1", plan.level)
    if not plan.runs:
        raise _refused("runs", "at least one run", [])
    for i, run in enumerate(plan.runs):
        _check_run(f"runs[{i}]", run)
    names = [run.name for run in plan.runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise PlanError(f"runs: expected a name of its own for each, got {twice[0]!r} more than once")
    before_decay = {run.name: run.steps - (run.decay_steps or 0) for run in plan.runs if run.branch_of is None}
    for i, run in enumerate(plan.runs):
        if run.branch_of and (run.decay_steps is None or run.first_step > before_decay.get(run.branch_of, -1)):
            expected = "a run that starts anew and has not decayed where this one's decay_steps begin"
            raise _refused(f"runs[{i}].branch_of", expected, run.branch_of)
    return plan


def _check_run(path: str, run: PlannedRun) -> None:
    if run.name in (".", "..") or not all(letter.isalnum() or letter in "-_." for letter in run.name):
        raise _refused(f"{path}.name", "letters, digits, '-', '_' and '.', fit for a folder", run.name)
    for name in PREFERRED_N:
        if name not in run.parameters:
            raise PlanError(f"{path}.parameters.{name}: missing")
    planned = run.steps * run.batch_tokens
    if run.tokens != planned:
        raise _refused(f"{path}.tokens", f"steps · batch_tokens = {planned}", run.tokens, ": change them together")
    for name, steps in (("warmup_steps", run.warmup_steps), ("decay_steps", run.decay_steps or 0)):
        if steps >= run.steps:
            raise _refused(f"{path}.{name}", f"fewer than the {run.steps} steps", steps)


def _refused(path: str, expected: str, found: object, todo: str = "") -> PlanError:
    text = repr(found)
    shown = text if len(text) <= 60 else text[:57] + "…"
    return PlanError(f"{path}: expected {expected}, got {type(found).__name__} {shown}{todo}")


def write_plan(plan: LadderPlan, path: Path | str) -> None:
    """Write a plan as YAML."""
    import yaml

    text = yaml.safe_dump(plan.as_dict(), sort_keys=False, allow_unicode=True, width=120)
    Path(path).write_text(text, encoding="utf-8")


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
    except RecursionError:
        raise PlanError(f"{path}: expected a ladder's plan in YAML, got brackets nested too deeply") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise PlanError(f"{path}: expected a ladder's plan in YAML, got something else: {error}") from None
    try:
        return _plan_from(found)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from None
