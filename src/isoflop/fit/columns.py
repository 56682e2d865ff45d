"""Columns of strangers' tables: what they are by their names, the units in these, the numbers in their cells, and rows
picked by conditions such as 'epoch_outlier==0 and N>1e8', which are parsed, never evaluated.
"""

from __future__ import annotations

import math
import operator
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from isoflop.fit.runs import BadData
from isoflop.laws.quantities import PF_DAY
from isoflop.logs.files import MARKS, cell_number, is_blank, mixed_marks
from isoflop.logs.names import DATA, EPOCHS, EXPERTS, NO_END, UNIQUE, Kind, fact_of, role_of

GUESSES: dict[str, tuple[str, ...]] = {
    "N": ("N", "params", "parameters", "n_params", "num_params", "model_size", "size", "non_embedding"),
    "D": ("D", "tokens", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "tokens_seen", "data"),
    "C": (
        *("C", "flops", "compute", "training_flops", "train_flops", "total_flops", "C_min", "budget", "flops_budget"),
        *("compute_budget", "flop_budget"),
    ),
    "U": ("U", *UNIQUE),
    "epochs": EPOCHS,
    "X": ("X", *EXPERTS),
    **dict.fromkeys(
        ("loss", "L"),
        ("loss", "L", "final_loss", "val_loss", "eval_loss", "valid_loss", "validation_loss", "train_loss"),
    ),
    "error": ("error", "err", "downstream_error", "top1_error", "mean_error", "error_rate"),
    "perplexity": ("perplexity", "ppl", "val_ppl", "eval_ppl", "val_perplexity", "validation_perplexity"),
}
"""Names of columns that are taken without being told, in any case and with any separators, the likeliest first."""
_SI = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}
_SI |= {"mega": 1e6, "giga": 1e9, "tera": 1e12, "peta": 1e15, "exa": 1e18, "zetta": 1e21}
FLOPS_OF_UNITS: dict[str, float] = {
    **dict.fromkeys(("pfdays", "pfday", "pflopdays", "pflopsdays", "petaflopdays", "petaflopsdays"), PF_DAY),
    **{prefix + unit: factor for prefix, factor in _SI.items() for unit in ("flop", "flops")},
}
"""What a unit in brackets behind a column's name, `C (PF-days)`, multiplies its cells by."""
_KINDS: dict[str, tuple[Kind, tuple[str, ...]]] = {
    "N": ("size", ("",)),
    "D": ("tokens", ("",)),
    "loss": ("loss", ("", "bits")),
    "perplexity": ("loss", ("ppl",)),
}
"""Kind and units of the columns of logs that are taken, too, where there is one alone."""


def plain(name: str) -> str:
    """A name in lower case, without separators and unit."""
    return re.sub(r"[\W_]+", "", unit_of(name)[0]).lower()


def unit_of(name: str) -> tuple[str, float]:
    """A column's name without its unit of FLOPs, and what its unit multiplies cells by.

    >>> unit_of("C (PF-days)"), unit_of("compute_pf_days"), unit_of("Params (M)")
    (('C', 8.64e+19), ('compute', 8.64e+19), ('Params (M)', 1000000.0))
    """
    found = re.fullmatch(r"(.*\w)\s*[(\[]([^()\[\]]+)[)\]]\s*", name)
    found = found or re.fullmatch(r"(.*[^\W_])[_ ]((?:pf|pflops?|petaflops?)[_ -]?days?|[A-Za-z]+flops?)", name, re.I)
    if found and (factor := FLOPS_OF_UNITS.get(re.sub(r"[\W_]+", "", found[2]).lower())):
        return found[1], factor
    role = role_of(name)
    return name, 1.0 if role is None else math.log(2) if role.unit == "bits" else role.factor


def guessed(what: str, present: Sequence[str]) -> str | None:
    """The column that is known to be something; None: none is, or several may be."""
    names = GUESSES.get(what, (what,))
    by_plain = {plain(name): name for name in reversed(present)}
    if exact := next((name for name in names if name in present), None):
        return exact
    if found := next((by_plain[plain(name)] for name in names if plain(name) in by_plain), None):
        return found
    alike = _alike(what, present)
    return alike[0] if len(alike) == 1 else None


def _alike(what: str, present: Sequence[str]) -> list[str]:
    """Columns that are something by the words of their names."""
    kind, units = _KINDS.get(what, (None, ()))
    roles = {name: role_of(name) for name in present} if kind else {}
    return [name for name, role in roles.items() if role is not None and role.kind == kind and role.unit in units]


