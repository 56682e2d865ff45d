"""Hoffmann et al.'s approaches 1 and 2, and the three side by side."""

import csv
import dataclasses
import re

import numpy as np
import pytest

from fits import reference, with_value
from isoflop.fit import Approach, approach_3, compare_approaches, isoflop_profiles, loss_envelope
from isoflop.laws import FORMS, HOFFMANN, Law

CHINCHILLA_BUDGETS = [6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21]


def law(alpha=0.34, beta=0.28, A=406.4, B=410.7, E=1.69, **others):
    return Law(HOFFMANN, {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta}, **others)


EVEN = law(0.35, 0.35, 450, 450)


def table(name, columns, **where):
    path = reference(name)
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if all(row[k] == v for k, v in where.items())]
    return [np.array([float(row[c]) for row in rows]) for c in columns]


def grid(planted, budgets=(1e18, 1e19, 1e20, 1e21), width=4.0, points=7, noise=0.0, seed=0, offset=1.0):
    """IsoFLOP points of a law: C, N, D, L."""
    frontier = approach_3(planted)
    C = np.repeat(budgets, points)
    u = np.tile(np.linspace(-0.5, 0.5, points) * np.log(width), len(budgets))
    N = np.array([frontier.allocate(c)[0] for c in C]) * np.exp(u) * offset
    D = C / (6 * N)
    return C, N, D, planted.loss(N=N, D=D) + noise * np.random.default_rng(seed).standard_normal(len(C))


# --- approach 2: published results


@pytest.mark.parametrize(
    ("config", "a"),
    [
        ("rw/base/long/kaplan/kaplan/train", 0.835),
        ("rw/base/long/kaplan/standard/val", 0.706),
        ("rw/base/short/kaplan/standard/val", 0.602),
        ("rw/base/short/chinchilla/standard/val", 0.571),
        ("rw/tuned/short/const/standard/val", 0.497),
    ],
)
def test_porian(config, a):
    columns = table("porian_refinedweb.csv", ("flops", "N", "D", "loss"), config=config)
    found = isoflop_profiles(*columns, minimum="akima")
    assert found.a == pytest.approx(a, abs=0.007)
    assert found.a + found.b == pytest.approx(1, abs=1e-4)  # C = 6ND to the printed digits
    assert found.intervals["a"][0] < a < found.intervals["a"][1]


def test_chinchilla():
    """The nine budgets of figure 3, each with the points within 25% of it."""
    columns = table("chinchilla_245.csv", ("flops", "N", "tokens", "loss"))
    found = isoflop_profiles(*columns, budgets=CHINCHILLA_BUDGETS)
    assert 0.495 <= found.a <= 0.505
    assert len(found.minima) == 9
    low, high = found.intervals["a"]
    assert low < 0.49 < high and 0.03 < high - low < 0.12  # Hoffmann et al.: .49 (.462–.534) from 10% to 90%
    assert found.warnings == ("66 of 245 rows left out: more than a factor 1.25 from the nearest budget",)
    assert found.minima[0].C == 6e18 and found.minima[-1].C == 3e21


def test_chinchilla_has_no_gaps_between_its_budgets():
    columns = table("chinchilla_245.csv", ("flops", "N", "tokens", "loss"))
    with pytest.raises(ValueError, match=r"got FLOPs that run on from 2\.87e\+18 to 1\.01e\+21: name the nominal"):
        isoflop_profiles(*columns)


# --- approach 2: planted laws


@pytest.mark.parametrize("minimum", ["parabola", "akima"])
def test_planted(minimum):
    found = isoflop_profiles(*grid(EVEN, points=9), minimum=minimum)
    truth = approach_3(EVEN)
    assert found.a == pytest.approx(0.5, abs=1e-6)
    assert found.allocate(1e20) == pytest.approx(truth.allocate(1e20), rel=1e-3)
    assert [m.sizes for m in found.minima] == [9] * 4
    assert found.n == 36


