"""Newton's derivatives against finite differences, many rows against one at a time, least absolute deviations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from isoflop.fit.newton import Problem, huber, minimise
from isoflop.fit.search import least_absolute


def a_problem(seed: int, n: int = 9, terms: int = 3, parameters: int = 5) -> Problem:
    rng = np.random.default_rng(seed)
    return Problem(rng.normal(size=(n, terms, parameters)), 0.3 * rng.normal(size=(n, terms)), 0.5 * rng.normal(size=n))


def planted(seed: int, n: int, noise: float) -> tuple[Problem, np.ndarray]:
    """E + A/N^α + B/D^β about the centre of the runs, and its θ."""
    rng = np.random.default_rng(seed)
    log_n, log_d = rng.normal(size=n) * 1.5, rng.normal(size=n) * 1.5
    design = np.zeros((n, 3, 5))
    design[:, 0, 0] = design[:, 1, 1] = design[:, 2, 2] = 1
    design[:, 1, 3], design[:, 2, 4] = -log_n, -log_d
    theta = np.array([np.log(1.8), -1.0, -0.5, 0.35, 0.37])
    clean = Problem(design, np.zeros((n, 3)), np.zeros(n)).residuals(theta[None])[0]
    return Problem(design, np.zeros((n, 3)), clean + noise * rng.standard_normal(n)), theta


def test_huber_is_a_square_within_delta_and_straight_beyond() -> None:
    assert huber(np.array([0.0, 0.5, -0.5, 1.0, -3.0]), 1.0).tolist() == [0, 0.125, 0.125, 0.5, 2.5]
    assert huber(np.array([2e-3]), 1e-3)[0] == pytest.approx(1e-3 * (2e-3 - 0.5e-3), rel=1e-15)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 12),
    terms=st.integers(1, 4),
    parameters=st.integers(1, 6),
    delta=st.sampled_from([1e-3, 0.1, 0.5, 10.0]),
)
def test_gradient_and_hessian_are_those_of_the_objective(
    seed: int, n: int, terms: int, parameters: int, delta: float
) -> None:
    problem = a_problem(seed, n, terms, parameters)
    rng = np.random.default_rng(seed + 1)
    theta, weights = 0.3 * rng.normal(size=(2, parameters)), rng.uniform(0, 2, size=(2, n))
    assume((np.abs(np.abs(problem.residuals(theta)) - delta) > 1e-3).all())  # no kink within a step

    def objective(at: np.ndarray) -> np.ndarray:
        return (weights * huber(problem.residuals(at), delta)).sum(axis=1)

    def gradient(at: np.ndarray) -> np.ndarray:
        return problem.derivatives(problem.state(at), weights, delta)[0]

    found, hessian = problem.derivatives(problem.state(theta), weights, delta)
    step = 1e-5
    for p in range(parameters):
        side = step * np.eye(parameters)[p]
        slope = (objective(theta + side) - objective(theta - side)) / (2 * step)
        curve = (gradient(theta + side) - gradient(theta - side)) / (2 * step)
        np.testing.assert_allclose(found[:, p], slope, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(hessian[:, p], curve, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(hessian, np.swapaxes(hessian, 1, 2), atol=1e-12)


@pytest.mark.parametrize("delta", [1e-3, 1e-2, 1.0])
def test_many_rows_are_as_one_at_a_time(delta: float) -> None:
    problem, truth = planted(0, 30, 5e-3)
    rng = np.random.default_rng(0)
    theta = truth + 0.05 * rng.normal(size=(7, 5))
    weights = rng.multinomial(30, np.full(30, 1 / 30), size=7).astype(float)
    together, objectives = minimise(problem, theta, weights, delta)
    for i in range(7):
        (alone,), (objective,) = minimise(problem, theta[i : i + 1], weights[i : i + 1], delta)
        assert objectives[i] == pytest.approx(objective, rel=1e-10)
        np.testing.assert_allclose(together[i], alone, rtol=1e-4, atol=1e-5)


def test_its_end_is_a_minimum() -> None:
    problem, truth = planted(1, 40, 5e-4)
    theta, (objective,) = minimise(problem, truth[None] + 0.1, np.ones((1, 40)), 1e-3)
    gradient, hessian = problem.derivatives(problem.state(theta), np.ones((1, 40)), 1e-3)
    assert np.abs(gradient).max() < 1e-10 and np.linalg.eigvalsh(hessian[0]).min() > 0
    for side in np.vstack([np.eye(5), -np.eye(5)]) * 1e-4:
        assert huber(problem.residuals(theta + side), 1e-3).sum() > objective


def least_by_simplex(problem: Problem, weights: np.ndarray, starts: np.ndarray) -> float:
    def objective(theta: np.ndarray) -> float:
        return float((weights * np.abs(problem.residuals(theta[None])[0])).sum())

    options = {"maxiter": 20_000, "maxfev": 20_000, "xatol": 1e-10, "fatol": 1e-13}
    found = [minimize(objective, start, method="Nelder-Mead", options=options) for start in starts]
    return min(float(result.fun) for result in found)


@pytest.mark.parametrize("seed", range(4))
def test_least_absolute_deviations_of_one_term_as_scipy_finds_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    log_n = rng.normal(size=12)
    design = np.stack([np.ones(12), -log_n], axis=1)[:, None]
    problem = Problem(design, np.zeros((12, 1)), 1 - 0.1 * log_n + 0.01 * rng.standard_normal(12))
    weights = rng.integers(1, 4, size=12).astype(float)
    start, _ = minimise(problem, np.array([[0.9, 0.2]]), weights[None], 1e-6)
    theta, objective = least_absolute(problem, start[0], weights)
    theirs = least_by_simplex(problem, weights, np.array([1, 0.1]) + 0.05 * rng.normal(size=(12, 2)))
    assert objective == pytest.approx(theirs, rel=1e-8)
    # as many residuals are 0 as there are parameters: a corner of the linear programme
    assert np.sum(np.abs(problem.residuals(theta[None])) < 1e-9) == 2


def test_least_absolute_deviations_of_three_terms_no_worse_than_scipy() -> None:
    problem, truth = planted(3, 14, 5e-3)
    weights = np.ones(14)
    start, _ = minimise(problem, truth[None], weights[None], 1e-6)
    _, objective = least_absolute(problem, start[0], weights)
    starts = truth + 0.1 * np.random.default_rng(0).normal(size=(6, 5))
    assert objective <= least_by_simplex(problem, weights, starts) * (1 + 1e-9)
