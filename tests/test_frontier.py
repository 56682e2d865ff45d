"""The compute-optimal frontier: published optima, closed forms against blind minimisation, what a law does not know."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from isoflop.laws import (
    FORMS,
    HOFFMANN,
    Allocation,
    Form,
    Frontier,
    Law,
    optimal_allocation,
    shape_warning,
    short,
    size_factor,
)

CHINCHILLA = 5.76e23


def hoffmann(E: float, A: float, B: float, alpha: float, beta: float, draws: dict | None = None) -> Law:
    return Law(HOFFMANN, {"E": E, "A": A, "B": B, "alpha": alpha, "beta": beta}, draws=draws)


HUBER = hoffmann(1.817218, 477.826, 2143.417, 0.347311, 0.367172)
BESIROGLU = hoffmann(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
PRINTED = hoffmann(1.69, 406.4, 410.7, 0.34, 0.28)
C4 = hoffmann(math.exp(0.6254804), math.exp(6.255414), math.exp(7.3049974), 0.3526596, 0.3526596)
"""Muennighoff et al.'s law of unlimited data, digits of their repository."""
KAPLAN = hoffmann(0.0, 6.5e13**0.077, 2.1e3**0.76, 0.077, 0.76)
"""His L(N, S), table 3, with S in the place of D."""

# The same formula under another name: no closed form is known for it.
BLIND = Form("blind", HOFFMANN.function, "")


def blind(law: Law) -> Law:
    return Law(BLIND, law.constants, draws=law.draws)


def around(law: Law, number: int = 400, seed: int = 0) -> Law:
    """The law with draws about it."""
    rng = np.random.default_rng(seed)
    spread = {"E": 0.002, "A": 0.02, "B": 0.02, "alpha": 0.002, "beta": 0.002}
    draws = {name: law.constants[name] * np.exp(size * rng.normal(size=number)) for name, size in spread.items()}
    return Law(law.form, law.constants, draws=draws, convention="total")


laws = st.builds(
    hoffmann,
    E=st.floats(0.5, 2.5),
    A=st.floats(50, 3000),
    B=st.floats(50, 3000),
    alpha=st.floats(0.2, 0.7),
    beta=st.floats(0.2, 0.7),
)
budgets = st.floats(17, 27).map(lambda exponent: 10.0**exponent)
served = st.floats(7, 15).map(lambda exponent: 10.0**exponent)
many = settings(max_examples=60, deadline=None, derandomize=True)
few = settings(max_examples=15, deadline=None, derandomize=True)


# -- published ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("law", "N", "D"), [(HUBER, 73.2e9, 1.31e12), (BESIROGLU, 72.3e9, 1.33e12), (PRINTED, 32.2e9, 2.98e12)]
)
def test_chinchillas_budget(law, N, D):
    best = optimal_allocation(law, CHINCHILLA)
    assert pytest.approx(N, rel=2e-3) == best.N
    assert pytest.approx(D, rel=5e-3) == best.D
    assert best.flops == pytest.approx(CHINCHILLA)
    assert best.tokens_per_param == pytest.approx(best.D / best.N)
    assert best.loss == pytest.approx(float(law.loss(N=best.N, D=best.D)))
    assert best.intervals is None and best.level is None


def test_chinchilla_tokens_per_parameter():
    assert optimal_allocation(HUBER, CHINCHILLA).tokens_per_param == pytest.approx(17.9, abs=0.05)


def test_muennighoffs_notebook():
    """Losses printed in their README, and "227B tokens, 9.1 epochs, 6.8B parameters" by their grid search."""
    few_epochs, C = 6 * 8.67e9 * 178e9, 6 * 6.34e9 * 242e9
    assert Frontier(C4, unique_tokens=25e9).at_tokens(C, 242e9).loss == pytest.approx(2.2256440889984477, rel=1e-9)
    assert Frontier(C4, unique_tokens=25e9).at_tokens(few_epochs, 178e9).loss == pytest.approx(
        2.2269634075087867, rel=1e-9
    )
    best = optimal_allocation(C4, few_epochs, unique_tokens=25e9)
    assert pytest.approx(227e9, rel=3e-3) == best.D
    assert pytest.approx(6.8e9, rel=3e-3) == best.N
    assert best.epochs == pytest.approx(9.1, abs=0.05)
    assert "R_D* = 15.4" in best.notes[0] and "hardly determine" in best.notes[0]


