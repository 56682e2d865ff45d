"""isoflop for the Hugging Face Trainer: `Trainer(…, callbacks=[IsoFLOPCallback()])`."""

from isoflop_transformers.callback import IsoFLOPCallback

__all__ = ["IsoFLOPCallback"]
