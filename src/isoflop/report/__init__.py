"""Reports on runs: one HTML page with figures, fits, advice and data; LaTeX tables; a table for the terminal."""

# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.report.page import Report, make_report
    from isoflop.report.runs import read_record, read_sources, run_rows

__getattr__ = face(__name__, {"page": "Report make_report", "runs": "read_record read_sources run_rows"})
