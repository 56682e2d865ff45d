"""Where a run is shown: each log step in the trainer's loggers, TensorBoard and the terminal; and the lines of its end.

Those say where the compute went, what was judged and is fine, what was not, what the next run wants. What the run was
advised on is never called fine: it is listed as what stood to the end, or no longer held.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

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
    falls_on,
    planned,
    rate_unjudged,
)
from isoflop.console import by_reason, html_table
from isoflop.flops.operators import FORMULA, GIVEN, SIX_ND
from isoflop.forecast import Forecast, NoForecast, usable
from isoflop.guard import declare
from isoflop.live.log_step import AXES, CHARTS, FRONTIER, TAGS, AxisPoint, ComputeAxes, LogStep, Part, log_step
from isoflop.live.run_info import RunInfo
from isoflop.record.lines import due


def interval_line(step: int, scalars: Mapping[str, float], as_of: int | None = None) -> str:
    """What a user reads while the model trains; unknown numbers are left out. `as_of`: step of an earlier forecast.

    >>> interval_line(1200, {"isoflop/loss": 2.4131, "isoflop/tokens_per_second_per_device": 10050.2,
    ...     "isoflop/tflops_per_device": 315.2, "isoflop/mfu": 0.318, "isoflop/goodput": 0.94})
    'step 1,200 · loss 2.413 · 10,050 tok/s/device · 315 TFLOP/s · MFU 31.8% · goodput 94%'
    >>> interval_line(7, {"isoflop/tokens_per_second_per_device": 900.0, "isoflop/padding_fraction": 0.2})
    'step 7 · 900 tok/s/device with padding'
    >>> interval_line(1300, {"isoflop/loss": 2.4, "isoflop/forecast_loss": 2.031, "isoflop/forecast_high": 2.044})
    'step 1,300 · loss 2.400 · ends at 2.031 ± 0.013'
    >>> interval_line(1300, {"isoflop/forecast_loss": 2.031, "isoflop/forecast_high": 2.044}, as_of=900)
    'step 1,300 · ends at 2.031 ± 0.013 (as of step 900)'
    """
    parts = [f"step {step:,}"]
    loss = scalars.get("isoflop/loss")
    if loss is not None:
        parts.append(f"loss {loss:.3f}" if 0.00995 <= abs(loss) < 1e6 else f"loss {loss:.3g}")  # also inf and nan
    speed = scalars.get("isoflop/tokens_per_second_per_device")
    if speed is not None:
        padded = " with padding" if scalars.get("isoflop/padding_fraction") else ""  # D is without it
        parts.append(f"{speed:,.0f} tok/s/device{padded}")
    rate = scalars.get("isoflop/tflops_per_device")
    if rate is not None:
        parts.append(rate_text(rate))
    mfu = scalars.get("isoflop/mfu")
    if mfu is not None:
        parts.append(f"MFU {mfu:.1%}")
    goodput = scalars.get("isoflop/goodput")
    if goodput is not None:
        parts.append(f"goodput {goodput:.0%}")
    forecast, high = scalars.get("isoflop/forecast_loss"), scalars.get("isoflop/forecast_high")
    if forecast is not None and high is not None:
        low = scalars.get("isoflop/forecast_low", 2 * forecast - high)
        even = forecast - low < 1.01 * (high - forecast)  # it is not where a decay of the learning rate may still come
        parts.append(
            f"ends at {forecast:.3f} " + (f"± {high - forecast:.3f}" if even else f"({low:.3f} to {high:.3f})")
        )
        parts[-1] += f" (as of step {as_of:,})" if as_of is not None and as_of < step else ""
    return " · ".join(parts)


def rate_text(tera: float) -> str:
    """Of TFLOP/s, with the unit."""
    value, unit = (tera, "TFLOP/s") if tera >= 0.1 else (tera * 1000, "GFLOP/s")
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


class Display:
    """What a Monitor shows, in a notebook too: the last interval, the forecast and the active advice."""

    @property
    def scalars(self: Any) -> Mapping[str, float]:
        """What was logged last, by name (`isoflop.live.log_step.SCALARS`)."""
        return self._latest.scalars

    @property
    def forecast(self: Any) -> Forecast | NoForecast | None:
        """The loss forecast for the planned end, or why there is none; None before the first and on other ranks."""
        return self._forecast.last

    @property
    def advice(self: Any) -> tuple[Advice, ...]:
        """Active advice, most severe first (rank 0 only)."""
        return self._advice.current

    def __repr__(self: Any) -> str:
        loss = self.scalars.get("isoflop/loss")
        return f"<Monitor at step {self.steps:,}{'' if loss is None else f', loss {loss:.4g}'}>"

    def _repr_html_(self: Any) -> str:
        if not self.scalars:
            return f"<b>isoflop, step {self.steps:,}</b>: no log step yet (one every {self.log_every:,} steps)"
        rows = {name.removeprefix("isoflop/"): f"{value:,.5g}" for name, value in self.scalars.items()}
        made = getattr(self.forecast, "as_of", None)
        age = "" if made is None else f", as of step {made:,}"
        rows |= {} if self.forecast is None else {"forecast": f"{self.forecast}{age}"}
        return html_table(f"isoflop, step {self.steps:,}", rows, [str(each) for each in self.advice])


class Sinks(Part):
    """All places where a run is shown, each behind a boundary of its own."""

    name = "axes"  # all that it keeps
    boundary = declare("showing the log step", "nothing is shown in loggers and in the terminal")

    def __init__(self, run: RunInfo) -> None:
        self._run, self._guard = run, run.guard
        self._axes = ComputeAxes()
        self._log_steps = 0
        self._unprinted: LogStep | None = None

    def log(self, step: LogStep) -> None:
        """Write the scalars, the loss against compute and new advice; print a line, of a long run ever fewer."""
        axes = self._axes.points(step.totals.flops_known, step.loss)
        for sink in self._run.sinks:
            if sink.boundary not in self._guard.aside:
                try:
                    for advice in step.advice:
                        sink.text(step.step, "isoflop/advice", advice.markdown())
                    sink.write(step.step, step.scalars, axes)
                except Exception as error:  # the boundary: a sink that fails takes no other along
                    self._guard.failed(sink.boundary, error)
        self._log_steps += 1
        self._unprinted = step
        if due(self._log_steps):
            self._unprinted = None
            self._print(step)

    def _print(self, step: LogStep) -> None:
        ends = getattr(step.forecast, "step", None)  # what it forecasts has come
        shown = {name: x for name, x in step.scalars.items() if ends != step.step or "/forecast_" not in name}
        line = partial(interval_line, step.step, shown, getattr(step.forecast, "as_of", None))
        self._guard.tell(self._run.say, line)

    def evaluate(self, name: str, loss: float, step: LogStep) -> None:
        """Write an evaluation's loss against compute."""
        if step.totals.flops_known and math.isfinite(loss):
            at = log_step(step.totals.flops_known)
            tag = f"isoflop/1000log10C_{name.replace('/', '_')}"
            tag = f"{tag}_eval" if tag in AXES else tag  # beside the training's
            self._run.draw(step.step, [AxisPoint(tag, loss, at)])

    def close(self, step: LogStep, completed: bool) -> None:
        """Close every sink, and print the last line."""
        if self._unprinted is not None:
            self._print(self._unprinted)
        for sink in self._run.sinks:
            with self._guard.part(sink.boundary):
                for advice in step.advice:
                    sink.text(step.step, "isoflop/advice", advice.markdown())
                sink.close()

    def state_dict(self) -> dict[str, int]:
        """The last steps on the compute axes. Where a run is resumed from, what was shown up to there is in files."""
        for sink in self._run.sinks:
            if sink.boundary not in self._guard.aside:
                with self._guard.part(sink.boundary):
                    sink.flush()
        return self._axes.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from `state_dict()`."""
        self._axes.load_state_dict(state)


TENSORBOARD = declare("TensorBoard", "no further scalars in TensorBoard")


def summary(scalars: Mapping[str, float]) -> Any:
    """TensorBoard's summary of numbers at one step, by their tags there."""
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Summary(value=[Summary.Value(tag=TAGS.get(tag, tag), simple_value=v) for tag, v in scalars.items()])


