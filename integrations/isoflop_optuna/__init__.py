"""isoflop for Optuna: `create_study(pruner=ForecastPruner())`, `report(trial, monitor)` in the objective."""

from isoflop_optuna.pruner import ForecastPruner, report

__all__ = ["ForecastPruner", "report"]
