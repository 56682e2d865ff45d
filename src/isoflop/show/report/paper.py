"""A study's tables as a LaTeX fragment: the law's constants, the three approaches, the runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import isoflop
from isoflop.show.figures import Study
from isoflop.show.figures.words import parameters, short
from isoflop.show.report.latex import escape, interval, number, table
from isoflop.show.report.runs import RunRow

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
