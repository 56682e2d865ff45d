"""Planted laws, designs of runs and the public data, for the tests of `isoflop.laws`."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).parents[2] / "shared" / "data"
BESIROGLU = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""Besiroglu et al. 2024's refit of Chinchilla."""


def hoffmann(
    N: np.ndarray, D: np.ndarray, E: float = 1.8172, A: float = 482.01, B: float = 2085.43, **exponents: float
) -> np.ndarray:
    """E + A/N^α + B/D^β; Besiroglu's constants where none are given."""
    exponents = {name: BESIROGLU[name] for name in ("alpha", "beta")} | exponents
    return E + A / N ** exponents["alpha"] + B / D ** exponents["beta"]


def huber(residuals: np.ndarray, delta: float) -> float:
    """Σ huber, written apart from the code under test."""
    size = np.abs(residuals)
    return float(np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum())


def grid(sizes: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Every size with every number of tokens, 2.5 decades each."""
    N, D = np.meshgrid(np.geomspace(3e7, 1e10, sizes), np.geomspace(1e9, 3e11, tokens))
    return N.ravel(), D.ravel()


def with_value(columns: Mapping[str, np.ndarray], name: str, row: int, value: float) -> dict[str, np.ndarray]:
    """The columns with one value changed."""
    changed = columns[name].copy()
    changed[row] = value
    return {**columns, name: changed}


def spread_out(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and tokens drawn over 2.5 decades each."""
    rng = np.random.default_rng(seed)
    return 3e7 * (1e10 / 3e7) ** rng.random(n), 1e9 * 300 ** rng.random(n)


def reference(name: str) -> Path:
    """A file or folder of ../shared/data; skips the test where there is none."""
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the reference data are not here: {path}")
    return path


def data(name: str, **columns: str) -> dict[str, np.ndarray]:
    """Columns of a file of ../shared/data, by new name; skips the test where there is none."""
    with reference(name).open() as file:
        rows = list(csv.DictReader(file))
    return {new: np.array([float(row[old]) for row in rows]) for new, old in columns.items()}


def chinchilla() -> dict[str, np.ndarray]:
    """Hoffmann et al.'s runs without the five highest losses: 240."""
    table = data("chinchilla_245.csv", N="N", D="tokens", loss="loss", out="epoch_outlier")
    kept = table.pop("out") == 0
    return {name: values[kept] for name, values in table.items()}
