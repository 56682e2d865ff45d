"""The fixed-size memory of a training curve: losses in bins that are evenly spaced in the logarithm of the step.

What a learning-rate plan does to the loss: effective steps, and how far each fall of the rate has taken effect.

L = E + A·x^−α − C·F, x = Σ η̃, F(t) = Σ_k (η̃_{k−1}^p − η̃_k^p)·G(lag from k to t), η̃ = lr over its peak; after Tissue
et al. 2024 (arXiv:2408.11029) and Luo et al. 2025 (2503.12811), who take p = 1 and other kernels G.

The noise of binned losses: its size by robust residuals, Huber's weights, and how long it remembers.

Finished runs, and folders of them laid out as index.csv + <dataset>/<run>.csv.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.arrays import Array
from isoflop.fit.runs import at_end, stopped_early
from isoflop.forecast.lr_plan import LrPlan

PER_E_FOLD = 32
"""Bins of loss per factor e of steps."""
KEPT = 0.12
"""Bins older than this fraction of the present step hold no loss any more."""
RATES_PER_E_FOLD = 16
"""Knots kept of the learning rate per factor e, over the whole run."""
MOST = 1e30
"""A loss beyond it counts as infinite: squares, and sums of them, stay within a float's range."""


def usable(loss: float) -> bool:
    """Whether a loss is a number that can be computed with: neither NaN nor infinite nor beyond all bounds."""
    return abs(loss) <= MOST


