"""LaTeX tables of a study and BibTeX of the papers that a report cites; recorded texts are escaped."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import isoflop
from isoflop.figures import Study
from isoflop.figures.text import counted_as
from isoflop.laws import short
from isoflop.report.runs import RunRow

SPECIAL = {
    **{character: f"\\{character}" for character in "{}$&#%_"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    "−": "--",
    "–": "--",
    "…": r"\ldots{}",
}
MOST = 60
"""Runs that are written out: more fill no page of a paper."""


def escape(text: str) -> str:
    r"""A text as LaTeX shows it, on one line, whatever it holds.

    Letters of Latin alphabets stay; what LaTeX has no glyph for becomes its number, such as [U+1F600].

    >>> print(escape("run_5%  {x}\n" + chr(0x1F600)))
    run\_5\% \{x\} [U+1F600]
    """
    return "".join(map(_character, " ".join(str(text).split())))


def _character(c: str) -> str:
    if c in SPECIAL:
        return SPECIAL[c]
    if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"):  # steers the text, shows nothing
        return ""
    # Latin-1 and Latin Extended-A, which T1 fonts have
    return c if " " <= c <= "~" or (c.isalpha() and c <= "ſ") else f"[U+{ord(c):04X}]"


def number(value: float | None, digits: int = 3) -> str:
    r"""A number in mathematics, in powers of ten where it is large or small; a dash for None.

    >>> number(0.0123), number(4.2e21), number(482.01, 5), number(math.inf)
    ('$0.0123$', '$4.2 \\times 10^{21}$', '$482.01$', '$\\infty$')
    """
    return "--" if value is None else f"${bare(value, digits)}$"


def bare(value: float, digits: int = 3) -> str:
    """A number inside of mathematics."""
    mantissa, _, exponent = f"{value:.{digits}g}".partition("e")
    if exponent:
        return rf"{mantissa} \times 10^{{{int(exponent)}}}"
    return {"inf": r"\infty", "-inf": r"-\infty", "nan": r"\text{--}"}.get(mantissa, mantissa)


def interval(ends: tuple[float, float] | None, digits: int = 3) -> str:
    """An interval in mathematics; a dash where nothing is known."""
    if ends is None or not all(map(math.isfinite, ends)):
        return "--"
    return f"$[{bare(ends[0], digits)}, {bare(ends[1], digits)}]$"


def report_tex(study: Study, rows: Sequence[RunRow], bib: str) -> str:
    """Tables of the law's constants, the approaches and the runs, from `report.tex.j2`."""
    import jinja2

    room = jinja2.Environment(
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="<<",
        variable_end_string=">>",
        comment_start_string="<#",
        comment_end_string="#>",
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.filters |= {each.__name__: each for each in (escape, number, bare, interval, short, counted_as)}
    room.filters["finite"] = lambda value: value if math.isfinite(value) else None
    return room.from_string(Path(__file__).with_name("report.tex.j2").read_text(encoding="utf-8")).render(
        version=isoflop.__version__,
        bib=" ".join(bib.split()),
        study=study,
        compared=study.compared(),
        runs=rows,
        measured=any(row.measured for row in rows),
        most=MOST,
    )


# -- papers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paper:
    """A paper on arXiv: its BibTeX entry as `data/papers.bib` has it, and of that what a page shows."""

    entry: str
    cited: str  # authors and year, such as "Hoffmann et al. 2022"
    title: str
    eprint: str  # arXiv number


def _papers(text: str) -> dict[str, Paper]:
    """The entries of a BibTeX file whose fields stand one a line, by key."""
    papers = {}
    for entry, key in re.findall(r"(@misc\{(\w+),\n.*?\n\}\n)", text, re.DOTALL):
        fields = dict(re.findall(r"^  (\w+) += \{(.*)\},?$", entry, re.MULTILINE))
        names = [author.partition(",")[0].strip("{}") for author in fields["author"].split(" and ")]
        cited = f"{f'{names[0]} et al.' if len(names) > 2 else ' and '.join(names)} {fields['year']}"
        papers[key] = Paper(entry, cited, re.sub("[{}]", "", fields["title"]), fields["eprint"])
    return papers


PAPERS = _papers(files("isoflop").joinpath("data", "papers.bib").read_text(encoding="utf-8"))
"""By key. Authors, titles and numbers as arXiv has them."""


def used_by(study: Study, figures: Iterable[str] = ()) -> tuple[str, ...]:
    """Keys of the papers that a study's report cites."""
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
