"""Priors on a law's constants: weighed against the runs, in the estimate, the errors and the intervals alike."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fits import BESIROGLU, hoffmann, spread_out
from isoflop.fit import LawFit, fit_law


def planted(n: int, noise: float, seed: int = 0) -> dict[str, np.ndarray]:
    N, D = spread_out(n, seed)
    return {"N": N, "D": D, "loss": hoffmann(N, D) * np.exp(noise * np.random.default_rng(seed).standard_normal(n))}


def fit(columns: dict[str, np.ndarray], **options: Any) -> LawFit:
    return fit_law("hoffmann", columns, **{"draws": 100, **options})


def test_a_weak_prior_changes_nothing() -> None:
    columns = planted(30, 3e-3)
    alone = fit(columns)
    weak = fit(columns, priors={"alpha": (0.1, 300.0), "E": (9.0, 900.0), "ln B": (2.0, 3000.0)})
    for name, error in alone.standard_errors.items():
        assert abs(weak.parameters[name] - alone.parameters[name]) < 1e-3 * error
        assert weak.standard_errors[name] == pytest.approx(error, rel=2e-3)
        assert np.abs(np.subtract(weak.intervals[name], alone.intervals[name])).max() < 5e-3 * error
    assert weak.objective == pytest.approx(alone.objective, rel=1e-6) and weak.warnings == alone.warnings


def test_a_strong_prior_moves_the_estimate_to_it_and_is_said() -> None:
    columns = planted(20, 3e-3)
    strong = fit(columns, priors={"alpha": (0.5, 1e-5), "E": (1.5, 1e-5), "ln B": (7.0, 1e-5)}, draws=400)
    found = strong.parameters
    assert found["alpha"] == pytest.approx(0.5, abs=3e-5) and found["E"] == pytest.approx(1.5, abs=3e-5)
    assert math.log(found["B"]) == pytest.approx(7.0, abs=1e-4)
    assert strong.standard_errors["alpha"] == pytest.approx(1e-5, rel=0.15)
    assert strong.standard_errors["B"] == pytest.approx(math.exp(7) * 1e-5, rel=0.15)
    assert strong.objective > fit(columns).objective
    for name, text in (("alpha", "alpha = 0.5 ± 1e-05"), ("E", "E = 1.5 ± 1e-05"), ("B", "ln B = 7 ± 1e-05")):
        assert any(line.startswith(f"{name} is determined by its prior ({text})") for line in strong.warnings), (
            strong.warnings
        )


def test_between_prior_and_runs_by_their_precisions() -> None:
    # the estimate of a nearly linear direction: precision-weighted, as of two Gaussians
    columns = planted(60, 3e-3)
    alone = fit(columns, draws=2000)
    error = alone.standard_errors["beta"]
    mean = alone.parameters["beta"] + error
    both = fit(columns, priors={"beta": (mean, error)}, draws=2000)
    assert (both.parameters["beta"] - alone.parameters["beta"]) / error == pytest.approx(0.5, abs=0.12)
    assert both.standard_errors["beta"] / error == pytest.approx(math.sqrt(0.5), abs=0.08)
    assert both.warnings == ()


ONE_SIZE = (np.full(12, 1e9), np.geomspace(1e9, 3e11, 12))


def test_what_the_runs_leave_open_the_prior_closes_and_that_is_said() -> None:
    N, D = ONE_SIZE
    loss = hoffmann(N, D) * np.exp(1e-3 * np.random.default_rng(0).standard_normal(12))
    columns = {"N": N, "D": D, "loss": loss}
    assert fit(columns).standard_errors["A"] == np.inf
    priors = {"alpha": (0.35, 0.03), "ln A": (math.log(482), 3.0), "E": (1.8, 0.1)}
    found = fit(columns, priors=priors, draws=400)
    assert all(math.isfinite(error) for error in found.standard_errors.values()) and found.law.draws is not None
    assert found.standard_errors["alpha"] == pytest.approx(0.03, rel=0.15)
    assert any(line.startswith("alpha is determined by its prior (alpha = 0.35 ± 0.03)") for line in found.warnings)
    for name, truth in BESIROGLU.items():
        low, high = found.intervals[name]
        assert low <= truth <= high
    # a prior on alpha alone leaves E and A open
    half = fit(columns, priors={"alpha": (0.35, 0.03)})
    assert half.standard_errors["A"] == np.inf and half.standard_errors["alpha"] < 0.05


def test_six_runs_for_fewer_constants_than_five() -> None:
    columns = {name: values[:6] for name, values in planted(30, 1e-3, seed=3).items()}
    assert all(error == np.inf for error in fit(columns).standard_errors.values())
    held = fit(columns, priors={"alpha": (0.348, 1e-3), "beta": (0.366, 1e-3)})
    assert all(math.isfinite(error) for error in held.standard_errors.values())
    four = {name: values[:4] for name, values in columns.items()}
    few = fit(four, priors={"alpha": (0.348, 1e-3), "beta": (0.366, 1e-3)})
    assert any("constants without a prior: the residuals do not show the noise" in line for line in few.warnings)
    assert set(few.standard_errors.values()) == {np.inf}


def coverage(n: int, noise: float, repeats: int, sd: float = 0.03) -> tuple[dict[str, float], float]:
    """Laws drawn from the prior: how often they lie in the 90% intervals, and the typical error over that without."""
    inside, ratios = dict.fromkeys(BESIROGLU, 0), []
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        alpha, beta = rng.normal(0.35, sd), rng.normal(0.37, sd)
        N, D = spread_out(n, seed + 1000)
        # the terms at the runs' centre as they were: a large alpha with Besiroglu's A has no second term
        law = {"A": 482 * math.exp((alpha - 0.348) * 20), "B": 2085 * math.exp((beta - 0.366) * 23.5)}
        law |= {"E": 1.8172, "alpha": alpha, "beta": beta}
        columns = {"N": N, "D": D, "loss": hoffmann(N, D, **law) * np.exp(noise * rng.standard_normal(n))}
        found = fit(columns, priors={"alpha": (0.35, sd), "beta": (0.37, sd)}, seed=seed, draws=200)
        ratios.append(found.standard_errors["alpha"] / fit(columns, draws=50).standard_errors["alpha"])
        for name, truth in law.items():
            low, high = found.intervals[name]
            inside[name] += low <= truth <= high
    return {name: count / repeats for name, count in inside.items()}, float(np.median(ratios))


def test_intervals_under_a_right_prior_cover_and_are_narrower() -> None:
    found, narrower = coverage(12, 3e-3, repeats=20)
    assert all(share >= 0.73 for share in found.values()) and narrower < 0.8, (found, narrower)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "noise"), [(8, 3e-3), (12, 3e-3), (12, 1e-2), (20, 3e-3), (20, 1e-2)])
def test_intervals_under_a_right_prior_cover_what_they_claim(n: int, noise: float) -> None:
    found, narrower = coverage(n, noise, repeats=600)
    assert all(0.86 <= share <= 0.95 for share in found.values()) and narrower < 0.97, (found, narrower)


def test_of_many_runs_the_normal_limit_knows_the_prior() -> None:
    columns = planted(6000, 3e-3)
    alone = fit(columns, draws=3000)
    error = alone.standard_errors["alpha"]
    both = fit(columns, draws=3000, priors={"alpha": (alone.parameters["alpha"], error)})
    assert both.standard_errors["alpha"] / error == pytest.approx(math.sqrt(0.5), abs=0.06)


def test_a_prior_of_a_group_and_of_all_groups() -> None:
    N, D = spread_out(24, 3)
    groups = ["c4", "rpj"] * 12
    loss = hoffmann(N, D) * np.exp(3e-3 * np.random.default_rng(1).standard_normal(24))
    columns = {"N": N, "D": D, "loss": loss}
    options: dict[str, Any] = {"groups": groups, "own": ["E"]}
    all_ = fit(columns, priors={"E": (1.7, 1e-4)}, **options)
    assert all_.parameters["E[c4]"] == pytest.approx(1.7, abs=1e-3) == all_.parameters["E[rpj]"]
    one = fit(columns, priors={"E[rpj]": (1.7, 1e-4)}, **options)
    assert one.parameters["E[rpj]"] == pytest.approx(1.7, abs=1e-3) != one.parameters["E[c4]"]


def test_exponents_of_kaplans_laws() -> None:
    N = np.geomspace(1e6, 1e9, 12)
    loss = (8.8e13 / N) ** 0.076 * np.exp(0.01 * np.random.default_rng(0).standard_normal(12))
    found = fit_law("kaplan-n", {"N": N, "loss": loss}, priors={"alpha_N": (0.08, 1e-5)}, draws=50)
    assert found.parameters["alpha_N"] == pytest.approx(0.08, abs=3e-5)


@pytest.mark.parametrize(
    ("priors", "message"),
    [
        ({"gamma": (1, 1)}, r"priors: expected one of E, ln E, A, ln A, alpha, B, ln B, beta, got 'gamma'"),
        ({"ln alpha": (1, 1)}, "priors: expected a prior on alpha itself, got one on ln alpha"),
        ({"alpha": 0.3}, r"priors: alpha: expected \(mean, standard deviation\), got 0.3"),
        ({"alpha": (0.3, 0)}, "priors: alpha: expected a mean and a positive standard deviation, got 0.3 and 0.0"),
        ({"alpha": (float("nan"), 1)}, "priors: alpha: expected a mean and a positive standard deviation, got nan"),
        ({"alpha": (-0.3, 1)}, "priors: alpha: expected a positive mean, got -0.3"),
        ({"E": ("low", 1)}, r"priors: E: expected \(mean, standard deviation\), got \('low', 1\)"),
    ],
)
def test_priors_that_say_nothing(priors: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        fit(planted(12, 1e-3), priors=priors)


def test_priors_that_do_not_go_with_the_rest() -> None:
    columns = planted(12, 1e-3)
    with pytest.raises(ValueError, match=r"^priors: alpha is fixed at 0.34"):
        fit(columns, priors={"alpha": (0.3, 0.1)}, fixed={"alpha": 0.34})
    with pytest.raises(ValueError, match=r"^priors= expects Huber's loss, got delta='lad'"):
        fit(columns, priors={"alpha": (0.3, 0.1)}, delta="lad")
    with pytest.raises(ValueError, match=r"^priors: of this law only exponents can have one, got 'ln N_c'"):
        fit_law("kaplan-n", {"N": columns["N"], "loss": columns["loss"]}, priors={"ln N_c": (30, 1)})
