"""The design of a ladder: within its limits, better than an even grid, and warned of where it can't be good."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoflop.fit.approaches import approach_3
from isoflop.fit.profiles import isoflop_profiles
from isoflop.ladder import LadderPlan, plan_ladder
from isoflop.ladder.design import even_grid, worth_of
from isoflop.ladder.planning import ladder_problem, parabola_bias
from isoflop.ladder.sizes import family_of
from isoflop.laws.forms import HOFFMANN, Law
from ladders import record_ladder, record_run


@pytest.fixture(scope="module")
def large() -> LadderPlan:
    return plan_ladder(1e21, 3e19)


def test_a_plan_stays_within_its_spend_and_its_runs(large: LadderPlan):
    assert large.flops <= 1.02 * 3e19
    assert 12 <= len(large.runs) <= 16
    rungs = Counter(run.rung for run in large.runs)
    assert len(rungs) >= 3 and min(rungs.values()) >= 3
    for run in large.runs:
        assert run.tokens == run.steps * run.batch_tokens
        assert run.batch_tokens % large.sequence_length == 0
        assert 0 < run.warmup_steps < run.steps
        assert run.config["hf"]["n_embd"] == run.config["width"]


def test_runs_of_a_rung_share_their_budget(large: LadderPlan):
    for rung in range(3):
        flops = [run.flops for run in large.runs if run.rung == rung]
        assert max(flops) < 1.05 * min(flops)


def test_enough_is_left_without_the_largest_rung(large: LadderPlan):
    top = max(run.rung for run in large.runs)
    assert sum(run.rung < top for run in large.runs) >= 6


def test_it_expects_more_than_of_an_even_grid(large: LadderPlan):
    size, loss = large.expected["N_opt"], large.expected["loss_relative"]
    assert size.even_high is not None and size.high < size.even_high
    assert size.low < size.estimate < size.high
    assert 1 < loss.high < 1.2


def test_the_even_grid_has_as_many_runs_and_costs_as_much():
    problem = ladder_problem(family_of("gpt2"), 1e21, 3e19)
    even = even_grid(problem, 15)
    assert even is not None
    assert sum(len(rung.sizes) for rung in even) == 15
    assert sum(rung.budget * len(rung.sizes) for rung in even) == pytest.approx(3e19)
    assert all(rung.sizes[-1].N / rung.sizes[0].N > 10 for rung in even)
    assert np.isfinite(worth_of(problem, even).score)


def test_tiny_byte_models():
    plan = plan_ladder(2e13, 8e12, vocab_size=256, sequence_length=128, max_flops_per_run=2e12, sizes=(3e4, 5e5))
    assert all(3e4 <= run.parameters["non_embedding_with_head"] <= 5e5 for run in plan.runs)
    assert max(run.flops for run in plan.runs) <= 2.05e12
    assert any("published exponents" in text for text in plan.warnings)
    assert min(run.steps for run in plan.runs) >= 200


def test_nine_runs_if_no_more_are_wanted():
    assert len(plan_ladder(1e21, 3e19, max_runs=9).runs) == 9


def test_data_limits():
    plan = plan_ladder(1e21, 3e19, unique_tokens=2e9)
    assert max(run.tokens for run in plan.runs) <= 4.1 * 2e9
    said = " ".join(plan.warnings)
    assert "repeat" in said and "the target wants about" in said


def test_more_spend_tells_more():
    little, much = (plan_ladder(1e21, spend).expected["N_opt"] for spend in (1e18, 1e20))
    assert much.high / much.low < little.high / little.low


def test_far_targets_are_warned_of():
    plan = plan_ladder(1e24, 1e19)
    assert any("times the largest rung's compute" in text for text in plan.warnings)


def test_known_runs_count(tmp_path: Path, large: LadderPlan):
    record_ladder(tmp_path, large)
    plan = plan_ladder(1e21, 1e19, history=[tmp_path])
    alone = plan_ladder(1e21, 1e19)
    assert plan.history_runs == len(large.runs)
    assert plan.expected["N_opt"].high < alone.expected["N_opt"].high


def test_a_history_that_holds_no_finished_run(tmp_path: Path, large: LadderPlan):
    record_run(tmp_path, large.runs[0], share=0.5)
    with pytest.raises(ValueError, match=r"--history: expected finished runs, got none .*it was interrupted"):
        plan_ladder(1e21, 3e19, history=[tmp_path])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"flops": -1.0}, "--flops: expected a positive number"),
        ({"spend": 1e21}, "--spend: expected less than the target's"),
        ({"min_runs": 4}, "--min-runs and --max-runs: expected 9"),
        ({"sizes": (1e9, 1.01e9)}, "--sizes: . configurations of gpt2"),
        ({"sizes": (1e9, 1e8)}, "--sizes: expected the least and the most"),
        ({"unique_tokens": 1e5}, "no ladder of 12 to 16 runs fits"),
        ({"model": "rwkv"}, "--model: expected a Hugging Face config.json"),
        ({"spend": 3.0}, "--spend: 3 FLOPs are too few for models of gpt2"),
        ({"flops": 1e5, "spend": 3e3}, "--spend: 3e.03 FLOPs are too few"),
        ({"vocab_size": 10**9}, "--spend: 3e.19 FLOPs are too few for models of gpt2 with 1,000,000,000 tokens"),
        ({"level": 90}, "--level: expected a probability"),
    ],
)
def test_what_can_not_be_planned(given: dict, said: str):
    arguments = {"flops": 1e21, "spend": 3e19} | given
    with pytest.raises(ValueError, match=said):
        plan_ladder(**arguments)


# -- the bias of approach 2 --------------------------------------------------------------------------------------------


def law(alpha: float = 0.34, beta: float = 0.28, A: float = 406.4, B: float = 410.7) -> Law:
    return Law(HOFFMANN, {"E": 1.69, "A": A, "B": B, "alpha": alpha, "beta": beta})


EVEN = law(0.35, 0.35, 450, 450)


def bias(planted: Law, budgets: list[float], width: float, offset: Any = 1.0, points: int = 9) -> tuple[Any, float]:
    """Bias in ln N by budget, and in a, on grids of a width in N, their centres off the optimum by a factor."""
    u = np.linspace(-0.5, 0.5, points) * np.log(width)
    centres = [approach_3(planted).allocate(C)[0] for C in budgets] * np.broadcast_to(offset, len(budgets))
    N = (centres[:, None] * np.exp(u)).ravel()
    at, log_ratio = parabola_bias(planted, np.repeat(budgets, points), N, budgets)
    return log_ratio, np.polyfit(np.log(at), log_ratio, 1)[0]


def shift(planted: Law, width: float, offset: float = 1.0) -> float:
    """|ln N̂/N_opt| of a grid that sits alike around every optimum: the same at every budget, a is unbiased."""
    log_ratio, of_a = bias(planted, [1e18, 1e20, 1e22], width, offset, 15)
    assert np.abs(log_ratio) == pytest.approx(abs(log_ratio[0]), rel=1e-6, abs=1e-9)
    assert of_a == pytest.approx(0, abs=1e-9)
    return abs(log_ratio[0])


def test_the_bias_grows_with_the_width():
    shifts = [shift(law(), width) for width in (2, 4, 16, 64, 256)]
    assert all(np.diff(shifts) > 0) and shifts[0] < 0.001 and shifts[-1] > 0.04


def test_the_bias_grows_with_the_offset():
    """From about .3 of the half-width on: below, the fourth order outweighs the third, α²δ(δ²/3 − h²/35)."""
    shifts = [shift(EVEN, 4, offset) for offset in (1, 1.3, 1.4, 1.6, 1.8, 1.9)]
    assert all(np.diff(shifts) > 0) and shifts[-1] > 0.009
    # α > β: centred parabolas already lie above the optimum, grids shifted to larger sizes come down across it
    down = [shift(law(), 4, offset) for offset in (0.7, 0.6, 0.55)]
    assert all(np.diff(down) > 0) and down[-1] > 0.01
    h, d = np.log(2) / 2, np.log(1.2)
    dense, _ = bias(EVEN, [1e18, 1e20], 2, 1.2, 2001)
    assert dense == pytest.approx(0.35**2 * d * (d**2 / 3 - h**2 / 35), rel=5e-3)


def test_the_bias_grows_with_the_difference_of_the_exponents():
    shifts = [shift(law(0.31 + d, 0.31 - d), 16) for d in (0, 0.02, 0.05, 0.1, 0.15)]
    assert all(np.diff(shifts) > 0)
    assert shift(law(0.31, 0.31, 300, 700), 64) < 1e-9


@pytest.mark.parametrize(("alpha", "beta"), [(0.34, 0.28), (0.2, 0.5)])
def test_the_bias_of_a_dense_grid_to_lowest_order(alpha, beta):
    """h²(α − β)/10 with h the half-width in ln N: the cubic term's share in the slope of a least-squares parabola."""
    dense, _ = bias(law(alpha, beta), [1e18, 1e20], 1.3, points=2001)
    h = np.log(1.3) / 2
    assert dense == pytest.approx(h**2 * (alpha - beta) / 10, rel=5e-3)


