"""A loss curve, its fixed-size memory, and what a learning-rate plan does to it.

L = E + A·x^−α − C·F, x = Σ η̃, F(t) = Σ_k (η̃_{k−1}^p − η̃_k^p)·G(lag from k to t), η̃ = lr over its peak: x are effective
steps, F says how far each fall of the rate has taken effect. After Tissue et al. 2024 (arXiv:2408.11029) and Luo et al.
2025 (2503.12811), who take p = 1 and other kernels G.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.fit.runs import TAIL, at_end
from isoflop.forecast.lr_plan import LrPlan
from isoflop.record.run import stopped_early
from isoflop.record.task import Task

if TYPE_CHECKING:
    from typing_extensions import Self

PER_E_FOLD = 32
"""Bins of loss per factor e of steps."""
KEPT = 0.12
"""Bins older than this fraction of the present step are dropped."""
RATES_PER_E_FOLD = 16
"""Knots kept of the learning rate per factor e, over the whole run."""
MOST = 1e30
"""A loss beyond it counts as infinite: squares, and sums of them, stay within a float's range."""
POWER, SHORTER, POWER_SD = 0.65, -0.07, 0.12
"""The power p is normal about `POWER` at 10,000 effective steps, `SHORTER` for each e-fold more, with this spread:
chosen on an earlier version with each of five organisations left out in turn, the grid of powers with all in view (a
power that does not fall with the length overrates the drop that is left to long cosine runs)."""
OFF_PLAN = 0.05
"""A rate this far off its plan, as a fraction of the peak, has left it."""
FEWEST_TELLING = 3
"""Losses whose scatter tells the noise of one."""
CELLS = 160
"""Pieces that the falls of the rate are summed over."""


def usable(loss: float) -> bool:
    """Whether a loss can be computed with: neither NaN nor infinite nor beyond `MOST`."""
    return abs(loss) <= MOST


def final_step(last_step: float, loss: str) -> int:
    """The step at which a smooth curve has the final loss (`isoflop.fit.runs.at_end`): amid the last ones, or the last.

    >>> final_step(20_000, "train"), final_step(20_000, "eval/val")
    (19500, 20000)
    """
    return round((1 - TAIL / 2) * last_step) if loss == "train" else round(last_step)


@dataclass(frozen=True, eq=False)
class LossCurve:
    """One loss of a run over its steps, with the learning-rate plan that it follows and what the run was.

    Attributes:
        steps, tokens, lr, loss: arrays of one shape; lr NaN where unknown; loss in nats per token.
        final_loss: the smoothed loss at the end, where the source states it; else by `isoflop.fit.runs`.
    """

    steps: Array
    tokens: Array
    lr: Array
    loss: Array
    plan: LrPlan  # the learning-rate plan up to the planned end
    N: float | None = None  # non-embedding parameters
    batch_tokens: float | None = None  # tokens of an optimizer step
    optimizer: str | None = "adamw"  # its name
    organisation: str = ""  # whose it is; runs of one organisation are left out together
    name: str = ""  # the run's
    dataset: str = ""  # the set it belongs to
    count: Array | None = None  # raw steps behind each point; None: one
    final_loss: float | None = None
    task: Task = field(default_factory=Task)  # what was trained
    loss_name: str = "train"  # which loss it is, `train` or eval/<name>
    done: int = 0  # optimizer steps done, where more than its last loss tells

    @property
    def total_steps(self) -> int:
        """The planned last step."""
        return self.plan.total_steps

    @property
    def final(self) -> float:
        """The loss that a forecast is scored against."""
        return float(self._last.mean()) if self.final_loss is None else self.final_loss

    @property
    def final_step(self) -> int:
        """The step to forecast, that a forecast and `final` be of the same."""
        return self.total_steps if self.final_loss is not None else final_step(self.total_steps, self.loss_name)

    @property
    def scatter(self) -> tuple[float, int]:
        """Variance of one of its losses, by how the last ten lie off the lines between their neighbours over ln(step).

        And the number of losses that tell it: a fall's bend counts as scatter, and with few of them it is not known.
        """
        x, y = np.log(self.steps[-10:]), self.loss[-10:]
        if len(y) < 3:
            return 0.0, 0
        left = (x[2:] - x[1:-1]) / (x[2:] - x[:-2])
        off = y[1:-1] - left * y[:-2] - (1 - left) * y[2:]
        return float(np.mean(off**2 / (1 + left**2 + (1 - left) ** 2))), len(off)

    @property
    def final_error(self) -> float | None:
        """Standard error of the mean behind `final`, of one or two losses by `scatter`; None with too few losses."""
        last = self._last
        if len(last) > 2:
            return float(np.std(last, ddof=1)) / len(last) ** 0.5
        variance, telling = self.scatter
        return (variance / len(last)) ** 0.5 if telling >= FEWEST_TELLING else None

    @property
    def stopped_early(self) -> str:
        """Why it ended before its planned end; "": it did not."""
        last = max(float(self.steps[-1]), self.done)
        # where the source states the final loss, it may have been logged between the last point and the end
        spacing = last - float(self.steps[-2]) if self.final_loss is not None and len(self.steps) > 1 else 0.0
        return stopped_early(min(last + spacing, max(last, self.total_steps)), self.total_steps)

    @property
    def not_of_plan(self) -> str:
        """Why its last loss is not that of its plan: it ended before, or its rate decayed to another; "": it is."""
        if self.stopped_early:
            return self.stopped_early
        known = np.isfinite(self.lr)
        off = self.plan.off(self.steps[known], self.lr[known]) > OFF_PLAN
        if off.mean() <= OFF_PLAN if len(off) else True:
            return ""
        return f"its learning rate left its plan at step {self.steps[known][off][0]:,.0f}"

    @property
    def _last(self) -> Array:
        return self.loss[at_end(self.steps, self.loss_name)]


