"""A ladder's plan as YAML: what is written is read; what is wrong is named with its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from msgspec.structs import replace

import ladder_trainers
from isoflop.ladder import ExpectedInterval, LadderPlan, PlanError, PlannedRun, read_plan, write_plan

COUNTS = {"total": 110, "non_embedding": 50, "non_embedding_with_head": 75}


def planned(name: str = "a", **changes: Any) -> PlannedRun:
    given: dict[str, Any] = {
        "name": name,
        "rung": 0,
        "config": {"depth": 2, "width": 64, "heads": 1, "hf": {"model_type": "gpt2"}},
        "parameters": COUNTS,
        "tokens": 6400,
        "batch_tokens": 64,
        "steps": 100,
        "warmup_steps": 10,
        "learning_rate": 1e-3,
        "flops": 1e9,
    }
    return PlannedRun(**(given | changes))


def a_plan(*runs: PlannedRun) -> LadderPlan:
    return replace(
        ladder_trainers.a_plan(),
        target_flops=1e21,
        runs=runs or (planned(), planned("b")),
        expected={"N_opt": ExpectedInterval(estimate=1e5, low=5e4, high=2e5, even_low=1e4, even_high=1e6)},
        rules={"batch": "B = 0.58·D^0.571"},
        warnings=("models below 10M",),
        unique_tokens=1e9,
    )


def test_what_is_written_is_read(tmp_path: Path):
    plan = a_plan()
    write_plan(plan, tmp_path / "plan.yaml")
    assert read_plan(tmp_path / "plan.yaml") == plan
    assert plan.flops == 2e9


def test_a_run_as_a_trainer_gets_it_is_plain():
    run = planned().as_dict()
    assert yaml.safe_load(yaml.safe_dump(run)) == run
    assert run["config"]["hf"]["model_type"] == "gpt2"


def test_numbers_as_people_write_them(tmp_path: Path):
    text = yaml.safe_dump(a_plan().as_dict()).replace("target_flops: 1.0e+21", "target_flops: 1e21")
    assert "1e21" in text  # which YAML 1.1 reads as a text
    (tmp_path / "plan.yaml").write_text(text)
    assert read_plan(tmp_path / "plan.yaml").target_flops == 1e21


WRONG: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda p: p.update(version=2), "version: expected 1, got 2"),
    (lambda p: p.pop("family"), "the plan: object missing required field `family`"),
    (lambda p: p.update(colour="red"), "the plan: object contains unknown field `colour`"),
    (lambda p: p.update(runs=[]), "runs: expected at least one run"),
    (lambda p: p.update(level=90), "level: expected a probability between 0 and 1, got float 90"),
    (lambda p: p.update(convention="all"), "convention: expected one of non_embedding_with_head"),
    (lambda p: p.update(spend_flops=-1), "spend_flops: expected `float` > 0.0"),
    (lambda p: p["runs"][1].update(steps="many"), r"runs\[1\].steps: expected `int`, got `str`"),
    (lambda p: p["runs"][1].update(steps=99.5), r"runs\[1\].steps: expected `int`, got `float`"),
    (
        lambda p: p["runs"][1].update(tokens=7),
        "tokens: expected steps · batch_tokens = 6400, got int 7: change them together",
    ),
    (lambda p: p["runs"][1].update(name="../b"), r"runs\[1\].name: expected letters"),
    (lambda p: p["runs"][1].update(name="a"), "got 'a' more than once"),
    (lambda p: p["runs"][0]["parameters"].pop("total"), r"runs\[0\].parameters.total: missing"),
    (lambda p: p["runs"][0].update(learning_rate=True), r"runs\[0\].learning_rate: expected `float`, got `bool`"),
    (lambda p: p["runs"][0].update(warmup_steps=100), r"runs\[0\].warmup_steps: expected fewer than the 100 steps"),
    (lambda p: p["expected"]["N_opt"].update(low=float("nan")), r"expected\[...\].low: expected `float` > 0.0"),
]


@pytest.mark.parametrize(("spoil", "said"), WRONG)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], said: str):
    values = a_plan().as_dict()
    spoil(values)
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(PlanError, match=said):
        read_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize("text", ["runs: [", "- 1\n- 2", "", "just text", "[" * 100_000, "a: 2026-99-99"])
def test_a_file_that_is_no_plan(tmp_path: Path, text: str):
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(PlanError, match=r"plan\.yaml: .*expected"):
        read_plan(tmp_path / "plan.yaml")
