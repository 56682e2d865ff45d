"""Runs to fit: columns of numbers, checked before anything is computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from isoflop.fit.fitting.newton import Array

UNITS = {"N": "parameters", "D": "tokens", "U": "unique tokens", "S": "steps", "C": "FLOPs", "loss": "nats per token"}
_LEAST = {"N": 1e3, "D": 1e4, "U": 1e4, "C": 6e7}
"""Less than this in a run that trained a language model is another unit: millions, billions, PF-days. C: 6·N·D."""
TOKENS_A_PARAMETER = (1e-3, 1e6)
"""Half of the runs outside: N or D alone is in millions. Public runs lie between .02 and 1e4."""
LITTLE = 1e12
"""FLOPs, 6·N·D: half of the runs below a second of one GPU are toys, or N and D are both in millions."""


class BadData(ValueError):
    """Expected runs that a law can be fitted to; the text names row and column."""


@dataclass(frozen=True)
class Runs:
    """`variables` of the law by name [n], `loss` in nats per token [n], `weights` [n]; `warnings` on what is odd."""

    variables: Mapping[str, Array]
    loss: Array
    weights: Array
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.loss)


def check_runs(
    columns: Mapping[str, ArrayLike],
    names: Sequence[str],
    weights: ArrayLike | None = None,
    rows: Sequence[object] | None = None,
) -> Runs:
    """Check columns and take those that a law wants.

    Args:
        columns: by name, "loss" among them.
        names: the law's variables.
        weights: of the runs; default: all 1.
        rows: what to call each row in messages; default: row 1, row 2, …

    Raises:
        BadData: a column is missing, not of numbers, of another length; a value is not positive and finite; there are
            no runs; a unit is plainly another.
    """
    for name in (*names, "loss"):
        if name not in columns:
            raise BadData(
                f"expected a column {name!r} ({UNITS.get(name, 'numbers')}), got {', '.join(columns) or 'none'}"
            )
    taken: dict[str, Array] = {}
    for name in (*names, "loss"):
        try:
            taken[name] = np.asarray(columns[name], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BadData(f"column {name!r}: expected numbers, got something else ({error})") from None
        if taken[name].ndim != 1:
            raise BadData(f"column {name!r}: expected one number a run, got an array of shape {taken[name].shape}")
    n = len(taken["loss"])
    if n == 0:
        raise BadData("expected runs, got none: the table is empty")
    called = [f"row {i + 1}" for i in range(n)] if rows is None else [str(row) for row in rows]
    for name, values in taken.items():
        if len(values) != n:
            raise BadData(f"column {name!r} has {len(values)} values, but there are {n} losses")
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if bad.size:
            more = f" (and {bad.size - 1} more rows)" if bad.size > 1 else ""
            raise BadData(
                f"{called[bad[0]]}, column {name!r}: expected a positive number of {UNITS.get(name, 'units')}, got "
                f"{values[bad[0]]}{more}; leave the run out or correct it"
            )
        least = _LEAST.get(name, 0.0)
        if np.median(values) < least:
            raise BadData(
                f"column {name!r}: expected {UNITS[name]}, got values around {np.median(values):.3g}; they look like "
                "millions or billions: multiply them out"
            )
    if "N" in taken and "D" in taken:
        ratio = float(np.median(taken["D"] / taken["N"]))
        if not TOKENS_A_PARAMETER[0] < ratio < TOKENS_A_PARAMETER[1]:
            small = "N" if ratio > 1 else "D"
            raise BadData(
                f"column {small!r}: expected {UNITS[small]}, got values around {np.median(taken[small]):.3g}, which "
                f"makes {ratio:.3g} tokens a parameter; they look like millions: multiply them out"
            )
    return Runs(
        {name: taken[name] for name in names},
        taken["loss"],
        _weights(weights, n),
        tuple(_oddities(taken, names, called)),
    )


def _weights(weights: ArrayLike | None, n: int) -> Array:
    values = np.ones(n) if weights is None else np.asarray(weights, dtype=np.float64)
    if values.shape != (n,) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise BadData(f"weights: expected {n} numbers of at least 0, not all 0, got {values}")
    return values


def _oddities(taken: Mapping[str, Array], names: Sequence[str], called: Sequence[str]) -> list[str]:
    said = []
    table = np.column_stack([taken[name] for name in (*names, "loss")])
    first: dict[bytes, str] = {}
    twice = []
    for row, label in zip(table, called, strict=True):
        if first.setdefault(row.tobytes(), label) is not label:
            twice.append(f"{first[row.tobytes()]} and {label}")
    if twice:
        said.append(
            f"{len(twice)} run{'s are' if len(twice) > 1 else ' is'} given twice ({twice[0]}): each counts, which "
            "makes intervals too narrow"
        )
    if "N" in taken and "D" in taken and (flops := float(np.median(6 * taken["N"] * taken["D"]))) < LITTLE:
        said.append(f"half of the runs took less than {flops:.3g} FLOPs (6·N·D): are N and D multiplied out?")
    for name in names:
        values = taken[name]
        typical = np.median(values)
        odd = np.flatnonzero((values < typical / 1e5) | (values > typical * 1e5))
        if odd.size:
            said.append(
                f"{called[odd[0]]}, column {name!r}: {values[odd[0]]:.3g} beside a median of {typical:.3g}: is it "
                "in the same unit?"
            )
        if np.ptp(np.log(values)) < 1e-9:
            said.append(f"all runs have the same {name} ({values[0]:.4g}): what depends on it is not identified")
    if (taken["loss"] > 20).any():
        row = int(np.argmax(taken["loss"]))
        said.append(f"{called[row]}: a loss of {taken['loss'][row]:.3g} nats per token is no language model's")
    return said
