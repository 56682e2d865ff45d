"""isoflop for PyTorch Lightning: `Trainer(callbacks=[IsoFLOPMonitor()])`, with `lightning` or `pytorch_lightning`."""

from isoflop_lightning.callback import IsoFLOPMonitor

__all__ = ["IsoFLOPMonitor"]
