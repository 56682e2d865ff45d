"""BibTeX of the papers that a report rests on; only those that were used."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from isoflop.show.figures import Study


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv.

    Attributes:
        key: to cite it by.
        entry: BibTeX, as `data/papers.bib` has it.
        authors: "Last, First" joined by " and ".
        title: with the capitals that must stay in braces.
        year: of the first version.
        eprint: arXiv number.
    """

    key: str
    entry: str
    authors: str
    title: str
    year: int
    eprint: str


def _read(text: str) -> dict[str, Paper]:
    """The entries of a BibTeX file whose fields stand one a line, by key."""
    papers = {}
    for entry, key in re.findall(r"(@misc\{(\w+),\n.*?\n\}\n)", text, re.DOTALL):
        fields = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", entry, re.MULTILINE))
        papers[key] = Paper(key, entry, fields["author"], fields["title"], int(fields["year"]), fields["eprint"])
    return papers


PAPERS = _read(files("isoflop").joinpath("data", "papers.bib").read_text(encoding="utf-8"))
"""By key. Authors, titles and numbers as arXiv has them."""


def used_by(study: Study, figures: Iterable[str] = ()) -> tuple[str, ...]:
    """Keys of the papers that a study's report rests on.

    Args:
        study: its law, approaches and the published laws beside them.
        figures: keys of the figures that are drawn.
    """
    keys = {"hoffmann2022", "kaplan2020", "li2025misfitting"}  # the form, C = 6·N·D and PF-days, the checklist
    keys |= {"czech2026"} if study.fit is not None else set()
    keys |= {law.name.split("-")[0] for law in study.published} & PAPERS.keys()
    keys |= {"mccandlish2018"} if "batch" in figures else set()
    return tuple(key for key in PAPERS if key in keys)


def bibtex(keys: Iterable[str]) -> str:
    """The entries of these papers, in the order of `PAPERS`, each once.

    Raises:
        KeyError: a key that is none.

    >>> print(bibtex(["besiroglu2024"]).splitlines()[0])
    @misc{besiroglu2024,
    """
    wanted = set(keys)
    if unknown := wanted - PAPERS.keys():
        raise KeyError(f"expected keys of PAPERS, got {', '.join(sorted(unknown))}")
    return "\n".join(paper.entry for key, paper in PAPERS.items() if key in wanted)
