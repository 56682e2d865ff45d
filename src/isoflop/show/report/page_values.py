"""What the report's page shows, as plain texts and lists for its template."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from isoflop.show.figures import Figure, NoFigure, RunEnd, Study
from isoflop.show.figures.words import counted, name_of, parameters, short
from isoflop.show.report.bibliography import PAPERS
from isoflop.show.report.checklist import SOURCE
from isoflop.show.report.checklist_item import Item
from isoflop.show.report.report import Report, for_the_shell
from isoflop.show.report.runs import Fact, RunRow, counting, provenance, thinned_note

CAPTION = 420
"""Characters of notes that stand below a figure; the rest opens on a click."""
GREEK = {"alpha": "α", "beta": "β"}


def texts(report: Report) -> dict[str, Any]:
    """Headline, sections, figures' notes, advice, papers."""
    study, sources = report.study, report.sources
    runs = counted(len(report.rows), "run", "runs")
    sections = [("figures", "Figures"), ("fits", "Fits"), ("data", "Data"), ("counting", "Counting")]
    if sources.records:
        sections.insert(2, ("advice", "Advice"))
    return {
        "title": f"Scaling report: {runs}",
        "study_of": f"{runs}, {len(study.counted)} in the fit",
        "headline": report.headline,
        "sections": [*sections, ("checklist", "Checklist"), ("papers", "Papers")],
        "problems": sources.problems,
        "drawn": [_captioned(figure) for figure in report.drawn],
        "missing": [
            {"title": figure.title, "reason": for_the_shell(figure.reason)}
            for figure in report.figures
            if isinstance(figure, NoFigure)
        ],
        "has_records": bool(sources.records),
        "advice": report.advice,
        "papers": [_paper(key) for key in report.papers],
    }


def _captioned(figure: Figure) -> dict[str, Any]:
    """Its notes, of which as many stand below it as are short together."""
    notes = [for_the_shell(note) for note in figure.notes]
    lengths = [sum(len(note) for note in notes[: i + 1]) for i in range(len(notes))]
    shown = sum(length <= CAPTION for length in lengths)
    return {"key": figure.key, "title": figure.title, "shown": notes[:shown], "more": notes[shown:]}


def _paper(key: str) -> dict[str, Any]:
    paper = PAPERS[key]
    authors = paper.authors.split(" and ")
    first = authors[0].split(",")[0].strip("{}") + (" et al." if len(authors) > 2 else "")
    if len(authors) == 2:
        first += f" and {authors[1].split(',')[0].strip('{}')}"
    title = paper.title.replace("{", "").replace("}", "")
    return {"first": first, "year": paper.year, "plain_title": title, "eprint": paper.eprint}


# -- fits --------------------------------------------------------------------------------------------------------------


def fits(report: Report) -> dict[str, Any]:
    """The approaches side by side and the law's constants, or why there are none."""
    study, fit = report.study, report.study.fit
    compared = study.compared()
    approaches: list[tuple[str, Any, str]] = [
        (
            row.name,
            (
                _cell(row.a, row.a_interval, "{:.3f}".format),
                _cell(row.b, row.b_interval, "{:.3f}".format),
                _cell(row.N, row.N_interval, short),
                _cell(row.D, row.D_interval, short),
            ),
            "",
        )
        for row in (() if compared is None else compared.rows)
    ]
    approaches += [(each.name, (), each.reason) for each in report.without]
    return {
        "level": f"{study.level:.0%}",
        "C": "" if compared is None else f"{compared.C:.2g}",
        "approaches": sorted(approaches),
        "warnings": () if compared is None else compared.warnings,
        "constants": [] if fit is None else [_constant(study, name) for name in fit.parameters],
        "refused": study.refused,
        "doubts": () if study.refused else study.doubts,
    }


def _cell(value: float, ends: tuple[float, float] | None, write: Any) -> tuple[str, str]:
    return write(value), "" if ends is None else f"{write(ends[0])} to {write(ends[1])}"


def _constant(study: Study, name: str) -> list[str]:
    assert study.fit is not None
    value, error = study.fit.parameters[name], study.fit.standard_errors[name]
    low, high = study.fit.intervals[name]
    known = math.isfinite(high) and math.isfinite(error)
    return [
        GREEK.get(name, name),
        f"{value:.5g}",
        f"{error:.3g}" if known else "unknown",
        f"{low:.4g} to {high:.4g}" if known else "unknown",
    ]


# -- data --------------------------------------------------------------------------------------------------------------


def data(report: Report) -> dict[str, Any]:
    """The runs, how they were counted, and what was read in part."""
    sources, study = report.sources, report.study
    runs = [record.run for record in sources.records]
    notes = []
    thinned = sum(record.thinned for record in sources.records)
    if thinned:
        notes.append(thinned_note(thinned) + ".")
    for record in sources.records:
        problems = record.run.problems
        if problems:
            name = name_of(record.run.name or record.run.run_id)
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            notes.append(f"{name}: {problems[0]}{more}")
    return {
        "rows": [_row(row) for row in report.rows],
        "any_measured": any(row.measured for row in report.rows),
        "counted_text": _counted_text(study, sources.taken, [e for e in study.ends if e.left_out]),
        "data_notes": notes,
        "facts": [*_table_facts(sources.taken), *counting(runs), *provenance(runs)],
    }


def _row(row: RunRow) -> dict[str, Any]:
    steps = "–" if row.step is None else f"{row.step:,}" + (f" of {row.planned:,}" if row.planned else "")
    return {
        "name": name_of(row.name, 80),
        "N": "–" if row.N is None else short(row.N),
        "D": "–" if row.D is None else short(row.D),
        "ratio": "–" if row.ratio is None else f"{row.ratio:.3g}",
        "C": "–" if row.C is None else f"{row.C:.3g}",
        "formula": row.C is not None and not row.measured,
        "loss": "–" if row.loss is None else f"{row.loss:.4f}",
        "steps": steps,
        "status": row.status or "–",
        "out": f"no: {row.left_out}" if row.left_out else "",
    }


def _counted_text(study: Study, taken: Mapping[str, str] | None, left: list[RunEnd]) -> str:
    text = f"The law is fitted to {counted(len(study.counted), 'finished run', 'finished runs')}"
    text += f"; {counted(len(left), 'run is', 'runs are')} left out, with the reason." if left else "."
    if study.curves:
        which = "the mean over the last 5% of the steps" if study.loss == "train" else "the last evaluation"
        text += f" N: {parameters(study.convention).removeprefix('N ')}. D: tokens processed less padding. "
        text += f"L: {study.loss}, {which}."
    elif taken:
        text += " Columns: " + ", ".join(f"{what} from {name}" for what, name in taken.items()) + "."
    return text


def _table_facts(taken: Mapping[str, str] | None) -> Iterable[Fact]:
    return [Fact("FLOPs of the tables", "C = 6·N·D of their columns", 0)] if taken else []


# -- checklist ---------------------------------------------------------------------------------------------------------


def checked(items: tuple[Item, ...]) -> dict[str, Any]:
    """The checklist by its parts."""
    parts = dict.fromkeys(item.part for item in items)
    return {
        "parts": [(part, [item for item in items if item.part == part]) for part in parts],
        "answered": sum(item.state == "answered" for item in items),
        "asked": len(items),
        "source": SOURCE,
    }
