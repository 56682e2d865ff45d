"""Published results by name: a law with its constants, a split of compute, a batch or rate law, and the source.

Their constants are in `data/published.toml`: `published("hoffmann2022-approach3")` reads them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from isoflop.arrays import Array
from isoflop.console import Shown
from isoflop.laws.forms import FORMS, HOFFMANN, Convention, Law, hoffmann_allocation, values
from isoflop.laws.quantities import UNITS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_SHARED = ("paper", "n_convention", "tokenizer", "valid", "flops")
"""What an entry takes from the one that its `as` names."""
_LOGARITHM = "ln "
REACH = 1e3
"""A factor of compute beyond a law's runs at which no loss is stated: its draws know nothing of a law that bends."""


def _variable(name: str, x: ArrayLike | None) -> Array:
    numbers = np.asarray(x, dtype=float)
    if not np.all((numbers > 0) & np.isfinite(numbers)):
        raise ValueError(
            f"{name} must be a positive, finite number of {UNITS[name]}, got {x!r}: check its unit and sign"
        )
    return numbers


@dataclass(frozen=True)
class PowerLaw:
    """`factor`·Π variable^exponent, variables C (FLOPs), N (parameters), D (tokens).

    >>> float(PowerLaw(0.58, {"D": 0.571})(D=1e11).round(-3))
    1108000.0
    """

    factor: float
    exponents: Mapping[str, float]

    def __call__(self, **variables: ArrayLike | None) -> Array:
        """Its value; ValueError where a variable it needs is missing. One it does not need is ignored."""
        missing = [name for name in self.exponents if variables.get(name) is None]
        if missing:
            raise ValueError(f"this law is in {', '.join(self.exponents)}: pass {', '.join(f'{m}=' for m in missing)}")
        result = values(self.factor)
        for name, exponent in self.exponents.items():
            result = result * _variable(name, variables[name]) ** exponent
        return result

    def __str__(self) -> str:
        return f"{self.factor:.4g}" + "".join(f"·{name}^{e:g}" for name, e in self.exponents.items())


@dataclass(frozen=True)
class PublishedSplit:
    """Compute-optimal N and D as power laws of C (of one stated alone the other is C/6 over it), or N from a table.

    Rows of a table are (C, N): between them N is straight in ln C, beyond on `exponent`. For results whose prefactor
    was not published.
    """

    parameters: PowerLaw | None = None
    tokens: PowerLaw | None = None
    rows: tuple[tuple[float, float], ...] = ()
    exponent: float = 0.0

    def allocate(self, C: ArrayLike) -> tuple[Array, Array]:
        """N and D for C FLOPs."""
        C = _variable("C", C)
        if self.rows:
            x, (log_C, log_N) = np.log(C), np.log(np.array(self.rows)).T
            beyond = x - np.clip(x, log_C[0], log_C[-1])
            N = np.exp(np.interp(x, log_C, log_N) + self.exponent * beyond)
            return N, C / (6 * N)
        N, D = (None if law is None else law(C=C) for law in (self.parameters, self.tokens))
        if N is None:
            assert D is not None
            return C / (6 * D), D
        return N, C / (6 * N) if D is None else D

    def __str__(self) -> str:
        if self.rows:
            return f"N between {len(self.rows)} rows of a table, beyond them ∝ C^{self.exponent:g}"
        given = (("N", self.parameters), ("D", self.tokens))
        return ", ".join(f"{name} = {law}" for name, law in given if law is not None)


@dataclass(frozen=True)
class Published(Shown):
    """A published result, with all it takes to use it rightly."""

    name: str  # in `published`
    paper: str  # authors, year, arXiv number
    where: str  # equation, table or section
    n_convention: Convention  # which parameters its N counts
    tokenizer: str | None  # on whose tokens losses and token counts are; None: not known to us
    valid: str  # the runs behind it
    law: Law | None = None  # loss (or error) as a function, None where it states none
    allocation: PublishedSplit | None = None  # its split of compute, None where it states none other than the law's own
    batch_law: PowerLaw | None = None  # batch in tokens
    learning_rate_law: PowerLaw | None = None  # peak rate
    stated: tuple[tuple[float, float, float], ...] = ()  # (C, N, D) that the paper itself gives as an example
    note: str = ""  # what to know before using it, doubts included
    flops: tuple[float, float] | None = None  # of the smallest and the largest run behind it; None: not known to us

    def out_of_reach(self, C: float) -> str:
        """Why its loss of a run of C FLOPs is open: farther than `REACH` from the runs behind it; "": it is not."""
        if self.flops is None or self.flops[0] / REACH <= C <= self.flops[1] * REACH:
            return ""
        return f"L is open: {C:.2g} FLOPs are beyond a factor {REACH:,.0f} of the runs that laws come from"

    @property
    def states_loss(self) -> bool:
        """Whether it has a loss of N and D."""
        return self.law is not None and set(self.law.form.variables) in ({"N", "D"}, {"N", "D", "U"})

    @property
    def allocates(self) -> bool:
        """Whether `allocate` has an answer."""
        return self.allocation is not None or (self.law is not None and self.law.form.name == HOFFMANN.name)

    def allocate(self, C: ArrayLike) -> tuple[Array, Array]:
        """Compute-optimal N (in its convention) and D for C FLOPs.

        Raises:
            ValueError: it states no split of compute; or C is not positive.
        """
        if self.allocation is not None:
            return self.allocation.allocate(C)
        if self.law is not None and self.law.form.name == HOFFMANN.name:
            constants = {name: value for name, value in self.law.constants.items() if name != "E"}
            return hoffmann_allocation(_variable("C", C), **constants)
        raise ValueError(f"{self.name} ({self.paper}) states no split of compute: use another published result")

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.paper}, {self.where}"]
        if self.law is not None:
            constants = ", ".join(f"{name} = {value:.7g}" for name, value in self.law.constants.items())
            lines += [self.law.form.text, constants]
        if self.allocation is not None:
            lines.append(str(self.allocation))
        if self.batch_law is not None:
            lines.append(f"batch {self.batch_law} tokens")
        if self.learning_rate_law is not None:
            lines.append(f"peak learning rate {self.learning_rate_law}")
        lines.append(f"N {self.n_convention}; tokenizer {self.tokenizer or 'unknown'}; {self.valid}")
        return "\n  ".join([*lines, self.note] if self.note else lines)


