"""Laws: figures that the papers print, limits, inverses."""

from __future__ import annotations

import csv
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fits import reference
from isoflop.laws import FORMS, PF_DAY, Law, published
from isoflop.laws import forms as laws

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
MUENNIGHOFF = dict(published("muennighoff2023").law.constants)  # type: ignore[union-attr]
UNLIMITED = {name: value for name, value in MUENNIGHOFF.items() if "star" not in name}
SHAPE = {name: value for name, value in UNLIMITED.items() if name != "E"}
ND = {"N_c": 6.4e13, "D_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}
NS = {"N_c": 6.5e13, "S_c": 2.1e3, "alpha_N": 0.077, "alpha_S": 0.76}

sizes = st.floats(1e6, 1e13)
tokens = st.floats(1e8, 1e14)
budgets = st.floats(1e15, 1e28)
batches = st.floats(1e3, 1e9)
step_counts = st.floats(1e3, 1e7)
fewer = settings(max_examples=60, deadline=None)


# --- forms ------------------------------------------------------------------------------------------------------------
EXAMPLE = {"N": 1e9, "D": 2e10, "C": 1e20, "S_min": 1e4, "S": 1e4, "B": 5e5, "U": 1e9, "L": 3.0, "X": 8.0}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_a_law(name: str) -> None:
    form = FORMS[name]
    assert form.name == name
    letters = {"E": 1.7, "alpha": 0.34, "beta": 0.28, "gamma": 0.3, "eta": 0.17, "epsilon": 0.85, "k": 2.0}
    letters |= {
        "alpha_N": 0.076,
        "alpha_D": 0.1,
        "alpha_C": 0.05,
        "alpha_S": 0.76,
        "R_D_star": 15.4,
        "R_N_star": 5.3,
        "X_start": 1.9,
        "X_max": 470.0,
    }
    constants = {c: letters.get(c, 1e13 if c.endswith("_c") else 400.0) for c in form.constants}
    law = Law(form, constants)
    point = {v: EXAMPLE[v] for v in form.variables}
    one = law.loss(**point)
    assert one.shape == () and np.isfinite(one)
    many = law.loss(**{v: np.full((3, 1), x) for v, x in point.items()})
    np.testing.assert_allclose(many, np.full((3, 1), one))
    drawn = Law(form, constants, draws={c: np.full(4, x) for c, x in constants.items()})
    np.testing.assert_allclose(drawn.loss_draws(**point), np.full(4, one))  # type: ignore[arg-type]


def test_integers_are_taken_as_numbers() -> None:
    assert laws.hoffmann_loss(70_000_000_000, 1_400_000_000_000, **HOFFMANN) == pytest.approx(1.9366, abs=1e-4)


# --- Hoffmann ---------------------------------------------------------------------------------------------------------
@fewer
@given(C=budgets)
def test_allocation_is_the_minimum_and_spends_the_budget(C: float) -> None:
    N, D = laws.hoffmann_allocation(C, **SHAPE)
    assert pytest.approx(C) == 6 * N * D
    best = laws.hoffmann_loss(N, D, **UNLIMITED)
    for factor in (0.9, 1.1):
        assert laws.hoffmann_loss(N * factor, D / factor, **UNLIMITED) > best
    assert laws.hoffmann_optimal_parameters(D, **SHAPE) == pytest.approx(float(N))


@fewer
@given(N=sizes, D=tokens)
def test_hoffmann_falls_with_both_and_stays_above_e(N: float, D: float) -> None:
    here = laws.hoffmann_loss(N, D, **HOFFMANN)
    assert HOFFMANN["E"] < laws.hoffmann_loss(2 * N, D, **HOFFMANN) < here
    assert laws.hoffmann_loss(N, 2 * D, **HOFFMANN) < here
    assert laws.hoffmann_loss(N, math.inf, **HOFFMANN) == pytest.approx(1.69 + 406.4 / N**0.34)


# --- Muennighoff ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("N", "D", "loss"), [(6.34e9, 242e9, 2.2256441), (8.67e9, 178e9, 2.2269635)])
def test_muennighoff_as_in_the_papers_notebook(N: float, D: float, loss: float) -> None:
    # data/README.md; the notebook computes in single precision
    assert laws.muennighoff_loss(N, D, 25e9, **MUENNIGHOFF) == pytest.approx(loss, abs=2e-7)


def test_muennighoff_on_the_runs_it_was_fitted_to() -> None:
    path = reference("datablations.csv")
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["in_paper182"] == "1"]
    N, D, U, loss = (np.array([float(row[name]) for row in rows]) for name in ("N", "D", "U", "loss"))
    fitted = laws.muennighoff_loss(N, D, U, **MUENNIGHOFF)
    residual = np.abs(np.log(fitted / loss))
    huber = np.where(residual <= 1e-3, residual**2 / 2, 1e-3 * (residual - 5e-4)).sum()
    assert len(rows) == 182
    assert huber == pytest.approx(0.0158259, abs=1e-7)
    assert 1 - ((fitted - loss) ** 2).sum() / ((loss - loss.mean()) ** 2).sum() == pytest.approx(0.7722, abs=5e-5)


@fewer
@given(D=tokens, share=st.floats(0.01, 1), spare=st.floats(1, 100))
def test_without_repetition_it_is_hoffmanns_law(D: float, share: float, spare: float) -> None:
    N = share * laws.hoffmann_optimal_parameters(D, **SHAPE)
    plain = laws.hoffmann_loss(N, D, **UNLIMITED)
    assert laws.muennighoff_loss(N, D, spare * D, **MUENNIGHOFF) == pytest.approx(float(plain))


