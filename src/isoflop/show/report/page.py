"""A report as one HTML file that asks for nothing from outside: figures, tables, plotly's script in it."""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import isoflop
from isoflop.show.figures import Figure
from isoflop.show.figures.draw_plotly import plotly_figure
from isoflop.show.report.page_values import checked, data, fits, texts
from isoflop.show.report.report import Report

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
