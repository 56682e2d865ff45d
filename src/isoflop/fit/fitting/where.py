"""`--where 'epoch_outlier==0 and N>1e8'`: rows picked by comparisons, which are parsed and never evaluated."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(
    r"""\s*([A-Za-z_][\w.\-/ ]*?)\s*(==|!=|<=|>=|<|>)\s*(?:'([^']*)'|"([^"]*)"|([^\s'"<>=!]+))\s*"""
)


@dataclass(frozen=True)
class Condition:
    """column comparison value; numbers compare as numbers, texts as texts."""

    column: str
    comparison: str
    value: str
    quoted: bool

    def holds(self, row: Mapping[str, str]) -> bool:
        """Whether a row of texts fulfils it."""
        compare = _COMPARISONS[self.comparison]
        mine = row[self.column].strip()
        ours, theirs = (None, None) if self.quoted else (_number(mine), _number(self.value))
        if ours is not None and theirs is not None:
            return compare(ours, theirs)
        if self.comparison not in ("==", "!="):
            return False  # a text is neither more nor less than a number
        return compare(mine, self.value)


def parse_where(text: str, columns: list[str]) -> list[Condition]:
    """Conditions joined by `and`.

    Raises:
        ValueError: what was expected and what came, and which columns there are.

    >>> parse_where("epoch_outlier==0 and N>1e8", ["N", "epoch_outlier"])[1]
    Condition(column='N', comparison='>', value='1e8', quoted=False)
    """
    conditions = []
    for part in re.split(r"\band\b(?=(?:[^'\"]|'[^']*'|\"[^\"]*\")*$)", text):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise ValueError(
                f"--where: expected column, comparison ({' '.join(_COMPARISONS)}) and value, joined by `and`, such as "
                f"'epoch_outlier==0 and N>1e8'; got {part.strip()!r}"
            )
        column, comparison, single, double, bare = match.groups()
        if column not in columns:
            raise ValueError(f"--where: there is no column {column!r}; there are {', '.join(columns)}")
        quoted = bare is None
        value = next(item for item in (bare, single, double) if item is not None)
        if not quoted and comparison not in ("==", "!=") and _number(value) is None:
            raise ValueError(f"--where: {column} {comparison} expects a number, got {value!r}")
        conditions.append(Condition(column, comparison, value, quoted))
    return conditions


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
