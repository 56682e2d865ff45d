"""The Lightning callback under its short name: ``from isoflop.lightning import IsoFLOPMonitor``."""

try:
    from isoflop_lightning import IsoFLOPMonitor
except ModuleNotFoundError as error:
    # Only the trainer itself: any other missing module is a fault that must be seen as it is.
    if (error.name or "").partition(".")[0] not in {"lightning", "pytorch_lightning"}:
        raise
    raise ImportError(
        "isoflop.lightning needs lightning (or pytorch_lightning): pip install 'isoflop[lightning]'"
    ) from error

__all__ = ["IsoFLOPMonitor"]
