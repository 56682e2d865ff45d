"""Finished runs, and folders of them laid out as index.csv + <dataset>/<run>.csv."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from isoflop.fit.ends import at_end, stopped_early
from isoflop.fit.forecast.schedule import LrPlan

Array = NDArray[np.float64]


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
        final_loss: the smoothed loss at the end, where the source states it; else by `isoflop.fit.ends`.
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
