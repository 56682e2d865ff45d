"""A report: the study of the runs, its figures and headline; as one HTML file, with what a paper needs beside it.

The file loads nothing from outside: figures, tables and plotly's script are inside of it; `page.html` is its template.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import isoflop
from isoflop.advice import share
from isoflop.console import cell
from isoflop.figures import Figure, NoFigure, Study, figures, study
from isoflop.figures.plotly import plotly_figure
from isoflop.figures.study import LEVEL, given_runs
from isoflop.figures.text import counted, counted_as, name_of
from isoflop.fit.holdout import Extrapolation
from isoflop.fit.sources import joined
from isoflop.laws import short
from isoflop.lookup import need
from isoflop.record import Run
from isoflop.report.latex import PAPERS, bibtex, report_tex, used_by
from isoflop.report.runs import Fact, RecordedAdvice, RunRow, Sources, facts, latest_advice, run_rows
from isoflop.report.sentences import SOURCE, Headline, Item, checklist, headline, holdout


@dataclass(frozen=True)
class Report:
    """What was read, the study of its runs, and all that the page says of them."""

    sources: Sources
    study: Study
    held: Extrapolation | str  # the law of the smaller runs against the larger ones; or the reason why not
    headline: Headline
    figures: tuple[Figure | NoFigure, ...]
    rows: tuple[RunRow, ...]
    facts: tuple[Fact, ...]
    advice: tuple[RecordedAdvice, ...]
    checklist: tuple[Item, ...]
    papers: tuple[str, ...]  # keys of `isoflop.report.latex.PAPERS`

    @property
    def drawn(self) -> tuple[Figure, ...]:
        """The figures that could be made."""
        return tuple(figure for figure in self.figures if isinstance(figure, Figure))


def make_report(sources: Sources, **options: Any) -> Report:
    """Make a report. Options and errors as `study_of`."""
    made = study_of(sources, **options)
    held, drawn = holdout(made), figures(made)
    return Report(
        sources,
        made,
        held,
        headline(made, held),
        drawn,
        run_rows(made),
        facts(sources.runs),
        latest_advice(sources.runs),
        checklist(made, held),
        used_by(made, [figure.key for figure in drawn if isinstance(figure, Figure)]),
    )


def study_of(
    sources: Sources,
    *,
    loss: str | None = None,
    convention: str | None = None,
    level: float = LEVEL,
    budgets: Sequence[float] | None = None,
) -> Study:
    """The study of what was read; options as of `isoflop.figures.study`, N of tables as given.

    Where no run has finished the training loss is the default: it has more points than a few evaluations.

    Raises:
        ValueError: no record has this loss.
    """
    runs, loss = joined(sources.runs, loss)
    if loss is not None and runs:
        known = dict.fromkeys(name for run in runs for point in run.points for name in point.losses)
        if loss not in known:
            raise ValueError(f"--loss: expected a loss that a record has ({', '.join(known) or 'none'}), got {loss!r}")
    options = {"convention": convention or (None if runs else "unknown"), "level": level, "budgets": budgets}
    made = study(runs, table=sources.rows, loss=loss, **options)  # type: ignore[arg-type]
    if loss is None and not made.counted and any("train" in curve.losses for curve in made.curves):
        made = study(made.curves, loss="train", **options)  # type: ignore[arg-type]
    return made


HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)
"""Nothing is loaded, and of scripts only those whose text has these hashes run. plotly styles what it draws in place,
and saves pictures through data: and blob:."""
STEERING = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
CAPTION = 420
"""Characters of notes that stand below a figure; the rest opens on a click."""


def render(report: Report, made: str = "") -> str:
    """The page; `made`: date and time for people, none so that equal reports are equal files."""
    import jinja2
    from markupsafe import Markup

    texts = {name: (HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    room = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, finalize=clean, trim_blocks=True, lstrip_blocks=True
    )
    filters = (powers, number, interval, moment, captioned, counted, counted_as, name_of, share)
    room.filters |= {each.__name__: each for each in filters}
    room.tests["finite"] = math.isfinite
    room.policies["json.dumps_kwargs"] = {"allow_nan": False}  # the figures in their order
    scripts = {"plotly": plotly_script(), "script": texts["js"]}
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts.values())
    return room.from_string(texts["html"]).render(
        **{name: Markup(text) for name, text in scripts.items()},  # ours, not a stranger's
        css=Markup(texts["css"]),
        policy=POLICY.format(scripts=" ".join(f"'sha256-{digest}'" for digest in digests)),
        data={"figures": {figure.key: themed(figure) for figure in report.drawn}},
        version=isoflop.__version__,
        made=made,
        report=report,
        papers=[PAPERS[key] for key in report.papers],
        source=SOURCE,
    )


def themed(figure: Figure) -> dict[str, Any]:
    """The figure in light, and the difference of dark from it: the numbers are there once."""
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
    """A text with its powers raised, and its code between backticks, escaped.

    >>> print(powers("A/N^0.35 < C^a by `plan`"))
    A/N<sup>0.35</sup> &lt; C<sup>a</sup> by <code>plan</code>
    """
    from markupsafe import Markup, escape

    text = re.sub(r"`([^`\n]+)`", r"<code>\1</code>", str(escape(clean(text))))
    return Markup(re.sub(r"\^(-?[0-9.]*[0-9]|[a-zα-ω]\b)", r"<sup>\1</sup>", text))


def number(value: float | None, spec: str = "") -> str:
    """A number by a format specification, by default short with a letter; a dash for None."""
    return cell(value, spec or short)


def interval(ends: tuple[float, float], spec: str = "") -> str:
    """The ends of an interval."""
    return f"{number(ends[0], spec)} to {number(ends[1], spec)}"


def moment(seconds: float | None) -> str:
    """Date and time in UTC; a dash where they are unknown."""
    if seconds is None or not 0 <= seconds <= 2.5e11:
        return "–"
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M")


def captioned(notes: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The notes that stand below a figure, and the rest."""
    shown = sum(length <= CAPTION for length in accumulate(map(len, notes)))
    return notes[:shown], notes[shown:]