def test_the_grouping_finds_the_budgets():
    C, N, _, L = grid(EVEN)
    shaken = C * np.exp(np.random.default_rng(0).uniform(-0.02, 0.02, len(C)))
    found = isoflop_profiles(shaken, N, shaken / (6 * N), L)
    assert [m.C for m in found.minima] == pytest.approx([1e18, 1e19, 1e20, 1e21], rel=0.02)
    order = np.random.default_rng(1).permutation(len(C))
    again = isoflop_profiles(*(v[order] for v in (shaken, N, shaken / (6 * N), L)))
    assert again.a == pytest.approx(found.a, rel=1e-12)


@pytest.mark.parametrize("options", [{}, {"noise": 0.01}, {"minimum": "akima", "noise": 0.01}])
def test_intervals_cover(options):
    """90% intervals of a, 60 draws, five budgets of seven sizes: at least 50 hold the truth."""
    found = [
        isoflop_profiles(*grid(EVEN, np.geomspace(1e18, 1e21, 5), 25, 7, 0.01, seed), **options) for seed in range(60)
    ]
    assert sum(f.intervals["a"][0] < 0.5 < f.intervals["a"][1] for f in found) >= 50
    spread = np.std([f.a for f in found])
    assert 0.7 < np.median([f.standard_errors["a"] for f in found]) / spread < 1.5
    at = approach_3(EVEN).allocate(1e20)[0]
    assert sum(f.allocate_intervals(1e20)[0][0] < at < f.allocate_intervals(1e20)[0][1] for f in found) >= 48


def test_the_same_seed_gives_the_same_interval():
    columns = grid(EVEN, noise=0.01)
    assert isoflop_profiles(*columns) == isoflop_profiles(*columns)
    one, other = isoflop_profiles(*columns, seed=1), isoflop_profiles(*columns, seed=2)
    assert one.a == other.a and one.minima[0].interval != other.minima[0].interval


def test_akima_takes_the_best_run_of_a_size():
    C, N, D, L = grid(EVEN)
    doubled = isoflop_profiles(np.r_[C, C], np.r_[N, N], np.r_[D, D], np.r_[L + 0.3, L], minimum="akima", noise=0.001)
    assert doubled.a == pytest.approx(isoflop_profiles(C, N, D, L, minimum="akima", noise=0.001).a, rel=1e-12)


# --- approach 2: what is refused


def spoil(budget, how):
    C, N, D, L = grid(EVEN, points=11)
    mine = np.isclose(C, budget)
    if how == "left":
        keep = ~mine | (np.median(N[mine]) * 1.05 < N)
    elif how == "right":
        keep = ~mine | (np.median(N[mine]) * 0.95 > N)
    elif how == "few":
        keep = ~mine | (np.sort(N[mine])[1] >= N)
    else:
        keep, L = np.ones(len(C), bool), np.where(mine, 6 - L, L)
    return [v[keep] for v in (C, N, D, L)]


@pytest.mark.parametrize(
    ("how", "minimum", "why"),
    [
        ("left", "akima", "its loss is least at or below the smallest size, .* parameters: add smaller ones"),
        ("right", "akima", "its loss is least at or above the largest size, .* parameters: add larger ones"),
        ("left", "parabola", "its loss is least at or below the smallest size"),
        ("right", "parabola", "its loss is least at or above the largest size"),
        ("few", "parabola", "fewer than 3 sizes, which a minimum by parabola needs"),
        ("few", "akima", "fewer than 4 sizes, which a minimum by akima needs"),
        ("down", "parabola", "its parabola opens downwards"),
    ],
)
def test_a_budget_without_a_minimum_is_left_out_and_named(how, minimum, why):
    C, N, D, L = spoil(1e20, how)
    found = isoflop_profiles(C, N, D, L, minimum=minimum, noise=1e-3)
    assert [m.C for m in found.minima] == pytest.approx([1e18, 1e19, 1e21])
    (warning,) = found.warnings
    assert re.search(r"the budget 1e\+20 FLOPs is left out: " + why, warning)
    assert found.a == pytest.approx(0.5, abs=1e-3)


