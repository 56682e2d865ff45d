"""isoflop for Ray Tune: `RunConfig(stop=ForecastStopper())`, with `tune.report(monitor.scalars)` in the trainable."""

from isoflop_ray.stopper import ForecastStopper

__all__ = ["ForecastStopper"]
