"""A `Callback` that both packages take for theirs: `lightning.pytorch` and `pytorch_lightning` are two copies."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any


def callback_bases() -> tuple[type[Any], ...]:
    """The `Callback` classes of the installed packages.

    Raises:
        ImportError: neither is installed.
    """
    names = [name for name in ("lightning.pytorch", "pytorch_lightning") if find_spec(name.split(".")[0])]
    if not names:
        raise ModuleNotFoundError("No module named 'lightning'", name="lightning")
    return tuple(import_module(f"{name}.callbacks").Callback for name in names)


class LightningCallback(*callback_bases()):  # type: ignore[misc]
    """Base of our callback: a Lightning callback, whichever package the user's Trainer comes from."""
