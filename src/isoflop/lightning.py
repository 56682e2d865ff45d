"""The Lightning callback under its short name: ``from isoflop.lightning import IsoFLOPMonitor``."""

from isoflop.lookup import needs

with needs("lightning", "lightning (or pytorch_lightning)"):
    from isoflop_lightning import IsoFLOPMonitor

__all__ = ["IsoFLOPMonitor"]
