"""Reports on runs: one HTML page with figures, fits, advice and data; LaTeX tables; a table for the terminal.

Nothing is imported before it is used: the table for the terminal needs no figures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.report.latex import bibtex, report_tex
    from isoflop.report.page import render, write_report
    from isoflop.report.report import Report, make_report, study_of
    from isoflop.report.runs import Sources, read_record, read_sources, run_rows

__all__ = [
    "Report",
    "Sources",
    "bibtex",
    "make_report",
    "read_record",
    "read_sources",
    "render",
    "report_tex",
    "run_rows",
    "study_of",
    "write_report",
]

__getattr__ = face(
    __name__,
    {
        "latex": "bibtex report_tex",
        "page": "render write_report",
        "report": "Report make_report study_of",
        "runs": "Sources read_record read_sources run_rows",
    },
)
