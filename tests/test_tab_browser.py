"""The Scaling tab in a real TensorBoard, seen through a real Chromium."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from study_runs import planted_run
from tensorboards import browser, tensorboard, without_browser
from test_tab import GRID, HOSTILE, write

pytestmark = pytest.mark.skipif(without_browser() is not None, reason=f"no browser: {without_browser()}")
LONGEST = 120
"""Seconds that are waited for something, at the most: these machines are busy."""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("chromium")) as driver:
        driver.set_script_timeout(LONGEST)
        yield driver


def until(driver: Any, script: str) -> Any:
    """What a script gives once it gives something."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, LONGEST, poll_frequency=0.1).until(lambda d: d.execute_script(script))


def opened(driver: Any, url: str, within: bool | None = False) -> None:
    """The tab with its first figure; within TensorBoard's page (None: at this very link), or alone: quicker."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.switch_to.default_content()
    driver.get("about:blank")
    for log in ("browser", "performance"):  # of the page before, whose server is gone
        driver.get_log(log)
    places = {True: f"{url}#isoflop", False: f"{url}data/plugin_entry.html?name=isoflop", None: url}
    driver.get(places[within])
    if within is not False:
        frame = WebDriverWait(driver, LONGEST).until(lambda d: d.find_elements("css selector", "iframe[src*=isoflop]"))
        driver.switch_to.frame(frame[0])
    until(driver, "return document.querySelector('.figure[data-drawn]')")


CURVES = "[...document.querySelectorAll('.figure[data-key=loss-flops] .plot')].flatMap(p => p.data ?? [])"
RUNS = f"new Set({CURVES}.filter(t => t.meta?.run_id).map(t => t.meta.run_id)).size"


RANGE = "return document.querySelector('.figure .plot')._fullLayout.xaxis.range"


def zoom(driver: Any) -> None:
    """Drag over the middle of the first figure."""
    from selenium.webdriver import ActionChains

    drag = driver.find_element("css selector", ".figure .plot .nsewdrag")
    width, height = drag.size["width"] // 4, drag.size["height"] // 4
    moves = ActionChains(driver).move_to_element_with_offset(drag, -width, -height).click_and_hold()
    moves.move_by_offset(width, height).move_by_offset(width, height).release().perform()


def console(driver: Any) -> list[str]:
    """Errors on the page, but that a page alone has no icon."""
    severe = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    return [text for text in severe if "favicon.ico" not in text]


def hosts(driver: Any) -> set[str | None]:
    """Whom the page asked for anything since the last question."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
    assert any("/data/plugin/isoflop/plotly.js" in url for url in urls)
    return {urlsplit(url).hostname for url in urls if urlsplit(url).scheme in ("http", "https", "ws", "wss")}


def test_the_tab_shows_a_curve_for_each_run_and_follows_a_run_that_trains(chromium: Any, tmp_path: Path):
    for run in GRID[:3]:
        write(tmp_path / run.name, run)
    live = write(tmp_path / "live", planted_run("live", 3e8, 6e9, status="running", until=0.3))
    with tensorboard(tmp_path) as url:
        opened(chromium, url, within=True)
        until(chromium, f"return {RUNS} === 4")
        assert chromium.execute_script("return document.querySelectorAll('.runs li').length") == 4
        before = chromium.execute_script(f"return {CURVES}.map(t => t.name)")
        assert "live" in before
        # somebody zooms in, and the run goes on
        whole = chromium.execute_script(RANGE)
        zoom(chromium)
        zoomed = chromium.execute_script(RANGE)
        assert zoomed[1] - zoomed[0] < 0.8 * (whole[1] - whole[0])
        count = f"{CURVES}.find(t => t.name === 'live').x.bdata.length"
        old = chromium.execute_script(f"return {count}")
        last = planted_run("live", 3e8, 6e9).points[-1]
        live.point(last)
        until(chromium, f"return {count} > {old}")
        assert chromium.execute_script(RANGE) == zoomed
        live.end(last.step, "completed")
        live.close()
        until(chromium, "return !document.querySelector('.status.running')")
        write(tmp_path / "new", planted_run("new", 2e8, 6e9))  # and a run begins
        until(chromium, f"return {RUNS} === 5")
        assert console(chromium) == []
        assert hosts(chromium) == {"127.0.0.1"}