class LossBins:
    """Means of step, tokens and loss in bins that are evenly spaced in the logarithm of the step; learning rates.

    Adding is O(1) and the size does not grow with the run. A bin is [raw steps, Σ step, Σ tokens, Σ loss], the sums
    weighted with the raw steps behind a point.
    """

    def __init__(self) -> None:
        self.bins: dict[int, list[float]] = {}
        self.rates: dict[int, list[float]] = {}
        self.first = (0.0, 0.0)
        """Step and tokens of the first loss."""
        self.last_step = 0.0
        self.last_tokens = 0.0
        self.lost = 0
        """Losses since the last finite one."""

    def add(self, step: float, tokens: float, lr: float | None, loss: float, count: float = 1) -> None:
        """Add one logged loss: nats per token, the mean over `count` optimizer steps up to `step`. O(1).

        Tokens are those processed so far; `lr` None is unknown. A step before the last one is left out: a run that goes
        back to a checkpoint restores the state of then.
        """
        if step < max(1, self.last_step):
            return
        if not abs(loss) <= MOST:  # as `usable`
            self.lost += 1
            return
        self.lost = 0
        step, count = float(step), float(max(count, 1))
        if not self.last_step:
            self.first = step, float(tokens)
        key = math.floor(PER_E_FOLD * math.log(step))
        if key not in self.bins:
            oldest = math.floor(PER_E_FOLD * math.log(max(KEPT * step, 1.0)))
            self.bins = {old: row for old, row in self.bins.items() if old >= oldest}
        row = self.bins.setdefault(key, [0.0] * 4)
        for i, part in enumerate((1.0, step, float(tokens), float(loss))):
            row[i] += count * part
        if lr is not None and math.isfinite(lr) and lr >= 0:
            # the first and the last of each: what lies between is a line
            knot = self.rates.setdefault(math.floor(RATES_PER_E_FOLD * math.log(step)), [step, float(lr)] * 2)
            knot[2:] = [step, float(lr)]
        self.last_step, self.last_tokens = step, float(tokens)

    def feed(self, curve: LossCurve, until: float = math.inf, after: float = -math.inf) -> Self:
        """Add the points of a curve with `after` < step ≤ `until`; returns itself."""
        count = np.ones(len(curve.steps)) if curve.count is None else curve.count
        for i in np.flatnonzero((curve.steps > after) & (curve.steps <= until)).tolist():
            self.add(curve.steps[i], curve.tokens[i], curve.lr[i], curve.loss[i], count[i])
        return self

    def columns(self, warmup: float = 0.0) -> dict[str, Array]:
        """Mean `step`, `tokens` and `loss`, and raw steps `count` of the bins that a fit uses.

        These lie beyond 1.5 times the warm-up and a fifth of the present step; all arrays are of one shape.
        """
        table = np.array(list(self.bins.values())).reshape(-1, 4)  # they came in order
        count, (step, tokens, loss) = table[:, 0], table[:, 1:].T / table[:, 0]
        used = step >= max(1.5 * warmup, 0.2 * self.last_step)
        return {"step": step[used], "tokens": tokens[used], "loss": loss[used], "count": count[used]}

    def seen_rates(self) -> tuple[Array, Array]:
        """Steps and learning rates as they were seen, thinned."""
        flat = np.array(list(self.rates.values())).reshape(-1, 2)  # they came in order
        new = np.append(np.diff(flat[:, 0]) > 0, True) if len(flat) else np.zeros(0, dtype=bool)
        return flat[new, 0], flat[new, 1]

    def state_dict(self) -> dict[str, Any]:
        """Plain values; floats survive JSON bit by bit."""
        return {
            "bins": [[key, *row] for key, row in sorted(self.bins.items())],
            "rates": [[key, *row] for key, row in sorted(self.rates.items())],
            "first": list(self.first),
            "last": [self.last_step, self.last_tokens, self.lost],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.bins = {int(key): [float(v) for v in row] for key, *row in state["bins"]}
        self.rates = {int(key): [float(v) for v in row] for key, *row in state["rates"]}
        self.last_step, self.last_tokens, self.lost = state["last"]
        first = state.get("first", (0, 0))  # earlier versions have none
        self.first = float(first[0]), float(first[1])


@dataclass(frozen=True)
class Kernel:
    """How a fall of the rate takes effect: falls of η̃^`p`, G = lag/(lag + `T`) with the lag in effective steps."""

    p: float
    T: float


KERNELS = tuple(Kernel(p, T) for p in (0.4, 0.55, 0.7, 0.85) for T in (70.0, 140.0))
"""The grid of kernels that is averaged over."""


@dataclass(frozen=True)
class FeaturesPath:
    """A plan prepared for `falls`: cumulative effective steps and lags at nodes, and the falls between them."""

    nodes: Array
    effective: Array  # Σ η̃ at the nodes
    shape: Array  # η̃ at the nodes
    first: int  # the node at which the warm-up ends

    def x(self, steps: Array) -> Array:
        """Effective steps Σ η̃ up to `steps`; at least a millionth, so that powers are finite at the start."""
        return np.maximum(np.interp(steps, self.nodes, self.effective), 1e-6)

    @cached_property
    def moved(self) -> NDArray[np.intp]:
        """The pieces after the warm-up in which the rate changes."""
        return np.flatnonzero(np.diff(self.shape[self.first :]))

    @cached_property
    def middle(self) -> Array:
        """Effective steps amid each of them."""
        return ((self.effective[self.first + 1 :] + self.effective[self.first : -1]) / 2)[self.moved]

    @cached_property
    def _drops(self) -> dict[float, Array]:
        return {}

    def drops(self, p: float) -> Array:
        """How far η̃^p falls in each of them; computed once, for each refit asks it."""
        if p not in self._drops:
            self._drops[p] = -np.diff(self.shape[self.first :] ** p)[self.moved]
        return self._drops[p]


def path(plan: LrPlan, warmup: float, end: float) -> FeaturesPath:
    """The nodes of a plan from step 0 to `end`: all its knots where there are few, else those where the rate changes.

    Args:
        plan: the plan.
        warmup: the step at which the warm-up ends.
        end: the last node.
    """
    warmup = min(warmup, end)
    steps = np.unique(np.concatenate([[0.0, warmup, end], plan.steps[plan.steps < end]]))
    rate = plan.at(steps) / plan.peak
    wide, rise = np.diff(steps), np.diff(rate)
    known = np.append(0.0, np.cumsum(wide * (rate[1:] + rate[:-1]) / 2))
    moved = np.abs(rise)
    if len(steps) > CELLS // 2:
        # evenly by the change of the rate and by the steps together
        measure = np.append(0.0, np.cumsum(moved)) / max(moved.sum(), 1e-12) + steps / end
        keep = np.searchsorted(measure, np.linspace(0, measure[-1], CELLS // 2))
        last = len(steps) - 1
        keep = np.unique(np.concatenate([[0, last, np.searchsorted(steps, warmup)], np.minimum(keep, last)]))
        steps, rate, known = steps[keep], rate[keep], known[keep]
        wide, rise = np.diff(steps), np.diff(rate)
        moved = np.abs(rise)
    # long straight falls are cut into pieces
    pieces = np.minimum(1 + np.floor(moved / max(moved.sum(), 1e-12) * CELLS), np.maximum(wide, 1)).astype(int)
    index = np.repeat(np.arange(len(pieces)), pieces)
    within = (np.arange(len(index)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) / pieces[index]
    width, rise = wide[index] * within, rise[index] * within
    nodes = np.append(steps[:-1][index] + width, steps[-1])
    shape = np.append(rate[:-1][index] + rise, rate[-1])
    # exact on a line: x is quadratic within a piece
    x = np.append(known[:-1][index] + width * (rate[:-1][index] + rise / 2), known[-1])
    return FeaturesPath(nodes, x, np.maximum(shape, 0), int(np.searchsorted(nodes, warmup)))


def falls(road: FeaturesPath, kernels: tuple[Kernel, ...], steps: Array) -> Array:
    """F of each kernel at `steps`: shape (kernels, steps)."""
    lag = np.maximum(road.x(steps)[:, None] - road.middle, 0)
    effects = {T: lag / (lag + T) for T in {kernel.T for kernel in kernels}}
    return np.stack([effects[kernel.T] @ road.drops(kernel.p) for kernel in kernels])


def kernel_weights(road: FeaturesPath) -> Array:
    """Log prior weights of `KERNELS` for a plan."""
    length = math.log(max(float(road.effective[-1]), 1.0) / 1e4)
    powers = np.array([kernel.p for kernel in KERNELS])
    return np.asarray(-0.5 * ((powers - POWER - SHORTER * length) / POWER_SD) ** 2)


@cache
def kernel_gains() -> Array:
    """What multiplies C with each of `KERNELS`, so that a line to 0 over 5,000 steps gives the same drop with all."""
    road = path(LrPlan.linear(5_000, 1.0), 0, 5_000.0)
    end = falls(road, KERNELS, road.nodes[-1:])[:, 0]
    return np.asarray(np.exp(np.log(end).mean()) / end)
