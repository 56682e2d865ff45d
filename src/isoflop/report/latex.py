"""A report's tables in LaTeX: booktabs, numbers with intervals, strangers' texts escaped.

A study's tables as a LaTeX fragment: the law's constants, the three approaches, the runs.

BibTeX of the papers that a report rests on; only those that were used.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import isoflop
from isoflop.figures.study import Study
from isoflop.figures.text import parameters
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


def table(columns: str, head: Sequence[str], rows: Sequence[Sequence[str]], caption: str, label: str) -> str:
    """A table of booktabs. Cells are LaTeX already.

    Args:
        columns: of `tabular`, such as "lrr".
        head: as many cells as columns, like each of `rows`.
        rows: of cells.
        caption: LaTeX.
        label: to refer to it by.
    """
    for row in (head, *rows):
        assert len(row) == len(columns), row
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{caption}}}",
        rf"  \label{{{label}}}",
        rf"  \begin{{tabular}}{{{columns}}}",
        r"    \toprule",
        f"    {' & '.join(head)} \\\\",
        r"    \midrule",
        *(f"    {' & '.join(row)} \\\\" for row in rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


MOST = 60
"""Runs that are written out: more fill no page of a paper."""
SYMBOLS = {"E": "$E$", "A": "$A$", "B": "$B$", "alpha": r"$\alpha$", "beta": r"$\beta$"}
HEAD = r"""% Made by isoflop {version}. Needs in the preamble:
%   \usepackage[T1]{{fontenc}} \usepackage{{amsmath}} \usepackage{{booktabs}}
% and the entries of {bib}.
"""


def report_tex(study: Study, rows: Sequence[RunRow], bib: str) -> str:
    """The tables.

    Args:
        study: of the runs.
        rows: of `run_rows`.
        bib: the BibTeX file's name.
    """
    level = rf"{study.level * 100:.0f}\%"
    parts = [HEAD.format(version=isoflop.__version__, bib=" ".join(bib.split())), _constants(study, level)]
    parts += [_approaches(study, level), _runs(study, rows)]
    return "\n".join(part for part in parts if part)


def _constants(study: Study, level: str) -> str:
    fit = study.fit
    if fit is None:
        return f"% No law: {escape(study.refused)}\n"
    rows = [
        [
            SYMBOLS.get(name, escape(name)),
            number(value, 4),
            number(fit.standard_errors[name]) if math.isfinite(fit.standard_errors[name]) else "--",
            interval(fit.intervals[name], 4),
        ]
        for name, value in fit.parameters.items()
    ]
    doubtful = rf" These runs do not determine it: {escape(study.refused)}." if study.refused else ""
    caption = (
        r"$L(N,D) = E + A/N^{\alpha} + B/D^{\beta}$~\cite{hoffmann2022}, nats per token, fitted to "
        rf"{fit.n} runs (Huber loss on $\ln L$, $\delta$ = {number(fit.delta)}; variable "
        rf"projection~\cite{{czech2026}}). $N$: {escape(parameters(study.convention).removeprefix('N '))}. Intervals: "
        rf"{level}, {study.draws} resamples of the runs.{doubtful}"
    )
    return table("lrrr", ("", "value", "standard error", level), rows, caption, "tab:law")


def _approaches(study: Study, level: str) -> str:
    compared = study.compared()
    missing = "".join(f"% {escape(str(reason))}\n" for reason in study.without)
    if compared is None:
        return missing
    rows = [
        [
            escape(row.name),
            _with(row.a, row.a_interval),
            _with(row.b, row.b_interval),
            _short(row.N, row.N_interval),
            _short(row.D, row.D_interval),
        ]
        for row in compared.rows
    ]
    head = (
        "",
        r"$a$ in $N \propto C^a$",
        r"$b$ in $D \propto C^b$",
        rf"$N$ at {number(compared.C)} FLOPs",
        "$D$ there",
    )
    caption = (
        rf"Compute-optimal size and tokens by the approaches of Hoffmann et al.~\cite{{hoffmann2022}}, with {level} "
        rf"intervals; $C = {number(study.rate)}ND$."
    )
    return table("lrrrr", head, rows, caption, "tab:approaches") + missing


def _with(value: float, ends: tuple[float, float] | None) -> str:
    return number(value) + ("" if ends is None else f" {interval(ends)}")


def _short(value: float, ends: tuple[float, float] | None) -> str:
    """A count with its letter: 51.1B."""
    return short(value) + ("" if ends is None else f" [{short(ends[0])}, {short(ends[1])}]")


def _runs(study: Study, rows: Sequence[RunRow]) -> str:
    if not rows or len(rows) > MOST:
        return f"% {len(rows)} runs: too many for a table here\n" if rows else ""
    measured = any(row.measured for row in rows)
    cells = [
        [
            escape(row.name),
            *("--" if value is None else number(value) for value in (row.N, row.D)),
            "--" if row.C is None else number(row.C) + (" ($6ND$)" if measured and not row.measured else ""),
            "--" if row.loss is None else number(row.loss, 4),
            escape(row.left_out) or "yes",
        ]
        for row in rows
    ]
    head = ("run", "$N$", "$D$", "$C$, measured" if measured else "$C = 6ND$", "$L$", "in the fit")
    return table("lrrrrl", head, cells, "The runs. $L$ in nats per token.", "tab:runs")


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
