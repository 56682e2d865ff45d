"""A study: where runs ended and which of them count, what is fitted to them, and what it says where nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from isoflop.figures import FIGURES, curve_of_run, ends_of_table, study
from isoflop.fit import fit_law, loss_envelope
from isoflop.record import read_runs
from study_runs import LAW, optimal_size, planted_run, sweep, with_nan_losses, without


@pytest.fixture(scope="module")
def planted():
    """24 runs over four budgets, losses off by .2%."""
    return study(sweep(noise=0.002), draws=200)


def table(N, D, loss):
    return ends_of_table({"N": N, "D": D, "loss": loss}, [f"run {i}" for i in range(len(N))])


def test_ends_are_the_records_last_points(planted):
    run = sweep(points=400)[3]
    (end,) = study([run]).ends
    last = run.points[-1]
    assert (end.name, end.run_id, end.left_out) == (run.name, run.run_id, "")
    assert (end.N, end.D, end.flops) == (run.parameters["non_embedding_with_head"], last.tokens, last.flops)
    tail = [point.losses["train"] for point in run.points if point.step >= 0.95 * last.step]
    assert 1 < len(tail) < 0.05 * len(run.points)  # the points thin out: 5% of them would be more than 5% of the run
    assert end.loss == pytest.approx(np.mean(tail))


def test_an_evaluations_end_is_its_last_loss():
    run = planted_run("a", 1e8, 2e9)
    points = [
        replace(point, losses={**point.losses, "eval/val": 3.0 - 0.001 * i}) for i, point in enumerate(run.points)
    ]
    made = study([replace(run, points=tuple(points))])
    assert made.loss == "eval/val"
    assert made.ends[0].loss == pytest.approx(3.0 - 0.001 * (len(points) - 1))


def evaluated(name, loss, N=1e8):
    run = planted_run(name, N, 2e9)
    return replace(run, points=tuple(replace(point, losses={loss: point.losses["train"]}) for point in run.points))


def test_the_loss_is_that_of_most_runs_and_names_that_may_be_one_are_named():
    made = study(
        [*(evaluated(f"v{i}", "eval/val") for i in range(3)), evaluated("e", "eval/eval"), planted_run("t", 1e8, 2e9)]
    )
    assert made.loss == "eval/val" and len(made.counted) == 3
    assert made.left_out.endswith(
        "eval/val of 3, eval/eval of 1 runs may be one evaluation: --loss eval/val=eval/eval joins them."
    )
    assert study(made.curves, loss="eval/val").alike == ""  # the user named it
    assert study([planted_run("t", 1e8, 2e9), evaluated("v", "eval/val")]).loss == "train"  # as many of each


def test_compute_that_an_import_took_for_6nd_is_not_called_measured():
    measured, bare = planted_run("a", 1e8, 2e9), without(planted_run("c", 1e8, 2e9), "N")
    by_formula = replace(planted_run("b", 1e8, 2e9), counting={"method": "imported: 6·N·tokens, N non-embedding"})
    unknown = replace(bare, points=tuple(replace(point, flops=None) for point in bare.points))
    # records say it by a value, whatever the words are; those of earlier versions by words alone
    named = {"method": "column '6·N·tokens', as logged", "six_nd": False}
    by_value = replace(planted_run("d", 1e8, 2e9), counting={"method": "imported: the sizes", "six_nd": True})
    made = study([replace(measured, counting=named), by_formula, by_value, unknown], convention="total")
    assert FIGURES["loss-flops"](made).x.label == "training compute C, measured (6·N·D for 2 of 3 runs)"


def test_the_end_of_a_run_without_its_steps_is_no_point_of_a_curve():
    end = planted_run("end", 1e8, 2e9)
    end = replace(end, points=(replace(end.points[-1], step=1),), extra={"imported": {}}, planned={})
    (line,) = FIGURES["learning-curves"](study([planted_run("a", 1e8, 2e9), end])).series
    assert line.name == "a"
    assert "ends of runs alone" in FIGURES["learning-curves"](study([end])).reason


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda run: replace(run, status="running"), "it is not finished"),
        (lambda run: replace(run, planned={"steps": 10**6}), "of 1,000,000 planned"),
        (lambda run: with_nan_losses(run), "its training loss is no finite number from step"),
        (lambda run: without(run, "N"), "are not known"),
        (lambda run: without(run, "tokens"), "no loss 'train' with its tokens"),
        (lambda run: replace(run, points=()), "no loss 'train' with its tokens"),
    ],
)
def test_a_run_that_does_not_count_says_why(change, why):
    made = study([change(planted_run("bad", 1e8, 2e9)), planted_run("good", 2e8, 4e9)], convention="total")
    bad, good = made.ends
    assert why in bad.left_out.replace("(total) ", "") and not good.left_out
    assert [end.name for end in made.counted] == ["good"]
    assert made.left_out.startswith("1 run does not count in a fit: bad (")


def test_the_fit_is_that_of_the_shell(planted):
    columns = planted.columns
    direct = fit_law("hoffmann", columns, draws=200)
    assert planted.fit.parameters == direct.parameters
    assert planted.fit.intervals == direct.intervals
    assert not planted.refused and planted.law.convention == "non_embedding_with_head"


def test_the_three_approaches_find_the_planted_exponent(planted):
    truth = LAW["beta"] / (LAW["alpha"] + LAW["beta"])
    assert [each.name[:10] for each in planted.approaches] == ["approach 1", "approach 2", "approach 3"]
    for approach in planted.approaches[1:]:  # 1 reads runs of few points: only its interval is asked
        assert approach.a == pytest.approx(truth, abs=0.015)
    low, high = planted.approaches[0].intervals["a"]
    assert low < truth < high
    compared = planted.compared()
    assert pytest.approx(10 * planted.C.max()) == compared.C
    assert [row.name.split()[0] for row in compared.rows] == ["posterior", *["approach"] * 3]


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (lambda: [], "no finished run"),
        (lambda: sweep()[:1], "1 finished run is too few"),
        (lambda: sweep()[:2], "2 finished runs are too few"),
        (lambda: sweep((1e19,), 9), "which of them lowers the loss is open"),
        (
            lambda: [planted_run(f"{D:.1e}", 1e8, D, seed=i) for i, D in enumerate(np.geomspace(1e9, 1e11, 9))],
            "sizes leave it open",
        ),
    ],
)
def test_a_law_that_the_runs_leave_open_is_refused(runs, why):
    made = study(runs(), draws=50)
    assert why in made.refused
    assert made.law is None
    assert all(not each.name.startswith("approach 3") for each in made.approaches)
    assert any("approach 3" in each.name for each in made.without)


def test_fits_are_kept_while_the_finished_runs_stay_the_same():
    runs = sweep(noise=0.002)
    live = planted_run("live", 3e8, 8e9, until=0.3, status="running")
    longer = planted_run("live", 3e8, 8e9, until=0.6, status="running")
    assert study([*runs, live], draws=60).fit is study([*runs, longer], draws=60).fit
    assert study(runs[:-1], draws=60).fit is not study(runs, draws=60).fit


def test_runs_of_one_name_are_numbered():
    made = study([planted_run("a", N, 1e9, run_id=f"r{N:g}") for N in (1e8, 2e8)])
    assert [end.name for end in made.ends] == [curve.name for curve in made.curves] == ["a", "a (2)"]
    apart = [planted_run("a", 1e8, 1e9, run_id=name, path=f"own/{name}/isoflop-1.jsonl") for name in ("x", "y")]
    assert [curve.name for curve in study(apart).curves] == ["a (x)", "a (y)"]  # as the tab's list shows their folders


def test_columns_may_come_already_read():
    runs = sweep()
    assert study(map(curve_of_run, runs), draws=60).ends == study(runs, draws=60).ends


def test_the_first_convention_that_all_have_is_taken():
    both = [planted_run("a", 1e8, 1e9), planted_run("b", 2e8, 1e9)]
    assert study(both).convention == "non_embedding_with_head"
    one = replace(both[1], parameters={"total": 5})
    assert study([both[0], one]).convention == "total"
    assert study([both[0], without(both[1], "N")]).convention == "non_embedding_with_head"


def test_shades_go_by_size_and_are_the_same_for_every_figure():
    made = study([planted_run(name, N, 1e9) for name, N in (("b", 2e8), ("a", 1e8), ("c", 2e8))])
    assert [made.shade[run] for run in "abc"] == [0.0, 0.5, 1.0]
    assert made.sizes().ticks[0] == (0.0, "100M")
    assert study([planted_run("a", 1e8, 1e9)]).sizes() is None


def test_the_frontier_line_is_the_planted_optimum():
    N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(3e7, 1e10, 6), np.geomspace(1e9, 3e11, 6)))
    loss = LAW["E"] + LAW["A"] / N ** LAW["alpha"] + LAW["B"] / D ** LAW["beta"]
    made = study(table=table(N, D, loss), convention="total", draws=60)
    figure = FIGURES["loss-flops"](made)
    line = next(each for each in figure.series if each.role == "fit" and not each.dashed)
    best = np.array([optimal_size(C) for C in line.x])
    assert line.hover["N"] == pytest.approx(best, rel=1e-4)
    assert line.hover["D"] == pytest.approx(line.x / 6 / best, rel=1e-4)
    rest = LAW["A"] / best ** LAW["alpha"] + LAW["B"] / (line.x / 6 / best) ** LAW["beta"]
    assert line.y == pytest.approx(LAW["E"] + rest, rel=1e-6)
    band = figure.bands[0]
    assert (band.low <= line.y * (1 + 1e-9)).all() and (band.high >= line.y * (1 - 1e-9)).all()


def test_noise_does_not_pull_the_envelope_of_long_curves():
    """A minimum over many noisy curves lies too low, and lower where more curves are: averages first."""
    rng = np.random.default_rng(1)
    runs = []
    for N in np.geomspace(1e7, 1e10, 40):
        D = np.arange(1, 8001) * 6e6 * (0.2 + 0.8 * rng.random())
        loss = LAW["E"] + LAW["A"] / N ** LAW["alpha"] + LAW["B"] / D ** LAW["beta"]
        runs.append((float(N), 6 * N * D, loss * np.exp(0.01 * rng.standard_normal(len(D))), D))
    found = loss_envelope(runs, convention="total")
    assert found.a == pytest.approx(LAW["beta"] / (LAW["alpha"] + LAW["beta"]), abs=0.02)


def test_advice_is_read_and_resumes_take_theirs_back(tmp_path):
    lines = [
        '{"event":"header","isoflop":1,"run_id":"r"}',
        '{"event":"point","step":5,"losses":{"train":3.0}}',
        '{"event":"advice","step":3,"reason":"frontier","severity":"note","what":"<b>x</b>"}',
        '{"event":"advice","step":5,"reason":"diverging","severity":"critical","what":"gone"}',
        '{"event":"advice","reason":"no step"}',
        '{"event":"resume","step":4}',
        '{"event":"advice","step":6,"reason":"plateau","severity":"info","what":"flat"}',
    ]
    (tmp_path / "isoflop-r.jsonl").write_text("\n".join(lines) + "\n")
    (run,) = read_runs(tmp_path)
    assert [(each["step"], each["reason"]) for each in run.advice] == [(3, "frontier"), (6, "plateau")]
    assert any("a step" in problem for problem in run.problems)
