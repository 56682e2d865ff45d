"""The drifting law and its posterior: Hoffmann's law as a case, slopes, optima, planted laws recovered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.fit import likelihood, posterior, posterior_of_runs
from isoflop.fit.drifting_law import (
    BudgetLine,
    Origin,
    apart,
    bend,
    best_size,
    flop_rate,
    gradient,
    least_loss,
    log_loss,
    prior_laws,
    pulls,
    slopes,
    tilt,
)
from isoflop.fit.uncertainty import evenly, importance
from isoflop.laws import HOFFMANN, Law, optimal_allocation

ORIGIN = Origin(1e8, 2e9)
LAW = {"E": 1.7, "A": 410.0, "B": 1100.0, "alpha": 0.34, "beta": 0.33}


def theta_of(law: dict[str, float], origin: Origin) -> np.ndarray:
    p, q = np.log(law["A"] * origin.N ** -law["alpha"]), np.log(law["B"] * origin.D ** -law["beta"])
    return np.array([[np.log(law["E"]), p, q, np.log(law["alpha"]), np.log(law["beta"]), 0.0, 0.0, 0.0]])


def laws(seed: int, count: int = 8) -> np.ndarray:
    drift = np.array([0, 0, 0, 0, 0, 0.01, 0.01, 0.1])
    return prior_laws(count, seed=seed) + drift * np.random.default_rng(seed).standard_normal((count, 8))


def test_without_drift_it_is_hoffmanns_law():
    N, D = np.array([1e7, 1e9, 7e10]), np.array([1e9, 3e10, 1e12])
    found = np.exp(log_loss(theta_of(LAW, ORIGIN), ORIGIN.x(N), ORIGIN.y(D)))[0]
    assert found == pytest.approx(Law(HOFFMANN, LAW).loss(N=N, D=D), rel=1e-12)


def test_without_drift_its_optimum_is_the_closed_form():
    best = optimal_allocation(Law(HOFFMANN, LAW), 1e21)
    line = BudgetLine(1e21, 1e9, 1e21 / 6e9)
    theta = theta_of(LAW, ORIGIN)
    assert np.exp(best_size(theta, ORIGIN, line)[0]) == pytest.approx(best.N, rel=1e-6)
    assert np.exp(least_loss(theta, ORIGIN, line)[0]) == pytest.approx(best.loss, rel=1e-9)


@given(st.integers(0, 10**6))
def test_slopes_are_the_losss_own(seed: int):
    theta = laws(seed)
    x, y = np.random.default_rng(seed).uniform(-3, 3, (2, 5))
    assert slopes(theta, x, y) == pytest.approx(gradient(lambda rows: log_loss(rows, x, y), theta), abs=1e-6)


@given(st.integers(0, 10**6), st.floats(0.85, 1.0))
def test_no_size_on_the_line_is_better_than_the_best(seed: int, slope: float):
    theta = laws(seed)
    line = BudgetLine(1e20, 1e9, 1e20 / 6e9, slope)
    N = line.N * np.exp(np.linspace(-3, 3, 301))
    around = log_loss(theta, ORIGIN.x(N), ORIGIN.y(line.tokens(N)))
    assert (least_loss(theta, ORIGIN, line) <= around.min(axis=1) + 1e-9).all()


def test_laws_from_the_prior_are_as_the_prior_says():
    z = pulls(prior_laws(512))
    assert z[:, :4].mean(axis=0) == pytest.approx(0, abs=0.1)
    assert z[:, :4].std(axis=0) == pytest.approx(1, abs=0.1)


def runs(noise: float, seed: int = 0) -> tuple[np.ndarray, ...]:
    C = np.repeat([1e17, 1e18, 1e19], 5)
    N = np.sqrt(C / 120) * np.tile(np.geomspace(1 / 6, 6, 5), 3)
    D = C / 6 / N
    rng = np.random.default_rng(seed)
    return N, D, C, Law(HOFFMANN, LAW).loss(N=N, D=D) * np.exp(noise * rng.standard_normal(15))


def test_a_planted_law_is_recovered_and_less_noise_says_more():
    truth = optimal_allocation(Law(HOFFMANN, LAW), 1e21)
    line = BudgetLine(1e21, 1e9, 1e21 / 6e9)
    widths = []
    for noise in (0.0005, 0.01):
        found = posterior_of_runs(*runs(noise))
        low, high = np.quantile(found.sizes(line), [0.01, 0.99])
        assert low < np.log(truth.N) < high
        low, high = np.quantile(found.run_losses(truth.N, truth.D), [0.01, 0.99])
        assert low < np.log(truth.loss) < high
        assert np.quantile(found.noise, 0.01) < 2 * noise and np.quantile(found.noise, 0.99) > noise / 2
        widths.append(np.ptp(np.quantile(found.losses(truth.N, truth.D), [0.01, 0.99])))
    assert widths[0] < 0.7 * widths[1]


def test_the_same_runs_give_the_same_posterior(monkeypatch: pytest.MonkeyPatch):
    """Each computed, not remembered as in other tests (`conftest.py`)."""
    for name in ("_mode", "_drawn"):
        monkeypatch.setattr(posterior, name, getattr(posterior, name).__wrapped__)
    first, second = (posterior_of_runs(*runs(0.003)) for _ in range(2))
    assert (first.draws == second.draws).all()


def test_runs_of_one_size_are_as_likely_as_by_their_whole_covariance():
    rng = np.random.default_rng(0)
    N = np.repeat(np.exp(rng.uniform(16, 22, 20)), 5)[rng.permutation(100)]
    D = 20 * N * np.exp(rng.normal(0, 1, 100))
    columns = N, D, 2 + 400 / N**0.34 + rng.normal(0, 0.01, 100), Origin(1e9, 2e10)
    model, order = likelihood.Likelihood.of(*columns), np.argsort(N, kind="stable")
    residuals, flat = rng.normal(0, 0.01, (3, 100)), np.zeros(2)
    found = model.unlikely(residuals.T, np.log([[0.005, 0.01]] * 3)) - model.unlikely(residuals.T, np.array([flat] * 3))
    by_hand = []
    for s, tau in ((0.005, 0.01), (1.0, 1.0)):
        whole = likelihood.run_covariance(N, D, np.hypot(s, likelihood.ROUNDING)) - likelihood.run_covariance(N, D, 0.0)
        whole = (whole + tau**2 * np.diag(likelihood.misfit(N, D)))[np.ix_(order, order)]
        prior = (((np.log([s, tau]) - likelihood.SCALES) / likelihood.SCALES_SD) ** 2).sum()
        squares = np.einsum("ri,ij,rj->r", residuals, np.linalg.inv(whole), residuals)
        by_hand.append(0.5 * (squares + np.linalg.slogdet(whole)[1] + prior))
        white = model.whitened(residuals.T, np.log([s, tau]))
        np.testing.assert_allclose((white**2).sum(axis=0), squares, rtol=1e-9)
    np.testing.assert_allclose(found, by_hand[0] - by_hand[1], rtol=1e-9)


@pytest.mark.parametrize(("off", "most"), [(0.0, 1e-6), (0.1, 0.5)])
def test_many_runs_near_each_other_are_as_likely_as_one_by_one(off: float, most: float):
    """Repeats exactly so; others as far as laws about the mode's differ within a cell."""
    rng = np.random.default_rng(0)
    N, D = (np.repeat(np.exp(rng.uniform(*ends, 60)), 10) for ends in ((16, 22), (20, 25)))
    N[300:] *= np.exp(off * rng.random(300))  # sizes of their own
    D *= np.exp(off * rng.random(600))
    loss = (LAW["E"] + LAW["A"] / N ** LAW["alpha"] + LAW["B"] / D ** LAW["beta"]) * np.exp(rng.normal(0, 0.004, 600))
    model = likelihood.Likelihood.of(N, D, loss, Origin(1e9, 2e10))
    mode = posterior._mode(model, 1.0)
    merged = model.merged(mode)
    root = np.linalg.cholesky(model.covariance(mode) + 1e-15 * np.eye(len(mode)))
    rows = mode + rng.standard_normal((100, len(mode))) @ root.T
    assert len(merged.known) < 300 and merged.number.sum() == 600
    value, few = (each.marginal(apart(rows)) for each in (model, merged))
    assert (value - few).std() < most < value.std() / 2