def test_runs_are_chosen_and_the_choice_is_kept(chromium: Any, tmp_path: Path):
    for run in GRID[:6]:
        write(tmp_path / run.name, run)
    with tensorboard(tmp_path) as url:
        opened(chromium, url)
        until(chromium, f"return {RUNS} === 6")
        chromium.execute_script("document.querySelector('.none').click()")
        until(chromium, "return document.querySelector('.figure .reason').textContent.startsWith('Not shown.')")
        assert chromium.execute_script("return document.querySelector('.figure.missing .csv').hidden")
        chromium.execute_script("document.querySelectorAll('.runs input')[2].click()")
        until(chromium, f"return {RUNS} === 1")
        chromium.execute_script("document.querySelector('.all').click()")
        until(chromium, f"return {RUNS} === 6")
        box = chromium.find_element("css selector", ".filter")
        box.send_keys("1e.18")
        until(chromium, f"return {RUNS} === 5 && document.querySelectorAll('.runs li').length === 5")
        box.send_keys("(")
        until(chromium, "return document.querySelector('.filter.bad')")
        box.send_keys("\b")
        chromium.execute_script("document.querySelectorAll('.runs input')[0].click()")
        until(chromium, f"return {RUNS} === 4")
        opened(chromium, url)
        until(chromium, f"return {RUNS} === 4")
        assert chromium.find_element("css selector", ".filter").get_attribute("value") == "1e.18"
        chromium.execute_script("localStorage.clear()")
        assert console(chromium) == []


def test_the_fit_the_advice_and_the_planner_are_shown(chromium: Any, tmp_path: Path):
    said = {
        "step": 7,
        "reason": "too_large",
        "severity": "warning",
        "what": "The model is too large for its data.",
        "do": "train less of it.",
        "numbers": [{"name": "N", "value": 1e9, "unit": "parameters", "low": 5e8, "high": 2e9}],
        "basis": ["Hoffmann et al. 2022"],
        "probability": 0.97,
        "level": 0.8,
    }
    for i, run in enumerate(GRID):
        write(tmp_path / run.name, run, advice=said if i == 0 else None)
    with tensorboard(tmp_path) as url:
        opened(chromium, url)
        until(chromium, "return document.querySelector('.approaches')")
        fit = chromium.execute_script("return document.querySelector('.fit').innerText")
        assert f"{len(GRID)} finished runs" in fit and "α" in fit and "approach 3" in fit
        until(chromium, f"return {CURVES}.some(t => t.name?.includes('fitted law'))")
        advice = chromium.execute_script("return document.querySelector('.timeline').innerText")
        assert "WARNING" in advice and "too large for its data" in advice and "train less" in advice
        chromium.find_element("css selector", ".budget").send_keys("10 PF-days\n")
        until(chromium, "return document.querySelector('.plan td')")
        plan = chromium.execute_script("return document.querySelector('.answer').innerText")
        assert "8.64·10²⁰ FLOPs, 10 PF-days" in plan and f"From {len(GRID)} chosen runs." in plan
        chromium.find_element("css selector", ".budget").send_keys("<script>\n")
        until(chromium, "return document.querySelector('.answer .reason')")
        errors = [text for text in console(chromium) if "400 (BAD REQUEST)" not in text]
        assert errors == []


SAID = {"step": 7, "time": 1.7e9, "what": "The loss diverges.", "do": "stop.", "numbers": [], "saves": [], "basis": []}


