"""The page: whole, harmless whatever runs are called, and drawn by a real browser from the file system."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from isoflop.figures import plotly_figure
from isoflop.report import Report, make_report, read_sources
from isoflop.report.page import clean, difference, plotly_script, powers, render, themed
from report_files import ADVICE, HOSTILE, hostile_runs, json_of, write
from study_runs import planted_run
from tensorboards import browser

LOADING = {"src", "srcset", "href", "data", "action", "formaction", "poster", "background", "ping", "cite", "manifest"}

ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        "html head meta title style body header p h1 h2 h3 div section ul li nav a main noscript figure figcaption "
        "details summary dl dt dd table thead tbody tr th td br small b i sup code span footer script",
    )
)
"""Of the page itself."""


class Page(HTMLParser):
    """Elements, their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)


def hostile(folder: Path) -> Report:
    """Fifteen finished runs with hostile names and texts, one of them given hostile advice, and a file not read."""
    for i, run in enumerate(hostile_runs()):
        text = HOSTILE[i % len(HOSTILE)]
        advice = {**ADVICE, "what": text, "do": text, "reason": text, "basis": [text]}
        advice["numbers"] = [{"name": text, "value": 1.0, "unit": text}]
        write(folder, replace(run, run_id=f"r{i:02d}"), *([advice] if i < len(HOSTILE) else []))
    (folder / "isoflop-<b onclick=x>.jsonl").write_bytes(b"<script>window.harmed=8</script>\n")
    return make_report(read_sources([folder]))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return render(report)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_nothing_is_loaded_from_outside(page: Page, text: str) -> None:
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "img", "form", "base", "audio", "video", "svg"}
        for name in LOADING & attributes.keys():
            assert tag == "a" and re.match(r"#|https://arxiv\.org/abs/\d", attributes[name] or ""), (tag, attributes)
    style = text.split("<style>", 1)[1].split("</style>", 1)[0]
    assert "url(" not in style and "@import" not in style


def test_the_policy_runs_the_two_scripts_and_no_other(page: Page) -> None:
    kinds = [attributes.get("type") for tag, attributes in page.elements if tag == "script"]
    assert kinds == ["application/json", None, None]
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    for script in page.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert policy.count("sha256-") == 2 and "script-src 'unsafe" not in policy and "http" not in policy


def test_no_name_becomes_an_element_or_an_attribute(page: Page) -> None:
    assert {tag for tag, _ in page.elements} <= ELEMENTS
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on") or a == "style"]
    words = " ".join(page.words)
    for name in HOSTILE[:4]:
        assert name in words  # as text, it is there


def test_direction_marks_and_controls_are_taken_out(text: str) -> None:
    assert not set(text.replace(plotly_script(), "")) & set("\u202e\x00\x1b\u2028\u2029")
    assert clean("a\u202eb\x1bc") == "a b c" and clean("a\nb") == "a\nb" and clean(7) == 7


def test_the_figures_data_is_json_and_ends_no_script(text: str, report: Report) -> None:
    found = json_of(text)["figures"]
    assert list(found) == [figure.key for figure in report.drawn]
    assert found == json.loads(json.dumps({figure.key: themed(figure) for figure in report.drawn}))
    block = text.split('id="isoflop-figures">', 1)[1].split("</script>", 1)[0]
    assert not set(block) & set("<>&\u2028\u2029")


def test_dark_figures_come_from_light_ones(report: Report) -> None:
    def changed(value: Any, changes: Any) -> Any:  # as page.js does it
        for key, change in changes.items():
            at = int(key) if isinstance(value, list) else key
            value[at] = changed(value[at], change) if isinstance(change, dict) else change
        return value

    for figure in report.drawn:
        light, dark = plotly_figure(figure, "light"), plotly_figure(figure, "dark")
        change = difference(light, dark)
        assert changed(json.loads(json.dumps(light)), json.loads(json.dumps(change))) == json.loads(json.dumps(dark))
        assert len(json.dumps(change)) < 0.5 * len(json.dumps(dark)) + 5000


def test_why_there_is_no_law_stands_where_one_lands_and_beside_what_lacks_it(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path, planted_run(f"run {i}", 1e8 * (i + 1), 2e9))
    shown = re.sub(
        r"<script.*?</script>|<style.*?</style>", "", render(make_report(read_sources([tmp_path]))), flags=re.S
    )
    assert shown.count("It takes 8 or more, of several sizes") == 1
    assert shown.count("too few to determine L(N,D)") == 2  # no frontier; figures not drawn, three at once
    assert "The law is fitted to" not in shown and "3 finished runs count in a fit" in shown


