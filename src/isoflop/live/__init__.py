"""One run under way: `Monitor` counts, records, forecasts and advises at log steps.

A module is imported when one of the names below is asked for.
"""

# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.live.log_step import (
        AXES,
        INTERVAL,
        MAX_STEP,
        SCALARS,
        ComputeAxes,
        Interval,
        LogStep,
        interval_scalars,
    )
    from isoflop.live.monitor import Monitor
    from isoflop.live.options import Options, OptionsDict
    from isoflop.live.passport import markdown, passport
    from isoflop.live.run_info import RunInfo, describe_task, vocabulary_of
    from isoflop.live.scheduler import UnknownFuture, by_batch, by_epoch, future_learning_rates
    from isoflop.live.sinks import Sinks, TensorBoardSink, interval_line

__getattr__ = face(
    __name__,
    {
        "log_step": "AXES INTERVAL MAX_STEP SCALARS ComputeAxes Interval LogStep interval_scalars",
        "monitor": "Monitor",
        "options": "Options OptionsDict",
        "passport": "markdown passport",
        "run_info": "RunInfo describe_task vocabulary_of",
        "scheduler": "UnknownFuture by_batch by_epoch future_learning_rates",
        "sinks": "Sinks TensorBoardSink interval_line",
    },
)