def test_what_to_do_comes_first_and_a_run_with_a_warning_is_not_green(chromium: Any, tmp_path: Path):
    for number, severity in ((10, "warning"), (9, "note"), (2, "critical")):
        advice = {**SAID, "severity": severity, "reason": severity, "what": f"This is {severity}."}
        write(tmp_path / f"run {number}", planted_run(f"run {number}", 1e8 * number, 2e9), advice=advice)
    write(tmp_path / "run 11", planted_run("run 11", 1e9, 2e10, status="running", until=0.5))  # without a forecast
    with tensorboard(tmp_path) as url:
        opened(chromium, url)
        until(chromium, "return document.querySelectorAll('.now li').length === 3")
        now = chromium.execute_script("return [...document.querySelectorAll('.now li')].map(each => each.innerText)")
        assert (
            "CRITICAL run 2, step 7: This is critical." in now[0]
            and "Next time: stop." in now[0]
            and "WARNING run 10" in now[1]
        )
        assert re.fullmatch(r"run 11 is at step [\d,]+ of [\d,]+\.", now[2])
        assert chromium.execute_script("return document.querySelector('main > .card').classList.contains('now')")
        names = (
            "return [...document.querySelectorAll('.runs .name')].map(each => each.firstChild.nextSibling.textContent)"
        )
        assert until(chromium, names) == ["run 2", "run 9", "run 10", "run 11"]
        badges = chromium.execute_script("return [...document.querySelectorAll('.runs .status')].map(e => e.className)")
        assert badges == [
            "status completed critical",
            "status completed ",
            "status completed warning",
            "status running ",
        ]
        assert until(chromium, "return document.querySelectorAll('.runs .swatch').length === 4")
        heads = chromium.execute_script("return document.querySelector('.runtable thead').innerText")
        assert "training loss" in heads and "forecast" not in heads and "MFU" not in heads  # of which no run has one
        buttons = chromium.execute_script("return document.querySelector('.head').innerText")
        assert "Advice (2)" in buttons and console(chromium) == []


def test_the_table_sorts_and_the_axis_can_be_changed(chromium: Any, tmp_path: Path):
    names = ("w10 lr 3e-4", "w9 lr 0.01", "w9 lr 0.003", "w10 lr 1e-3")
    for run, name in zip(GRID, names, strict=False):
        write(tmp_path / name, replace(run, name=name))
    cells = "return [...document.querySelectorAll('.runtable tbody tr')].map(row => row.children[3].textContent)"
    with tensorboard(tmp_path) as url:
        opened(chromium, url)
        until(chromium, "return document.querySelectorAll('.runtable tbody tr').length === 4")
        listed = "return [...document.querySelectorAll('.runtable td:first-child')].map(cell => cell.lastChild.data)"
        assert chromium.execute_script(listed) == ["w9 lr 0.003", "w9 lr 0.01", "w10 lr 3e-4", "w10 lr 1e-3"]
        chromium.execute_script("document.querySelectorAll('.runtable th button')[3].click()")
        up = chromium.execute_script(cells)
        chromium.execute_script("document.querySelectorAll('.runtable th button')[3].click()")
        assert chromium.execute_script(cells) == up[::-1] and len(set(up)) > 1
        choose = "const box = document.querySelector('.switches select'); box.value = 'tokens'; "
        choose += "box.dispatchEvent(new Event('change'))"
        chromium.execute_script(choose)
        title = "return document.querySelector('.figure .plot').layout.xaxis.title.text"
        assert until(chromium, f"{title}?.includes('tokens')")
        assert until(chromium, f"return {RUNS} === 4") and console(chromium) == []


