"""The stopper under its short name: ``from isoflop.ray import ForecastStopper``."""

try:
    from isoflop_ray import ForecastStopper
except ModuleNotFoundError as error:
    # Only Ray Tune itself: any other missing module is a fault that must be seen as it is.
    if (error.name or "").partition(".")[0] != "ray":
        raise
    raise ImportError("isoflop.ray needs ray[tune]: pip install 'isoflop[ray]'") from error

__all__ = ["ForecastStopper"]
