"""Fitted below a budget, tested above: planted laws, bent laws, messages."""

from __future__ import annotations

import csv
import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from fits import reference
from isoflop.fit import BadData, Extrapolation, extrapolation, fit_law, read_table
from isoflop.fit.holdout import at_most, held_out
from isoflop.fit.optimal_line import quantile


def runs(noise: float = 0.003, seed: int = 0, sizes: int = 7) -> dict[str, np.ndarray]:
    """Besiroglu et al.'s law over two decades of N and of D; a row's C runs from 6e16 to 6e20."""
    N, D = (x.ravel() for x in np.meshgrid(np.geomspace(1e7, 1e9, sizes), np.geomspace(1e9, 1e11, sizes)))
    loss = 1.8172 + 482.01 / N**0.3478 + 2085.43 / D**0.3658
    return {"N": N, "D": D, "loss": loss * np.exp(noise * np.random.default_rng(seed).normal(size=N.size))}


# --- a law that holds -------------------------------------------------------------------------------------------------
def test_without_noise_the_prediction_is_exact() -> None:
    result = extrapolation("hoffmann", runs(noise=0.0), below=1e19, draws=50)
    assert np.abs(result.error).max() < 1e-7
    assert result.fit.n == 28 and len(result.loss) == 21
    np.testing.assert_allclose(result.error, result.predicted / result.loss - 1)
    assert result.reach == pytest.approx(6e20 / 6e18)
    assert (np.diff(result.budget) >= 0).all() and result.budget.min() > 1e19


@pytest.mark.parametrize("digits", [4, 5, 6, 12])
def test_losses_of_a_law_that_are_rounded_refute_nothing(digits: int) -> None:
    """What a rounded loss is off by is less than seeds differ by: it told processors apart."""
    columns = runs(noise=0.0)
    columns["loss"] = np.round(columns["loss"], digits)
    result = extrapolation("hoffmann", columns, below=1e19, draws=50)
    assert not result.fails and not result.few and result.inside == 1.0


def test_intervals_hold_what_they_claim() -> None:
    inside = [
        extrapolation("hoffmann", runs(seed=seed, sizes=9), below=2e19, draws=150, seed=seed).inside
        for seed in range(20)
    ]
    assert 0.80 < np.mean([share for share in inside if share is not None]) < 0.97


def test_it_says_that_the_law_holds() -> None:
    result = extrapolation("hoffmann", runs(), below=1e19)
    assert result.trusted is True
    assert result.inside is not None and result.inside > 0.8
    assert "The test runs reach 100 times the largest fitted C, and the law holds there" in result.verdict
    assert "beyond C = 6e+20 nothing was tested" in result.verdict
    with pytest.raises(FrozenInstanceError):
        result.below = 1.0  # type: ignore[misc]


# --- a law that does not ----------------------------------------------------------------------------------------------
def test_a_law_that_bends_is_not_trusted() -> None:
    columns = runs()
    C = 6 * columns["N"] * columns["D"]
    columns["loss"] = columns["loss"] * np.maximum(C / 1e19, 1) ** 0.02
    result = extrapolation("hoffmann", columns, below=1e19)
    assert result.trusted is False
    assert "can't be trusted that far" in result.verdict and "its predictions are too low for" in result.verdict


def test_few_runs_leave_it_open() -> None:
    columns = runs()
    one = np.argsort(columns["N"] * columns["D"], kind="stable")[-1]
    chosen = [*np.flatnonzero(6 * columns["N"] * columns["D"] <= 1e19), one]
    result = extrapolation("hoffmann", {name: values[chosen] for name, values in columns.items()}, below=1e19)
    assert result.trusted is None and "all that 1 run can show" in result.verdict

    smallest = np.argsort(columns["N"] * columns["D"], kind="stable")
    few = [*smallest[:6], *smallest[-8:]]
    below = float(6 * (columns["N"] * columns["D"])[smallest[5]])
    result = extrapolation("hoffmann", {name: values[few] for name, values in columns.items()}, below * 1.01)
    assert result.trusted is None and result.inside is None
    assert "6 runs for 5 constants do not show their noise" in result.verdict
    assert np.isinf(result.high).all()