def test_level_and_bias_are_integrated_out_and_drawn_as_by_hand():
    """Over a grid of both, at laws and scales about the mode; five sizes have three runs each, which share noise."""
    rng = np.random.default_rng(0)
    N, D, _, loss = runs(0.003)
    N[:5] = N[5:10] = N[10:]
    model = likelihood.Likelihood.of(N, D, loss, Origin(1e9, 2e10))
    mode = posterior._mode(model, 1.0)
    rows = likelihood.apart(mode + 0.3 * rng.standard_normal((4, 11)) * np.sqrt(np.diag(model.covariance(mode))))
    found = model.marginal(rows)
    level, b = (each.ravel() for each in np.meshgrid(np.linspace(-0.03, 0.03, 121), np.linspace(-3, 3, 1201)))
    by_hand = []
    for row in rows:
        middle = model.completed(np.tile(row, (20_000, 1)), rng)
        grid = np.tile(row, (len(level), 1))
        grid[:, 0], grid[:, likelihood.BIAS_AT] = middle[:, 0].mean() + level, b
        theta = likelihood.together(grid)
        value = -model.unlikely(model.residuals(theta), grid[:, likelihood.NOISE_AT :])
        value -= 0.5 * (model.prior(theta[:, :8]) ** 2).sum(axis=1)
        value -= (likelihood.BIAS_DOF + 1) / 2 * np.log1p((b / likelihood.BIAS) ** 2 / likelihood.BIAS_DOF)
        weights = np.exp(value - value.max())
        by_hand.append(np.log(weights.sum()) + value.max() + np.log(np.exp(row[[3, 4]]).sum()))
        for column in (0, likelihood.BIAS_AT):
            mean = np.average(grid[:, column], weights=weights)
            sd = np.average((grid[:, column] - mean) ** 2, weights=weights) ** 0.5
            assert middle[:, column].mean() == pytest.approx(mean, abs=0.05 * sd)
            assert middle[:, column].std() == pytest.approx(sd, rel=0.1)
    np.testing.assert_allclose(found - found[0], np.array(by_hand) - by_hand[0], atol=0.01)