def column_of(what: str, present: Sequence[str], named: str | None) -> str:
    """The column that the user names for something, else the one that is known to be it; BadData: there is none."""
    if named is not None:
        found = named if named in present else next((name for name in present if plain(name) == plain(named)), None)
        if found is None:
            raise BadData(f"there is no column {named!r} for {what}; there are {listed(present)}")
        return found
    found = guessed(what, present)
    if found is None:
        if len(several := _alike(what, present)) > 1:
            raise BadData(f"several columns may be {what}, {listed(several)}: say which with --column {what}=…")
        more = {"N": ", or add a column of parameter counts", "D": ", or name FLOPs, 6·N·D, with --column C=…"}
        steps = [name for name in present if (role := role_of(name)) is not None and role.kind == "step"]
        if what == "D" and steps:
            more["D"] = f", or add one of tokens: {steps[0]} times the tokens of a step"
        raise BadData(
            f"no column is known to be {what} (looked for {', '.join(GUESSES.get(what, (what,)))}); there are "
            f"{listed(present)}: say which with --column {what}=…{more.get(what, '')}"
        )
    return found


def tells_kinds(name: str, cells: Sequence[str]) -> bool:
    """Whether a column's cells, one a run, tell kinds of runs: several, and not nearly as many as runs."""
    return 1 < len(set(cells)) <= len(cells) / (1 if fact_of(name) in DATA else 4)


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; of very many the first ones."""
    some = ", ".join(name[:40] for name in names[:30])
    return some if len(names) <= 30 else f"{some} and {len(names) - 30:,} more"


def number_of(text: str | None, column: str, label: str) -> float:
    """A cell's number, such as 1e9, 543M, 1,000 or 3.21†; NaN where it holds nothing, or that no run ended."""
    text = (text or "").strip()
    if is_blank(text) or text.strip(MARKS).lower() in ("nan", *NO_END["status"]):
        return math.nan
    number = cell_number(text)
    if mixed := mixed_marks(text) if number is None else "":
        raise BadData(f"{label}, column {column!r}: {mixed}")
    if number is None:
        picked = shlex.quote(f'{column}!="{text}"')
        raise BadData(
            f"{label}, column {column!r}: expected a number, got {text!r}; correct it or leave the run out: "
            f"--where {picked}"
        )
    return number if text.strip(MARKS)[-1].isalpha() else number * unit_of(column)[1]  # 543M has a unit of its own


# -- rows picked by --where --------------------------------------------------------------------------------------------

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_COLUMN = re.compile(r"""(?:'([^']+)'|"([^"]+)"|([A-Za-z_][\w.\-/ ]*?))\s*(?=[=!<>])""")
_COMPARED = re.compile(r"""\s*(==|!=|<=|>=|<|>)\s*(?:'([^']*)'|"([^"]*)"|([^\s'"<>=!]+))\s*""")


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
        ours, theirs = (None, None) if self.quoted else (cell_number(mine), cell_number(self.value))
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
    longest = sorted(columns, key=len, reverse=True)
    for part in re.split(r"\band\b(?=(?:[^'\"]|'[^']*'|\"[^\"]*\")*$)", text):
        part = part.strip()
        fits = (name for name in longest if part.startswith(name) and _COMPARED.fullmatch(part, len(name)))
        if known := next(fits, ""):
            column, rest = known, part[len(known) :]
        elif named := _COLUMN.match(part):
            column, rest = next(filter(None, named.groups())), part[named.end() :]
        else:
            column, rest = "", ""
        match = _COMPARED.fullmatch(rest)
        if match is None:
            raise ValueError(
                f"--where: expected column, comparison ({' '.join(_COMPARISONS)}) and value, joined by `and`, such as "
                f"'epoch_outlier==0 and N>1e8'; got {part!r}"
            )
        comparison, single, double, bare = match.groups()
        if column not in columns:
            raise ValueError(f"--where: there is no column {column!r}; there are {listed(columns)}")
        quoted = bare is None
        value = next(item for item in (bare, single, double) if item is not None)
        if not quoted and comparison not in ("==", "!=") and cell_number(value) is None:
            raise ValueError(f"--where: {column} {comparison} expects a number, got {value!r}")
        conditions.append(Condition(column, comparison, value, quoted))
    return conditions
