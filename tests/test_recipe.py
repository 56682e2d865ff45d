"""The recipe of a plan: sizes, steps and tokens agree with each other, and with the budget."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.ladder import recipe_of
from isoflop.laws import published


@pytest.mark.parametrize(("N", "flops"), [(2.9e8, 1e19), (2.9e9, 1e21), (9.1e9, 1e22), (7e10, 6e23)])
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_a_recipe_spends_the_budget_on_a_real_configuration(N: float, flops: float, model: str) -> None:
    found = recipe_of(N, flops, model=model)
    assert found is not None
    assert abs(math.log(found.N / N)) < 0.1 and found.total == found.shape.parameters["total"], "a table of its own too"
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
    assert sparse.N == dense.N and sparse.total == pytest.approx(dense.total + 7 * mlp)
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


def plan(*asked: str, columns: int = 80) -> tuple[str, dict[str, Any]]:
    """The recipe as people see it, and the object."""
    done = CliRunner().invoke(app, ["plan", *asked], env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, done.output
    recipe = done.stdout.split("\n\n")[0]
    assert len(recipe.splitlines()) <= 12, recipe
    return " ".join(recipe.split()), json.loads(CliRunner().invoke(app, ["plan", *asked, "--json"]).stdout)


PRICED = ("--devices", "64xH100", "--price", "3")
HOUR = 64 * 3600 * 989.4e12 * 0.4
"""FLOPs of the devices above."""


def test_serving_counts_neither_as_hours_nor_against_the_deadline() -> None:
    load = ("--flops", "1e22", "--inference-tokens", "2T", *PRICED)
    shown, free = plan(*load)
    _, loose = plan(*load, "--max-hours", "48")
    assert loose["N"] == free["N"] and loose["D"] == free["D"], "it trains in less"
    assert free["gpu_hours"] == pytest.approx(64 * free["flops"] / HOUR)
    assert free["inference_gpu_hours"] == pytest.approx(64 * free["inference_flops"] / HOUR)
    recipe = recipe_of(free["N"], 1e22, served=2e12)
    assert recipe is not None and recipe.flops + recipe.serving_flops == pytest.approx(1e22)
    assert recipe.serving_flops == pytest.approx(recipe.shape.flops_per_token / 3 * 2e12)
    assert f"cost {recipe.flops / HOUR:.1f} hours on 64 × NVIDIA H100 SXM" in shown
    assert f"${192 * recipe.flops / HOUR:,.0f} serving 2T tokens: " in shown

    shown, tight = plan(*load, "--max-hours", "30h")
    assert tight["flops"] == pytest.approx(30 * HOUR) and tight["flops"] + tight["inference_flops"] <= 1e22 * (1 + 1e-9)
    assert free["L"] < tight["L"] < free["L"] + 0.03 and tight["N"] > free["N"], "all of the budget serves"
    assert "--max-hours limit training" in shown and any("--max-hours limit" in text for text in tight["warnings"])

    _, alone = plan("--inference-tokens", "2T", *PRICED, "--max-hours", "30")
    assert alone["flops"] == pytest.approx(30 * HOUR, rel=0.05) and alone["inference_flops"] > 0
    assert not any("--max-hours" in text for text in alone["warnings"])


@pytest.mark.parametrize("load", ["30T", "2000T"])
def test_a_size_outside_of_the_laws_interval_is_not_printed_inside_it(load: str) -> None:
    shown, found = plan("--flops", "1e22", "--inference-tokens", load)
    low, high = found["intervals"]["N"]
    assert not low <= found["recipe"]["N"] <= high
    assert f"(without attention {'148M [142M, 153M]' if load == '30T' else '2.47M ['}" in shown
    assert "tokens per parameter: no published sweep supports a law beyond 5 to 200" in shown
    assert ("the load does not fit the budget: serving takes 99%" in shown) == (load == "2000T")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (
            ("--unique-tokens", "100M"),
            "doubt data, not compute, are the limit: 100M unique tokens are read 18.2k times",
        ),
        (("--tokens", "500B", "--unique-tokens", "20B"), "doubt data, not compute, are the limit: 20B unique tokens"),
        (("--tokens", "5B"), "doubt 5B tokens are few for the budget: loss 2.454; its optimum, 9.13B"),
        (("--tokens", "1T"), "doubt 1T tokens are many for the budget"),
        (("--devices", "T4"), "years on 1 × NVIDIA T4"),
    ],
)
def test_what_speaks_against_a_recipe_stands_first(asked: tuple[str, ...], says: str) -> None:
    shown, found = plan("--flops", "1e22", *asked)
    assert says in shown and shown.startswith("doubt ")
    assert any(says.removeprefix("doubt ") in text for text in found["warnings"])
    assert "unknown: tokens repeat" in shown if "--unique-tokens" in asked else "loss unknown" not in shown


def test_plain_questions_are_not_doubted() -> None:
    for asked in (("--flops", "1e22"), ("--flops", "1e22", "--unique-tokens", "60B"), ("--flops", "1e20", *PRICED)):
        assert plan(*asked)[0].startswith("model "), asked


def test_plan_and_compare_price_a_model_alike() -> None:
    _, found = plan("--flops", "1e22", *PRICED)
    N, D = found["recipe"]["N"], found["recipe"]["D"]
    done = CliRunner().invoke(app, ["compare", f"{N:.10g}:{D:.10g}", "--gpu", "h100", "--price", "3", "--json"])
    assert json.loads(done.stdout)["options"][0]["usd"] == pytest.approx(found["usd"], rel=1e-6)


@pytest.mark.parametrize(("text", "hours"), [("36", 36), ("21d", 504), ("3w", 504), ("48h", 48), ("1.5d", 36)])
def test_deadlines_in_days_and_weeks(text: str, hours: float) -> None:
    _, found = plan(*PRICED, "--max-hours", text)
    assert found["flops"] == pytest.approx(hours * HOUR)


def test_devices_as_people_write_them() -> None:
    wanted = plan("--flops", "1e22", "--devices", "64xH100")[0]
    for text in ("64 H100", "H100x64", "64 x h100"):
        assert plan("--flops", "1e22", "--devices", text)[0] == wanted
    for text, says in (("64xA100-foo", "did you mean 'A100'"), ("x100", "--devices: no datasheet")):
        assert says in CliRunner().invoke(app, ["plan", "--flops", "1e22", "--devices", text]).stderr
    assert "add --experts" in CliRunner().invoke(app, ["plan", "--flops", "1e22", "--top-k", "8"]).stderr


def test_runs_that_compute_more_than_their_size_shows_keep_to_the_budget(tmp_path: Path) -> None:
    ratios = itertools.product([1e7, 3e7, 1e8], [5, 20, 80])
    lines = []
    for N, ratio in ratios:
        loss = 1.85 + 225 / N**0.34 + 320 / (N * ratio) ** 0.29
        lines.append(f"{N},{N * ratio},{9 * N * N * ratio},{loss:.4f}")
    path = tmp_path / "gated.csv"
    path.write_text("\n".join(["N,D,C,loss", *lines]))
    asked = ["plan", "--runs", str(path), "--flops", "1e19"]
    found = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    recipe = found["recipe"]
    assert 9 * recipe["N"] * recipe["D"] == pytest.approx(1e19, rel=1e-6)
    assert recipe["L"] >= found["L"] - 0.002  # no better than the law's own optimum
    assert "at the 9 FLOPs per parameter and token of your runs" in " ".join(
        CliRunner().invoke(app, asked).stdout.split()
    )


OF_HOURS = ("--devices", "64xH100", "--max-hours", "3w")


@pytest.mark.parametrize("more", [(), ("--unique-tokens", "200B")])
def test_under_a_deadline_each_law_has_its_own_optimum_with_the_load(more: tuple[str, ...]) -> None:
    load = ("--inference-tokens", "2T", *more)
    _, found = plan(*OF_HOURS, *load, columns=160)
    assert found["flops"] == pytest.approx(504 * HOUR)
    low, high = found["intervals"]["N"]
    assert low < found["N"] / 1.15 and 1.15 * found["N"] < high, "the prior's doubt, not the end of a limit"
    sizes = [row["N"] for row in found["alternatives"]]
    assert len({f"{N:.3g}" for N in sizes}) >= len(sizes) - 2
    for law in ("besiroglu2024", "kaplan2020-allocation"):
        _, own = plan(*OF_HOURS, *load, "--law", law, columns=160)
        assert own["flops"] == pytest.approx(504 * HOUR), "each law trains for all of it"
        total = own["flops"] + own["inference_flops"]
        if law == "besiroglu2024":  # whose optimum of that total it is
            _, same = plan("--flops", repr(total), *load, "--law", law, columns=160)
            assert (own["N"], own["D"]) == pytest.approx((same["N"], same["D"]), rel=1e-3)
    shown, _ = plan(*OF_HOURS)
    assert "note: training takes" not in shown
    whole = CliRunner().invoke(app, ["plan", *OF_HOURS, *load], env={"COLUMNS": "200"}).stdout
    assert "N and D are those whose loss no others reach with fewer FLOPs, training and serving together" in whole


@pytest.mark.parametrize("load", ["100B", "2T", "20T"])
def test_a_load_leaves_nothing_of_the_deadline_unused(load: str) -> None:
    shown, found = plan(*OF_HOURS, "--inference-tokens", load, columns=160)
    assert found["gpu_hours"] == pytest.approx(64 * 504) and "cost 504 hours on 64" in shown
    recipe = recipe_of(found["N"], math.inf, served=1e12, training=504 * HOUR)
    assert recipe is not None and recipe.flops == pytest.approx(504 * HOUR)
    assert found["recipe"]["D"] == pytest.approx(recipe.tokens)


@pytest.mark.parametrize("more", [(), ("--inference-tokens", "2T"), ("--flops", "5e22")])
@pytest.mark.parametrize("tokens", ["300B", "3T", "30T"])
def test_fixed_tokens_keep_to_the_deadline(tokens: str, more: tuple[str, ...]) -> None:
    shown, found = plan(*OF_HOURS, "--tokens", tokens, *more, columns=160)
    hours = float(shown.split("cost ")[1].split()[0])
    assert 400 < hours <= 504 and found["recipe"]["D"] == found["D"]


def test_a_deadline_that_no_size_keeps_is_doubted() -> None:
    shown, found = plan("--devices", "8xH100", "--max-hours", "6", "--tokens", "300B", "--seq", "600000", columns=160)
    late = found["warnings"][0]
    assert shown.startswith("doubt ") and late.startswith("training takes ") and late.endswith("of the 6 hours")