def published(name: str, wanted: Callable[[Published], bool] = bool) -> Published:
    """The published result of that name (`published_names`).

    >>> N, D = published("besiroglu2024").allocate(5.76e23)  # Chinchilla's budget
    >>> f"{N / 1e9:.1f}B parameters, {D / 1e12:.2f}T tokens"
    '72.2B parameters, 1.33T tokens'

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    every = _entries()
    entries = {each: entry for each, entry in every.items() if wanted(entry)}
    if name in entries:
        return entries[name]
    near = get_close_matches(str(name).lower(), entries, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    what = f"{name!r} cannot answer this" if name in every else f"no published law is named {name!r}"
    raise ValueError(f"{what}{hint} Expected one of {', '.join(entries)}")


def law_and_source(law: str | Law | Published) -> tuple[Law, str]:
    """A law with a loss by its published name, or as it is; and whose it is. ValueError where it states no loss."""
    if isinstance(law, str):
        law = published(law)
    if isinstance(law, Law):
        return law, law.source or law.form.text
    if not isinstance(law, Published):
        raise ValueError(f"law expects a published name or a Law, got {law!r}: fit_law(…).law is one")
    if law.law is None:
        raise ValueError(f"{law.name} states no loss: pass a law that does, such as besiroglu2024, or a fitted one")
    return law.law, f"{law.paper}, {law.where}"


def published_names() -> tuple[str, ...]:
    """The names that `published` knows, by paper."""
    return tuple(_entries())


@lru_cache(maxsize=1)
def _entries() -> dict[str, Published]:
    tables = tomllib.loads(files("isoflop").joinpath("data", "published.toml").read_text(encoding="utf-8"))
    return {name: _entry(name, table, tables.get(table.get("as"), {})) for name, table in tables.items()}


def _entry(name: str, table: dict[str, Any], other: dict[str, Any]) -> Published:
    table = {key: other[key] for key in _SHARED if key in other} | table
    convention = table.get("n_convention", "unknown")
    law: Law | None = None
    allocation: PublishedSplit | None = None
    if "form" in table:
        given = np.array(list(table["constants"].values()))
        drawn = None
        if known := table.get("draws"):  # normal about the constants, on the logarithm where that is given
            normal = np.random.default_rng(0).standard_normal((known["number"], len(given)))
            drawn = _letters(table["constants"], (given + normal @ np.array(known["factor"]).T).T)
        constants = {letter: float(value) for letter, value in _letters(table["constants"], given).items()}
        law = Law(FORMS[table["form"]], constants, convention, drawn, f"{table['paper']}, {table['where']}")
    if "table" in table:
        allocation = PublishedSplit(rows=tuple((C, N) for C, N in table["table"]), exponent=table["exponent"])
    elif "parameters" in table or "tokens" in table:
        allocation = PublishedSplit(_power_law(table.get("parameters")), _power_law(table.get("tokens")))
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
        tuple(table["flops"]) if "flops" in table else None,
    )


def _letters(names: Iterable[str], numbers: Array) -> dict[str, Array]:
    """Constants by letter; of one that is named by its logarithm the exponential."""
    return {
        name.removeprefix(_LOGARITHM): np.exp(x) if name.startswith(_LOGARITHM) else x
        for name, x in zip(names, numbers, strict=True)
    }


def _power_law(given: dict[str, float] | None) -> PowerLaw | None:
    if given is None:
        return None
    return PowerLaw(given["factor"], {name: value for name, value in given.items() if name != "factor"})
