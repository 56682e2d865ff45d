"""The design of a ladder: within its bounds, the best there, and warned of where it can't be good."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isoflop.cli.ladder import print_plan
from isoflop.ladder import LadderPlan, family_of, plan_ladder
from isoflop.ladder.design import Rung, best_design, even_grid, worth_of
from isoflop.ladder.planning import ladder_problem
from ladders import record_ladder, record_run

BYTES = {"vocab_size": 256, "sequence_length": 128, "sizes": (2e4, 1e6)}
PLANS = {
    "GPT-2": {"flops": 1e21, "spend": 3e19},
    "Llama": {"flops": 1e23, "spend": 1e21, "model": "llama"},
    "bytes": {"flops": 2e13, "spend": 8e12, **BYTES},
    "branches": {"flops": 1e21, "spend": 3e19, "branches": True},
    "own bounds": {
        "flops": 1e21, "spend": 3e19, "max_sizes": 6, "tokens_per_param": (8, 100), "min_steps": 5000,
        "max_flops_per_run": 3e18, "max_runs": 12, "min_runs": 9,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def large() -> LadderPlan:
    return plan_ladder(1e21, 3e19)


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_stays_within_its_bounds(name: str):
    given = PLANS[name]
    plan = plan_ladder(**given)
    assert (0.9 if "max_flops_per_run" not in given else 0.3) * given["spend"] <= plan.flops <= 1.02 * given["spend"]
    assert given.get("min_runs", 12) <= len(plan.runs) <= given.get("max_runs", 16)
    assert len({run.parameters["total"] for run in plan.runs}) <= given.get("max_sizes", 8)
    rungs = Counter(run.rung for run in plan.runs)
    assert len(rungs) >= 3 and min(rungs.values()) >= 3 and len(plan.runs) - rungs[max(rungs)] >= 6
    low, high = given.get("tokens_per_param", (5, 200))
    for run in plan.runs:
        assert low * 0.98 <= run.tokens / run.parameters["non_embedding_with_head"] <= high * 1.02
        assert run.steps - run.warmup_steps >= 0.99 * given.get("min_steps", 2000)
        assert run.tokens == run.steps * run.batch_tokens and run.batch_tokens % plan.sequence_length == 0
        assert (
            0 < run.warmup_steps < run.steps
            and run.config["hf"]["n_embd" if plan.family == "gpt2" else "hidden_size"] == run.config["width"]
        )
        assert run.flops <= 1.02 * given.get("max_flops_per_run", np.inf)
    for rung in rungs:
        flops = [run.flops for run in plan.runs if run.rung == rung]
        assert max(flops) < 1.05 * min(flops)


def test_batches_are_the_rules_and_within_its_range(large: LadderPlan):
    for run in large.runs:
        assert 2e9 / 3 <= run.tokens <= 3e11
        assert 0.7 < run.batch_tokens / (0.58 * run.tokens**0.571) < 1.4
    assert not any("was fitted to" in text for text in large.warnings)


def test_branches_share_the_steps_before_their_decay(large: LadderPlan, capsys: pytest.CaptureFixture[str]):
    plan = plan_ladder(1e21, 3e19, branches=True)
    longest = {run.name: run for run in plan.runs if run.branch_of is None}
    branched = [run for run in plan.runs if run.branch_of is not None]
    assert branched and len(longest) == len({run.parameters["total"] for run in plan.runs})
    for run in branched:
        trunk = longest[run.branch_of]
        assert (run.batch_tokens, run.learning_rate) == (trunk.batch_tokens, trunk.learning_rate)
        assert run.first_step <= trunk.steps - trunk.decay_steps
    assert plan.flops < 0.95 * sum(run.flops for run in plan.runs)
    assert max(run.flops for run in plan.runs) > max(run.flops for run in large.runs)  # what they save goes into size
    print_plan(plan)
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{run.steps:,} " in shown and f" {run.first_step:,} " in shown for run in branched)
    assert f"{plan.flops:.3g} FLOPs in all, {sum(run.flops for run in plan.runs):.3g} one by one" in shown


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_no_other_ladder_within_the_bounds_is_better(model: str):
    """Even grids, and the design itself with a size exchanged."""
    problem = ladder_problem(family_of(model), 1e22, 3e20)
    design = best_design(problem)
    score = worth_of(problem, design).score
    count = sum(len(rung.sizes) for rung in design)
    for ratio in (2.0, 3.0, 6.0, 10.0):
        for width in (0.4, 0.7, 1.0):
            even = even_grid(problem, count, ratio=ratio, width=width)
            assert even is None or worth_of(problem, even).score > score - 0.01
    rng = np.random.default_rng(0)
    for _ in range(60):
        k = int(rng.integers(len(design)))
        i = int(rng.integers(len(design[k].sizes)))
        other = rng.choice(np.array([size for rung in design for size in rung.sizes], dtype=object))
        D = design[k].budget / other.flops_per_token
        if other in design[k].sizes or not 5 <= D / other.N <= 200:
            continue
        sizes = tuple(other if j == i else size for j, size in enumerate(design[k].sizes))
        changed = [*design[:k], Rung(design[k].budget, sizes), *design[k + 1 :]]
        logs = np.sort(np.log([size.N / problem.middle(design[k].budget) for size in sizes]))
        if logs[0] < -0.14 and logs[-1] > 0.14 and np.diff(logs).min() > 0.23:
            assert worth_of(problem, changed).score > score - 0.01


def test_the_even_grid_has_as_many_runs_and_costs_as_much():
    problem = ladder_problem(family_of("gpt2"), 1e21, 3e19)
    even = even_grid(problem, 15)
    assert even is not None
    assert sum(len(rung.sizes) for rung in even) == 15
    assert problem.cost(even) == pytest.approx(3e19)
    shared = replace(problem, branches=True).cost(even)
    assert shared < 3e19


def test_it_expects_more_than_of_an_even_grid(large: LadderPlan):
    size, loss = large.expected["N_opt"], large.expected["loss_relative"]
    assert size.even_high is not None and size.high < size.even_high
    assert size.low < size.estimate < size.high
    assert 1 < loss.high < 1.2


def test_tiny_byte_models_are_warned_of():
    plan = plan_ladder(2e13, 8e12, **BYTES)
    assert all(2e4 <= run.parameters["non_embedding_with_head"] <= 1e6 for run in plan.runs)
    said = " ".join(plan.warnings)
    assert "published exponents" in said and "the batch's rule 'steplaw' was fitted to" in said


def test_fewer_runs_where_twelve_do_not_fit():
    assert len(plan_ladder(1e21, 3e19, max_runs=9).runs) == 9
    assert 9 <= len(plan_ladder(1e19, 3e17).runs) < 12


def test_data_limits():
    plan = plan_ladder(1e21, 3e19, unique_tokens=2e9)
    assert max(run.tokens for run in plan.runs) <= 4.1 * 2e9
    said = " ".join(plan.warnings)
    assert "repeat" in said and "the target wants about" in said


def test_more_spend_tells_more():
    little, much = (plan_ladder(1e21, spend).expected["N_opt"] for spend in (3e18, 1e20))
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
    with pytest.raises(ValueError, match=r"--history: expected finished runs, got none .*it ended at step [0-9,]+ of"):
        plan_ladder(1e21, 3e19, history=[tmp_path])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"flops": -1.0}, "--flops: expected a positive number"),
        ({"spend": 1e21}, "--spend: expected less than the target's"),
        ({"min_runs": 4}, "--min-runs and --max-runs: expected 9"),
        ({"max_sizes": 2}, "--max-sizes: expected 4 or more, got 2"),
        ({"min_steps": 0}, "--min-steps: expected 1 or more"),
        ({"tokens_per_param": (30, 300)}, "--tokens-per-param: expected at most 10 and at least 40"),
        ({"sizes": (1e9, 1.01e9)}, "--sizes: . configurations of gpt2"),
        ({"sizes": (1e9, 1e8)}, "--sizes: expected the least and the most"),
        ({"unique_tokens": 1e5}, "no ladder of 9 to 16 runs .*: --unique-tokens binds: widen it"),
        ({"min_steps": 10**8}, "lies within the bounds: --min-steps binds"),
        ({"sizes": (1e9, 1e11)}, "lies within the bounds: .*--sizes binds"),
        ({"max_flops_per_run": 1e15}, "lies within the bounds: --max-flops-per-run binds"),
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
    assert np.median(widths["even"] / widths["planned"]) >= 1.0
    assert np.mean([score.covers for score in found["planned"]]) >= 0.85
    assert np.mean([score.loss_covers for score in found["planned"]]) >= 0.85


@pytest.mark.slow
def test_worlds_that_the_law_does_not_describe_are_told():
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    from ladder_misfits import compare

    found = compare("GPT-2, 3% of 1e21", 20, ("plain", "beta moves", "E near 0"))
    told = {kind: np.mean([score.misfit for score in scores]) for kind, scores in found.items()}
    assert told["plain"] <= 0.2 and told["beta moves"] >= 0.8 and told["E near 0"] >= 0.8