class TensorBoardSink:
    """Writes event files from the first write on; of a long run ever fewer log steps, like the record.

    Into `folder`, or with `run` where `RunInfo.own_folder` says. TensorBoard draws 1,000 points a chart; all of 10⁶
    log steps would be a gigabyte.
    """

    boundary = TENSORBOARD

    def __init__(self, folder: Path, run: RunInfo | None = None) -> None:
        self._folder, self._run = folder, run
        self._file: EventFile | None = None
        self._log_steps = 0
        self._left_out: tuple[int, Mapping[str, float], Sequence[AxisPoint]] | None = None

    def write(self, step: int, scalars: Mapping[str, float], axes: Sequence[AxisPoint]) -> None:
        """Scalars against the optimizer step, losses against compute."""
        self._log_steps += bool(scalars)
        if scalars and not due(self._log_steps):
            self._left_out = step, scalars, tuple(axes)
            return
        file = self._file or self._open()
        if scalars:
            self._left_out = None
            file.add(step, summary(scalars))
        for point in axes:
            file.add(point.step, summary({point.tag: point.value}))

    def flush(self) -> None:
        """Nothing waits."""

    def text(self, step: int, tag: str, markdown: str) -> None:
        """For the text tab."""
        from torch.utils.tensorboard.summary import text

        self._open().add(step, text(tag, markdown))

    def _open(self) -> EventFile:
        if self._file is None:
            self._file = EventFile(self._folder if self._run is None else self._run.own_folder(self._folder))
        return self._file

    def close(self) -> None:
        """Close the event file; a curve ends where the run does."""
        if self._left_out is not None:
            self._log_steps = 0  # the last one is due
            self.write(*self._left_out)
        if self._file is not None:
            self._file.close()


