"""The Scaling tab of TensorBoard: a dynamic plugin that draws the records under --logdir while they grow."""

# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.tab.plugin import Routes, ScalingPlugin
    from isoflop.tab.records import RecordStore, Root, Tail

__getattr__ = face(__name__, {"plugin": "Routes ScalingPlugin", "records": "RecordStore Root Tail"})