def test_noise_that_hides_the_minimum():
    with pytest.raises(ValueError, match="moves its minimum off the grid more often than not"):
        isoflop_profiles(*grid(EVEN, width=1.2), noise=1.0)


def test_two_budgets_say_so():
    found = isoflop_profiles(*grid(EVEN, (1e18, 1e20), noise=0.003))
    assert "two budgets: whether the minima lie on a line can't be tested" in found.warnings
    assert "a" in found.intervals


def changed(column, row, value):
    return with_value(dict(zip("CNDL", grid(EVEN), strict=True)), column, row, value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            changed("L", 3, np.nan),
            r"row 4, column 'L': expected a positive number of losses in nats per token, got nan",
        ),
        (changed("L", 0, -2.5), r"row 1, column 'L': .* got -2\.5; leave the row out or correct it"),
        (changed("D", 5, 0), r"row 6, column 'D': expected a positive number of tokens, got 0"),
        (changed("N", 2, np.inf), r"row 3, column 'N': expected a positive number of parameters, got inf"),
        (changed("C", 2, -1), r"row 3, column 'C': expected a positive number of training FLOPs, got -1"),
        (dict(zip("CNDL", [[], [], [], []], strict=True)), r"column 'C': expected training FLOPs in a list that isn't"),
        ({**changed("L", 0, 3), "D": [1e9]}, r"expected columns of one length, got C 28, N 28, D 1, L 28"),
        (
            {k: v / 1e6 if k in "ND" else v for k, v in changed("L", 0, 3).items()},
            r"row 1, column 'C': expected about 6 FLOPs .* got C/\(N·D\) = 6e\+12: .*not millions",
        ),
        (
            {k: np.full(5, v) for k, v in {"C": 6e18, "N": 1e9, "D": 1e9, "L": 3}.items()},
            r"expected several sizes in column N, got 1e\+09 in all 5 rows",
        ),
        (
            dict(zip("CNDL", grid(EVEN, (1e19,)), strict=True)),
            r"expected at least two budgets with a minimum, got 1: all rows have about 1e\+19 FLOPs",
        ),
    ],
)
def test_bad_columns(columns, message):
    with pytest.raises(ValueError, match=message):
        isoflop_profiles(**columns)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 90}, r"level must lie between 0 and 1, got 90: pass 0\.9"),
        ({"minimum": "spline"}, r'expected minimum "parabola" or "akima", got \'spline\''),
        ({"noise": -1}, r"expected the noise of a loss in nats per token, got -1"),
        ({"budgets": [1e18, 1e30]}, r"the budget 1e\+30 FLOPs is left out: no run lies near it"),
        ({"budgets": [0]}, r"row 1, column 'budgets': expected a positive number of FLOPs"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        isoflop_profiles(*grid(EVEN), **options)


# --- approach 1


def curves(planted, sizes, longest=400, points=200, noise=0.0, seed=0):
    rng = np.random.default_rng(seed)
    runs = []
    for N in sizes:
        D = np.geomspace(0.5 * N, longest * N, points)
        loss = planted.loss(N=N, D=D) * np.exp(noise * rng.standard_normal(points))
        runs.append((N, 6 * N * D, loss, D))
    return runs


@pytest.mark.parametrize(("alpha", "beta"), [(0.34, 0.28), (0.35, 0.35), (0.3478, 0.3658)])
def test_the_envelope_of_planted_curves(alpha, beta):
    planted = law(alpha, beta, 482.01, 2085.43) if beta > alpha else law(alpha, beta)
    found = loss_envelope(curves(planted, np.geomspace(1e7, 1e10, 40)))
    truth = approach_3(planted)
    assert found.a == pytest.approx(truth.a, abs=0.01)
    assert found.b == pytest.approx(truth.b, abs=0.01)
    assert found.a + found.b == pytest.approx(1, abs=1e-9)
    assert found.allocate(1e20) == pytest.approx(truth.allocate(1e20), rel=0.05)
    assert found.intervals["a"][0] < truth.a < found.intervals["a"][1]
    N, C, L = (np.array([getattr(m, k) for m in found.minima]) for k in "NCL")
    assert (np.diff(N) >= 0).all() and (np.diff(C) > 0).all() and (np.diff(L) < 0).all()
    assert N.min() > 1e7 * 1.01 and N.max() < 1e10 / 1.01
    assert any("FLOPs the smallest size is the best: add smaller ones" in w for w in found.warnings)


TWENTY = law(0.35, 0.35, 450, 1284)
"""20 tokens per parameter at every budget: in the middle of the curves, unlike EVEN's one."""


SHORT = np.geomspace(1e8, 2e10, 200)
"""Tokens of runs that are all trained for 20 tokens per parameter of the smallest."""


def excess(found, planted):
    """Mean of ln(L/L_opt) over the envelope."""
    truth = [approach_3(planted).allocate(m.C) for m in found.minima]
    return np.mean([np.log(m.L / planted.loss(N=N, D=D)) for m, (N, D) in zip(found.minima, truth, strict=True)])


def test_an_envelope_of_noisy_curves_does_not_lie_far_below_the_truth():
    noisy = curves(TWENTY, np.geomspace(1e7, 1e10, 30), noise=0.003, points=6000)
    assert abs(excess(loss_envelope(noisy), TWENTY)) < 0.001


def test_resampled_sets_of_many_runs_choose_from_the_foremost(monkeypatch):
    """As from all of them, in time that does not grow with the runs."""
    noisy = curves(TWENTY, np.geomspace(1e7, 1e10, 150), noise=0.01, points=20)
    found = loss_envelope(noisy)
    monkeypatch.setattr("isoflop.fit.approaches.FOREMOST", len(noisy))
    assert loss_envelope(noisy).intervals == found.intervals
    monkeypatch.setattr("isoflop.fit.approaches.FOREMOST", 1)  # too few, or this would show nothing
    assert loss_envelope(noisy).intervals != found.intervals


def test_a_margin_keeps_noise_at_the_ends_from_flattening_the_line(monkeypatch):
    """30 sets of 25 runs whose losses differ by .003: the mean of a, and 90% intervals that cover."""
    monkeypatch.setattr("isoflop.fit.approaches.DRAWS", 100)
    monkeypatch.setattr("isoflop.fit.approaches.BUDGETS", 150)
    rng = np.random.default_rng(0)
    found = {2.0: [], 1.0: []}
    for _ in range(30):
        sizes = np.exp(rng.uniform(np.log(1e7), np.log(1e10), 25))
        runs = [
            (N, C, loss * np.exp(0.003 * rng.standard_normal()), D)
            for N, C, loss, D in curves(TWENTY, sizes, points=60)
        ]
        for margin, into in found.items():
            monkeypatch.setattr("isoflop.fit.approaches.MARGIN", margin)
            into.append(loss_envelope(runs))
    bias = {margin: abs(np.mean([f.a for f in all_]) - 0.5) for margin, all_ in found.items()}
    assert bias[2.0] < 0.005 and bias[2.0] < bias[1.0]
    assert sum(f.intervals["a"][0] < 0.5 < f.intervals["a"][1] for f in found[2.0]) >= 26


def test_an_envelope_of_two_sizes_has_no_opinion():
    """Through two sizes any line goes, and resampled runs repeat it: an interval would be narrow without reason."""
    with pytest.raises(ValueError, match=r"2 sizes .* lead in turn, 3 are needed: add sizes, or longer curves \("):
        loss_envelope(curves(law(), np.geomspace(1e8, 4e8, 4), longest=2000))


def test_an_envelope_whose_best_size_lies_beyond_the_runs_has_no_opinion():
    runs = [(N, 6 * N * D, TWENTY.loss(N=N, D=D), D) for N in np.geomspace(1e9, 1e11, 12) for D in [SHORT]]
    with pytest.raises(ValueError, match=r"0 sizes .* lead in turn, .*the smallest size is the best"):
        loss_envelope(runs)


@pytest.mark.parametrize("tokens", [(1e-3, 60), (0.5, 4000)])
def test_budgets_that_tell_nothing_say_nothing_against_the_others(tokens):
    """Curves from their first steps: early the smallest leads. Curves far past the optimum: late the largest does."""
    runs = [
        (N, 6 * N * D, TWENTY.loss(N=N, D=D), D)
        for N in np.geomspace(1e7, 1e10, 24)
        for D in [np.geomspace(tokens[0] * N, tokens[1] * N, 300)]
    ]
    found = loss_envelope(runs)
    assert found.intervals["a"][0] < 0.5 < found.intervals["a"][1] and found.a == pytest.approx(0.5, abs=0.02)


def test_an_envelope_that_falls_has_no_opinion():
    """Each larger size leads at less compute: as of runs whose rate was set for another length."""
    C = np.geomspace(1e18, 1e21, 200)
    runs = [
        (N, C, 3 - 0.05 * np.log10(C / 1e18) + 0.01 * (np.log(N / 1e9) + 0.3 * np.log(C / 3e19)) ** 2, C / 6 / N)
        for N in np.geomspace(1e8, 1e10, 15)
    ]
    with pytest.raises(ValueError, match=r"expected a best size that grows with compute, .* got a = -0\.3"):
        loss_envelope(runs)


def test_an_envelope_that_few_resampled_runs_have_is_refused(monkeypatch):
    runs = curves(law(), np.geomspace(1e7, 1e10, 12))
    monkeypatch.setattr("isoflop.fit.approaches.DRAWS", 4)
    monkeypatch.setattr("isoflop.fit.approaches.np.random.default_rng", lambda seed: OneRun())
    with pytest.raises(ValueError, match="no intervals: 4 of 4 resampled sets of runs have no envelope"):
        loss_envelope(runs)


class OneRun:
    """Draws the same run over and over."""

    def integers(self, most, size):
        return np.zeros(size, dtype=int)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (curves(law(), [1e8, 1e8]), r"expected curves of several sizes, got 1e\+08 parameters in all 2"),
        (curves(law(), [1e8, 2e8]), r"0 sizes .* 3 are needed: add sizes"),
        ([], "curves of several sizes, each with 8 points of this loss, are needed"),
    ],
)
def test_curves_without_an_envelope(runs, message):
    with pytest.raises(ValueError, match=message):
        loss_envelope(runs)


