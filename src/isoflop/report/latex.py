"""A study's tables in LaTeX and BibTeX of the papers that a report rests on; strangers' texts are escaped."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import isoflop
from isoflop.figures.study import Study
from isoflop.figures.text import parameters
from isoflop.fit.approaches import Row
from isoflop.fit.fit_law import LawFit
from isoflop.laws.frontier import short
from isoflop.report.runs import RunRow

SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
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


def escape(text: str) -> str:
    r"""A text as LaTeX shows it, on one line, whatever it holds.

    Letters of Latin alphabets stay; what LaTeX has no glyph for becomes its number, such as [U+1F600].

    >>> print(escape("run_5%  {x}\n" + chr(0x1F600)))
    run\_5\% \{x\} [U+1F600]
    """
    return "".join(map(_character, " ".join(text.split())))


def _character(c: str) -> str:
    if c in SPECIAL:
        return SPECIAL[c]
    if " " <= c <= "~":
        return c
    if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp"):  # steers the text, shows nothing
        return ""
    if c.isalpha() and c <= "ſ":  # Latin-1 and Latin Extended-A, which T1 fonts have
        return c
    return f"[U+{ord(c):04X}]"


def number(value: float, digits: int = 3) -> str:
    r"""A number in mathematics, in powers of ten where it is large or small.

    >>> number(0.0123), number(4.2e21), number(482.01, 5), number(math.inf)
    ('$0.0123$', '$4.2 \\times 10^{21}$', '$482.01$', '$\\infty$')
    """
    return f"${_bare(value, digits)}$"


def _bare(value: float, digits: int) -> str:
    if math.isinf(value):
        return r"\infty" if value > 0 else r"-\infty"
    if math.isnan(value):
        return r"\text{--}"
    text = f"{value:.{digits}g}"
    if "e" not in text:
        return text
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return rf"{mantissa} \times 10^{{{int(exponent)}}}"


def interval(ends: tuple[float, float] | None, digits: int = 3) -> str:
    """An interval in mathematics; a dash where nothing is known."""
    if ends is None or not all(map(math.isfinite, ends)):
        return "--"
    return f"$[{_bare(ends[0], digits)}, {_bare(ends[1], digits)}]$"


MOST = 60
"""Runs that are written out: more fill no page of a paper."""
SYMBOLS = {"E": "$E$", "A": "$A$", "B": "$B$", "alpha": r"$\alpha$", "beta": r"$\beta$"}


def report_tex(study: Study, rows: Sequence[RunRow], bib: str) -> str:
    """The law's constants, the approaches and the runs as tables, from `report.tex.j2`.

    Args:
        study: of the runs.
        rows: of `run_rows`.
        bib: the BibTeX file's name.
    """
    fit, compared = study.fit, study.compared()
    measured = any(row.measured for row in rows)
    return _template().render(
        version=isoflop.__version__,
        bib=bib,
        study=study,
        fit=fit,
        compared=compared,
        measured=measured,
        most=MOST,
        level=rf"{study.level * 100:.0f}\%",
        convention=parameters(study.convention).removeprefix("N "),
        constants=[] if fit is None else [_constant(fit, name) for name in fit.parameters],
        approaches=[] if compared is None else [_approach(row) for row in compared.rows],
        runs=[_run(row, measured) for row in rows],
    )


@cache
def _template() -> Any:
    import jinja2

    marks = {"block_start_string": "<%", "block_end_string": "%>", "variable_start_string": "<<"}
    room = jinja2.Environment(
        **marks,
        variable_end_string=">>",
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.filters |= {
        "escape": escape,
        "number": number,
        "bare": lambda value: _bare(value, 3),
        "oneline": lambda text: " ".join(text.split()),
    }
    return room.get_template("report.tex.j2")


def _constant(fit: LawFit, name: str) -> list[str]:
    error = fit.standard_errors[name]
    known = number(error) if math.isfinite(error) else "--"
    return [SYMBOLS.get(name, escape(name)), number(fit.parameters[name], 4), known, interval(fit.intervals[name], 4)]


def _approach(row: Row) -> list[str]:
    exponents = [
        number(v) + (f" {interval(ends)}" if ends else "")
        for v, ends in ((row.a, row.a_interval), (row.b, row.b_interval))
    ]
    counts = [
        short(v) + (f" [{short(ends[0])}, {short(ends[1])}]" if ends else "")
        for v, ends in ((row.N, row.N_interval), (row.D, row.D_interval))
    ]
    return [escape(row.name), *exponents, *counts]


def _run(row: RunRow, measured: bool) -> list[str]:
    N, D, C = ("--" if value is None else number(value) for value in (row.N, row.D, row.C))
    formula = " ($6ND$)" if measured and not row.measured and row.C is not None else ""
    loss = "--" if row.loss is None else number(row.loss, 4)
    return [escape(row.name), N, D, C + formula, loss, escape(row.left_out) or "yes"]


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
