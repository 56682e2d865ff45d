"""The lines of a run's end: where the compute went, what was judged and is fine, what was not, what the next run wants.

What the run was advised on is never called fine: it is listed as what stood to the end, or no longer held.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from isoflop.advice import (
    Advice,
    Evaluated,
    Missing,
    Quantity,
    Reason,
    Severity,
    Situation,
    Thresholds,
    count,
    falling_loss,
    planned,
    plateau_sought,
    rate_unjudged,
)
from isoflop.console import by_reason
from isoflop.flops.config_shape import FORMULA, GIVEN, SIX_ND
from isoflop.forecast import usable
from isoflop.live.log_step import LogStep

SIZE, BATCH, TARGET = "whether the size fits the data", "the batch size", "whether the target will be reached"
"""Subjects of `Missing`."""
PRETRAINING = "published results are of dense language models, trained from scratch on text"
"""What this run is instead was said once, at its start."""
RATE = {Reason.RATE_HIGH, Reason.RATE_LOW, Reason.SCHEDULE, Reason.DECAY_HIGH}
CURVE = {Reason.DIVERGING, Reason.OFF_CURVE, Reason.RESUMED, Reason.PLATEAU, Reason.UNFALLEN, Reason.UNCHANGED}
RISES = {Reason.DIVERGING, Reason.OFF_CURVE, Reason.RESUMED}
"""Advice that stands where the run ended above its best."""
LOSS = CURVE | {Reason.OVERFITTING, Reason.BELOW_CURVE, Reason.TOO_LOW}
"""Advice that holds beside which the learning rate, or the loss, is not called fine."""
MOST_SPENT = 8
"""Numbers in the line of a run's end."""
SHORT = 0.05
"""Of the planned steps: a run that ended with more of them left says nothing of the next one's size."""


def _evaluated(name: str, points: Sequence[Evaluated]) -> str:
    """The last evaluation of a set, beside the training loss around it; where it is no number, the last that was."""
    last = points[-1]
    if not usable(last.loss):
        before = next((f" ({each.loss:.3f} at step {each.step:,})" for each in points[::-1] if usable(each.loss)), "")
        return f"{name} {last.loss:.3g} at step {last.step:,}{before}"
    if last.train is None:
        return f"{name} {last.loss:.3f} at step {last.step:,}"
    return f"{name} {last.loss:.3f} ({last.loss - last.train:+.3f} from the training loss of {last.train:.3f})"


def _counted(method: str) -> str:
    """What FLOPs are by the way of their count."""
    return "stated" if GIVEN in method else "estimated" if FORMULA in method or SIX_ND in method else "measured"


def _target(run: Situation, final: float | None) -> str:
    """The user's target beside the loss that the run ended with."""
    if run.forecast_of.startswith("eval/"):
        points = run.evaluations.get(run.forecast_of.removeprefix("eval/"))
        final = points[-1].loss if points else None
    if run.target_loss is None or final is None:
        return ""
    reached = "reached" if final <= run.target_loss else "not reached"  # NaN reaches none
    return f"target of {run.target_loss:.3f} {reached}: {final:.3f}"