def test_points_without_numbers_do_not_count():
    runs = curves(law(), np.geomspace(1e7, 1e10, 40))
    spoilt = [
        (N, *(np.r_[x, extra] for x, extra in zip(rest, ([1.0, 1e30], [3.0, np.nan], [9.0, 9.0]), strict=True)))
        for N, *rest in runs
    ]
    assert loss_envelope(spoilt).a == loss_envelope(runs).a


# --- approach 3, and the three side by side


def drawn(sd=0.005, n=2000, **constants):
    point = law(**constants)
    rng = np.random.default_rng(0)
    draws = {k: v * np.exp(sd * rng.standard_normal(n)) for k, v in point.constants.items()}
    return dataclasses.replace(point, draws=draws, convention="total")


def test_approach_3_of_hoffmanns_constants():
    """Chinchilla's budget by the printed constants: 32.2B parameters, 2.98T tokens."""
    found = approach_3(law())
    assert found.a == pytest.approx(0.28 / 0.62) and found.b == pytest.approx(0.34 / 0.62)
    N, D = found.allocate(5.76e23)
    assert pytest.approx((32.2e9, 2.98e12), rel=2e-3) == (N, D) and pytest.approx(5.76e23) == 6 * N * D
    assert found.intervals == {} and "no draws" in found.warnings[0]