def test_a_link_shows_what_its_sender_saw(chromium: Any, tmp_path: Path):
    for i, run in enumerate(GRID[:4]):
        points = (*run.points[:-1], replace(run.points[-1], losses={"train": 2.5, "eval/val": 2.5 + 0.25 * i}))
        write(tmp_path / run.name, replace(run, points=points))
    thick = f"{CURVES}.filter(t => t.line?.width === 4).map(t => t.name)"
    with tensorboard(tmp_path) as url:
        opened(chromium, url, within=True)
        until(chromium, f"return {RUNS} === 4")
        chromium.execute_script("document.querySelectorAll('.runs input')[0].click()")
        until(chromium, f"return {RUNS} === 3")
        choose = "const box = document.querySelector('select[aria-label=\"{}\"]'); box.value = '{}'; "
        choose += "box.dispatchEvent(new Event('change'))"
        for label, value in (("against", "tokens"), ("loss", "train"), ("smoothing of training losses", "0.05")):
            chromium.execute_script(choose.format(label, value))
        until(chromium, "return document.querySelector('.figure .notes').innerText.includes('last 5% of the steps')")
        chromium.execute_script("document.querySelectorAll('.runtable .pin')[1].click()")
        assert until(chromium, f"return {thick}") == [GRID[2].name]
        rows = chromium.execute_script(
            "return [...document.querySelectorAll('.runtable tbody tr')].map(r => r.innerText)"
        )
        assert GRID[2].name in rows[0] and "(−0.2500)" in rows[1] and "(+0.2500)" in rows[2]
        chromium.switch_to.default_content()
        link = chromium.current_url
        assert "#isoflop&p.isoflop." in link
        # another browser, which has kept nothing
        chromium.execute_script("localStorage.clear()")
        chromium.get("about:blank")
        opened(chromium, link, within=None)
        assert until(chromium, f"return {RUNS} === 3 && {thick}") == [GRID[2].name]
        assert chromium.execute_script("return document.querySelector('.figure .plot').layout.xaxis.title.text") == (
            "D, processed less padding (tokens)"
        )
        assert "last 5%" in chromium.execute_script("return document.querySelector('.figure .notes').innerText")
        chromium.execute_script("localStorage.clear()")
        assert console(chromium) == []


def test_hostile_names_are_shown_as_texts(chromium: Any, tmp_path: Path):
    said = {"step": 1, "reason": HOSTILE, "severity": HOSTILE, "what": HOSTILE, "do": HOSTILE, "basis": [HOSTILE]}
    write(tmp_path / HOSTILE.replace("/", ""), planted_run(HOSTILE, 1e8, 2e9), advice=said)
    with tensorboard(tmp_path) as url:
        opened(chromium, url)
        until(chromium, "return document.querySelector('.timeline li')")
        assert HOSTILE in chromium.execute_script("return document.querySelector('.timeline').innerText")
        assert HOSTILE in chromium.execute_script("return document.querySelector('.runs').innerText")
        assert HOSTILE in chromium.execute_script("return document.querySelector('.figure .plot').textContent")
        assert chromium.execute_script("return document.querySelectorAll('img').length") == 0
        assert console(chromium) == []


def test_nothing_of_plotlys_sends_a_chart_away(chromium: Any, tmp_path: Path):
    write(tmp_path, GRID[0])
    with tensorboard(tmp_path) as url:
        opened(chromium, url)
        titles = until(
            chromium, "return [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title).join('|')"
        )
        assert "Zoom" in titles and "hare" not in titles and "loud" not in titles
        assert chromium.execute_script("return document.querySelectorAll('a[href^=http]').length") == 0


def test_light_and_dark_follow_tensorboard(chromium: Any, tmp_path: Path):
    write(tmp_path, GRID[0])
    background = "return document.querySelector('.figure .plot').layout?.paper_bgcolor"
    with tensorboard(tmp_path) as url:
        opened(chromium, url, within=True)
        light = chromium.execute_script(background)
        chromium.execute_script("parent.document.body.classList.add('dark-mode')")
        until(chromium, "return document.documentElement.dataset.theme === 'dark'")
        until(chromium, f"{background} !== '{light}'")
        chromium.execute_script("parent.document.body.classList.remove('dark-mode')")
        until(chromium, f"{background} === '{light}'")


def test_a_folder_without_records_leaves_the_tab_inactive_beside_the_others(chromium: Any, tmp_path: Path):
    with tensorboard(tmp_path) as url:
        chromium.switch_to.default_content()
        chromium.get(f"{url}data/plugins_listing")
        listing = json.loads(chromium.find_element("css selector", "body").text)
        assert listing["isoflop"]["enabled"] is False and listing["isoflop"]["tab_name"] == "Scaling"
        assert "scalars" in listing and "text" in listing
