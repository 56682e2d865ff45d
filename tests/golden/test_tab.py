"""What the Scaling tab of TensorBoard answers, asked through the plugin that the package declares."""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from werkzeug.test import Client

from golden.figures import figure_values
from golden.values import FITTED, REAL, check, mask_text, masked

PATIENCE = 60.0
"""Seconds that reading and fitting may take on a machine that does much else."""
TOLERANCE = {"gpts": FITTED, "real": REAL}
OF_A_WIDE_PLAN = 0.3
"""Relative, of ends of intervals that reach over three powers of ten."""
OF_THE_PROCESS = {"version", "drawn", "digest", "key"}
"""Random or hashed of paths."""


class Tab:
    """The plugin on a folder, as TensorBoard loads it and a browser asks it."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tensorboard.plugins import base_plugin
        flags = SimpleNamespace(logdir=str(folder), logdir_spec="")
        self.plugin = declared()(base_plugin.TBContext(logdir=str(folder), flags=flags))
        self.apps: Mapping[str, Any] = self.plugin.get_plugin_apps()
        self.folder = folder
        self.ask("runs")
        self.until(lambda: (told := self.ask("runs"))["listed"] and told["whole"] == told["found"] > 0)
        self.until(lambda: self.ask("fit")["state"] == "fitted")
        self.runs = {run["key"]: str(run.get("path") or run.get("name")) for run in self.ask("runs")["runs"]}

    def raw(self, route: str, **parameters: str) -> Any:
        return Client(self.apps[f"/{route}"]).get(f"/{route}", query_string=parameters)

    def ask(self, route: str, **parameters: str) -> Any:
        answer = self.raw(route, **parameters)
        assert answer.status_code == 200, answer.data
        return answer.json

    def golden(self, answer: Any) -> Any:
        """An answer without what differs from process to process; runs in the order of their paths."""
        for key, path in self.runs.items():
            answer = _replaced(answer, key, f"<{path}>")
        return masked(_without(answer), self.folder)

    @staticmethod
    def until(done: Callable[[], bool]) -> None:
        waiting = threading.Event()
        for _ in range(int(PATIENCE / 0.02)):
            if done():
                return
            waiting.wait(0.02)
        raise AssertionError(f"expected the tab to be ready within {PATIENCE:g} seconds")


def declared() -> Any:
    """The class that `pyproject.toml` declares: an installed package may be another tree's."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'entry-points\.tensorboard_plugins\]\s*isoflop\s*=\s*"([\w.]+):(\w+)"', text)
    assert found is not None
    return getattr(import_module(found[1]), found[2])


def _without(answer: Any) -> Any:
    if isinstance(answer, dict):
        return {key: _without(value) for key, value in answer.items() if key not in OF_THE_PROCESS}
    return [_without(each) for each in answer] if isinstance(answer, list) else answer


def _replaced(value: Any, old: str, new: str) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(each, old, new) for key, each in value.items()}
    if isinstance(value, list):
        return [_replaced(each, old, new) for each in value]
    return value.replace(old, new) if isinstance(value, str) else value


@pytest.fixture(scope="session")
def tabs(gpts: Path, real: Path) -> Iterator[dict[str, Tab]]:
    yield {"gpts": Tab(gpts), "real": Tab(real)}


@pytest.fixture(params=["gpts", "real"])
def named(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def tab(named: str, tabs: dict[str, Tab]) -> Tab:
    return tabs[named]


def test_the_plugin_is_active(tab: Tab) -> None:
    assert tab.plugin.is_active()
    assert tab.plugin.frontend_metadata().tab_name == "Scaling"


def test_the_routes(tabs: dict[str, Tab]) -> None:
    check("tab", "routes", sorted(route for route in tabs["gpts"].apps if "." not in route), additions=False)


def test_the_runs(named: str, tab: Tab) -> None:
    check("tab", f"runs of {named}", tab.golden(tab.ask("runs")), rel=TOLERANCE[named])


def test_a_request_without_news(tab: Tab) -> None:
    first = tab.ask("runs")
    assert "runs" not in tab.ask("runs", have=first["version"])


def _without_open(answer: Any) -> Any:
    """A fit less the spread of what the runs leave open: the last digit of a loss moves its draws by powers of ten."""
    text = re.sub(r"draws run from \S+ to [\d.e+-]+", "draws run from # to #", json.dumps(answer, ensure_ascii=False))
    kept = json.loads(text)
    kept["constants"] = [{**each, "error": None, "interval": None} for each in kept["constants"]]
    return kept


def test_the_fit(named: str, tab: Tab) -> None:
    answer = tab.golden(tab.ask("fit"))
    check("tab", f"fit of {named}", _without_open(answer) if named == "real" else answer, rel=TOLERANCE[named])


def test_the_advice(named: str, tab: Tab) -> None:
    check("tab", f"advice of {named}", tab.golden(tab.ask("advice")), rel=TOLERANCE[named])


@pytest.mark.parametrize("budget", ["1e20", "10 PF-days", "a lot"])
def test_the_plan(budget: str, named: str, tab: Tab) -> None:
    if named == "real":  # of runs of 1e9 FLOPs
        budget = {"1e20": "10B", "10 PF-days": "1e-9 PF-days"}.get(budget, budget)
    answer = tab.raw("plan", budget=budget)
    told = {"status": answer.status_code, "answer": tab.golden(answer.json)}
    check("tab", f"plan of {named} for {budget}", told, rel=OF_A_WIDE_PLAN if named == "real" else FITTED)


def test_the_plan_of_some_runs(tabs: dict[str, Tab]) -> None:
    tab = tabs["gpts"]
    some = ",".join(sorted(tab.runs, key=lambda key: tab.runs[key])[:10])
    check("tab", "plan of ten runs", tab.golden(tab.ask("plan", budget="1e20", runs=some)), rel=FITTED)
    check("tab", "plan of the others", tab.golden(tab.ask("plan", budget="1e20", without=some)), rel=FITTED)


def test_the_figures(named: str, tab: Tab) -> None:
    keys = tab.ask("runs")["figures"]
    check("tab_figures", f"keys of {named}", keys, additions=False)
    for key in keys:
        answer = tab.ask("figure", key=key)
        told = {name: answer[name] for name in ("title", "state", "reason", "notes")}
        check(
            "tab_figures",
            f"{key} of {named}",
            tab.golden({**told, **figure_values(answer["plot"])}),
            rel=TOLERANCE[named],
        )
        assert tab.ask("figure", key=key, have=answer["digest"])["unchanged"] is True


def test_no_figure_of_that_name(tab: Tab) -> None:
    answer = tab.raw("figure", key="nothing")
    assert answer.status_code == 400
    check("tab", "no figure of that name", mask_text(answer.json["error"]))