# -- files -------------------------------------------------------------------------------------------------------------


def write_report(
    report: Report | Iterable[Run],
    output: str | os.PathLike[str],
    *,
    formats: Sequence[str] = (),
    latex: bool = False,
    made: str = "",
) -> list[Path]:
    """Write the page and the files beside it; files of these names are replaced.

    Args:
        report: as `make_report` gives it, or runs as `read_runs` gives them.
        output: of the page; its folder is made where it is missing.
        formats: of the figures, of "pdf", "svg", "png": `<page's name>-<figure's key>.<format>` each.
        latex: the tables as `<page's name>.tex`, with `.bib`.
        made: date and time, for people.

    Returns:
        The files written, the page first.

    Raises:
        OSError: a file can't be written.
        ValueError: `output` is a folder, or matplotlib, which the formats need, is not installed.
    """
    need("output", isinstance(output, str | os.PathLike), "the path of a page, such as report.html", output)
    output = Path(output)
    if output.is_dir():
        raise ValueError(f"-o: expected a file, got the folder {output}: pass {output / 'report.html'}")
    if formats:
        from isoflop.figures.matplotlib import save
    if not isinstance(report, Report):
        report = make_report(Sources(tuple(given_runs(report))))
    bib = output.with_suffix(".bib")
    texts = {output: render(report, made)}
    if latex:
        texts[output.with_suffix(".tex")] = report_tex(report.study, report.rows, bib.name)
        texts[bib] = bibtex(report.papers)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_text(text, encoding="utf-8", newline="\n")
        drawn = [
            save(figure, output.with_name(f"{output.stem}-{figure.key}.{suffix}"))
            for suffix in formats
            for figure in report.drawn
        ]
    except OSError as error:
        raise OSError(
            f"expected a place to write to, got {error.filename or output}, which can't be written: "
            f"{error.strerror or error}"
        ) from None
    return [*texts, *drawn]
