"""A report's tables in LaTeX: booktabs, numbers with intervals, strangers' texts escaped."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

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