def test_kaplans_figure_12():
    """ "Models between 0.6x and 2.2x the optimal size can be trained with a 20% larger compute budget."."""
    at = {k: size_factor(KAPLAN, k)[0] for k in (0.55, 0.6, 2.2, 2.3)}
    assert at[0.6] == pytest.approx(1.165, abs=1e-3)
    assert at[2.2] == pytest.approx(1.204, abs=1e-3)  # his 20%, rounded
    assert at[0.55] > 1.2 and at[2.3] > 1.2


# -- the closed form ---------------------------------------------------------------------------------------------------


@many
@given(laws, budgets)
def test_equals_scipys_minimisation(law, C):
    best = optimal_allocation(law, C)
    found = minimize_scalar(
        lambda x: float(law.loss(N=math.exp(x), D=C / 6 / math.exp(x))),
        bounds=(0, math.log(C / 6)),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert best.loss == pytest.approx(found.fun, rel=1e-12)
    assert math.log(best.N) == pytest.approx(found.x, abs=1e-4)


@many
@given(laws, budgets)
def test_numerical_path_equals_closed_form(law, C):
    exact, numerical = optimal_allocation(law, C), optimal_allocation(blind(law), C)
    # Near E the loss is flat to rounding: no minimisation by values alone comes nearer.
    flat = math.sqrt(2.2e-16 * exact.loss / (exact.loss - law.constants["E"]))
    assert pytest.approx(exact.N, rel=20 * flat) == numerical.N
    assert numerical.loss == pytest.approx(exact.loss, rel=1e-13)


@many
@given(laws, budgets)
def test_first_order_condition(law, C):
    best, at = optimal_allocation(law, C), law.constants
    by_N, by_D = at["alpha"] * at["A"] / best.N ** at["alpha"], at["beta"] * at["B"] / best.D ** at["beta"]
    assert by_N == pytest.approx(by_D, rel=1e-9)


@many
@given(laws, budgets, st.floats(0.01, 100))
def test_any_other_size_is_worse(law, C, factor):
    assume(abs(math.log(factor)) > 1e-3)
    best = optimal_allocation(law, C)
    assert law.loss(N=best.N * factor, D=best.D / factor) > best.loss


@many
@given(laws, budgets, st.floats(1.01, 1000))
def test_more_compute_more_of_everything(law, C, factor):
    small, large = optimal_allocation(law, C), optimal_allocation(law, factor * C)
    assert large.N > small.N and large.D > small.D and large.loss < small.loss


@many
@given(laws, budgets)
def test_other_flops_per_parameter_and_token(law, C):
    dear, plain = optimal_allocation(law, 2 * C, flops_per_param_token=12), optimal_allocation(law, C)
    assert (pytest.approx(plain.N), pytest.approx(plain.D)) == (dear.N, dear.D)
    assert dear.flops == pytest.approx(2 * C)


# -- a given loss ------------------------------------------------------------------------------------------------------


@many
@given(laws, budgets)
def test_least_compute_inverts_least_loss(law, C):
    best = optimal_allocation(law, C)
    assume(best.loss - law.constants["E"] > 1e-6)
    back = Frontier(law).at_loss(best.loss)
    assert (pytest.approx(best.N, rel=1e-6), pytest.approx(best.D, rel=1e-6)) == (back.N, back.D)
    assert back.flops == pytest.approx(C, rel=1e-6)
    assert optimal_allocation(law, back.flops).loss == pytest.approx(best.loss, rel=1e-12)


@few
@given(laws, budgets)
def test_least_compute_by_the_numerical_path(law, C):
    target = optimal_allocation(law, C).loss
    assume(target - law.constants["E"] > 1e-4)
    assert Frontier(blind(law)).at_loss(target).flops == pytest.approx(C, rel=1e-6)


@pytest.mark.parametrize("law", [HUBER, blind(HUBER)])
def test_a_loss_that_no_compute_reaches(law):
    with pytest.raises(ValueError, match=r"no compute reaches a loss of 1\.8 .* irreducible loss E is 1\.817; ask for"):
        Frontier(law).at_loss(1.8)


def test_a_stock_that_does_not_suffice():
    with pytest.raises(ValueError, match="100M unique tokens bear only so much repetition"):
        Frontier(HUBER, unique_tokens=1e8).at_loss(1.9)


# -- a given number of tokens ----------------------------------------------------------------------------


@many
@given(laws, budgets)
def test_given_the_optimum_it_is_the_optimum(law, C):
    best = optimal_allocation(law, C)
    assume(best.N >= 1e3 and best.D >= 1e3)
    same = Frontier(law).at_tokens(C, best.D)
    assert (pytest.approx(best.N), pytest.approx(best.D)) == (same.N, same.D)
    assert (same.loss, same.flops) == (pytest.approx(best.loss), pytest.approx(C))


# -- inference (Sardana et al. 2023) -----------------------------------------------------------------------------------


@many
@given(laws, budgets)
def test_without_inference_it_is_hoffmann(law, C):
    assert optimal_allocation(law, C, inference_tokens=0) == optimal_allocation(law, C)
    best, little = optimal_allocation(law, C), optimal_allocation(law, C, inference_tokens=1e3)
    assume(best.D > 1e9)
    assert (pytest.approx(best.N, rel=1e-4), pytest.approx(best.D, rel=1e-4)) == (little.N, little.D)


@many
@given(laws, budgets, served)
def test_a_total_budget_is_spent_best(law, C, tokens):
    best = optimal_allocation(law, C, inference_tokens=tokens)
    assert best.total_flops == pytest.approx(C, rel=1e-9)
    assert best.inference_flops == pytest.approx(2 * best.N * tokens)
    for factor in (0.9, 0.999, 1.001, 1.1):
        D = C / (6 * best.N * factor) - tokens / 3
        assert D <= 0 or float(law.loss(N=best.N * factor, D=D)) >= best.loss * (1 - 1e-14)
    free = optimal_allocation(law, C)
    assert best.N < free.N and best.tokens_per_param > free.tokens_per_param


@many
@given(laws, budgets, served)
def test_a_loss_is_reached_with_the_least_total(law, C, tokens):
    target = optimal_allocation(law, C, inference_tokens=tokens)
    assume(target.loss - law.constants["E"] > 1e-6)
    least = Frontier(law, inference_tokens=tokens).at_loss(target.loss)
    assert least.total_flops == pytest.approx(C, rel=1e-5)
    assert pytest.approx(target.N, rel=1e-4) == least.N
    assert float(law.loss(N=least.N, D=least.D)) == pytest.approx(target.loss, rel=1e-10)


@few
@given(laws, budgets, served)
def test_inference_by_the_numerical_path(law, C, tokens):
    exact = optimal_allocation(law, C, inference_tokens=tokens)
    assume(exact.N > 10 and exact.D > 10)
    assert optimal_allocation(blind(law), C, inference_tokens=tokens).loss == pytest.approx(exact.loss, rel=1e-9)


# -- unique tokens (Muennighoff et al. 2023) ---------------------------------------------------------------------------


@many
@given(laws, budgets)
def test_with_tokens_enough_it_is_hoffmann(law, C):
    best = optimal_allocation(law, C)
    stocked = optimal_allocation(law, C, unique_tokens=max(1.001 * best.D, 1e3))
    assert (stocked.N, stocked.D) == (best.N, best.D)
    assert stocked.loss == pytest.approx(best.loss, rel=1e-12)
    assert stocked.notes == () and stocked.epochs == 1


@few
@given(laws, budgets, st.floats(0.02, 0.9))
def test_a_short_stock_costs(law, C, share):
    best = optimal_allocation(law, C)
    assume(share * best.D > 1e4)
    short = optimal_allocation(law, C, unique_tokens=share * best.D)
    assert short.loss > best.loss
    assert short.unique_tokens < short.D
    loss = Frontier(law, unique_tokens=share * best.D).loss
    for factor in (0.5, 0.9, 1.1, 2):
        assert loss(np.array([short.N * factor]), np.array([short.D / factor]))[0] >= short.loss * (1 - 1e-13)
    if short.epochs < 10:  # beyond, more compute hardly lowers the loss: the budget is no function of it to rounding
        back = Frontier(law, unique_tokens=share * best.D).at_loss(short.loss)
        assert back.flops == pytest.approx(C, rel=1e-3)


def test_inference_and_a_short_stock_together():
    both = optimal_allocation(C4, 1e22, unique_tokens=2e10, inference_tokens=1e12)
    assert both.total_flops == pytest.approx(1e22)
    alone = optimal_allocation(C4, 1e22, inference_tokens=1e12)
    assert both.loss > alone.loss
    enough = optimal_allocation(C4, 1e22, unique_tokens=2 * alone.D, inference_tokens=1e12)
    assert (enough.N, enough.D) == (alone.N, alone.D)


def test_a_law_that_knows_unique_tokens():
    law = Law(FORMS["muennighoff"], {**C4.constants, "R_D_star": 15.387756, "R_N_star": 5.309743})
    C = 6 * 8.67e9 * 178e9
    own, applied = optimal_allocation(law, C, unique_tokens=25e9), optimal_allocation(C4, C, unique_tokens=25e9)
    assert (own.N, own.loss) == (pytest.approx(applied.N, rel=1e-6), pytest.approx(applied.loss, rel=1e-12))
    assert own.notes == ()
    assert pytest.approx(optimal_allocation(C4, C).N, rel=1e-5) == optimal_allocation(law, C).N
    with pytest.raises(ValueError, match=r"the law blind does not know unique tokens: .* or a hoffmann law"):
        optimal_allocation(blind(C4), C, unique_tokens=25e9)


# -- uncertainty -------------------------------------------------------------------------------------------------------


@few
@given(laws, budgets, st.sampled_from([{}, {"inference_tokens": 1e12}, {"unique_tokens": 1e9}]))
def test_intervals_contain_the_point(law, C, pressed):
    best = optimal_allocation(around(law), C, **pressed)
    assert best.level == 0.9 and best.intervals is not None
    assert set(best.intervals) >= {"N", "D", "tokens_per_param", "loss"}
    for name, (low, high) in best.intervals.items():
        assert low <= getattr(best, name) <= high


def test_each_draw_has_its_own_optimum():
    law = around(HUBER, number=50)
    assert law.draws is not None
    own = [
        optimal_allocation(hoffmann(**{name: float(values[i]) for name, values in law.draws.items()}), 1e22)
        for i in range(50)
    ]
    best = optimal_allocation(law, 1e22, level=0.8)
    for name in ("N", "D", "loss", "tokens_per_param"):
        assert best.intervals[name] == pytest.approx(tuple(np.quantile([getattr(a, name) for a in own], [0.1, 0.9])))
    numerical = optimal_allocation(blind(law), 1e22, level=0.8)
    assert numerical.intervals["N"] == pytest.approx(best.intervals["N"], rel=1e-5)


def test_intervals_of_a_loss_some_draws_never_reach():
    law = hoffmann(**HUBER.constants, draws={"E": np.linspace(1.80, 1.84, 101)})
    best = Frontier(law).at_loss(1.83)
    assert best.intervals["flops"][1] == math.inf and best.intervals["N"][0] < best.N
    assert "26 of the law's 101 draws never reach this loss" in best.notes
    assert "inf" in str(best)


def test_intervals_of_what_is_given_are_absent():
    law = around(HUBER)
    assert set(Frontier(law).at_tokens(1e22, 1e11).intervals) == {"loss"}
    assert set(Frontier(law).at_loss(2.1).intervals) == {"N", "D", "tokens_per_param", "flops"}


def test_draws_without_an_optimum_are_counted():
    law = hoffmann(**HUBER.constants, draws={"alpha": np.array([0.34, 0.35, -0.1])})
    best = optimal_allocation(law, 1e22)
    assert best.notes == ("1 of the law's 3 draws have no optimum here",)
    assert all(math.isfinite(end) for end in best.intervals["N"])


# -- the cost of being off ---------------------------------------------------------------------------------------------


@many
@given(laws, budgets, st.floats(0.3, 5))
def test_the_factor_reaches_the_optimal_loss(law, C, k):
    factor, best = size_factor(law, k)[0], optimal_allocation(law, C)
    assert size_factor(law, 1.0)[0] == 1 <= factor
    N = k * best.N
    if math.isinf(factor):
        assert law.constants["E"] + law.constants["A"] / N ** law.constants["alpha"] >= best.loss
    else:
        assert float(law.loss(N=N, D=factor * C / 6 / N)) == pytest.approx(best.loss, rel=1e-9)


def test_too_small_a_model_never_gets_there():
    assert size_factor(HUBER, 0.05).tolist() == [math.inf]


def test_the_factor_of_each_draw():
    assert size_factor(around(HUBER, number=7), 2.0).shape == (8,)
    with pytest.raises(ValueError, match=r"k must be a positive, finite number of times the optimal size, got -1"):
        size_factor(HUBER, -1)


# -- printing ----------------------------------------------------------------------------------------------------------


def test_prints_with_units_and_intervals():
    text = str(optimal_allocation(around(HUBER), CHINCHILLA, inference_tokens=1e12, unique_tokens=5e11))
    lines = text.splitlines()
    assert lines[0].startswith("N ") and "parameters, total  [" in lines[0] and lines[0].endswith("] 90%")
    assert [line.split()[0] for line in lines[:5]] == ["N", "D", "D/N", "loss", "FLOPs"]
    assert "to serve" in text and "in all" in text and "over 500B unique tokens" in text and "note: repeated" in text


@pytest.mark.parametrize(("count", "text"), [(73.2e9, "73.2B"), (999.7e9, "1T"), (124e6, "124M"), (1.31e12, "1.31T")])
def test_counts_in_three_digits(count, text):
    assert short(count) == text
    assert str(Allocation(count, 1e12, 2.0, 1e23, 1.0)).splitlines()[0] == f"N      {text:>9}  parameters"


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf])
def test_numbers_must_be_positive_and_finite(wrong):
    for call in (
        lambda: optimal_allocation(HUBER, wrong),
        lambda: optimal_allocation(HUBER, 1e21, unique_tokens=wrong),
        lambda: optimal_allocation(HUBER, 1e21, flops_per_param_token=wrong),
        lambda: optimal_allocation(HUBER, 1e21, inference_tokens=wrong or -1),
        lambda: Frontier(HUBER).at_loss(wrong),
        lambda: Frontier(HUBER).at_tokens(1e21, wrong),
        lambda: size_factor(HUBER, wrong),
    ):
        with pytest.raises(ValueError, match=r"must be a positive, finite number of .*, got "):
            call()