def test_approach_3_with_draws():
    found = approach_3(drawn(), level=0.8)
    assert found.intervals["a"][0] < found.a < found.intervals["a"][1]
    # a = β/(α+β): se = a·b·√2·sd
    assert found.standard_errors["a"] == pytest.approx(found.a * found.b * np.sqrt(2) * 0.005, rel=0.05)
    N, _ = found.allocate_intervals(5.76e23)
    assert N[0] < found.allocate(5.76e23)[0] < N[1]
    assert found.level == 0.8 and found.n == 2000 and found.convention == "total"


def test_draws_without_a_frontier_are_left_out():
    planted = drawn()
    planted.draws["alpha"][:3] = -0.1
    assert "3 of 2000 draws have no compute-optimal size: left out" in approach_3(planted).warnings
    planted.draws["alpha"][:] = -0.1
    assert approach_3(planted).intervals == {}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (law(alpha=-0.1), "expected positive A, B, α and β, got A=406.4, B=410.7, alpha=-0.1"),
        (Law(FORMS["kaplan-n"], {"N_c": 8.8e13, "alpha_N": 0.076}), "expected a law of Hoffmann's form, got kaplan-n"),
    ],
)
def test_laws_without_a_frontier(bad, message):
    with pytest.raises(ValueError, match=message):
        approach_3(bad)


