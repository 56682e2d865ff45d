"""The end of a run in a few lines: where the compute went, what the next run should be, what was not judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from isoflop.advise.advice import Advice, Quantity, Severity, count
from isoflop.advise.frontier import planned
from isoflop.advise.situation import Situation
from isoflop.advise.thresholds import Thresholds


def closing_lines(
    run: Situation,
    flops: int | None,
    goodput: float | None,
    advice: Sequence[Advice],
    missing: Mapping[str, str],
    shape: Sequence[str] = (),
) -> list[str]:
    """Lines for the terminal; empty where tokens or parameters are unknown.

    Args:
        run: as it ended.
        flops: measured, all ranks.
        goodput: training time over wall time.
        advice: what still held.
        missing: what was not judged, and why.
        shape: why laws may not hold for a shape like the model's.
    """
    if run.N is None or not run.tokens:
        return []
    spent = [f"{count(run.tokens)} tokens through {count(run.N)} parameters (N with the head)"]
    if flops:
        spent.append(f"{count(flops)} FLOPs measured")
    if run.seconds:
        spent.append(str(Quantity("", run.seconds / 3600, "hours")).removeprefix(" = ") + " of training")
    if goodput is not None:
        spent.append(f"goodput {goodput:.0%}")
    lines = [f"isoflop: the run is over: {', '.join(spent)}."]
    # judged as done: what this compute could have bought, and so the next run's size
    done = replace(run, total_steps=run.step, tokens_per_step=run.tokens / max(run.step, 1))
    verdict = planned(done, Thresholds(waste=float("inf")))
    if isinstance(verdict, Advice) and verdict.numbers:  # without, it says that the size can't be judged
        lines.append(f"isoflop: for the next run: {verdict}")
    if shape:
        lines.append(f"isoflop: a note on the model's shape, no verdict: {'; '.join(shape)}.")
    held = [each for each in advice if each.severity >= Severity.INFO]
    if held:
        lines.append("isoflop: stood to the end: " + "; ".join(each.reason.value for each in held) + ".")
    if missing:
        lines.append("isoflop: not judged: " + "; ".join(f"{what} ({why})" for what, why in missing.items()) + ".")
    return lines