def test_units_mixed_up():
    with pytest.raises(ValueError, match=r"D must be counted in tokens, got 300: did you mean millions\? Pass 3e\+08"):
        Frontier(HUBER).at_tokens(1e21, 300)
    with pytest.raises(ValueError, match=r"unique_tokens must be counted in tokens, got 25: did you mean millions\?"):
        optimal_allocation(HUBER, 1e21, unique_tokens=25)
    with pytest.raises(
        ValueError, match=r"C must be in FLOPs, got 6667, .* did you mean PF-days\? Multiply by 8.64e\+19"
    ):
        optimal_allocation(HUBER, 6667)
    with pytest.raises(ValueError, match=r"level must lie between 0 and 1, got 90: pass 0\.9"):
        optimal_allocation(HUBER, 1e21, level=90)


def test_laws_without_a_frontier():
    steps = Form("steps", lambda N, S, *, a: N * S * a, "")
    with pytest.raises(ValueError, match=r"the frontier needs a law of N and D, .* steps is one of N, S"):
        optimal_allocation(Law(steps, {"a": 1.0}), 1e21)
    product = Form("product", lambda N, D, *, a: a / (N * N * D), "")
    for law in (Law(product, {"a": 1.0}), hoffmann(1.8, 400, 400, -0.3, 0.3)):
        with pytest.raises(ValueError, match="has no optimum"):
            optimal_allocation(law, 1e21)