def test_a_drifting_offset_biases_the_exponent():
    still, drift, further = (
        bias(law(), [1e18, 1e20, 1e22], 16, offset)[1] for offset in (1.0, [0.5, 1, 2], [0.4, 1, 2.5])
    )
    assert abs(still) < 1e-9 < 1e-3 < abs(drift) < abs(further)


def test_the_bias_is_what_approach_2_finds_on_noise_free_runs():
    N, budgets = np.tile(np.geomspace(1e8, 1e10, 12), 3), [1e19, 1e20, 1e21]
    C = np.repeat(budgets, 12)
    at, log_ratio = parabola_bias(EVEN, C, N, budgets)
    same = isoflop_profiles(C, N, C / 6 / N, EVEN.loss(N=N, D=C / 6 / N))
    slope, place = np.polyfit(np.log(at), log_ratio, 1)
    assert 0.5 + slope == pytest.approx(same.a, rel=1e-9) and abs(slope) > 0.001
    ratio = same.allocate(1e24)[0] / approach_3(EVEN).allocate(1e24)[0]
    assert place + slope * np.log(1e24) == pytest.approx(np.log(ratio))


@pytest.mark.parametrize(("budgets", "found"), [([1e19, 1e20, 1e21, 1e27], 3), ([1e26, 1e27], 0)])
def test_a_budget_without_a_minimum_is_left_out(budgets: list[float], found: int):
    N = np.tile(np.geomspace(1e8, 1e10, 12), len(budgets))
    assert len(parabola_bias(EVEN, np.repeat(budgets, 12), N, budgets)[0]) == found


@pytest.mark.slow
def test_planned_ladders_against_even_grids_on_laws_that_no_fit_knows():
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from ladder import compare

    found = compare("GPT-2, 3% of 1e21", laws=40, designs=("planned", "even"))
    widths = {name: np.array([score.width for score in scores]) for name, scores in found.items()}
    assert np.median(widths["even"] / widths["planned"]) >= 1.3
    assert np.mean([score.covers for score in found["planned"]]) >= 0.8
    assert np.mean([score.loss_covers for score in found["planned"]]) >= 0.8
