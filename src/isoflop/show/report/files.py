"""A report's files: the page, and beside it the figures and tables for a paper, named after it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from isoflop.show.report.bibliography import bibtex
from isoflop.show.report.page import render
from isoflop.show.report.paper import report_tex
from isoflop.show.report.report import Report


def write_report(
    report: Report, output: Path, *, formats: Sequence[str] = (), latex: bool = False, made: str = ""
) -> list[Path]:
    """Write them; files of these names are replaced.

    Args:
        report: as `make_report` gives it.
        output: of the page; its folder is made where it is missing.
        formats: of the figures, of "pdf", "svg", "png": `<page's name>-<figure's key>.<format>` each.
        latex: the tables as `<page's name>.tex`, with `.bib`.
        made: when, for people.

    Returns:
        What was written, the page first.

    Raises:
        OSError: a file can't be written.
        ValueError: `output` is a folder, or matplotlib, which the formats need, is not installed.
    """
    if output.is_dir():
        raise ValueError(f"-o: expected a file, got the folder {output}: pass {output / 'report.html'}")
    if formats:
        from isoflop.show.figures.draw_matplotlib import save
    written = [_write(output, render(report, made))]
    if latex:
        bib = output.with_suffix(".bib")
        written.append(_write(output.with_suffix(".tex"), report_tex(report.study, report.rows, bib.name)))
        written.append(_write(bib, bibtex(report.papers)))
    for format in formats:
        for figure in report.drawn:
            path = output.with_name(f"{output.stem}-{figure.key}.{format}")
            try:
                written.append(save(figure, path))
            except OSError as error:
                raise _cannot(path, error) from None
    return written


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise _cannot(path, error) from None
    return path


def _cannot(path: Path, error: OSError) -> OSError:
    return OSError(f"expected a place to write to, got {path}, which can't be written: {error.strerror or error}")
