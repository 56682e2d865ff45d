"""The design of a ladder: within its limits, better than an even grid, and warned of where it can't be good."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from isoflop.ladder import LadderPlan, plan_ladder
from isoflop.ladder.design import even_grid, worth_of
from isoflop.ladder.planning import ladder_problem
from isoflop.ladder.sizes import family_of
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


@pytest.mark.slow
def test_planned_ladders_against_even_grids_on_laws_that_no_fit_knows():
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from ladder import compare

    found = compare("GPT-2, 3% of 1e21", laws=40, designs=("planned", "even"))
    widths = {name: np.array([score.width for score in scores]) for name, scores in found.items()}
    assert np.median(widths["even"] / widths["planned"]) >= 1.3
    assert np.mean([score.covers for score in found["planned"]]) >= 0.8
    assert np.mean([score.loss_covers for score in found["planned"]]) >= 0.8
