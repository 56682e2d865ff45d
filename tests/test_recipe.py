"""The recipe of a plan: sizes, steps and tokens agree with each other, and with the budget."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.ladder.recipe import recipe_of
from isoflop.laws.papers import published


@pytest.mark.parametrize(("N", "flops"), [(2.9e8, 1e19), (2.9e9, 1e21), (9.1e9, 1e22), (7e10, 6e23)])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_recipe_spends_the_budget_on_a_real_configuration(N: float, flops: float, model: str) -> None:
    found = recipe_of(N, flops, model=model)
    assert found is not None
    assert abs(math.log(found.N / N)) < 0.1 and found.total == found.N
    assert found.shape.flops_per_token * found.tokens == pytest.approx(flops)
    assert found.batch * found.steps == pytest.approx(found.tokens, rel=1e-3)
    assert 0 < found.warmup < 0.11 * found.steps
    assert found.rate_range[0] <= found.rate <= found.rate_range[1]
    assert found.batch_range[0] * 0.9 <= found.batch <= found.batch_range[1] * 1.1
    assert found.timescale == pytest.approx(found.batch / (found.rate * found.weight_decay * found.tokens), rel=1e-3)


def test_the_batch_is_continuous_where_rules_end() -> None:
    found = [recipe_of(math.sqrt(C / 120), C) for C in 1e19 * 1.15 ** np.arange(90)]
    batches = np.log([each.batch for each in found if each is not None])
    assert len(batches) == 90 and np.diff(batches).max() < 0.15 and np.diff(batches).min() > -0.15
    assert 1e6 < np.exp(np.interp(math.log(349e9), np.log([each.tokens for each in found if each]), batches)) < 3.2e6


def test_experts_add_parameters_that_are_not_active() -> None:
    dense, sparse = recipe_of(2.9e9, 1e21), recipe_of(2.9e9, 1e21, experts=64, top_k=8)
    assert dense is not None and sparse is not None
    mlp = 3 * dense.shape.width * dense.shape.mlp_width * dense.shape.depth
    assert sparse.N == dense.N and sparse.total == pytest.approx(dense.N + 7 * mlp)
    with pytest.raises(ValueError, match="--top-k: expected 1 to 4"):
        recipe_of(2.9e9, 1e21, experts=4, top_k=8)
    with pytest.raises(ValueError, match="--optimizer: expected adamw or muon"):
        recipe_of(2.9e9, 1e21, optimizer="sgd")


def test_one_command_says_what_to_train_in_twelve_lines() -> None:
    asked = [
        "plan",
        "--flops",
        "1e22",
        "--devices",
        "64xH100",
        "--mfu",
        "0.4",
        "--price",
        "2.5",
        "--unique-tokens",
        "500B",
    ]
    done = CliRunner().invoke(app, asked, env={"COLUMNS": "100"})
    recipe = done.stdout.split("\n\n")[0].splitlines()
    assert len(recipe) <= 12
    for word in (
        "model",
        "size",
        "data",
        "batch",
        "rate",
        "steps",
        "decay",
        "loss",
        "cost",
        "$17,5",
        "110 hours on 64",
    ):
        assert any(word in line for line in recipe), word
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)["recipe"]
    assert found["D"] < 500e9 and found["steps"] > 10_000


def test_hours_are_the_budget_or_limit_it() -> None:
    def flops(*asked: str) -> float:
        done = CliRunner().invoke(app, ["plan", *asked, "--json"])
        assert done.exit_code == 0, done.output
        return float(json.loads(done.stdout)["flops"])

    hours = ("--max-hours", "100", "--devices", "64xh100", "--mfu", "0.4")
    allowed = 100 * 64 * 3600 * 989.4e12 * 0.4
    assert flops(*hours) == pytest.approx(allowed)
    assert flops(*hours, "--flops", "1e23") == pytest.approx(allowed)
    assert flops(*hours, "--flops", "1e20") == pytest.approx(1e20)
    done = CliRunner().invoke(app, ["plan", "--max-hours", "5"])
    assert done.exit_code == 1 and "--max-hours needs --devices" in done.stderr


@pytest.mark.parametrize(
    "asked", [["--law", "chinchilla-refit"], [], ["--law", "muennighoff2023", "--unique-tokens", "9B"]]
)
def test_the_loss_is_that_of_the_size_and_data_printed_with_it(asked: list[str]) -> None:
    plan = ["plan", "--flops", "1e21", *asked]
    found = json.loads(CliRunner().invoke(app, [*plan, "--json"]).stdout)
    recipe = found["recipe"]
    law = published(asked[1] if asked else "chinchilla-refit").law
    shape = recipe_of(found["N"], 1e21, convention=found["n_convention"])
    assert law is not None and shape is not None and recipe["N"] == shape.N
    N, D = float(shape.counted), recipe["D"]
    assert recipe["L"] == pytest.approx(float(law.loss(N=N, D=D, U=min(D, 9e9) if len(asked) > 2 else D)), abs=1e-6)
    assert recipe["L"] > found["L"]  # attention takes a tenth of the budget
    first = CliRunner().invoke(app, plan, env={"COLUMNS": "100"}).stdout.split("\n\n")[0]
    assert f"loss    {recipe['L']:.3f}" in first and f"{recipe['D'] / 1e9:.3g}B tokens" in first


@pytest.mark.parametrize("convention", ["total", "non_embedding", "non_embedding_with_head"])
@pytest.mark.parametrize("N", [5e6, 2e8, 7e10])
def test_a_recipe_has_the_size_that_the_laws_n_counts(N: float, convention: str) -> None:
    found = recipe_of(N, 120 * N * N, convention=convention)  # type: ignore[arg-type]
    assert found is not None
    assert found.counted == found.shape.parameters[convention]
    assert abs(math.log(found.counted / N)) < 0.2


def test_a_size_that_a_family_does_not_have_is_told() -> None:
    done = CliRunner().invoke(app, ["plan", "--flops", "1e15", "--law", "kaplan2020-allocation", "--tokens", "1e13"])
    assert done.exit_code == 0 and "no recipe: llama has no configuration of about 16.7 parameters" in done.stderr