def test_points_and_weights_are_the_density():
    """Of a funnel, e^v wide, off the Gaussian that points begin with; the truth is known."""

    def log_density(rows: np.ndarray) -> np.ndarray:
        v = rows[:, 0] - 2
        return np.asarray(-0.5 * v**2 / 0.25 - v * 4 - 0.5 * (rows[:, 1:] ** 2).sum(axis=1) * np.exp(-2 * v))

    found = []
    for seed in range(8):
        points, weights = importance(log_density, [(np.zeros(5), np.eye(5))], np.random.default_rng(seed))
        assert weights.sum() == pytest.approx(1) and 1 / (weights @ weights) > 800
        taken = points[evenly(weights, 2000)]
        found.append(
            [*np.quantile(taken[:, 0], [0.1, 0.5, 0.9]), taken[:, 1].mean(), np.log((taken[:, 2] ** 2).mean())]
        )
    error = np.array(found) - [2 - 0.5 * 1.28155, 2, 2 + 0.5 * 1.28155, 0, 0.5]  # E e^(2v) = e^(2·.25)
    assert (np.abs(error) < [0.1, 0.1, 0.1, 0.15, 0.4]).all()
    assert (np.abs(error.mean(axis=0)) < [0.04, 0.02, 0.02, 0.03, 0.1]).all()


