"""One run under way: `Monitor` counts, records, forecasts and advises at log steps.

A module is imported when one of the names below is asked for.
"""

# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.live.log_step import Interval, LogStep
    from isoflop.live.monitor import Monitor
    from isoflop.live.options import Options, OptionsDict
    from isoflop.live.passport import markdown, passport
    from isoflop.live.run_info import RunInfo
    from isoflop.live.scalars import AXES, INTERVAL, MAX_STEP, SCALARS, ComputeAxes, interval_scalars
    from isoflop.live.scheduler import UnknownFuture, by_batch, by_epoch, future_learning_rates
    from isoflop.live.sinks import Sinks, TensorBoardSink, interval_line
    from isoflop.live.task import describe_task, vocabulary_of

__getattr__ = face(
    __name__,
    {
        "log_step": "Interval LogStep",
        "monitor": "Monitor",
        "options": "Options OptionsDict",
        "passport": "markdown passport",
        "run_info": "RunInfo",
        "scalars": "AXES INTERVAL MAX_STEP SCALARS ComputeAxes interval_scalars",
        "scheduler": "UnknownFuture by_batch by_epoch future_learning_rates",
        "sinks": "Sinks TensorBoardSink interval_line",
        "task": "describe_task vocabulary_of",
    },
)
