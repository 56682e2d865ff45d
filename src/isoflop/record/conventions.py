"""Which parameters N counts: the counts that a record can hold, and the one that laws take by default."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

COUNTS = ("total", "trainable", "non_embedding", "non_embedding_with_head", "active")
"""Parameter counts of a record (`isoflop.flops.parameters` defines them)."""
DEFAULT_N: Final = "non_embedding_with_head"
"""N of every law that is fitted or asked. Without the head's matrix the N of small models shrinks to a fraction of what
computes, and fitted exponents are off (Porian et al. 2024; Pearce and Song 2024). `non_embedding` stays the N of 6·N·D
and of Kaplan et al.'s laws."""
PREFERRED_N = (DEFAULT_N, "total", "non_embedding")
"""In this order, where runs do not state the default one."""


def common_n(runs: Iterable[Mapping[str, int | None]]) -> str:
    """The first of `PREFERRED_N` that all runs state which state any of them; else the one that most state.

    Args:
        runs: the parameter counts of each run (`Run.parameters`).

    >>> common_n([{"total": 10, "non_embedding": 6}, {"total": 20, "non_embedding_with_head": 18}, {}])
    'total'
    """
    counts = [each for each in runs if any(each.get(name) for name in PREFERRED_N)]
    stated = {name: sum(bool(each.get(name)) for each in counts) for name in PREFERRED_N}
    return max(PREFERRED_N, key=lambda name: stated[name])  # of equals the first
