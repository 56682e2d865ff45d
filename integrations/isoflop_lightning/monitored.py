"""Callbacks that monitor a scalar of ours which is not known yet, as a forecast at first: training goes on.

Without the metric `EarlyStopping`, `ModelCheckpoint` and a scheduler on a plateau end the run with an error. With NaN,
or a number that stays the same, `EarlyStopping` stops it and the scheduler lowers the rate; `ModelCheckpoint` takes NaN
for the worst there is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from isoflop.flops.totals import rank, sum_over_ranks
from isoflop.guard import Guard
from isoflop.live.scalars import SCALARS


class Monitored:
    """Callbacks and schedulers of a Trainer that monitor a scalar of ours, until `undo`."""

    def __init__(self, trainer: Any, guard: Guard) -> None:
        watching = [*trainer.callbacks, *trainer.lr_scheduler_configs]
        self.watching = [each for each in watching if getattr(each, "monitor", None) in SCALARS]
        self._strict = [each for each in self.watching if getattr(each, "reduce_on_plateau", False) and each.strict]
        for each in self._strict:
            each.strict = False
        for each in self.watching:
            if hasattr(each, "_validate_condition_metric"):
                each._validate_condition_metric = _validates(each, guard)
            if hasattr(each, "_monitor_candidates"):
                each._monitor_candidates = _candidates(each)

    def of_all_ranks(self, scalars: Mapping[str, float]) -> dict[str, float]:
        """The scalars with those that are monitored as the first rank knows them, which alone has forecasts.

        Every rank calls it: `EarlyStopping` asks all of them, or none.
        """
        names = sorted({each.monitor for each in self.watching})
        if not names:
            return {**scalars}
        _, values = sum_over_ranks([], [scalars.get(name, math.nan) if rank() == 0 else 0.0 for name in names])
        known = {name: value for name, value in zip(names, values, strict=True) if not math.isnan(value)}
        return {**{name: value for name, value in scalars.items() if name not in names}, **known}

    def undo(self) -> None:
        """Leave them as they were."""
        for each in self._strict:
            each.strict = True
        for each in self.watching:
            for name in ("_validate_condition_metric", "_monitor_candidates"):
                vars(each).pop(name, None)
        self.watching.clear()  # in place: the callback has it, too
        self._strict = []


def _validates(stop: Any, guard: Guard) -> Any:
    validates = stop._validate_condition_metric

    def validates_known(metrics: Mapping[str, Any]) -> Any:
        if stop.monitor in metrics:
            return validates(metrics)
        guard.once("%s is not known yet: %s looks at it once it is", stop.monitor, type(stop).__name__)
        return False

    return validates_known


def _candidates(save: Any) -> Any:
    candidates = save._monitor_candidates
    return lambda trainer: {save.monitor: torch.tensor(math.nan), **candidates(trainer)}


def metrics_of(trainer: Any) -> dict[str, Any]:
    """What callbacks monitor: the dictionary itself, for the trainer, if asked, computes all that the module logs."""
    metrics = getattr(getattr(trainer, "_logger_connector", None), "_callback_metrics", None)
    found: dict[str, Any] = trainer.callback_metrics if metrics is None else metrics
    return found
