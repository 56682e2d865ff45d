"""Published laws by name: `published("hoffmann2022-approach3")`. Their constants are in `data/published.toml`."""

from __future__ import annotations

import math
import sys
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np

from isoflop.fit.law import FORMS, Law
from isoflop.fit.papers.publication import PowerAllocation, PowerLaw, Published, TableAllocation

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Published", "published", "published_names"]

_SHARED = ("paper", "n_convention", "tokenizer", "valid")
"""What an entry takes from the one that its `as` names."""
_LOGARITHM = "ln "


def published(name: str) -> Published:
    """The published result of that name (`published_names`).

    >>> N, D = published("besiroglu2024").allocate(5.76e23)  # Chinchilla's budget
    >>> f"{N / 1e9:.1f}B parameters, {D / 1e12:.2f}T tokens"
    '72.2B parameters, 1.33T tokens'

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    entries = _entries()
    if name in entries:
        return entries[name]
    near = get_close_matches(str(name).lower(), entries, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"no published law is named {name!r}{hint} Expected one of {', '.join(entries)}")


def published_names() -> tuple[str, ...]:
    """The names that `published` knows, by paper."""
    return tuple(_entries())


@lru_cache(maxsize=1)
def _entries() -> dict[str, Published]:
    tables = tomllib.loads(files("isoflop").joinpath("data", "published.toml").read_text(encoding="utf-8"))
    return {name: _entry(name, table, tables.get(table.get("as"), {})) for name, table in tables.items()}


def _entry(name: str, table: dict[str, Any], other: dict[str, Any]) -> Published:
    table = {key: other[key] for key in _SHARED if key in other} | table
    convention, source = table.get("n_convention", "unknown"), f"{table['paper']}, {table['where']}"
    law: Law | None = None
    allocation: PowerAllocation | TableAllocation | None = None
    if "form" in table:
        constants, draws = _constants(table["constants"]), _draws(table["constants"], table.get("draws"))
        law = Law(FORMS[table["form"]], constants, convention, draws, source)
    if "table" in table:
        allocation = TableAllocation(tuple((C, N) for C, N in table["table"]), table["exponent"])
    elif "parameters" in table or "tokens" in table:
        allocation = PowerAllocation(_power_law(table.get("parameters")), _power_law(table.get("tokens")))
    return Published(
        name,
        table["paper"],
        table["where"],
        convention,
        table.get("tokenizer"),
        table["valid"],
        law,
        allocation,
        _power_law(table.get("batch")),
        _power_law(table.get("learning_rate")),
        tuple((C, N, D) for C, N, D in table.get("stated", ())),
        table["note"],
    )


def _constants(given: dict[str, float]) -> dict[str, float]:
    return {
        name.removeprefix(_LOGARITHM): math.exp(value) if name.startswith(_LOGARITHM) else value
        for name, value in given.items()
    }


def _draws(given: dict[str, float], known: dict[str, Any] | None) -> dict[str, np.ndarray] | None:
    """Normal draws about the constants, on a logarithm where it is the logarithm that is given."""
    if known is None:
        return None
    normal = np.random.default_rng(0).standard_normal((known["number"], len(given)))
    theta = np.array(list(given.values())) + normal @ np.array(known["factor"]).T
    return {
        name.removeprefix(_LOGARITHM): np.exp(column) if name.startswith(_LOGARITHM) else column
        for name, column in zip(given, theta.T, strict=True)
    }


def _power_law(given: dict[str, float] | None) -> PowerLaw | None:
    if given is None:
        return None
    return PowerLaw(given["factor"], {name: value for name, value in given.items() if name != "factor"})
