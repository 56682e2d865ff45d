"""The Hugging Face callback under its short name: ``from isoflop.transformers import IsoFLOPCallback``."""

from isoflop.lookup import needs

with needs("transformers", "transformers (and accelerate)"):
    from isoflop_transformers import IsoFLOPCallback

__all__ = ["IsoFLOPCallback"]