class LossBins:
    """Means of step, tokens, learning rate and loss per bin. Adding is O(1); the size does not grow with the run.

    A bin is [points, raw steps, Σ step, Σ tokens, Σ loss, Σ loss²], each weighted with the raw steps behind a point.
    """

    def __init__(self) -> None:
        self.bins: dict[int, list[float]] = {}
        self.rates: dict[int, list[float]] = {}
        self.last_step = 0.0
        self.last_tokens = 0.0
        self.last_lr: float | None = None
        self.lost = 0  # losses since the last finite one

    def add(self, step: float, tokens: float, lr: float | None, loss: float, count: float) -> None:
        """One logged loss, the mean over `count` steps up to `step`."""
        key = math.floor(PER_E_FOLD * math.log(max(step, 1.0)))
        row = self.bins.get(key)
        if row is None:
            row = self.bins[key] = [0.0] * 6
            oldest = math.floor(PER_E_FOLD * math.log(max(KEPT * step, 1.0)))
            for old in [k for k in self.bins if k < oldest]:
                del self.bins[old]
        row[0] += 1
        row[1] += count
        row[2] += count * step
        row[3] += count * tokens
        row[4] += count * loss
        row[5] += count * loss * loss
        if lr is not None:
            # the first and the last of each: what lies between is a line
            place = math.floor(RATES_PER_E_FOLD * math.log(max(step, 1.0)))
            seen = self.rates.setdefault(place, [step, lr, step, lr])
            seen[2:] = [step, lr]
        self.last_step, self.last_tokens, self.last_lr = step, tokens, lr

    def columns(self) -> dict[str, Array]:
        """Mean `step`, `tokens` and `loss`, `points`, raw steps `count` and the spread `variance` of each bin."""
        table = np.array([self.bins[key] for key in sorted(self.bins)]).reshape(-1, 6)
        points, count = table[:, 0], table[:, 1]
        step, tokens, loss = (table[:, i] / count for i in (2, 3, 4))
        return {
            "step": step,
            "tokens": tokens,
            "loss": loss,
            "points": points,
            "count": count,
            "variance": np.maximum(table[:, 5] / count - loss**2, 0),
        }

    def seen_rates(self) -> tuple[Array, Array]:
        """Steps and learning rates as they were seen, thinned."""
        flat = np.array([self.rates[key] for key in sorted(self.rates)]).reshape(-1, 2)
        new = np.append(np.diff(flat[:, 0]) > 0, True) if len(flat) else np.zeros(0, dtype=bool)
        return flat[new, 0], flat[new, 1]

    def state_dict(self) -> dict[str, Any]:
        """Plain values; floats survive JSON bit by bit."""
        return {
            "bins": [[key, *row] for key, row in sorted(self.bins.items())],
            "rates": [[key, *row] for key, row in sorted(self.rates.items())],
            "last": [self.last_step, self.last_tokens, self.last_lr, self.lost],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        self.bins = {int(row[0]): [float(v) for v in row[1:]] for row in state["bins"]}
        self.rates = {int(row[0]): [float(v) for v in row[1:]] for row in state["rates"]}
        self.last_step, self.last_tokens, self.last_lr, self.lost = state["last"]


CELLS = 160
"""Pieces that the falls of the rate are summed over."""


@dataclass(frozen=True)
class Kernel:
    """G = lag/(lag + T), lag = Σ η̃^q steps: `q` 0 is a lag in steps; `p` is the power of the rate that falls.

    `gain` is what ln C is above its prior with this kernel (a slower one needs a larger C), `weight` its prior weight.
    """

    p: float
    q: float
    T: float
    gain: float = 0.0
    weight: float = 1.0


@dataclass(frozen=True)
class FeaturesPath:
    """A plan made ready: cumulative effective steps and lags at nodes, and the falls between them."""

    nodes: Array
    effective: Array  # Σ η̃ at the nodes
    shape: Array  # η̃ at the nodes
    first: int  # the node at which the warm-up ends

    def x(self, steps: Array) -> Array:
        """Effective steps Σ η̃ up to `steps`; at least a millionth, so that powers are finite at the start."""
        return np.maximum(np.interp(steps, self.nodes, self.effective), 1e-6)


def path(plan: LrPlan, warmup: float, end: float, peak: float | None = None) -> FeaturesPath:
    """The nodes of a plan from step 0 to `end`: all its knots where there are few, else the ones that matter."""
    steps = np.unique(np.concatenate([[0.0, min(warmup, end), end], plan.steps[plan.steps < end]]))
    rate = plan.at(steps) / (peak or plan.peak)
    if len(steps) > CELLS // 2:
        # evenly by the change of the rate and by the steps together
        measure = np.cumsum(np.abs(np.diff(rate, prepend=rate[0]))) / max(np.abs(np.diff(rate)).sum(), 1e-12)
        measure = measure + steps / end
        at = np.searchsorted(measure, np.linspace(0, measure[-1], CELLS // 2))
        keep = np.unique(np.concatenate([[0, len(steps) - 1], np.clip(at, 0, len(steps) - 1)]))
        keep = np.union1d(keep, np.searchsorted(steps, min(warmup, end)))
        full_x = np.concatenate([[0.0], np.cumsum(np.diff(steps) * (rate[1:] + rate[:-1]) / 2)])
        steps, rate, known = steps[keep], rate[keep], full_x[keep]
    else:
        known = np.concatenate([[0.0], np.cumsum(np.diff(steps) * (rate[1:] + rate[:-1]) / 2)])
    # long straight falls are cut into pieces
    spread = np.abs(np.diff(rate)) / max(np.abs(np.diff(rate)).sum(), 1e-12)
    pieces = np.minimum(1 + np.floor(spread * CELLS), np.maximum(np.diff(steps), 1)).astype(int)
    index = np.repeat(np.arange(len(pieces)), pieces)
    within = (np.arange(len(index)) - np.repeat(np.cumsum(pieces) - pieces, pieces)) / pieces[index]
    width, rise = np.diff(steps)[index] * within, np.diff(rate)[index] * within
    nodes = np.append(steps[:-1][index] + width, steps[-1])
    shape = np.append(rate[:-1][index] + rise, rate[-1])
    # exact on a line: x is quadratic within a piece
    start = rate[:-1][index]
    x = np.append(known[:-1][index] + width * (start + rise / 2), known[-1])
    return FeaturesPath(nodes, x, np.maximum(shape, 0), int(np.searchsorted(nodes, min(warmup, end))))


def falls(road: FeaturesPath, kernels: tuple[Kernel, ...], steps: Array) -> Array:
    """F of each kernel at `steps`: shape (kernels, steps)."""
    out = np.zeros((len(kernels), len(steps)))
    nodes, shape = road.nodes[road.first :], road.shape[road.first :]
    if len(nodes) < 2:
        return out
    moved = np.flatnonzero(np.diff(shape) != 0)
    if len(moved) == 0:
        return out
    drops = {p: -np.diff(shape**p)[moved] for p in {kernel.p for kernel in kernels}}
    effects: dict[tuple[float, float], Array] = {}
    lags: dict[float, Array] = {}
    for i, kernel in enumerate(kernels):
        if kernel.q not in lags:
            speed = shape**kernel.q
            clock = np.concatenate([[0.0], np.cumsum(np.diff(nodes) * (speed[1:] + speed[:-1]) / 2)])
            middle = (clock[1:] + clock[:-1])[moved] / 2
            lags[kernel.q] = np.maximum(np.interp(steps, nodes, clock)[:, None] - middle, 0)
        key = kernel.q, kernel.T
        if key not in effects:
            effects[key] = lags[kernel.q] / (lags[kernel.q] + kernel.T)
        out[i] = effects[key] @ drops[kernel.p]
    return out


HUBER = 1.345
"""Huber's k: 95% efficient on normal residuals."""


def estimate(residual: Array, relative: Array, before: float, floor: float) -> tuple[float, Array]:
    """Standard deviation of a bin with the mean number of steps, and each bin's weight.

    Args:
        residual: of the bins, nats.
        relative: raw steps of each bin over their mean.
        before: the last estimate: residuals beyond 2.5 of it are clipped.
        floor: standard deviation that no number of steps takes away.
    """
    scaled = residual * np.sqrt(relative)
    median = 1.4826 * float(np.sort(np.abs(scaled))[len(scaled) // 2])
    square = float(np.sqrt(np.mean(np.minimum(scaled**2, (2.5 * before) ** 2))))
    sd = max(median, square, 0.02 * floor)
    z = np.abs(residual) / np.sqrt(sd**2 / relative + floor**2)
    return sd, np.minimum(1.0, HUBER / np.maximum(z, 1e-12))


def remembered(residual: Array) -> float:
    """(1 − ρ)/(1 + ρ) by the lag-one correlation ρ: the share of the bins that count as independent."""
    square = float(residual @ residual)
    if len(residual) < 5 or square == 0:
        return 1.0
    rho = min(max(float(residual[1:] @ residual[:-1]) / square, 0.0), 0.9)
    return (1 - rho) / (1 + rho)


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A run that ended: its curve, its plan and what it was.

    Attributes:
        steps, tokens, lr, loss: arrays of one shape; lr NaN where unknown; loss in nats per token.
        plan: the learning-rate plan it followed.
        N: non-embedding parameters.
        batch_tokens: tokens of an optimizer step.
        optimizer: its name.
        organisation: whose it is: what is left out together.
        name: the run's; dataset: the set it is of.
        count: raw steps behind each point.
        final_loss: the smoothed loss at the end, where the source states it; else by `isoflop.fit.runs`.
        domain: flags as `OnlineForecaster` takes them.
        loss_name: which loss it is, `train` or eval/<name>.
    """

    steps: Array
    tokens: Array
    lr: Array
    loss: Array
    plan: LrPlan
    N: float | None = None
    batch_tokens: float | None = None
    optimizer: str | None = "adamw"
    organisation: str = ""
    name: str = ""
    dataset: str = ""
    count: Array | None = None
    final_loss: float | None = None
    domain: dict[str, bool] = field(default_factory=dict)
    loss_name: str = "train"

    @property
    def total_steps(self) -> int:
        """The step at which it ended."""
        return self.plan.total_steps

    @property
    def final(self) -> float:
        """The loss that a forecast is scored against."""
        return float(self._last.mean()) if self.final_loss is None else self.final_loss

    @property
    def final_error(self) -> float:
        """Standard error of the mean behind `final`; 0 where fewer than three losses can't tell."""
        last = self._last
        return float(np.std(last, ddof=1)) / len(last) ** 0.5 if len(last) > 2 else 0.0

    @property
    def stopped_early(self) -> str:
        """Why it did not come to its planned end, so that it has no final loss; "": it did."""
        return "" if self.final_loss is not None else stopped_early(float(self.steps[-1]), self.total_steps)

    @property
    def _last(self) -> Array:
        return self.loss[at_end(self.steps, self.loss_name)]


def read_curves(folder: str | Path) -> list[FinishedRun]:
    """The runs of a folder with an index.csv and <dataset>/<run>.csv (step, tokens, lr, loss, n).

    Raises:
        ValueError: there is no such file, or what is wrong with which run.
        OSError: a file that can't be read.
    """
    folder = Path(folder)
    index = folder / "index.csv"
    if not index.exists():
        raise ValueError(f"Expected a file index.csv in {folder}; there is none.")
    found: list[FinishedRun] = []
    try:
        for row in _rows(index):
            found.append(_run(folder, row))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, csv.Error) as error:  # a stranger's file
        reason = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{index}, run {len(found) + 1}: expected columns and values as in docs/forecast-live.md, got {reason}"
        ) from None
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def _run(folder: Path, row: dict[str, str]) -> FinishedRun:
    for name in (row["dataset"], row["run"]):
        # it must not lead out of the folder
        if name in ("", ".", "..") or name != Path(name).name or "\\" in name or "\0" in name:
            raise ValueError(f"{name!r} where the plain name of a folder or file should be")
    points = _rows(folder / row["dataset"] / f"{row['run']}.csv")
    column = {name: np.array([_float(p.get(name)) for p in points]) for name in ("step", "tokens", "lr", "loss", "n")}
    fine = np.isfinite(column["loss"]) & np.isfinite(column["step"])
    column = {name: values[fine] for name, values in column.items()}
    total = int(float(row["total_steps"]))
    note = row.get("note", "")
    return FinishedRun(
        steps=column["step"],
        tokens=column["tokens"],
        lr=column["lr"],
        loss=column["loss"],
        plan=plan_of(row, column["step"], column["lr"], total),
        N=_known(row.get("N_non_embedding")) or _known(row.get("N")),
        batch_tokens=_known(row.get("batch_tokens")),
        optimizer=row.get("optimizer")
        or (note.split("optimizer=")[1].split(";")[0] if "optimizer=" in note else "adamw"),
        organisation=row.get("organisation", "") or row["dataset"],
        name=row["run"],
        dataset=row["dataset"],
        count=np.where(np.isfinite(column["n"]), column["n"], 1.0),
        final_loss=_known(row.get("final_loss")),
    )


def plan_of(row: dict[str, str], steps: Array, lr: Array, total: int) -> LrPlan:
    """The plan that a row's `schedule` describes, unless the rates that were logged say otherwise."""
    peak = _known(row.get("peak_lr")) or (float(np.nanmax(lr)) if np.isfinite(lr).any() else 1.0)
    described = _described(json.loads(row.get("schedule") or "{}"), peak, total)
    seen = np.isfinite(lr)
    if seen.sum() < 2:
        if described is None:
            raise ValueError(f"The run {row['run']} has neither a known schedule nor learning rates.")
        return described
    if described is not None:
        off = np.abs(described.at(steps[seen]) - lr[seen]) / described.peak
        if np.mean(off > 0.05) < 0.05:
            return described
    at, rates = steps[seen], lr[seen]
    if at[-1] < total:
        at, rates = np.append(at, total), np.append(rates, rates[-1])
    return LrPlan(at, np.maximum(rates, 0))


def _described(schedule: dict[str, Any], peak: float, total: int) -> LrPlan | None:
    kind, warmup, end = schedule.get("kind"), int(schedule.get("warmup", 0)), float(schedule.get("end", 0.0))
    if kind == "constant":
        return LrPlan.constant(total, peak, warmup)
    if kind == "cosine":
        return LrPlan.cosine(total, peak, warmup, end)
    if kind == "linear":
        return LrPlan.linear(total, peak, warmup, end)
    decay = int(schedule.get("decay", 0))
    if kind in ("wsd_lin", "wsd_exp", "wsd") and warmup <= decay < total:
        shape = "exponential" if kind == "wsd_exp" else "linear"
        return LrPlan.wsd(total, peak, warmup, total - decay, end, shape)
    if kind == "two_stage" and warmup < decay < total - 1:
        return _two(peak, warmup, decay, total, end)
    return None


def _two(peak: float, warmup: int, decay: int, total: int, end: float) -> LrPlan:
    head = ([0.0, float(warmup)], [0.0, peak]) if warmup else ([0.0], [peak])
    return LrPlan(
        np.array([*head[0], decay, decay + 1, total], dtype=float), np.array([*head[1], peak, end * peak, end * peak])
    )


def _float(text: str | None) -> float:
    try:
        return float(text) if text else float("nan")
    except ValueError:
        return float("nan")


def _known(text: str | None) -> float | None:
    value = _float(text)
    return value if np.isfinite(value) and value > 0 else None