class EventFile:
    """An event file that TensorBoard reads, written by the thread that calls: an error comes out here, and once.

    torch's SummaryWriter writes from a thread of its own, which prints a traceback where the disk is full.
    """

    _files = itertools.count()

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import custom_scalars

        folder.mkdir(parents=True, exist_ok=True)
        count = f"{next(self._files)}.isoflop"  # the trainer's writer counts by itself: both may begin in this second
        name = f"events.out.tfevents.{int(time.time()):010d}.{platform.node()}.{os.getpid()}.{count}"
        # without a buffer: what waits in one is lost where the process is killed
        file = open(folder / name, "xb", buffering=0)  # noqa: SIM115
        self.close = weakref.finalize(self, file.close)
        self._event, self._records = Event, RecordWriter(file)
        self._records.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self.add(0, custom_scalars(CHARTS))

    def add(self, step: int, summary: Any) -> None:
        """Write an event, some µs; what can't be written is dropped."""
        self._records.write(self._event(wall_time=time.time(), step=step, summary=summary).SerializeToString())


BETWEEN = 20
"""Points drawn between two runs, straight in ln C."""


def frontier_points(frontier: Sequence[tuple[float, float]]) -> list[AxisPoint]:
    """Points of a lower envelope on the logarithmic compute axis."""
    points: dict[int, float] = {}
    for (C0, L0), (C1, L1) in pairwise(frontier):
        for i in range(BETWEEN + 1):
            part = i / BETWEEN
            points[log_step(C0 * (C1 / C0) ** part)] = L0 + part * (L1 - L0)
    return [AxisPoint(FRONTIER, loss, step) for step, loss in points.items()]