def test_equal_reports_are_equal_files_of_a_bounded_size(report: Report, text: str) -> None:
    assert render(report) == text
    assert len(text.encode()) < len(plotly_script().encode()) + 700_000


def test_powers_are_raised_and_all_else_is_escaped() -> None:
    assert str(powers("N^0.35·10^-4 <b> D^β, a^b c^long")) == (
        "N<sup>0.35</sup>·10<sup>-4</sup> &lt;b&gt; D<sup>β</sup>, a<sup>b</sup> c^long"
    )


# -- in a browser ------------------------------------------------------------------------------------------------------


def requests_of(driver: Any) -> list[str]:
    """Addresses that were asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def wait_for(driver: Any, script: str, value: object) -> bool:
    """Whether a script gives a value, within half a minute."""
    from selenium.webdriver.support.ui import WebDriverWait

    return bool(WebDriverWait(driver, 30, 0.05).until(lambda d: d.execute_script(f"return {script}") == value))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile"), 800) as driver:
        yield driver


def open_file(driver: Any, path: Path, text: str) -> None:
    """Open the page from the file system, and wait until its figures are drawn without a word in the console."""
    path.write_text(text, encoding="utf-8")
    driver.get(path.as_uri())
    assert wait_for(driver, "document.documentElement.dataset.drawn", "screen")
    assert driver.get_log("browser") == []


def test_a_browser_draws_every_run_and_asks_for_nothing(text: str, report: Report, tmp_path: Path, driver: Any) -> None:
    open_file(driver, tmp_path / "a report.html", text)
    assert [url for url in requests_of(driver) if url.startswith(("http", "ws", "ftp"))] == []
    plot = "document.querySelector('[data-key=loss-flops]')"
    ids = driver.execute_script(f"return {plot}.data.filter(t => t.meta).map(t => t.meta.run_id)")
    assert set(ids) == {f"r{i:02d}" for i in range(15)}
    assert driver.execute_script(f"return {plot}.querySelectorAll('.scatterlayer .trace').length") >= 15
    assert driver.execute_script("return document.querySelectorAll('.plot > .plot-container').length") == len(
        report.drawn
    )
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 800
    buttons = driver.execute_script("return [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title)")
    assert "Download plot" in buttons and not [title for title in buttons if "hare" in title or "loud" in title]


def test_no_strangers_script_runs(text: str, tmp_path: Path, driver: Any) -> None:
    open_file(driver, tmp_path / "report.html", text)
    driver.execute_script(
        "for (const details of document.querySelectorAll('details')) details.open = true;"
        "for (const plot of document.querySelectorAll('.plot')) {"  # hovering shows names, which plotly writes itself
        "  plot.data.forEach((_, i) => {"
        "    try { Plotly.Fx.hover(plot, [{curveNumber: i, pointNumber: 1}]) } catch {} }) }"
    )
    assert driver.execute_script("return typeof window.harmed") == "undefined"
    assert driver.execute_script("return document.querySelectorAll('.plot a, img, iframe').length") == 0
    driver.execute_script(  # even one that got in would not run
        "const s = document.createElement('script'); s.textContent = 'window.harmed = 9'; document.body.append(s)"
    )
    assert driver.execute_script("return typeof window.harmed") == "undefined"
    assert "Content Security Policy" in driver.get_log("browser")[0]["message"]


def test_dark_and_light_follow_the_reader_and_paper_is_light(tmp_path: Path, driver: Any) -> None:
    run = planted_run("live", 1e8, 2e9, status="running", until=0.4)
    write(tmp_path / "runs", replace(run, run_id="live"))
    report = make_report(read_sources([tmp_path / "runs"]))

    def prefer(scheme: str) -> None:
        feature = {"name": "prefers-color-scheme", "value": scheme}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    ground = "document.querySelector('.plot').layout.paper_bgcolor"
    dark, light = (plotly_figure(report.drawn[0], theme)["layout"]["paper_bgcolor"] for theme in ("dark", "light"))
    prefer("dark")
    open_file(driver, tmp_path / "report.html", render(report))
    assert "none finished" in driver.find_element("tag name", "h1").text
    assert wait_for(driver, ground, dark)
    prefer("light")
    assert wait_for(driver, ground, light)
    prefer("dark")
    assert wait_for(driver, ground, dark)
    driver.execute_script(f"window.addEventListener('beforeprint', () => {{ window.paper = {ground} }})")
    assert base64.b64decode(driver.execute_cdp_cmd("Page.printToPDF", {})["data"]).startswith(b"%PDF")
    assert driver.execute_script("return window.paper") == light
    assert wait_for(driver, ground, dark)
    assert driver.execute_script("return document.querySelectorAll('details[open]').length") == 0
    assert driver.get_log("browser") == []
    prefer("light")
