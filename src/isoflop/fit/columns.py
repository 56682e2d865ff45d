"""Columns of strangers' tables: what they are by their names, the units in these, and the numbers in their cells."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from isoflop.fit.runs import BadData
from isoflop.laws.quantities import PF_DAY
from isoflop.logs.files import cell_number
from isoflop.logs.names import Kind, role_of

GUESSES: dict[str, tuple[str, ...]] = {
    "N": ("N", "params", "parameters", "n_params", "num_params", "model_size", "size", "non_embedding"),
    "D": ("D", "tokens", "n_tokens", "num_tokens", "train_tokens", "training_tokens", "tokens_seen", "data"),
    "C": (
        "C",
        "flops",
        "compute",
        "training_flops",
        "train_flops",
        "total_flops",
        "C_min",
        "budget",
        "flops_budget",
        "compute_budget",
        "flop_budget",
    ),
    "U": ("U", "unique_tokens"),
    "X": ("X", "experts", "num_experts", "n_experts", "num_local_experts", "n_routed_experts"),
    "loss": ("loss", "L", "final_loss", "val_loss", "eval_loss", "valid_loss", "validation_loss", "train_loss"),
    "L": ("loss", "L", "final_loss", "val_loss", "eval_loss", "valid_loss", "validation_loss", "train_loss"),
    "error": ("error", "err", "downstream_error", "top1_error", "mean_error", "error_rate"),
    "perplexity": ("perplexity", "ppl", "val_ppl", "eval_ppl", "val_perplexity", "validation_perplexity"),
}
"""Names of columns that are taken without being told, in any case and with any separators, the likeliest first."""
BLANK = ("", "nan", "none", "null", "na", "n/a", "-")
"""Cells that hold nothing."""
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

    >>> unit_of("C (PF-days)"), unit_of("Params (M)")
    (('C', 8.64e+19), ('Params (M)', 1000000.0))
    """
    found = re.fullmatch(r"(.*\w)\s*[(\[]([^()\[\]]+)[)\]]\s*", name)
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
    kind, units = _KINDS.get(what, (None, ()))
    roles = {name: role_of(name) for name in present} if kind else {}
    alike = [name for name, role in roles.items() if role is not None and role.kind == kind and role.unit in units]
    return alike[0] if len(alike) == 1 else None


def column_of(what: str, present: Sequence[str], named: str | None) -> str:
    """The column that the user names for something, else the one that is known to be it; BadData: there is none."""
    if named is not None:
        found = named if named in present else next((name for name in present if plain(name) == plain(named)), None)
        if found is None:
            raise BadData(f"there is no column {named!r} for {what}; there are {listed(present)}")
        return found
    found = guessed(what, present)
    if found is None:
        raise BadData(
            f"no column is known to be {what} (looked for {', '.join(GUESSES.get(what, (what,)))}); there are "
            f"{listed(present)}: say which with --column {what}=…"
        )
    return found


def listed(names: Sequence[str]) -> str:
    """Names in a sentence; of very many the first ones."""
    some = ", ".join(name[:40] for name in names[:30])
    return some if len(names) <= 30 else f"{some} and {len(names) - 30:,} more"


def number_of(text: str | None, column: str, label: str) -> float:
    """A cell's number, such as 1e9, 543M or 1,000; NaN where it holds nothing."""
    if text is None or text.strip().lower() in BLANK:
        return math.nan
    number = cell_number(text)
    if number is None:
        raise BadData(
            f"{label}, column {column!r}: expected a number, got {text!r}; correct it or leave the run out (--where)"
        )
    return number if text.strip()[-1].isalpha() else number * unit_of(column)[1]  # 543M has a unit of its own