def closing_lines(
    run: Situation,
    step: LogStep,
    advice: Sequence[Advice],
    gone: Sequence[Advice],
    missing: Sequence[Missing],
    shape: Sequence[str] = (),
    loss_unjudged: str = "",
    final: float | None = None,
    ended: str = "",
) -> list[str]:
    """Lines for the terminal.

    Args:
        run, step: as it ended.
        advice: what still holds.
        gone: what was given and does not hold any more.
        missing: what was not judged, and why.
        shape: why laws may not hold for a shape like the model's.
        loss_unjudged: why the loss can't be judged.
        final: training loss at the end.
        ended: where the loss ended, and what its best was, where that is not the same.
    """
    through = "" if run.N is None else f" through {count(run.N)} parameters (N with the head)"
    spent = [(f"{count(run.tokens)} tokens" if run.tokens else "tokens unknown") + through]
    if run.flops:
        spent.append(f"{count(run.flops)} FLOPs {_counted(str(step.counting.get('method')))}")
    if run.seconds:
        spent.append(str(Quantity("", run.seconds / 3600, "hours")).removeprefix(" = ") + " of training")
    if "isoflop/goodput" in step.scalars:
        spent.append(f"goodput {step.scalars['isoflop/goodput']:.0%}")
    spent += [_evaluated(name, points) for name, points in run.evaluations.items()]
    lines = [f"isoflop: the run is over: {', '.join(spent[:MOST_SPENT])}."]
    # judged as done: what this compute could have bought, and so the next run's size
    done = replace(run, tokens_per_step=run.tokens and run.tokens / max(run.step, 1))
    judged = planned(done, Thresholds(frontier_steps=0.0)) if (run.left or 0.0) <= SHORT else None
    if isinstance(judged, Advice) and (run.line is not None or judged.severity > Severity.NOTE):
        lines.append(f"isoflop: for the next run: {planned(done, Thresholds(waste=float('inf')))}")
    if shape:
        lines.append(f"isoflop: a note on the model's shape, no verdict: {'; '.join(shape)}.")
    held = [each for each in advice if each.severity >= Severity.INFO]
    if ended:
        held += [each for each in gone if each.reason in RISES]
        gone = [each for each in gone if each.reason not in RISES]
    if ended and not run.task.falls:
        loss_unjudged, ended = loss_unjudged or f"it {ended}", ""
    if held:
        lines.append("isoflop: advice that stood to the end: " + "; ".join(each.title for each in held) + ".")
    if gone:
        found = ", ".join(f"{each.title} (step {each.step:,})" for each in gone)
        lines.append(f"isoflop: advice that no longer held at the end: {found}.")
    target = _target(run, final)
    missing = [each for each in missing if not (target and each.what == TARGET)]
    fine, unjudged = _verdict(run, step, {each.reason for each in (*held, *gone)}, missing, loss_unjudged, bool(ended))
    several = by_reason(unjudged).items()
    each_why = [f"{' and '.join(', '.join(whats).rsplit(', ', 1))} ({why})" for why, whats in several]
    parts = [f"fine: {', '.join(fine)}"] * bool(fine) + [target] * bool(target)
    parts += [f"the loss {ended}"] * bool(ended)
    parts += [f"not judged: {', '.join(each_why)}"] * bool(each_why)
    lines[0] += f" Verdict: {'; '.join(parts)}." if parts else ""
    return lines


def _verdict(
    run: Situation, step: LogStep, held: set[Reason], missing: Sequence[Missing], loss_unjudged: str, ended: bool
) -> tuple[list[str], list[tuple[str, str]]]:
    """What was judged and is fine; what was not judged, and why. What the run was advised on is neither.

    `ended`: the loss ended above its best, as is said elsewhere.
    """
    why = {each.what: each.why for each in missing}
    size, batch = why.pop(SIZE, ""), why.pop(BATCH, "" if run.batch_wanted else "noise_scale='off'")
    ratio = f"{count(run.planned_tokens / run.N)} tokens per parameter" if run.planned_tokens and run.N else ""
    share_of, scale = "", step.scalars.get("isoflop/b_simple")
    if run.batch is not None:
        over = run.batch.tokens / run.batch.critical.value
        share_of = f"{over:.2g} of the critical size"
        if not batch and not Thresholds.batch_small <= over <= Thresholds.batch_large:
            batch = f"{share_of}, but not surely"
    if batch and scale is not None:
        batch += f"; the noise scale so far is {count(scale)} tokens"
    loss = falling_loss(run) or loss_unjudged
    rows = (
        ("size", ratio, size, {Reason.TOO_LARGE, Reason.TOO_SMALL}),
        ("batch", share_of, batch, {Reason.BATCH_LARGE, Reason.BATCH_SMALL}),
        ("learning rate", f"peak {run.peak_rate or 0.0:.3g}", rate_unjudged(run), RATE),
        ("loss", f"no divergence{', no plateau' if plateau_sought(run) else ''}", loss, held if ended else LOSS),
    )
    fine = [f"{what} ({shown})" for what, shown, reason, advised in rows if not reason and not held & advised]
    unjudged = [(what, reason) for what, _, reason, advised in rows if reason and not held & advised]
    if run.task.unlike_pretraining:  # one cause
        unjudged = [(what, reason if what == "loss" else PRETRAINING) for what, reason in unjudged]
    return fine, unjudged + [(each.what, each.why) for each in missing if not each.quiet and each.what in why]
