"""Every figure's numbers against planted laws; and with runs that lack something: right, or not there and why."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from fits import chinchilla, reference
from isoflop.figures import FIGURES, Figure, NoFigure, ends_of_table, figures, study
from isoflop.figures.plotly import plotly_figure
from isoflop.figures.text import law_label
from isoflop.laws import PF_DAY, size_factor
from isoflop.noise import critical_batch_by_tokens
from study_runs import BATCH, LAW, RATE, optimal_size, planted_run, sweep, with_nan_losses, without


def planted_loss(N, D):
    return LAW["E"] + LAW["A"] / np.asarray(N) ** LAW["alpha"] + LAW["B"] / np.asarray(D) ** LAW["beta"]


@pytest.fixture(scope="module")
def exact():
    """A grid of finished runs on the law itself, as a table."""
    N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(3e7, 1e10, 6), np.geomspace(1e9, 3e11, 6)))
    columns = {"N": N, "D": D, "loss": planted_loss(N, D)}
    return study(table=ends_of_table(columns), convention="total", draws=60)


@pytest.fixture(scope="module")
def noisy():
    """24 runs over four budgets, and two that are under way."""
    live = [
        planted_run("live", 3e8, 8e9, 200, 0.003, 7, status="running", until=0.4),
        planted_run("young", 6e8, 8e9, 200, 0.003, 8, status="running", until=0.003),
    ]
    return study([*sweep(noise=0.002), *live], draws=200)


def of(figure, **wanted):
    found = [s for s in figure.series if all(getattr(s, name) == value for name, value in wanted.items())]
    assert found, (wanted, [(s.name, s.role) for s in figure.series])
    return found


def test_every_figure_is_listed_once(exact):
    keys = [each.key for each in figures(exact)]
    assert keys == list(FIGURES) and len(set(keys)) == len(keys)


def test_loss_against_flops(noisy):
    figure = FIGURES["loss-flops"](noisy)
    assert (figure.x.unit, figure.x.second.factor, figure.y.unit) == ("FLOPs", PF_DAY, "nats per token")
    assert "C, measured" in figure.x.title
    runs = of(figure, role="run")
    assert len(runs) == 26
    first = noisy.curves[0]
    assert runs[0].x == pytest.approx(RATE * first.size("non_embedding_with_head") * first.tokens)
    assert (runs[0].y == first.losses["train"]).all()
    inside, beyond = of(figure, role="fit")
    assert not inside.dashed and beyond.dashed
    assert inside.x[[0, -1]] == pytest.approx([noisy.C.min(), noisy.C.max()])
    assert beyond.x[[0, -1]] == pytest.approx([noisy.C.max(), 10 * noisy.C.max()])
    for line, band in zip((inside, beyond), figure.bands, strict=True):
        N = np.array([optimal_size(C * 6 / RATE) for C in line.x])
        truth = planted_loss(N, line.x / RATE / N)
        assert line.y == pytest.approx(truth, rel=3e-3)
        # tails of the training loss average the curve's last points, which lie above its end
        assert (band.low * 0.998 <= truth).all() and (truth <= band.high * 1.002).all()
    assert any("2 runs do not count in a fit: live, young" in note for note in figure.notes)


def test_hoffmanns_figure_3_from_their_own_points():
    budgets = [6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21]
    made = study(table=ends_of_table(chinchilla()), convention="total", budgets=budgets, draws=100)
    (minima,) = of(FIGURES["isoflop-profiles"](made), role="approach 2")
    assert len(minima.x) == len(budgets)
    # table A3: 400M at 1.84e19 FLOPs, 1B at 1.20e20
    assert np.interp(np.log([1.84e19, 1.2e20]), np.log(minima.hover["C"]), minima.x) == pytest.approx(
        [400e6, 1e9], rel=0.15
    )
    assert next(each for each in made.approaches if each.name.startswith("approach 2")).a == pytest.approx(
        0.5, abs=0.03
    )


def test_optimal_size_and_tokens(exact):
    for key, value in (("optimal-parameters", optimal_size), ("optimal-tokens", lambda C: C / 6 / optimal_size(C))):
        figure = FIGURES[key](exact)
        for line in of(figure, role="approach 3"):
            assert line.y == pytest.approx([value(C) for C in line.x], rel=1e-3)
        for line, law in zip(of(figure, role="published"), exact.published, strict=True):
            assert line.name == law_label(law) and line.dashed
            N, D = law.allocate(line.x)
            assert line.y == pytest.approx(N if key == "optimal-parameters" else D)
        said = " ".join(figure.notes)
        assert (
            "Approach 1 (envelope) is left out: curves of several sizes, each with 8 points of this loss, are needed"
            in said
        )
        assert "Kaplan et al. 2020, allocation: N non-embedding" in said


def test_approach_2s_intervals_are_turned_over_for_tokens(noisy):
    sizes, tokens = (
        next(s for s in FIGURES[key](noisy).series if s.name == "its minima")
        for key in ("optimal-parameters", "optimal-tokens")
    )
    assert sizes.y * tokens.y == pytest.approx(sizes.x / RATE, rel=1e-6)
    assert sizes.high * tokens.low == pytest.approx(sizes.x / RATE, rel=1e-6)
    assert (tokens.low < tokens.y).all() and (tokens.y < tokens.high).all()


def test_isoflop_profiles(noisy):
    figure = FIGURES["isoflop-profiles"](noisy)
    (minima,) = of(figure, role="approach 2")
    best = [optimal_size(C * 6 / RATE) for C in minima.hover["C"]]
    assert minima.x == pytest.approx(best, rel=0.1)  # a parabola's bias is in it
    assert (minima.left < minima.x).all() and (minima.x < minima.right).all()
    points = [s for s in figure.series if s.kind == "points" and s.role == "run"]
    assert [len(s.x) for s in points] == [6, 6, 6, 6]
    lines = [s for s in figure.series if s.kind == "line"]
    for line, vertex in zip(lines, minima.y, strict=True):
        assert line.y.min() == pytest.approx(vertex, rel=1e-4)
    assert figure.shades is None  # four budgets are in the legend


def test_one_budget_has_a_profile_and_its_minimum():
    figure = FIGURES["isoflop-profiles"](study(sweep((1e20,), 7), draws=60))
    (minimum,) = of(figure, role="approach 2")
    assert minimum.x == pytest.approx([optimal_size(1e20)], rel=0.1)


def test_contours(exact):
    figure = FIGURES["contours"](exact)
    (lines,) = figure.contours
    D, N = np.meshgrid(lines.x, lines.y)
    assert lines.z == pytest.approx(planted_loss(N, D), rel=1e-5)
    (best,) = of(figure, role="fit")
    seen = np.isfinite(best.y)
    assert seen.any()
    assert best.y[seen] == pytest.approx([optimal_size(C) for C in 6 * (best.x * best.y)[seen]], rel=1e-3)
    for line in of(figure, role="guide"):
        fine = np.isfinite(line.y)
        assert 6 * (line.x * line.y)[fine] == pytest.approx(line.hover["C"])


def test_waste_is_kaplans_figure_12(exact):
    figure = FIGURES["waste"](exact)
    (curve,) = of(figure, role="fit")
    points = next(s for s in figure.series if s.labels)
    for k, factor in zip(points.x, points.y, strict=True):
        assert factor == pytest.approx(size_factor(exact.law, k)[0], rel=1e-6)
    at = int(np.argmin(np.abs(curve.x - 2)))
    assert curve.y[at] == pytest.approx(size_factor(exact.law, float(curve.x[at]))[0])
    kaplan = next(s for s in figure.series if s.name == "Kaplan et al. 2020, L(N,S)")
    # 20% more compute for models between 0.6 and 2.2 times the best: the figure's caption
    assert np.interp([0.6, 2.2], kaplan.x, kaplan.y) == pytest.approx([1.16, 1.20], abs=0.01)


def test_an_outlier_is_in_no_residual_and_its_weight_is_known(exact):
    columns = {name: values.copy() for name, values in exact.columns.items()}
    columns["loss"][7] *= 1.5
    rough = study(table=ends_of_table(columns), convention="total", draws=60)
    assert [run.row for run in rough.fit.left_out] == [7] and exact.with_outliers is None
    (fine, out) = [each for each in FIGURES["loss-flops"](rough).series if each.ends]
    assert out.role == "out" and out.ends == (7,) and 7 not in fine.ends and out.name.startswith("1 outlier, left out")
    for key, x in (("residuals", rough.C), ("residuals-ratio", columns["D"] / columns["N"])):
        points = next(s for s in FIGURES[key](rough).series if s.labels)
        assert points.x == pytest.approx(np.delete(x, 7))
        assert np.abs(points.y).max() < 1e-3
        assert points.labels == tuple(end.name for i, end in enumerate(rough.counted) if i != 7)
    assert "row 8" not in next(s for s in FIGURES["waste"](rough).series if s.labels).labels
    assert rough.with_outliers.n == 36 and abs(rough.with_outliers.parameters["E"] - LAW["E"]) > 1e-4


def test_residuals(noisy):
    figure = FIGURES["residuals"](noisy)
    points = next(s for s in figure.series if s.labels)
    columns = noisy.columns
    law = noisy.law.loss(N=columns["N"], D=columns["D"])
    assert points.y == pytest.approx(columns["loss"] / law - 1, abs=1e-9)
    assert figure.y.percent and not figure.y.log


def test_learning_curves_forecast_runs_under_way(noisy):
    figure = FIGURES["learning-curves"](noisy)
    (ahead,) = [s for s in figure.series if s.dashed]
    (band,) = figure.bands
    assert ahead.run_id == band.run_id == "live"
    run = next(curve for curve in noisy.curves if curve.name == "live")
    assert ahead.x[0] > run.step[-1] and ahead.x[-1] == run.run.planned["steps"]
    assert (band.low < ahead.y).all() and (ahead.y < band.high).all()
    assert (np.diff(ahead.y) < 0).all()
    assert any(note.startswith("No forecast of young: ") for note in figure.notes)


def test_a_forecast_that_only_the_record_knows_is_a_point_at_the_planned_end():
    run = planted_run("bare", 3e8, 8e9, status="running", until=0.5)
    extra = {"forecast_loss": 2.5, "forecast_low": 2.4, "forecast_high": 2.6}
    points = (*run.points[:-1], replace(run.points[-1], extra=extra))
    steps = run.planned["steps"]
    figure = FIGURES["learning-curves"](study([replace(run, points=points, planned={"steps": steps})]))
    (end,) = [s for s in figure.series if s.dashed]
    assert (end.kind, end.x[0], end.y[0], end.low[0], end.high[0]) == ("points", steps, 2.5, 2.4, 2.6)
    assert not figure.bands


def test_runs_of_one_point_have_no_curves():
    """As a table of finished runs is imported."""
    runs = [planted_run(f"r{i}", 1e8, 2e9) for i in range(3)]
    figure = FIGURES["learning-curves"](study([replace(run, points=run.points[-1:]) for run in runs]))
    assert isinstance(figure, NoFigure) and figure.reason == "No run has more than one point."


def test_runs_evaluated_once_show_their_training_curves():
    runs = [planted_run(f"r{i}", 1e8 * (i + 1), 2e9) for i in range(3)]
    ended = [replace(run.points[-1], losses={**run.points[-1].losses, "eval/val": 3.0}) for run in runs]
    made = study([replace(run, points=(*run.points[:-1], end)) for run, end in zip(runs, ended, strict=True)])
    figure = FIGURES["learning-curves"](made)
    assert made.loss == "eval/val" and {len(each.x) for each in figure.series} == {len(runs[0].points)}
    assert figure.notes[0] == "The training loss: no run has more than one point of the loss 'eval/val'."


def test_batch_against_the_critical_batch():
    run = planted_run("a", 1e8, 2e10)
    extra = {"b_crit": 2e6, "b_crit_sigma": 0.3}
    measured = replace(run, points=tuple(replace(point, extra=extra) for point in run.points))
    figure = FIGURES["batch"](study([measured]))
    own, critical = (s for s in figure.series if s.run_id == "a")
    assert (own.y == BATCH).all() and (critical.y == 2e6).all() and critical.dashed
    (prior,) = of(figure, role="published")
    assert prior.y == pytest.approx(critical_batch_by_tokens(prior.x))
    band = next(band for band in figure.bands if band.run_id == "a")
    assert band.high == pytest.approx(2e6 * np.exp(1.96 * 0.3), rel=1e-3)
    assert band.low == pytest.approx(2e6 / np.exp(1.96 * 0.3), rel=1e-3)


@pytest.mark.parametrize("key", ["loss-flops", "learning-curves"])
def test_a_run_that_diverged_leaves_the_others_their_room(key):
    runs = [planted_run(f"run {i}", 1e8 * (i + 1), 2e9) for i in range(4)]
    wild = [replace(point, losses={"train": 5e3}) for point in runs[3].points[:9]]
    figure = FIGURES[key](study([*runs[:3], replace(runs[3], points=(*wild, *runs[3].points[9:]))]))
    assert figure.y.high < 40 and "Higher than drawn: run 3 (5e+03)." in figure.notes
    assert FIGURES[key](study(runs)).y.high is None


def test_a_logarithmic_axis_of_a_decade_has_powers_of_ten():
    figure = FIGURES["loss-flops"](study([planted_run("one", 1e6, 1e10, points=20)]))
    few = replace(figure, series=[replace(each, x=each.x[-6:], y=each.y[-6:]) for each in figure.series])
    assert plotly_figure(few)["layout"]["xaxis"]["exponentformat"] == "power"  # plotly's own would be 1B FLOPs


def test_crosses_mark_where_losses_break():
    bad = with_nan_losses(planted_run("bad", 1e8, 2e9), last=3, spike_at=10)
    for key in ("loss-flops", "learning-curves"):
        figure = FIGURES[key](study([bad]))
        (crosses,) = of(figure, role="bad")
        assert crosses.y == pytest.approx([bad.points[i].losses["train"] for i in (9, -4)])
        line, _ = of(figure, role="out")  # in grey, with an entry of the legend
        assert np.isnan(line.y).sum() == 2  # two gaps


def test_a_law_with_doubts_is_not_drawn_beyond_the_runs():
    with reference("porian_refinedweb.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["config"] == "rw/base/long/kaplan/standard/val"]
    made = study(
        table=ends_of_table({name: [float(row[name]) for row in rows] for name in ("N", "D", "loss")}), draws=100
    )
    assert not made.refused and "E can't be distinguished from 0" in made.doubts[0]
    figure = FIGURES["loss-flops"](made)
    (line,) = of(figure, role="fit")
    assert not line.dashed and line.x[-1] == pytest.approx(made.C.max())
    assert any(made.doubts[0] in note for note in figure.notes)
    (law,) = of(FIGURES["optimal-parameters"](made), role="approach 3")
    assert not law.dashed


def test_runs_without_sizes_are_drawn_by_measured_compute():
    runs = [without(run, "N") for run in sweep()[:3]]
    figure = FIGURES["loss-flops"](study(runs))
    assert "measured" in figure.x.title and "No frontier" in figure.notes[0]
    assert of(figure, role="run")[0].x[-1] == runs[0].points[-1].flops


CASES = {
    "none": list,
    "one": lambda: sweep()[:1],
    "two": lambda: sweep()[:2],
    "no points": lambda: [replace(run, points=()) for run in sweep()[:2]],
    "none finished": lambda: [replace(run, status="running") for run in sweep()[:4]],
    "one NaN": lambda: [with_nan_losses(sweep()[3]), *sweep()[:2]],
    "all NaN": lambda: [with_nan_losses(run, len(run.points)) for run in sweep()[:2]],
    "no FLOPs": lambda: [without(run, "flops") for run in sweep()],
    "no N": lambda: [without(run, "N") for run in sweep()[:6]],
    "no N, no FLOPs": lambda: [without(run, "N", "flops") for run in sweep()[:6]],
    "no tokens": lambda: [without(run, "tokens") for run in sweep()[:6]],
    "some without N": lambda: [*(without(run, "N") for run in sweep()[:3]), *sweep()[3:]],
    "a hundred": lambda: [planted_run(f"r{i}", 1e7 * i, 2e8 * i, 9, seed=i) for i in range(1, 101)],
}


@pytest.mark.parametrize("case", CASES)
def test_with_whatever_runs_a_figure_is_right_or_says_why_it_is_not_there(case):
    made = study(CASES[case](), draws=50)
    for figure in figures(made):
        if isinstance(figure, NoFigure):
            assert len(figure.reason) > 10
            continue
        assert isinstance(figure, Figure) and figure.series and figure.notes
        if made.law is None:
            assert not [s for s in figure.series if s.role in ("fit", "approach 3")]
        for each in figure.series:
            if each.role == "out" and each.run_id is None:  # an entry of the legend alone
                continue
            assert len(each.x) == len(each.y) > 0
            assert np.isfinite(each.x).all() and np.isfinite(each.y).any()
            for name, column in each.hover.items():
                assert np.size(column) in (1, len(each.x)), name
            assert len(each.labels) in (0, len(each.x))
        for band in figure.bands:
            assert len(band.x) == len(band.low) == len(band.high)
            assert (band.low <= band.high).all()
