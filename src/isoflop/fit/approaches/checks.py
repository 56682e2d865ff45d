"""What the approaches ask of their input."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.intp]


def column(name: str, values: ArrayLike, meaning: str, where: str = "") -> Array:
    """A column of positive finite numbers [n].

    Raises:
        ValueError: a value that is not; the message names row (from 1) and column.
    """
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size:
        raise ValueError(
            f"column {name!r}{where}: expected {meaning} in a list that isn't empty, got shape {array.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(array) & (array > 0)))
    if bad.size:
        more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
        raise ValueError(
            f"row {bad[0] + 1}, column {name!r}{where}: expected a positive number of {meaning}, got {array[bad[0]]:g}"
            f"{more}; leave the row out or correct it"
        )
    return array


def budget(C: float) -> float:
    """A budget in FLOPs, positive."""
    return float(column("C", [C], "training FLOPs")[0])
