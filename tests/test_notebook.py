"""What a notebook shows of results: tables and figures in line, every stranger's text escaped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import isoflop
from isoflop.figures import FIGURES, Figure, study
from study_runs import planted_run


def test_a_run_is_a_table_and_its_name_is_text() -> None:
    html = planted_run("<b>run</b>", 1e8, 2e9)._repr_html_()
    assert "&lt;b&gt;run&lt;/b&gt;" in html and "<b>run" not in html
    assert "C, training FLOPs" in html and "N non embedding with head" in html


def test_fits_and_plans_are_their_text() -> None:
    plan = isoflop.plan(1e21)
    assert plan._repr_html_().startswith("<pre>") and "note: " in plan._repr_html_()
    assert str(plan).splitlines()[0] in plan._repr_html_()
    assert plan._repr_mimebundle_(include=None, exclude=None) == {"text/plain": str(plan)}


def test_what_holds_many_numbers_is_a_line_or_a_few() -> None:
    counted = isoflop.count(nn.Sequential(nn.Embedding(32, 4), nn.Linear(4, 32)), torch.ones(2, 8, dtype=torch.long))
    assert counted._repr_html_().startswith("<pre>N       288 parameters, 32 non-embedding, 160 with the output head")
    assert "FLOPs   1.229e+04 for a training step of 16 tokens" in str(counted)
    runs = isoflop.study([planted_run("one", 1e8, 2e9)])
    assert repr(runs) == "<Study of 1 run, 1 in the fit: train>"
    assert repr(FIGURES["loss-flops"](runs)) == "<Figure loss-flops: Loss against training compute, 1 series>"


def test_a_list_of_runs_is_a_line_each() -> None:
    assert repr([planted_run("one", 1e8, 2e9)]).startswith("[<Run one: completed, ")


def test_a_monitor_shows_its_last_interval(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    with isoflop.Monitor(model, total_steps=2, log_every=1, record_dir=tmp_path) as monitor:
        assert "no log step yet" in monitor._repr_html_() and repr(monitor) == "<Monitor at step 0>"
        for _ in range(2):
            monitor.step(model(torch.ones(2, 4)).sum(), tokens=8)
    assert repr(monitor).startswith("<Monitor at step 2, loss ")
    assert "isoflop, step 2" in monitor._repr_html_() and "<th" in monitor._repr_html_()


def test_a_figure_is_drawn_in_line() -> None:
    pytest.importorskip("matplotlib")
    figure = FIGURES["loss-flops"](study([planted_run("one", 1e8, 2e9)]))
    assert isinstance(figure, Figure)
    assert "<svg" in (figure._repr_svg_() or "")
