"""Published laws and constants by name: `published("hoffmann2022-approach3")`."""

from __future__ import annotations

from difflib import get_close_matches

from isoflop.fit.papers.classic import CHINCHILLA, KAPLAN
from isoflop.fit.papers.later import LATER
from isoflop.fit.papers.publication import Published
from isoflop.fit.papers.refit import REFIT

__all__ = ["Published", "published", "published_names"]

_ALL = (*CHINCHILLA, REFIT, *KAPLAN, *LATER)
_BY_NAME = {entry.name: entry for entry in _ALL}
assert len(_BY_NAME) == len(_ALL)


def published(name: str) -> Published:
    """The published result of that name (`published_names`).

    >>> N, D = published("besiroglu2024").allocate(5.76e23)  # Chinchilla's budget
    >>> f"{N / 1e9:.1f}B parameters, {D / 1e12:.2f}T tokens"
    '72.2B parameters, 1.33T tokens'

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    near = get_close_matches(str(name).lower(), _BY_NAME, n=1, cutoff=0.3)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    raise ValueError(f"no published law is named {name!r}{hint} Expected one of {', '.join(_BY_NAME)}")


def published_names() -> tuple[str, ...]:
    """The names that `published` knows, by paper."""
    return tuple(_BY_NAME)
