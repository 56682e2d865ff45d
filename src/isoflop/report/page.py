"""A report as one HTML file that loads nothing from outside, and the figures and tables for a paper beside it.

Figures, tables and plotly's script are all inside of the page; `page.html` is its template.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import unicodedata
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import isoflop
from isoflop.advice import share
from isoflop.console import cell
from isoflop.figures import Figure
from isoflop.figures.plotly import plotly_figure
from isoflop.figures.text import counted, counted_as, name_of
from isoflop.laws import short
from isoflop.report.checklist import SOURCE
from isoflop.report.latex import PAPERS, bibtex, report_tex
from isoflop.report.report import Report

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
    """The page.

    Args:
        report: as `make_report` gives it.
        made: date and time for people; "": none, so that equal reports are equal files.
    """
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
    """A text with its powers raised, escaped.

    >>> print(powers("A/N^0.35 < C^a"))
    A/N<sup>0.35</sup> &lt; C<sup>a</sup>
    """
    from markupsafe import Markup, escape

    return Markup(re.sub(r"\^(-?[0-9.]*[0-9]|[a-zα-ω]\b)", r"<sup>\1</sup>", str(escape(clean(text)))))


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
    report: Report, output: Path, *, formats: Sequence[str] = (), latex: bool = False, made: str = ""
) -> list[Path]:
    """Write the page and the files beside it; files of these names are replaced.

    Args:
        report: as `make_report` gives it.
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
    if output.is_dir():
        raise ValueError(f"-o: expected a file, got the folder {output}: pass {output / 'report.html'}")
    if formats:
        from isoflop.figures.matplotlib import save
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
