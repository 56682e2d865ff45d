"""Names, counts and conventions as figures write them; curves in fewer points that look the same.

Of each column of the screen the first, last, lowest and highest point are kept. At as many columns as the screen has
pixels a line through these four is drawn exactly as the line through all (Jugel et al. 2014, "M4: A
Visualization-Oriented Time Series Data Aggregation"). Spikes stay.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from isoflop.arrays import Array
from isoflop.console import cut
from isoflop.console import listed as listed_plainly
from isoflop.laws import Published

LONGEST = 48
"""Characters of a name."""
COUNTED = {
    "non_embedding": "non-embedding",
    "non_embedding_with_head": "non-embedding with head",
    "unknown": "as given",
}


def name_of(text: str, longest: int = LONGEST) -> str:
    r"""A name in one line without control characters, cut in the middle where it is long.

    Controls, line breaks, and what turns the direction of writing would break a file or mislead a reader.

    >>> name_of("a\nb\u202ec"), name_of("x" * 60, 9)
    ('a bc', 'xxxx…xxxx')
    """
    spaced = " ".join(text.split())
    shown = "".join(c for c in spaced if unicodedata.category(c)[0] != "C") or "unnamed"
    return cut(shown, longest)


def counted_as(convention: str) -> str:
    """Which parameters N counts, in words."""
    return COUNTED.get(convention, convention.replace("_", " "))


def parameters(convention: str) -> str:
    """The same with the letter, for an axis."""
    return f"N {counted_as(convention)}"


def loss_label(loss: str) -> str:
    """Which loss, for an axis."""
    if loss.startswith("eval/"):
        return f"evaluation loss, {name_of(loss.removeprefix('eval/'))}"
    return "training loss" if loss == "train" else name_of(loss)


def law_label(law: Published) -> str:
    """A published law as a paper cites it, with the variant that its name tells.

    >>> from isoflop.laws import published
    >>> law_label(published("hoffmann2022-approach1")), law_label(published("kaplan2020-ns"))
    ('Hoffmann et al. 2022, approach 1', 'Kaplan et al. 2020, L(N,S)')
    """
    if law.name == "chinchilla-refit":
        return "Chinchilla runs, refitted"
    variant = law.name.partition("-")[2].replace("approach", "approach ").replace("-", ", ")
    if law.name.startswith("kaplan") and variant in ("n", "d", "c", "nd", "ns"):
        variant = f"L({','.join(variant.upper())})"
    return law.paper.partition(" (")[0] + (f", {variant}" if variant else "")


def counted(n: int, one: str, many: str) -> str:
    """A number with its noun.

    >>> counted(1, "run", "runs"), counted(3, "run", "runs")
    ('1 run', '3 runs')
    """
    return f"{n:,} {one if n == 1 else many}"


def unique_names(names: Sequence[str], paths: Sequence[str | None] = ()) -> list[str]:
    """The names, those that come several times with their folders from where these differ on, else numbered.

    >>> unique_names(["a", "b", "a"]), unique_names(["a", "b", "a"], ["x/1/r", "x/1/s", "x/2/r"])
    (['a', 'b', 'a (2)'], ['a (1)', 'b', 'a (2)'])
    """
    places: dict[str, list[list[str]]] = {}
    for name, path in zip(names, paths or [None] * len(names), strict=True):
        places.setdefault(name, []).append((path or "").split("/")[:-1])
    apart = {name: _told_apart(name, of_name) for name, of_name in places.items()}
    return [next(apart[name]) for name in names]


def _told_apart(name: str, places: Sequence[Sequence[str]]) -> Iterator[str]:
    """A name that so many runs have, each in its folder."""
    shared = next((i for i, parts in enumerate(zip(*places, strict=False)) if len({*parts}) > 1), None)
    folders = [] if shared is None else ["/".join(each[shared:]) for each in places]
    if len({*folders}) == len(places) > 1:
        return (f"{name} ({folder})" for folder in folders)
    return (name if i == 0 else f"{name} ({i + 1})" for i in range(len(places)))


def sentence(text: str) -> str:
    """A note with a capital and a full stop.

    >>> sentence("approach 1 needs loss curves of three sizes")
    'Approach 1 needs loss curves of three sizes.'
    """
    text = text.strip()
    first = text[:1].upper() if text[:2].islower() or text[1:2] == " " else text[:1]
    return f"{first}{text[1:]}" + ("" if text.endswith((".", "!", "?")) else ".")


def listed(names: Sequence[str], most: int = 4) -> str:
    """A few names as figures write them, and how many more."""
    return listed_plainly([*map(name_of, names)], most)


MOST = 1000
"""Points of a curve: 250 columns."""
TOTAL = 40_000
"""Points of a figure's curves in all: what a browser draws at once without a pause."""
LEAST = 60
Indices = NDArray[np.intp]


def points_each(curves: int) -> int:
    """Points of each of so many curves."""
    return int(np.clip(TOTAL // max(curves, 1), LEAST, MOST))


def thin(x: Array, y: Array, most: int = MOST) -> Indices:
    """Which points to draw.

    Keeps the first and the last, the lowest and the highest, their order, and of losses that are not finite the first
    of each gap. What is left out lies between the lowest and highest point kept of its column. Thinning again changes
    nothing.

    Args:
        x: not decreasing, for a logarithmic axis: what is not positive is left out.
        y: NaN breaks the line.
        most: points at the most, at least 8; a gap may add one each.

    >>> x = np.arange(1.0, 100_001.0)
    >>> y = 10 / x**0.1
    >>> y[50_000] = 8  # a spike
    >>> kept = thin(x, y)
    >>> len(kept) <= 1000, 50_000 in kept
    (True, True)
    """
    at = np.flatnonzero(np.isfinite(x) & (x > 0))
    fine = at[np.isfinite(y[at])]
    if len(fine) > most:
        fine = fine[_four_a_column(np.log(x[fine]), y[fine], max(most // 4, 2))]
    gaps = at[~np.isfinite(y[at])]
    if not len(gaps):
        return fine
    between = np.searchsorted(fine, gaps)
    first = np.unique(between, return_index=True)[1]
    return np.sort(np.concatenate([fine, gaps[first]]))


def _four_a_column(x: Array, y: Array, columns: int) -> Indices:
    """First, last, lowest and highest of each column, by index."""
    width = (x[-1] - x[0]) / columns
    column = np.zeros(len(x), dtype=int) if width <= 0 else np.minimum((x - x[0]) / width, columns - 1).astype(int)
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    ends = np.append(starts[1:], len(x)) - 1
    part = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(x))))
    kept = [starts, ends]
    for values in (y, -y):
        lowest = np.minimum.reduceat(values, starts)
        hits = np.flatnonzero(values == lowest[part])
        kept.append(hits[np.unique(part[hits], return_index=True)[1]])  # the first of equals
    return np.unique(np.concatenate(kept))