@pytest.mark.parametrize(
    ("name", "where", "trusted", "words"),
    [
        ("routing_final.csv", {}, False, "do not determine E, A, alpha, B, beta: a prediction .* tests nothing"),
        ("porian_refinedweb.csv", {}, False, "or they are noisier than usual: it can't be trusted beyond them"),
    ],
)
def test_a_law_that_does_not_describe_its_runs_is_not_trusted_beyond_them(
    name: str, where: dict[str, str], trusted: bool | None, words: str
) -> None:
    """Clark et al. 2022's experts and Porian et al. 2024's recipes are no law of N and D."""
    table = read_table([reference(name)], ("N", "D", "loss"))
    held = held_out({**table.columns, "C": table.C}, fit_law("hoffmann", table.columns, draws=20))
    assert isinstance(held, Extrapolation) and held.trusted is trusted
    assert re.search(words, held.verdict) and "holds there" not in held.verdict and len(held.verdict) < 300


def test_fewer_runs_inside_than_chance_explains_leave_it_open() -> None:
    columns = runs(seed=2)
    twice = {name: np.repeat(values, 2) for name, values in columns.items()}
    found = [extrapolation("hoffmann", twice, below=below, draws=100) for below in (1e18, 3e18, 1e19, 3e19)]
    assert any(each.few for each in found)  # each run twice: intervals are too narrow
    for each in found:
        assert not (each.few and each.trusted)


def test_wide_intervals_leave_it_open() -> None:
    columns = runs(noise=0.03)
    result = extrapolation("hoffmann", columns, below=1e18, draws=100)
    assert result.width > 0.05 and not result.trusted


# --- options ----------------------------------------------------------------------------------------------------------
def test_runs_are_parted_by_their_own_flops() -> None:
    columns = runs()
    given = extrapolation("hoffmann", columns | {"C": 8 * columns["N"] * columns["D"]}, below=1e19)
    assert given.budget.max() == pytest.approx(8e20)


def test_other_laws() -> None:
    N = np.geomspace(1e6, 1e10, 30)
    loss = (8.8e13 / N) ** 0.076 * np.exp(0.002 * np.random.default_rng(2).normal(size=30))
    result = extrapolation("kaplan-n", {"N": N, "C": 120 * N**2, "loss": loss}, below=120e16)
    assert result.trusted is True and np.abs(result.error).max() < 0.02


