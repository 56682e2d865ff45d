"""The pruner under its short name: ``from isoflop.optuna import ForecastPruner, report``."""

from isoflop.lookup import needs

with needs("optuna", "optuna"):
    from isoflop_optuna import ForecastPruner, report

__all__ = ["ForecastPruner", "report"]
