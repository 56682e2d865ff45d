"""The critical batch: published laws from their constants, the fit to runs, beliefs, what a batch costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.laws import published
from isoflop.noise import (
    Belief,
    agree,
    change_batch,
    combine,
    critical_batch_by_tokens,
    kaplan_critical_batch,
    measured_critical_batch,
    prior_critical_batch,
    steps_over_minimum,
    tokens_over_minimum,
)
from steps_to_loss import fit_critical_batch, steps_to_loss

ZHANG_STEPS = (46000, 23000, 13282, 7000, 3840, 2500, 1800, 1600, 1600)
"""Zhang et al. 2024 (arXiv:2410.21676), 85M at a loss of 3.42, batches of 64 to 16384 sequences of 512 tokens."""
ZHANG_B_CRIT = {85e6: 1.14e6, 151e6: 1.69e6, 302e6: 2.78e6, 604e6: 4.05e6, 1.2e9: 5.70e6}
batches = st.floats(1e2, 1e8)


def zhang() -> tuple[np.ndarray, np.ndarray]:
    return 64 * 512 * 2.0 ** np.arange(9), np.array(ZHANG_STEPS, float)


def test_zhangs_table() -> None:
    fit = fit_critical_batch(*zhang())
    assert fit.B_crit == pytest.approx(1.14e6, rel=0.01)
    assert fit.interval[0] < 1.0e6 and 1.3e6 < fit.interval[1] < 1.5e6
    assert fit.S_min == pytest.approx(1267, abs=5) and fit.E_min == pytest.approx(fit.S_min * fit.B_crit)
    assert "B_crit 1,144,440 [" in str(fit) and "9 runs" in str(fit)


def test_zhangs_own_critical_batch_is_a_fifth_of_it() -> None:
    """Theirs is where data efficiency is down 20%: E/E_min = 1.2."""
    assert float(tokens_over_minimum(0.2 * 1.14e6, 1.14e6)) == pytest.approx(1.2)


def test_zhangs_five_sizes_lie_on_their_law() -> None:
    for size, critical in ZHANG_B_CRIT.items():
        D = 20 * size  # they train at Chinchilla's ratio
        assert pytest.approx(critical, rel=0.13) == 3.1 * D**0.608


@given(B_crit=st.floats(1e3, 1e7), S_min=st.floats(1e2, 1e5))
def test_a_planted_hyperbola_is_found(B_crit: float, S_min: float) -> None:
    B = B_crit * np.array([0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
    fit = fit_critical_batch(B, S_min * (1 + B_crit / B))
    assert fit.B_crit == pytest.approx(B_crit, rel=1e-4) and fit.S_min == pytest.approx(S_min, rel=1e-4)
    assert fit.interval[0] <= B_crit * 1.001 and fit.interval[1] >= B_crit * 0.999


def test_its_interval_covers() -> None:
    rng = np.random.default_rng(0)
    B = np.geomspace(0.05, 20, 7)
    inside = 0
    for _ in range(100):
        fit = fit_critical_batch(B, 1000 * (1 + 1 / B) * np.exp(0.05 * rng.normal(size=7)))
        inside += fit.interval[0] <= 1 <= fit.interval[1]
    assert 90 <= inside <= 99


def test_runs_all_on_one_side_leave_an_end_open() -> None:
    rng = np.random.default_rng(1)
    B = np.array([1.0, 2.0, 4.0, 8.0])
    below = fit_critical_batch(B, 1e6 / B * np.exp(0.03 * rng.normal(size=4)))  # halving each time: B_crit far above
    assert below.interval[1] == math.inf
    above = fit_critical_batch(B, 1000 * np.exp(0.03 * rng.normal(size=4)))
    assert above.interval[0] == 0.0
    with pytest.raises(ValueError, match="B_crit is not bounded by these runs"):
        above.belief()
    assert fit_critical_batch(*zhang()).belief().sigma == pytest.approx(0.086, rel=0.05)


@pytest.mark.parametrize(
    ("batch", "steps", "said"),
    [
        ([1, 2], [3, 2], "expected at least 3 runs at 2 or more batch sizes, got batches [1.0, 2.0]"),
        ([4, 4, 4], [3, 2, 3], "expected at least 3 runs at 2 or more batch sizes, got batches [4.0, 4.0, 4.0]"),
        (
            [1, 2, 4],
            [3, 2, -1],
            "expected positive, finite batches and steps, got [1.0, 2.0, 4.0] and [3.0, 2",
        ),
        ([1, 2, 0], [3, 2, 1], "expected positive, finite batches and steps"),
        ([1, 2, 4], [3, math.nan, 1], "expected positive, finite batches and steps"),
    ],
)
def test_runs_that_can_not_be_fitted(batch: list[float], steps: list[float], said: str) -> None:
    with pytest.raises(ValueError) as error:
        fit_critical_batch(batch, steps)
    assert str(error.value).startswith(said)


def test_steps_to_a_loss() -> None:
    assert steps_to_loss([1, 10, 100], [5.0, 4.0, 3.0], 3.5) == pytest.approx(10**1.5)
    assert steps_to_loss([1, 10, 100], [5.0, 4.0, 3.0], 2.9) is None
    assert steps_to_loss([5, 10], [3.0, 2.0], 3.0) == 5
    with pytest.raises(ValueError, match="expected as many losses as steps"):
        steps_to_loss([1, 2], [1.0], 1.0)


# -- published ---------------------------------------------------------------------------------------------------------


def test_published_batches_from_their_constants() -> None:
    step_law, deepseek = published("steplaw2025").batch_law, published("deepseek2024").batch_law
    assert step_law is not None and deepseek is not None
    assert float(step_law(D=1e11)) == pytest.approx(0.58 * 1e11**0.571)
    assert float(step_law(D=1e11)) == pytest.approx(1.108e6, rel=1e-3)
    assert float(deepseek(C=1e20)) == pytest.approx(0.2920 * 1e20**0.3271)
    assert float(deepseek(C=1e20)) == pytest.approx(1.0171e6, rel=1e-3)


def test_kaplan_doubles_for_13_percent_of_loss() -> None:
    low, high = kaplan_critical_batch(3.0), kaplan_critical_batch(3.0 * 0.865)
    assert high.value / low.value == pytest.approx(2, rel=0.01) and low.sigma == 1.0
    assert kaplan_critical_batch(1.0).value == pytest.approx(2.1e8)


def test_kaplan_of_a_byte_level_loss_is_converted() -> None:
    """1.2 nats a byte are 5.2 a token of 4.3 bytes; in bytes again. Unconverted it overshoots a thousandfold."""
    converted = kaplan_critical_batch(1.2, bytes_per_token=1.0).value
    assert converted == pytest.approx(4.3 * kaplan_critical_batch(1.2 * 4.3).value)
    assert 1_000 < kaplan_critical_batch(1.2).value / (converted / 4.3) < 1_100
    assert kaplan_critical_batch(3.0, bytes_per_token=4.3).value == kaplan_critical_batch(3.0).value


def test_the_prior_by_tokens() -> None:
    for D in (1e9, 1e10, 1e11):
        prior = prior_critical_batch(D)
        assert prior.value == pytest.approx(math.sqrt(16.9 * D**0.505 * 3.1 * D**0.608)) and prior.sigma == 0.5
    assert prior_critical_batch(1e8).sigma == pytest.approx(1.0)
    assert prior_critical_batch(1e13).sigma == pytest.approx(1.0)
    low, high = prior_critical_batch(20 * 85e6).interval()
    assert low < 1.14e6 < high
    assert critical_batch_by_tokens(np.array([1e9, 1e10])).shape == (2,)


@pytest.mark.parametrize("D", [0, -1.0, math.nan, math.inf])
def test_tokens_that_can_not_be(D: float) -> None:
    with pytest.raises(ValueError, match="expected a positive, finite number of tokens D"):
        prior_critical_batch(D)


def test_losses_that_can_not_be() -> None:
    with pytest.raises(ValueError, match="expected a positive loss in nats per token and positive bytes per token"):
        kaplan_critical_batch(-1.0)
    with pytest.raises(ValueError, match="expected a positive loss"):
        kaplan_critical_batch(1.0, bytes_per_token=0)


# -- beliefs -----------------------------------------------------------------------------------------------------------


def test_a_measurement_carries_the_models_error() -> None:
    assert measured_critical_batch(1e5, 0.3, preconditioned=True).sigma == pytest.approx(math.hypot(0.3, 0.5))
    assert measured_critical_batch(1e5, 0.3, preconditioned=False).sigma == pytest.approx(math.hypot(0.3, 1.0))


@given(st.lists(st.tuples(batches, st.floats(0.05, 3)), min_size=1, max_size=5))
def test_beliefs_combined_are_surer_and_in_between(given_: list[tuple[float, float]]) -> None:
    beliefs = [Belief(value, sigma, "x") for value, sigma in given_]
    both = combine(beliefs)
    assert both.sigma <= min(belief.sigma for belief in beliefs) * (1 + 1e-9)
    values = [belief.value for belief in beliefs]
    assert min(values) * (1 - 1e-9) <= both.value <= max(values) * (1 + 1e-9)


def test_probabilities_and_agreement() -> None:
    belief = Belief(1e6, 0.5, "a run")
    assert belief.probability_below(1e6) == pytest.approx(0.5)
    low, high = belief.interval(0.9)
    assert belief.probability_below(high) - belief.probability_below(low) == pytest.approx(0.9)
    assert agree(belief, Belief(3e6, 0.5)) and not agree(belief, Belief(5e6, 0.5))
    assert str(belief) == "1,000,000 tokens [375,318, 2,664,408] (a run)"
    with pytest.raises(ValueError, match="expected at least one belief"):
        combine([])
    with pytest.raises(ValueError, match="expected a positive, finite batch"):
        Belief(0.0, 1.0)


# -- what a batch costs ------------------------------------------------------------------------------------------------


@given(B=batches, B_crit=batches)
def test_steps_against_tokens(B: float, B_crit: float) -> None:
    """McCandlish et al. 2018, eq. 2.11: (S/S_min − 1)(E/E_min − 1) = 1."""
    assert float((steps_over_minimum(B, B_crit) - 1) * (tokens_over_minimum(B, B_crit) - 1)) == pytest.approx(1)


@given(B=batches, new=batches, B_crit=batches)
def test_another_batch_and_back(B: float, new: float, B_crit: float) -> None:
    there, back = change_batch(B, new, B_crit), change_batch(new, B, B_crit)
    assert there.steps * back.steps == pytest.approx(1) and there.tokens * back.tokens == pytest.approx(1)
    assert there.tokens / there.steps == pytest.approx(new / B)


def test_doubling_a_batch_far_below_critical() -> None:
    """At B = B_crit/4 twice the batch takes 40% fewer steps for 20% more tokens."""
    change = change_batch(0.25, 0.5, 1.0)
    assert (change.steps, change.tokens) == (pytest.approx(0.6), pytest.approx(1.2))
    with pytest.raises(ValueError, match="expected three positive, finite batches"):
        change_batch(1.0, 0.0, 1.0)
