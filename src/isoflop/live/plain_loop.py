"""What a plain loop calls beside `Monitor.step`: context managers, and the halves of a batch."""

from __future__ import annotations

import atexit
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from isoflop.flops.tokens import TokenCount

if TYPE_CHECKING:
    from typing_extensions import Self


MICRO_BATCHES = (
    "monitor.step() was called %d times while the optimizer made %d steps. If these calls are micro-batches, call it "
    "once after each optimizer step: now steps, tokens per step and the planned end are those of micro-batches (tokens "
    "and FLOPs are right)"
)
UNCLOSED = (
    "the script ended without monitor.close() or total_steps=, so nothing says whether the run was done: its record is "
    "marked as interrupted, and fits leave it out"
)
FEW_CALLS = 8
"""Since the first log step, and as many again: what a gradient scaler passes over, or a state that is loaded or another
optimizer's phase, comes once."""
ASKED = 16
"""Parameters whose steps are looked at; some are not trained in each step, as rare experts."""


class PlainLoop:
    """Base of `Monitor`."""

    _compares = True
    """It is not known yet whether `step` is called once an optimizer step."""
    _steps_of: tuple[int, float] | None = None
    """Calls of `step`, and steps that the optimizer counted, at the first log step, or the first with too few."""
    _too_few = False
    """The optimizer made fewer steps, once."""

    _marked = False
    """Inside of `accumulate`, which says what this micro-batch's tokens are."""
    _quiet = False
    """Micro-batches are counted, and nothing else is to be done with them."""
    _until: float = 0  # before this step, one like the step before is counted, and nothing else is to be done

    @contextmanager
    def accumulate(self: Any, tokens: int | TokenCount | None = None, *, by_tokens: bool = False) -> Iterator[None]:
        """Around one micro-batch's forward and backward pass in a plain loop: a part of the step's gradient.

        Needed only where that is not one forward call of the model each, or for what these arguments say.

        Args:
            tokens: of the micro-batch on this rank; default: what the model is given.
            by_tokens: the loss is this micro-batch's share of a mean over all tokens of the step; default: it is the
                micro-batch's own mean, divided by the number of micro-batches.
        """
        self._marked = tokens is not None
        if self._marked:
            self._quiet, self._until = False, 0
            self.noise.marked += 1
            if self.noise.armed:
                self.noise.begin(TokenCount(tokens) if isinstance(tokens, int) else tokens, by_tokens)
        elif by_tokens:
            self.noise.by_tokens()
        try:
            yield
        finally:
            self._marked = False

    def split(self: Any, batch: Any) -> Iterator[tuple[Any, float]]:
        """A step's batch in parts, for `noise_scale="split"` in a plain loop: mostly one, on measured steps two halves.

            for part, share in monitor.split(batch):
                (share * loss_of(model(part))).backward()

        Args:
            batch: sequences along the first dimension of each tensor; its loss is a mean over their tokens.

        Yields:
            The part, and its share of the step's loss.
        """
        parts = self.noise.halves(batch, self.observer.count)
        if parts is None:
            yield batch, 1.0
        else:
            for half in parts:
                yield half.batch, half.share

    @property
    def logged_now(self: Any) -> bool:
        """Whether the step just done was a log step."""
        return bool(self.steps and self.logged_at == self.steps)

    @contextmanager
    def evaluating(self: Any) -> Iterator[None]:
        """Around an evaluation in a plain loop: its time is no training time."""
        self.enter("evaluation")
        try:
            yield
        finally:
            self.leave("evaluation")

    def _compare_steps(self: Any) -> None:
        """Warn where `step` is called for each micro-batch: by what the optimizer counts itself, as Adam does."""
        optimizer = getattr(self.run.optimizer, "optimizer", self.run.optimizer)
        states = getattr(optimizer, "state", None) or {}
        some = islice(states.values(), 0, None, max(1, len(states) // ASKED))
        counts = [float(each["step"]) for each in some if isinstance(each, dict) and "step" in each]
        if self.run.framework != "loop" or not counts:
            self._compares = self.run.framework == "loop" and not states  # it has not stepped yet
            return
        steps, done = self._steps_of = self._steps_of or (self.updates, max(counts))
        called, made = self.updates - steps, max(counts) - done
        self._compares = called < FEW_CALLS or made <= 0
        if not self._compares and called >= 2 * made:
            if self._too_few:
                self.guard.once(MICRO_BATCHES, called, made)
            else:
                self._compares = self._too_few = True
                self._steps_of = self.updates, max(counts)

    def _end_at_exit(self: Any) -> None:
        """Where the script ends and nobody has called `close`: the record's last point, and the lines of the end."""
        here, alive = os.getpid(), weakref.ref(self)

        def end() -> None:
            monitor = alive()
            if monitor is None or not monitor._opened or monitor._finished or os.getpid() != here:  # a fork is no end
                return
            total, failed = monitor.run.total_steps, getattr(sys, "last_value", None) is not None
            if total is None and not failed:  # an exception may have been caught, as Hydra and spawned processes do
                monitor.guard.once(UNCLOSED)
            monitor.finish(completed=not failed and total is not None and monitor.steps >= total)

        atexit.register(end)
        weakref.finalize(self, atexit.unregister, end)

    def __reduce__(self) -> Any:
        """A copy, or what arrives in another process, observes nothing: a run has one Monitor a process."""
        return _ended_copy, (type(self),)

    def close(self: Any) -> None:
        """End a plain loop: the last point and the totals are written. In a `finally` after an error: interrupted."""
        error = sys.exc_info()[1]
        self.finish(completed=error is None or id(error) == self._handled or isinstance(error, StopIteration))

    def __enter__(self) -> Self:
        return self

    def __exit__(self: Any, kind: type[BaseException] | None, *_: object) -> None:
        self.finish(completed=kind is None)


def _ended_copy(kind: Any) -> Any:
    copy = kind()
    copy._opened = copy._finished = True
    return copy