# -- a law with two minima ---------------------------------------------------------------------------------------------


def test_the_lower_of_two_minima_is_found():
    def loss(N, D, *, depth):
        x = np.log(N)
        return 3 + np.minimum((x - 10) ** 2, 0.5 * (x - 30) ** 2 - depth)

    two = Law(Form("two", loss, ""), {"depth": 1.0}, draws={"depth": np.array([1.0, -1.0])})
    best = Frontier(two).at_budget(1e21)
    assert math.log(best.N) == pytest.approx(30, abs=1e-6)
    assert math.log(best.intervals["N"][0]) < 29  # of one draw the other one


# -- shape -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(48, 1600, 25), (6, 4288, 67), (207, 768, 12), (12, 768, 12), (80, 8192, 64), (2, 128, 8)],
)
def test_shapes_that_hardly_matter(shape):
    assert shape_warning(*shape) == ()


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((512, 1024, 16), "aspect ratio d_model/n_layer = 2: Kaplan et al. 2020 found"),
        ((4, 8192, 64), "aspect ratio d_model/n_layer = 2.05e+03"),
        ((24, 1024, 128), "attention head dimension d_model/n_head = 8"),
        ((24, 1024, 2), "attention head dimension d_model/n_head = 512"),
        ((1, 512, 8), "1 layer: models of fewer than 2 deviate"),
    ],
)
def test_shapes_outside(shape, reason):
    (found,) = shape_warning(*shape)
    assert found.startswith(reason)


def test_several_reasons_and_refusals():
    assert len(shape_warning(1, 2048, 1)) == 3
    with pytest.raises(ValueError, match="heads must be at least 1, got 0"):
        shape_warning(12, 768, 0)