SIZE, BATCH, TARGET = "whether the size fits the data", "the batch size", "whether the target will be reached"
"""Subjects of `Missing`."""
PRETRAINING = "published results are of dense language models, trained from scratch on text"
"""What this run is instead was said once, at its start."""
RATE = {Reason.RATE_HIGH, Reason.RATE_LOW, Reason.SCHEDULE, Reason.DECAY_HIGH}
CURVE = {Reason.DIVERGING, Reason.OFF_CURVE, Reason.RESUMED, Reason.PLATEAU, Reason.UNFALLEN, Reason.UNCHANGED}
RISES = {Reason.DIVERGING, Reason.OFF_CURVE, Reason.RESUMED}
"""Advice that stands where the run ended above its best."""
LOSS = CURVE | {Reason.RATE_HIGH, Reason.OVERFITTING, Reason.BELOW_CURVE, Reason.TOO_LOW}
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
    side = "below" if last.loss < last.train else "above"
    return f"{name} {last.loss:.3f} ({abs(last.loss - last.train):.3f} {side} the training loss of {last.train:.3f})"


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
    completed: bool = True,
) -> list[str]:
    """Lines for the terminal.

    Args:
        run, step: as it ended.
        advice, gone: what still holds; what was given and does not hold any more.
        missing: what was not judged, and why.
        shape, loss_unjudged: why laws may not hold for a shape like the model's; why the loss can't be judged.
        final: training loss at the end.
        ended: where the loss ended, and what its best was, where that is not the same.
        completed: False: an error, a signal or `on_advice` ended it.
    """
    through = "" if run.N is None else f" through {count(run.N)} parameters (N with the head)"
    padding = step.scalars.get("isoflop/padding_fraction") or 0.0
    beside = f" and {count(run.tokens * padding / (1 - padding))} of padding" if run.tokens and 0 < padding < 1 else ""
    spent = [(f"{count(run.tokens)} tokens{beside}" if run.tokens else "tokens unknown") + through]
    if run.flops:
        spent.append(f"{run.flops:.3g} FLOPs {_counted(str(step.counting.get('method')))}")
    if run.seconds:
        spent.append(str(Quantity("", run.seconds / 3600, "hours")).removeprefix(" = ") + " of training")
    if "isoflop/goodput" in step.scalars:
        spent.append(f"goodput {step.scalars['isoflop/goodput']:.0%}")
    spent += [_evaluated(name, points) for name, points in run.evaluations.items()]
    of = "" if run.total_steps is None else f" of {run.total_steps:,}"
    at = f"{'ended' if completed else 'was interrupted'} at step {run.step:,}{of}"
    how = "is over" if completed and run.step >= (run.total_steps or 0) else at
    lines = [f"isoflop: the run {how}: {', '.join(spent[:MOST_SPENT])}."]
    # judged as done: what this compute could have bought, and so the next run's size
    done = replace(run, tokens_per_step=run.tokens and run.tokens / max(run.step, 1))
    judged = planned(done, Thresholds(frontier_steps=0.0)) if (run.left or 0.0) <= SHORT else None
    if isinstance(judged, Advice) and (run.line is not None or judged.severity > Severity.NOTE):
        lines.append(f"isoflop: for the next run: {planned(done, Thresholds(waste=float('inf')))}")
    if shape:
        lines.append(f"isoflop: the model's shape, not judged: {'; '.join(shape)}.")
    held = [each for each in advice if each.severity >= Severity.INFO]
    if ended:
        held += [each for each in gone if each.reason in RISES]
        gone = [each for each in gone if each.reason not in RISES]
    if ended and not run.task.falls:
        loss_unjudged, ended = loss_unjudged or f"it {ended}", ""
    if held:
        lines.append("isoflop: advice still active at the end: " + "; ".join(each.title for each in held) + ".")
    if gone:
        found = ", ".join(f"{each.title} (step {each.step:,})" for each in gone)
        lines.append(f"isoflop: advice no longer active at the end: {found}.")
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
        tokens, critical, least = run.batch.tokens, run.batch.critical, Thresholds.batch_small
        low, high = critical.interval(0.8)
        times = f"{tokens / critical.value:.2g} [{tokens / high:.2g}, {tokens / low:.2g}] times"
        share_of = f"{times} the critical size"
        within = critical.probability_below(tokens / least)
        within -= critical.probability_below(tokens / Thresholds.batch_large)
        if not batch and within < Thresholds.sure:
            batch = f"{share_of}, where {least:g} to {Thresholds.batch_large:g} is fine"
    if batch and scale is not None:
        batch += f"; the noise scale so far is {count(scale)} tokens"
    loss = falling_loss(run) or loss_unjudged
    rows = (
        ("size", ratio, size, {Reason.TOO_LARGE, Reason.TOO_SMALL}),
        ("batch", share_of, batch, {Reason.BATCH_LARGE, Reason.BATCH_SMALL}),
        ("learning rate", f"peak {run.peak_rate or 0.0:.3g}", rate_unjudged(run), RATE),
        ("loss", f"no divergence{', no plateau' if falls_on(run) else ''}", loss, held if ended else LOSS),
    )
    fine = [f"{what} ({shown})" for what, shown, reason, advised in rows if not reason and not held & advised]
    unjudged = [(what, reason) for what, _, reason, advised in rows if reason and not held & advised]
    if run.task.unlike_pretraining:  # one cause
        unjudged = [(what, reason if what == "loss" else PRETRAINING) for what, reason in unjudged]
    return fine, unjudged + [(each.what, each.why) for each in missing if not each.quiet and each.what in why]
