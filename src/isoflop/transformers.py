"""The Hugging Face callback under its short name: ``from isoflop.transformers import IsoFLOPCallback``."""

try:
    from isoflop_transformers import IsoFLOPCallback
except ModuleNotFoundError as error:
    # Only the trainer itself: any other missing module is a fault that must be seen as it is.
    if (error.name or "").partition(".")[0] not in {"transformers", "accelerate"}:
        raise
    raise ImportError(
        "isoflop.transformers needs transformers (and accelerate): pip install 'isoflop[transformers]'"
    ) from error

__all__ = ["IsoFLOPCallback"]
