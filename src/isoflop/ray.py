"""The stopper under its short name: ``from isoflop.ray import ForecastStopper``."""

from isoflop.lookup import needs

with needs("ray", "ray[tune]"):
    from isoflop_ray import ForecastStopper

__all__ = ["ForecastStopper"]