@fewer
@given(N=sizes, D=tokens, U=tokens)
def test_muennighoff_lies_above_hoffmann_and_falls_with_new_tokens(N: float, D: float, U: float) -> None:
    here = laws.muennighoff_loss(N, D, U, **MUENNIGHOFF)
    assert here >= laws.hoffmann_loss(N, D, **UNLIMITED) - 1e-12
    assert laws.muennighoff_loss(N, D, 2 * U, **MUENNIGHOFF) <= here + 1e-12
    never = MUENNIGHOFF | {"R_D_star": 1e12, "R_N_star": 1e12}  # repetition loses nothing
    assert laws.muennighoff_loss(N, min(D, 1e3 * U), U, **never) == pytest.approx(
        float(laws.hoffmann_loss(N, min(D, 1e3 * U), **UNLIMITED)), rel=1e-4
    )


@pytest.mark.parametrize(("epochs", "worth"), [(1, 1), (4, 3.73), (16, 10.58), (1e6, 16.387756)])
def test_what_epochs_are_worth(epochs: float, worth: float) -> None:
    # 4 epochs are worth 93% and 16 two thirds of as many new tokens; never more than 1 + R_D* (paper, section 3.1)
    assert laws.effective_amount(epochs * 1e9, 1e9, 15.387756) / 1e9 == pytest.approx(worth, abs=0.005)


# --- Schaipp, Gadre ---------------------------------------------------------------------------------------------------
THREE = {"E": 1.7, "A_N": 400.0, "alpha": 0.34, "A_B": 900.0, "beta": 0.6, "A_S": 60.0, "gamma": 0.5}


@fewer
@given(N=sizes, D=tokens)
def test_gadres_law_is_hoffmanns_with_one_exponent(N: float, D: float) -> None:
    ours = laws.gadre_loss(N, D, E=1.5, a=300.0, b=200.0, eta=0.15)
    same = laws.hoffmann_loss(N, D, E=1.5, A=300 * 6**-0.15, B=200 * 6**-0.15, alpha=0.3, beta=0.3)
    assert ours == pytest.approx(float(same))


@fewer
@given(L=st.floats(0.5, 12))
def test_error_grows_with_loss_to_its_ceiling(L: float) -> None:
    constants = {"epsilon": 0.85, "k": 2.08, "gamma": 0.756}
    error = laws.gadre_error(L, **constants)
    assert error < laws.gadre_error(L + 0.1, **constants) < 0.85
    assert -np.log((0.85 - error) / 2.08) / 0.756 == pytest.approx(L)


# --- Kaplan: what the paper prints ------------------------------------------------------------------------------------
def test_gpt3_by_kaplans_constants() -> None:
    # 175B parameters, 3.14e23 FLOPs: N far below what Kaplan would have spent them on alone
    assert laws.kaplan_loss_n(175e9, N_c=8.8e13, alpha_N=0.076) == pytest.approx(1.60, abs=0.01)
    assert laws.kaplan_loss_c(3.14e23, C_c=3.1e8 * PF_DAY, alpha_C=0.050) == pytest.approx(1.765, abs=0.005)


def test_the_critical_batch_doubles_for_13_percent_of_loss() -> None:
    assert pytest.approx(0.13, abs=0.006) == 1 - 2**-0.21
    assert laws.critical_batch(3.0 * 2**-0.21) / laws.critical_batch(3.0) == pytest.approx(2)
    assert laws.critical_batch(1.0) == pytest.approx(2.1e8)


def test_overfitting_bound() -> None:
    # section 4.2: models under 1e9 on WebText2's 22B tokens overfit hardly, by the 2% noise between seeds
    assert laws.unique_tokens_needed(1e9) == pytest.approx(2.29e10, rel=0.01)
    for N in (1e7, 1e9, 1e11):
        endless = laws.kaplan_loss_nd(N, math.inf, **ND)
        enough = laws.kaplan_loss_nd(N, laws.unique_tokens_needed(N), **ND)
        assert enough / endless - 1 == pytest.approx(0.022, abs=0.002)
    assert laws.unique_tokens_needed(7e9) > 20 * 7e9 / 2 and laws.unique_tokens_needed(1e11) < 20 * 1e11


# --- Kaplan: relations ------------------------------------------------------------------------------------------------
@fewer
@given(N=sizes, D=tokens)
def test_endless_data_gives_the_law_of_size(N: float, D: float) -> None:
    endless = laws.kaplan_loss_nd(N, math.inf, **ND)
    assert endless == pytest.approx(float(laws.kaplan_loss_n(N, N_c=6.4e13, alpha_N=0.076)))
    assert laws.kaplan_loss_nd(math.inf, D, **ND) == pytest.approx(
        float(laws.kaplan_loss_d(D, D_c=1.8e13, alpha_D=0.103))
    )
    assert laws.kaplan_loss_ns(N, math.inf, **NS) == pytest.approx((6.5e13 / N) ** 0.077)


@fewer
@given(N=sizes, D=tokens, S=step_counts)
def test_kaplans_losses_fall(N: float, D: float, S: float) -> None:
    assert laws.kaplan_loss_nd(2 * N, D, **ND) < laws.kaplan_loss_nd(N, D, **ND)
    assert laws.kaplan_loss_nd(N, 2 * D, **ND) < laws.kaplan_loss_nd(N, D, **ND)
    assert laws.kaplan_loss_ns(2 * N, S, **NS) < laws.kaplan_loss_ns(N, S, **NS)
    assert laws.kaplan_loss_ns(N, 2 * S, **NS) < laws.kaplan_loss_ns(N, S, **NS)
