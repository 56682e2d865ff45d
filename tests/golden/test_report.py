"""The report's page: its sentences and tables, its figures' data, its files for a paper."""

from __future__ import annotations

import json
import re
import warnings
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from golden.figures import figure_values
from golden.values import FITTED, REAL, check, masked
from isoflop.cli import app

DATE = re.compile(r"\b\d{4}-\d\d-\d\d( \d\d:\d\d)?\b")


INLINE = {"b", "i", "sup", "sub", "span", "a", "small", "code", "em", "strong"}


class Words(HTMLParser):
    """The texts of a page as a reader sees them: a cell, a sentence or a heading each."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._now, self._hidden = "", False
        self.feed(text)
        self.close()
        self._end()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden = tag in ("script", "style")
        if tag not in INLINE:
            self._end()

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False
        if tag not in INLINE:
            self._end()

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._now += data

    def _end(self) -> None:
        words = " ".join(self._now.split())
        self._now = ""
        if words:
            self.found.append(DATE.sub("<date>", words))


def report(path: Path, folder: Path, *options: str) -> Path:
    page = folder / "report.html"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = CliRunner().invoke(app, ["report", str(path), "-o", str(page), *options])
    assert result.exit_code == 0, result.output
    return page


@pytest.mark.parametrize("source", ["gpts", "table", "real"])
def test_the_page(source: str, request: pytest.FixtureRequest, tmp_path: Path, base: Path) -> None:
    text = report(request.getfixturevalue(source), tmp_path).read_text(encoding="utf-8")
    check(
        "report",
        f"words of {source}",
        masked(Words(text).found, tmp_path, base),
        rel=REAL if source == "real" else FITTED,
    )
    data = json.loads(text.split('id="isoflop-figures">', 1)[1].split("</script>", 1)[0])
    figures = {key: figure_values(each["light"]) for key, each in data["figures"].items()}
    if source == "table":  # those of records are held by the tab's tests
        check("report", f"figures of {source}", masked(figures, tmp_path, base), rel=FITTED)
    else:
        check("report", f"figures of {source}", {key: len(each["traces"]) for key, each in figures.items()})


def test_the_files_for_a_paper(gpts: Path, tmp_path: Path, base: Path) -> None:
    report(gpts, tmp_path, "--latex")
    files = {path.name: path.read_text(encoding="utf-8").splitlines() for path in sorted(tmp_path.glob("report.[tb]*"))}
    assert set(files) == {"report.tex", "report.bib"}
    plain = {name: [DATE.sub("<date>", line) for line in lines] for name, lines in files.items()}
    check("report", "latex of gpts", masked(plain, tmp_path, base), rel=FITTED)