def test_draws_see_the_law_itself():
    N, D, _, loss = runs(0.003)
    origin, theta = Origin(1e9, 2e10), laws(0)
    rows = np.concatenate([theta, np.tile([0.02, 0.0, 0.0], (len(theta), 1))], axis=1)
    found = likelihood.Likelihood.of(N, D, loss, origin, apart=True).residuals(rows)
    shifted = 0.02 * bend(theta)[:, None] * tilt(N, D)  # b moves ln N_opt
    expected = log_loss(theta, origin.x(N), origin.y(D)) + shifted - np.log(loss)
    np.testing.assert_allclose(found.T, expected, atol=1e-12)


def test_with_a_bias_the_best_size_has_the_least_loss():
    theta, line, bias = laws(3), BudgetLine(1e20, 1e9, 1e20 / 6e9, 0.9), np.linspace(-0.03, 0.03, 8)
    log_N = best_size(theta, ORIGIN, line, bias) + np.linspace(-0.2, 0.2, 5)[:, None]
    found = [
        log_loss(theta, ORIGIN.x(N)[:, None], ORIGIN.y(line.tokens(N))[:, None])[:, 0] + bias * tilt(N, line.tokens(N))
        for N in np.exp(log_N)
    ]
    assert (np.argmin(found, axis=0) == 2).all()
    np.testing.assert_allclose(found[2], least_loss(theta, ORIGIN, line, bias), rtol=1e-12)
    np.testing.assert_allclose(best_size(theta, ORIGIN, line, 0 * bias), best_size(theta, ORIGIN, line), atol=1e-4)


@pytest.mark.parametrize("ratio", [5, 85])
def test_within_the_runs_their_own_best_sizes_are_the_answer(ratio: float):
    """At any tokens per parameter; beyond, 20 draws more and more, and the interval holds both readings."""
    law = {**LAW, "B": LAW["alpha"] / LAW["beta"] * LAW["A"]}
    size = (1e20 / 6 / ratio) ** 0.5
    law["B"] *= size ** -law["alpha"] * (size * ratio) ** law["beta"]  # least at 1e20 FLOPs: `ratio`
    planted = Law(HOFFMANN, law)
    C = np.repeat([3e18, 1e19, 3e19, 1e20], 5)
    best = np.array([optimal_allocation(planted, each).N for each in C])
    N = best * np.tile([0.25, 0.5, 1, 2, 4], 4)
    found = posterior_of_runs(N, C / 6 / N, C, np.asarray(planted.loss(N=N, D=C / 6 / N)))
    within = found.log_sizes(1e20) - np.log(size)
    assert abs(np.median(within)) < 0.1 and found.telling
    for C_beyond in (1e21, 1e22):
        low, high = np.quantile(found.log_sizes(C_beyond), [0.1, 0.9])
        assert low < np.log(optimal_allocation(planted, C_beyond).N) < high
    run = float(found.run_losses(size, size * ratio).mean())
    assert run == pytest.approx(float(np.log(planted.loss(N=size, D=size * ratio))), abs=2e-3)


def test_farther_targets_are_less_sure():
    found = posterior_of_runs(*runs(0.003))
    spread = [found.sizes(BudgetLine(C, 1e9, C / 6e9)).std() for C in (1e20, 1e22, 1e24)]
    assert spread[0] < spread[1] < spread[2]


def test_the_targets_line_carries_attentions_share_on():
    N = np.geomspace(1e5, 1e7, 5)
    rate = 6 * (1 + 0.5 * (N / 1e5) ** -0.3)
    line = flop_rate(N, 20 * N, rate * 20 * N**2).line(1e15)
    assert pytest.approx(7.1, rel=0.1) == line.C / (line.N * line.D)
    assert 0.85 < line.slope < 1
    big = flop_rate(N * 1e4, 20 * N, 6 * 20 * N * N * 1e4).line(1e24)
    assert pytest.approx(6) == big.C / (big.N * big.D)
