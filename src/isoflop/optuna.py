"""The pruner under its short name: ``from isoflop.optuna import ForecastPruner, report``."""

try:
    from isoflop_optuna import ForecastPruner, report
except ModuleNotFoundError as error:
    # Only Optuna itself: any other missing module is a fault that must be seen as it is.
    if (error.name or "").partition(".")[0] != "optuna":
        raise
    raise ImportError("isoflop.optuna needs optuna: pip install 'isoflop[optuna]'") from error

__all__ = ["ForecastPruner", "report"]