def test_side_by_side():
    planted = drawn(alpha=0.35, beta=0.35, A=450, B=450)
    one = loss_envelope(curves(EVEN, np.geomspace(1e7, 1e10, 40)))
    two = isoflop_profiles(*grid(EVEN, noise=0.003))
    comparison = compare_approaches([one, two, approach_3(planted)], C=1e21)
    assert [row.name for row in comparison.rows] == [one.name, two.name, "approach 3 (parametric)"]
    assert two.allocate(1e21)[0] == comparison.rows[1].N and comparison.rows[1].a_interval == two.intervals["a"]
    assert len(comparison.pairs) == 3 and all(pair.overlap for pair in comparison.pairs)
    assert not any("disagree" in w for w in comparison.warnings)


def test_disagreement_is_said_with_its_z():
    two = dataclasses.replace(isoflop_profiles(*grid(EVEN, noise=0.003)), convention="non_embedding")
    three = approach_3(drawn(alpha=0.5, beta=0.2))
    comparison = compare_approaches([two, three])
    (pair,) = comparison.pairs
    z = (two.a - three.a) / np.hypot(two.standard_errors["a"], three.standard_errors["a"])
    assert pair.z == pytest.approx(z) and not pair.overlap and pair.p < 1e-3
    assert any(
        re.fullmatch(r"approach 2 \(parabola\) and approach 3 .* disagree: a = 0\.5.*, z = [\d.]+, p = .*", w)
        for w in comparison.warnings
    )
    assert any("counts N as non_embedding, approach 3 (parametric) as total" in w for w in comparison.warnings)


def test_approaches_without_intervals_are_compared_by_their_values():
    comparison = compare_approaches([approach_3(law()), approach_3(EVEN)])
    assert comparison.pairs == () and comparison.rows[0].a_interval is None


def test_nothing_to_compare():
    with pytest.raises(ValueError, match="expected at least one approach, got none"):
        compare_approaches([])
    with pytest.raises(ValueError, match=r"expected intervals at one level, got 0\.8 and 0\.9"):
        compare_approaches([approach_3(drawn()), approach_3(drawn(), 0.8)])
    with pytest.raises(ValueError, match=r"row 1, column 'C': expected a positive number of training FLOPs, got 0"):
        approach_3(law()).allocate(0)


def test_results_are_frozen():
    found = approach_3(law())
    assert isinstance(found, Approach)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.a = 1.0
