"""Names, counts and conventions as figures write them; strangers' names made fit to be shown at all."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from isoflop.fit.frontier.allocation import short

LONGEST = 48
"""Characters of a name."""
COUNTED = {
    "total": "N total",
    "trainable": "N trainable",
    "non_embedding": "N non-embedding",
    "non_embedding_with_head": "N non-embedding with head",
    "active": "N active",
    "unknown": "N as given",
}


def name_of(text: str, longest: int = LONGEST) -> str:
    r"""A name in one line without control characters, cut in the middle where it is long.

    Controls, line breaks, and what turns the direction of writing would break a file or mislead a reader.

    >>> name_of("a\nb\u202ec"), name_of("x" * 60, 9)
    ('a bc', 'xxxx…xxxx')
    """
    spaced = " ".join(text.split())
    shown = "".join(c for c in spaced if unicodedata.category(c)[0] != "C") or "unnamed"
    if len(shown) <= longest:
        return shown
    half = (longest - 1) // 2
    return f"{shown[:half]}…{shown[-half:]}"


def parameters(convention: str) -> str:
    """Which parameters N counts, for an axis."""
    return COUNTED.get(convention, f"N {convention.replace('_', ' ')}")


def loss_label(loss: str) -> str:
    """Which loss, for an axis."""
    if loss.startswith("eval/"):
        return f"evaluation loss, {name_of(loss.removeprefix('eval/'))}"
    return "training loss" if loss == "train" else name_of(loss)


def counted(n: int, one: str, many: str) -> str:
    """A number with its noun.

    >>> counted(1, "run", "runs"), counted(3, "run", "runs")
    ('1 run', '3 runs')
    """
    return f"{n:,} {one if n == 1 else many}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """A few names, and how many more."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(name_of, names[:most])) + more


__all__ = ["counted", "listed", "loss_label", "name_of", "parameters", "short"]