# --- refusals ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("below", "message"),
    [
        (1e10, r"0 of 49 runs have C ≤ 1e\+10, too few to fit 5 constants: the budgets run from 6e\+16 to 6e\+20"),
        (1e22, r"49 of 49 runs have C ≤ 1e\+22, too few to predict: .*; choose below= between"),
        (1e17, r"1 of 49 runs have C ≤ 1e\+17, too few to fit 5 constants"),
        (float("nan"), "0 of 49 runs have C ≤ nan"),
    ],
)
def test_messages(below: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extrapolation("hoffmann", runs(), below)


def test_messages_on_columns_and_laws() -> None:
    with pytest.raises(ValueError, match="expected one of the laws hoffmann, "):
        extrapolation("chinchilla", runs(), 1e19)
    with pytest.raises(BadData, match=r"expected a column 'D' .tokens., got N, loss"):
        extrapolation("kaplan-n", {"N": [1e7, 1e8], "loss": [3.0, 2.8]}, 1e19)
    columns = runs()
    columns["loss"][3] = np.nan
    with pytest.raises(BadData, match="row 4, column 'loss'"):
        extrapolation("hoffmann", columns, 1e19)


# --- on real runs -----------------------------------------------------------------------------------------------------
def test_chinchillas_runs_do_not_extrapolate_as_they_claim() -> None:
    """Besiroglu et al. 2024's 240 points: their largest budgets lie below the law of the others."""
    path = reference("chinchilla_245.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["epoch_outlier"] == "0"]
    names = {"N": "N", "D": "tokens", "loss": "loss"}
    result = extrapolation(
        "hoffmann", {new: np.array([float(row[old]) for row in rows]) for new, old in names.items()}, below=1e20
    )
    assert (result.fit.n, len(result.loss)) == (136, 104)
    assert result.reach == pytest.approx(129.609, abs=0.01)
    assert np.median(np.abs(result.error)) == pytest.approx(0.0072, abs=2e-4)
    assert np.abs(result.error).max() == pytest.approx(0.0409, abs=5e-4)
    assert result.trusted is False and result.inside is not None and result.inside < 0.75


def test_chances_and_quantiles_are_those_of_scipy():
    from scipy.special import stdtrit
    from scipy.stats import binom

    for n, p in ((1, 0.5), (5, 0.9), (68, 0.9), (600, 0.9), (3000, 0.999)):
        for k in (0, n // 2, n - 1, n):
            assert at_most(k, n, p) == pytest.approx(binom.cdf(k, n, p), rel=1e-9, abs=1e-15)
    for level in (0.1, 0.8, 0.9, 0.999):
        for dof in (1, 2, 3, 8, 31, 500):
            assert quantile(level, dof) == pytest.approx(stdtrit(dof, 0.5 + level / 2), rel=1e-10)


def _noisy(seed: int = 0) -> dict[str, np.ndarray]:
    """An exact law at three budgets with a noise of .5% [24]."""
    C, part = (x.ravel() for x in np.meshgrid([1e18, 6e18, 3e19], np.geomspace(0.25, 4, 8), indexing="ij"))
    N = 0.1 * C**0.5 * part
    D = C / 6 / N
    noise = np.random.default_rng(seed).normal(0, 0.005, N.size)
    return {"C": C, "N": N, "D": D, "loss": (1.8 + 400 / N**0.34 + 410 / D**0.28) * np.exp(noise)}


def test_the_test_on_larger_runs_knows_no_order_of_rows_and_no_rounding_of_compute():
    columns = _noisy()
    laws = {name: columns[name] for name in ("N", "D", "loss")}
    first = held_out(columns, fit_law("hoffmann", laws, draws=20))
    assert not isinstance(first, str)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        order = rng.permutation(24)
        moved = {name: column[order] for name, column in columns.items()}
        moved["C"] = moved["C"] * (1 + 1e-9 * rng.normal(size=24))
        again = held_out(moved, fit_law("hoffmann", {name: moved[name] for name in laws}, draws=20))
        assert not isinstance(again, str)
        assert (again.chance, again.inside, again.trusted) == (first.chance, first.inside, first.trusted)
        np.testing.assert_allclose(np.sort(again.low), np.sort(first.low), rtol=1e-6)


def test_its_intervals_hold_runs_as_noisy_as_those_below():
    """Noise of .5%, more than twice that of seeds: 90% intervals hold about as many."""
    inside = []
    for seed in range(8):
        columns = _noisy(seed)
        found = held_out(columns, fit_law("hoffmann", {name: columns[name] for name in ("N", "D", "loss")}, draws=20))
        assert not isinstance(found, str) and found.inside is not None
        inside.append(found.inside)
    assert np.mean(inside) > 0.8


def test_a_run_that_the_fit_left_out_is_not_predicted_either():
    columns = _noisy()
    columns["loss"][-3] *= 1.1
    fitted = fit_law("hoffmann", {name: columns[name] for name in ("N", "D", "loss")}, draws=20)
    assert [run.row for run in fitted.left_out] == [21]
    found = held_out(columns, fitted)
    assert not isinstance(found, str) and len(found.loss) == 7 and np.abs(found.error).max() < 0.04
