"""The two renderers: what plotly and matplotlib are given, that strangers' names stay text, and what the files hold."""

from __future__ import annotations

import base64
import html
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from isoflop.figures import (
    FIGURES,
    Axis,
    Contours,
    Figure,
    Series,
    figures,
    matplotlib_figure,
    plotly_figure,
    save,
    study,
)
from isoflop.laws import PF_DAY
from study_runs import planted_run, sweep
from test_packaging import HIDE, heavy_packages_loaded_by, python

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '<a href="javascript:alert(1)">click</a>',
    "<b>bold</b> & <br>",
    "%{customdata[0]} %{x}",
    r"$\frac{1}{2}$",
    "_hidden",
    "line\nbreak\x00\u202egnp.exe\ud800",
    "名前 🚀" * 40,
    "",
)


def unpacked(column):
    values = np.frombuffer(base64.b64decode(column["bdata"]), "<f4")
    return values.reshape([int(n) for n in column["shape"].split(",")]) if "shape" in column else values


def hostile_study(names=HOSTILE):
    runs = [planted_run("a", 1e8 * (i + 1), 1e10, 12, seed=i, run_id=f"r{i}") for i in range(len(names))]
    return study([replace(run, name=name) for run, name in zip(runs, names, strict=True)], draws=50)


@pytest.fixture(scope="module")
def drawn():
    made = study(sweep(noise=0.002), draws=60)
    return [each for each in figures(made) if isinstance(each, Figure)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_plotly_gets_strict_json_and_the_numbers(drawn, theme):
    for figure in drawn:
        made = json.loads(json.dumps(plotly_figure(figure, theme), allow_nan=False))
        shown = [trace for trace in made["data"] if isinstance(trace.get("x"), dict) and "fill" not in trace]
        expected = [*figure.contours, *figure.series]
        assert len(shown) == len(expected)
        for trace, series in zip(shown, expected, strict=True):
            assert unpacked(trace["x"]) == pytest.approx(series.x.astype("f4"))
            if isinstance(series, Series):
                assert unpacked(trace["y"]) == pytest.approx(series.y.astype("f4"), nan_ok=True)


def test_units_and_pf_days_are_on_the_axes(drawn):
    layout = plotly_figure(drawn[0])["layout"]
    assert layout["xaxis"]["title"]["text"].endswith("(FLOPs)")
    assert layout["yaxis"]["title"]["text"].endswith("(nats per token)")
    top = layout["xaxis2"]
    one = top["ticktext"].index("10<sup>0</sup>")
    assert top["tickvals"][one] == pytest.approx(PF_DAY)
    assert top["matches"] == "x" and top["range"] == layout["xaxis"]["range"]


def test_a_run_has_one_colour_in_every_figure(drawn):
    seen: dict[str, set[str]] = {}
    for figure in drawn:
        for trace in plotly_figure(figure)["data"]:
            if "meta" in trace and "line" in trace and "fill" not in trace:
                seen.setdefault(trace["meta"]["run_id"], set()).add(trace["line"]["color"])
    assert len(seen) == 24
    assert all(len(colours) == 1 for colours in seen.values())


def test_hover_tells_size_tokens_compute_and_loss(drawn):
    trace = next(trace for trace in plotly_figure(drawn[0])["data"] if "meta" in trace)
    lines = trace["hovertemplate"].split("<br>")
    assert [line.split()[0] for line in lines[1:]] == ["N", "D", "C", "L"]
    assert [line.split()[-1].partition("<")[0] for line in lines[1:]] == ["parameters", "tokens", "FLOPs", "token"]


def test_many_runs_are_one_entry_of_the_legend_and_a_colour_scale():
    made = study([planted_run(f"r{i}", 1e7 * (i + 1), 1e10, 12, seed=i) for i in range(100)], draws=50)
    figure = figures(made)[0]
    data = plotly_figure(figure)["data"]
    assert [trace["name"] for trace in data if trace.get("showlegend") and "run" in trace["name"]] == ["100 runs"]
    (bar,) = [trace for trace in data if "colorbar" in trace.get("marker", {})]
    assert bar["marker"]["colorbar"]["ticktext"][0] == "10M" and bar["marker"]["colorbar"]["ticktext"][-1] == "1B"
    assert len(json.dumps(data)) < 1e6


@pytest.mark.parametrize("style", ["acl", "icml", "neurips", "slides"])
def test_a_legend_fits_its_column(drawn, style):
    for figure in drawn:
        made = matplotlib_figure(figure, style=style)
        made.canvas.draw()
        legend = made.legends[0].get_window_extent()
        assert legend.x0 >= 0 and legend.x1 <= made.bbox.x1, (figure.key, style)


@pytest.mark.parametrize("name", HOSTILE)
def test_plotly_shows_names_as_text(name):
    plot = plotly_figure(FIGURES["loss-flops"](hostile_study([name])))
    (shown,) = {trace["name"] for trace in plot["data"] if "meta" in trace}
    assert not re.search(r"[<>$]|%\{|&(?!(amp|lt|gt|#37|#36);)", shown)
    assert "\n" not in shown and len(html.unescape(shown)) <= 48


def test_no_hostile_name_reaches_a_figure_unescaped():
    made = hostile_study()
    for figure in figures(made):
        if not isinstance(figure, Figure):
            continue
        for trace in plotly_figure(figure)["data"]:
            texts = [trace.get("name", ""), *np.atleast_1d(trace.get("text", ""))]
            assert not any(re.search(r"[<>$]|%\{", str(text)) for text in texts)
            without = re.sub(
                r"</?b>|<br>|<extra></extra>|%\{[a-zA-Z.]+(\[\d+\])?(:[^}]*)?\}", "", trace.get("hovertemplate", "")
            )
            assert not re.search(r"[<>$]|%\{", without)


@pytest.mark.parametrize("suffix", [".svg", ".pdf", ".png"])
def test_matplotlib_writes_names_as_text(tmp_path, suffix):
    figure = FIGURES["loss-flops"](hostile_study(HOSTILE[:8]))  # so many are in the legend by name
    path = save(figure, tmp_path / f"figure{suffix}", title=True)
    content = path.read_bytes()
    assert content.startswith({".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}[suffix])
    if suffix == ".svg":
        nodes = [node for node in ElementTree.fromstring(content).iter() if node.tag.endswith("text")]
        texts = " ".join("".join(node.itertext()) for node in nodes)
        assert "<img src=x onerror=alert(1)>" in texts and r"$\frac{1}{2}$" in texts and "_hidden" in texts
        assert not re.search(rb"<(img|a|b|script)\b", content)


def test_a_saved_figure_is_the_same_each_time_and_says_what_it_rests_on(drawn, tmp_path):
    one, two = (save(drawn[0], tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))
    assert one == two
    assert b"Frontier: least loss for C" in one


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_matplotlib_draws_every_figure(drawn, tmp_path, theme):
    for figure in drawn:
        axes = matplotlib_figure(figure, theme).axes[0]
        assert axes.get_xlabel() == figure.x.title and axes.get_ylabel() == figure.y.title
        lines = [line for line in axes.get_lines() if len(line.get_xdata())]
        for series in figure.series:
            if series.shades is None:
                assert any(np.array_equal(line.get_ydata(), series.y, equal_nan=True) for line in lines), series.name


def test_the_top_axis_is_in_pf_days(drawn):
    figure = matplotlib_figure(drawn[0])
    axes = figure.axes[0]
    (top,) = axes.child_axes
    figure.draw_without_rendering()
    assert np.array(top.get_xlim()) * PF_DAY == pytest.approx(axes.get_xlim())


def test_contours_lie_at_their_levels(tmp_path):
    x = y = np.geomspace(1, 10, 30)
    levels = np.array([2.0, 4.0, 6.0])
    figure = Figure("k", "t", Axis("x"), Axis("y"), contours=(Contours("z", x, y, np.add.outer(y, x), levels),))
    contours = plotly_figure(figure)["data"][0]["contours"]
    assert (contours["start"], contours["end"], contours["size"]) == (2.0, 6.0, 2.0)
    save(figure, tmp_path / "contours.png")


def test_what_save_does_not_know_is_said(drawn, tmp_path):
    with pytest.raises(ValueError, match=r"ends in \.pdf, \.svg, \.png, got 'a.gif'"):
        save(drawn[0], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="theme light or dark, got 'blue'"):
        plotly_figure(drawn[0], "blue")


def test_without_matplotlib_it_says_how_to_get_it():
    code = HIDE.format(names=["matplotlib"]) + (
        "from isoflop.figures import Axis, Figure\n"
        "from isoflop.figures import save\n"
        "try:\n    save(Figure('k', 't', Axis('x'), Axis('y')), 'a.pdf')\n"
        "except ImportError as error:\n    print(error)"
    )
    done = python(code)
    assert "pip install 'isoflop[matplotlib]'" in done.stdout, done.stderr


def test_figures_load_neither_torch_nor_a_renderer():
    code = (
        "import sys, isoflop.figures\n"
        "assert not {'plotly', 'matplotlib', 'pandas', 'rich'} & set(sys.modules), 'a renderer'"
    )
    assert heavy_packages_loaded_by(code) == {"numpy"}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out_from_the_page(theme):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return math.fsum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    made = study([planted_run(f"r{i}", 1e7 * 1.3**i, 1e10, 12, seed=i) for i in range(21)], draws=50)
    plot = plotly_figure(FIGURES["loss-flops"](made), theme)
    page = light(plot["layout"]["paper_bgcolor"])
    colours = {trace["line"]["color"] for trace in plot["data"] if "meta" in trace and "line" in trace}
    assert len(colours) == 21
    for mark in map(light, colours):
        high, low = max(page, mark), min(page, mark)
        assert (high + 0.05) / (low + 0.05) > 1.6
