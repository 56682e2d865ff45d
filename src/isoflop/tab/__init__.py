"""The Scaling tab of TensorBoard: a dynamic plugin that draws the records under --logdir while they grow.

Nothing is imported before it is used: TensorBoard imports every installed plugin at its start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.tab.plugin import Routes
    from isoflop.tab.records import RecordStore, Root, Tail

__all__ = ["RecordStore", "Root", "Routes", "Tail"]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in __all__:
        return getattr(import_module(f"isoflop.tab.{'plugin' if name == 'Routes' else 'records'}"), name)
    raise AttributeError(f"module 'isoflop.tab' has no attribute {name!r}")
