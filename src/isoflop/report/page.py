"""A report as one HTML file that asks for nothing from outside: figures, tables, plotly's script in it.

What the report's page shows, as plain texts and lists for its template.

A report's files: the page, and beside it the figures and tables for a paper, named after it.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import isoflop
from isoflop.figures.figure import Figure, NoFigure
from isoflop.figures.plotly import plotly_figure
from isoflop.figures.study import Study
from isoflop.figures.text import counted, name_of, parameters
from isoflop.fit.runs import RunEnd
from isoflop.laws.frontier import short
from isoflop.report.checklist import SOURCE, Item
from isoflop.report.latex import PAPERS, bibtex, report_tex
from isoflop.report.report import Report, for_the_shell
from isoflop.report.runs import Fact, RunRow, counting, provenance, thinned_note

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


HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)
"""Nothing is loaded, and of scripts only those whose text has these hashes run. plotly styles what it draws in place,
and saves pictures through data: and blob:."""
STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def render(report: Report, made: str = "") -> str:
    """The page.

    Args:
        report: as `make_report` gives it.
        made: when, for people; "": not told, so that equal reports are equal files.
    """
    from markupsafe import Markup

    scripts = {"plotly": plotly_script(), "script": _own("page.js")}
    policy = POLICY.format(scripts=" ".join(f"'sha256-{_digest(text)}'" for text in scripts.values()))
    return str(
        _template().render(
            **{name: Markup(text) for name, text in scripts.items()},  # ours, not a stranger's
            css=Markup(_own("page.css")),
            policy=policy,
            figures={"figures": {figure.key: themed(figure) for figure in report.drawn}},
            version=isoflop.__version__,
            made=made,
            **texts(report),
            **fits(report),
            **data(report),
            **checked(report.checklist),
        )
    )


def themed(figure: Figure) -> dict[str, Any]:
    """The figure in light, and what dark has otherwise: the numbers are there once."""
    light, dark = plotly_figure(figure, "light"), plotly_figure(figure, "dark")
    return {"light": light, "dark": difference(light, dark)}


def difference(old: Any, new: Any) -> Any:
    """What of `new` differs from `old`, by key; a list of another length as a whole.

    >>> difference({"a": 1, "b": [1, {"c": 2}]}, {"a": 1, "b": [1, {"c": 3}]})
    {'b': {'1': {'c': 3}}}
    """
    if isinstance(old, dict) and isinstance(new, dict):
        assert old.keys() == new.keys()
        return {key: difference(old[key], new[key]) for key in old if old[key] != new[key]}
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return {str(i): difference(a, b) for i, (a, b) in enumerate(zip(old, new, strict=True)) if a != b}
    return new


@cache
def plotly_script() -> str:
    """Plotly's own script, from the installed package."""
    from plotly.offline import get_plotlyjs

    script = str(get_plotlyjs()).replace("\r\n", "\n")
    assert "</script" not in script and "<!--" not in script  # it would end early
    return script


def clean(value: Any) -> Any:
    """A text without characters that steer: controls, line separators, and what turns the direction of writing."""
    if type(value) is not str or (value.isascii() and value.isprintable()):
        return value
    return "".join(" " if c != "\n" and unicodedata.category(c) in STEERING else c for c in value)


def powers(text: str) -> Any:
    """A text with its powers raised, escaped.

    >>> print(powers("A/N^0.35 < C^a"))
    A/N<sup>0.35</sup> &lt; C<sup>a</sup>
    """
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\^(-?[0-9.]*[0-9]|[a-zα-ω]\b)", r"<sup>\1</sup>", str(escape(clean(text)))))


@cache
def _template() -> Any:
    import jinja2

    room = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    room.filters["powers"] = powers
    room.policies["json.dumps_kwargs"] = {"allow_nan": False}  # the figures in their order
    return room.get_template("page.html")


def _own(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


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
        from isoflop.figures.matplotlib import save
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
