"""The data of a plotly figure, without its style."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

DATA = ("type", "name", "x", "y", "z", "error_x", "error_y")
WORDS = ("text", "hovertext")
"""Of these the first alone: they say what x, y and z say."""
AXIS = ("title", "type", "range")


def figure_values(plot: dict[str, Any] | None) -> dict[str, Any]:
    """Traces and axes."""
    if plot is None:
        return {}
    layout = plot.get("layout", {})
    axes = {name: axis for name, axis in layout.items() if name[1:].startswith("axis") and isinstance(axis, dict)}
    return {
        "traces": [
            {name: _plain(trace[name]) for name in DATA if name in trace}
            | {name: trace[name][:1] for name in WORDS if isinstance(trace.get(name), list)}
            for trace in plot["data"]
        ],
        "axes": {
            name: {part: _plain(axis.get(part)) for part in ("title", "type", "range")} for name, axis in axes.items()
        },
        "annotations": [each.get("text") for each in layout.get("annotations", ())],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict) and "bdata" in value:  # as plotly packs arrays
        array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
        return array.tolist()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if name not in ("font", "color", "standoff")}
    return [_plain(each) for each in value] if isinstance(value, list) else value
