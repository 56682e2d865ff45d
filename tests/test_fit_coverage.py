"""Intervals cover as often as they claim; and nothing narrow is said where the runs leave a constant open."""

from __future__ import annotations

import numpy as np
import pytest

from fits import BESIROGLU, grid, hoffmann, spread_out
from isoflop.fit import fit_law

DESIGNS = {20: lambda: grid(5, 4), 40: lambda: grid(8, 5), 240: lambda: spread_out(240, seed=240)}


def coverage(
    n: int, noise: float, repeats: int, level: float = 0.9, draws: int = 200, seed: int = 0
) -> dict[str, float]:
    """Share of planted laws whose constants lay in their intervals."""
    N, D = DESIGNS[n]()
    rng = np.random.default_rng(seed)
    inside = dict.fromkeys(BESIROGLU, 0)
    for repeat in range(repeats):
        loss = hoffmann(N, D) * np.exp(noise * rng.standard_normal(n))
        fit = fit_law("hoffmann", {"N": N, "D": D, "loss": loss}, level=level, draws=draws, seed=repeat)
        for name, truth in BESIROGLU.items():
            low, high = fit.intervals[name]
            inside[name] += low <= truth <= high
    return {name: count / repeats for name, count in inside.items()}


@pytest.mark.parametrize(("n", "noise"), [(20, 2e-4), (20, 5e-3), (40, 1e-3)])
def test_intervals_cover_about_what_they_claim(n: int, noise: float) -> None:
    # 50 repeats: 90% ± 4% by chance alone, so the limits are wide; the next test has the narrow ones
    found = coverage(n, noise, repeats=50, draws=100)
    assert all(share >= 0.76 for share in found.values()) and np.mean(list(found.values())) <= 0.99, found


@pytest.mark.slow
@pytest.mark.parametrize("noise", [2e-4, 1e-3, 5e-3])
@pytest.mark.parametrize("n", [20, 40, 240])
def test_intervals_cover_what_they_claim(n: int, noise: float) -> None:
    found = coverage(n, noise, repeats=1000)
    assert all(0.86 <= share <= 0.94 for share in found.values()), found


@pytest.mark.slow
def test_intervals_of_half_the_level() -> None:
    found = coverage(40, 1e-3, repeats=500, level=0.5)
    assert all(0.43 <= share <= 0.58 for share in found.values()), found


def narrow_and_wrong(N: np.ndarray, D: np.ndarray, noise: float, repeats: int) -> dict[str, float]:
    """Share of repeats in which a 90% interval is without the truth."""
    rng = np.random.default_rng(1)
    wrong = dict.fromkeys(BESIROGLU, 0)
    for repeat in range(repeats):
        loss = hoffmann(N, D) * np.exp(noise * rng.standard_normal(len(N)))
        fit = fit_law("hoffmann", {"N": N, "D": D, "loss": loss}, draws=100, seed=repeat)
        for name, truth in BESIROGLU.items():
            low, high = fit.intervals[name]
            wrong[name] += not low <= truth <= high
    return {name: count / repeats for name, count in wrong.items()}


def narrow(seed: int, factor_n: float, factor_d: float, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Runs within a factor of one size and one number of tokens."""
    rng = np.random.default_rng(seed)
    return 1e9 * factor_n ** rng.uniform(-0.5, 0.5, n), 3e10 * factor_d ** rng.uniform(-0.5, 0.5, n)


LINE = np.geomspace(3e7, 1e10, 20)
OPEN = {
    "six runs": (
        LINE[::4].repeat(2)[:6],
        np.array([1e9, 1e11, 1e10, 1e12, 3e9, 4e10]),
        "ABE",
        "6 runs for 5 constants",
    ),
    "one N": (np.full(20, 1e9), np.geomspace(1e9, 1e12, 20), "AE", "all runs have the same N (1e+09)"),
    "one D": (np.geomspace(1e8, 1e11, 20), np.full(20, 1e10), "BE", "all runs have the same D (1e+10)"),
    "one line": (
        LINE,
        20 * LINE,
        "AB",
        "D goes with N in all runs (about 20 × N): which of them lowers the loss is open",
    ),
    "four sizes": (np.tile([1e8, 1e9], 10), np.tile([1e9, 1e9, 1e11, 1e11], 5), "ABE", "the runs' sizes leave it open"),
    "narrow N": (*narrow(0, 1.2, 1000), "AE", "too much alike in size"),
    "narrow D": (*narrow(1, 1000, 1.2), "BE", "too much alike in size"),
    "narrow": (*narrow(2, 1.2, 1.2), "ABE", "too much alike in size"),
}


@pytest.mark.parametrize("name", OPEN)
def test_what_the_runs_leave_open_is_said(name: str) -> None:
    N, D, unknown, told = OPEN[name]
    rng = np.random.default_rng(0)
    fit = fit_law("hoffmann", {"N": N, "D": D, "loss": hoffmann(N, D) * np.exp(1e-3 * rng.standard_normal(len(N)))})
    assert any(told in warning for warning in fit.warnings), fit.warnings
    for constant in unknown:
        assert fit.intervals[constant] == (0, np.inf) and fit.standard_errors[constant] == np.inf
    assert fit.law.draws is None


@pytest.mark.parametrize("name", ["six runs", "one N", "one line", "narrow N", "narrow"])
def test_no_narrow_wrong_interval_where_the_runs_leave_it_open(name: str) -> None:
    found = narrow_and_wrong(*OPEN[name][:2], noise=1e-3, repeats=10)
    assert all(share <= 0.4 for share in found.values()), found


@pytest.mark.slow
@pytest.mark.parametrize("factor", [1.1, 1.5, 2, 4, 10])
@pytest.mark.parametrize("noise", [3e-4, 3e-3])
def test_intervals_of_narrow_designs_are_open_or_right(factor: float, noise: float) -> None:
    found = narrow_and_wrong(*narrow(5, factor, 1000), noise=noise, repeats=200)
    assert all(share <= 0.2 for share in found.values()), found
