"""`isoflop ladder plan` and `fit` from records to answer, as their users meet them."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isoflop import plan as answer
from isoflop.cli import app
from isoflop.fit.trust import LeftOut, Predicted, Verdict
from isoflop.ladder import LadderFit, LadderPlan, fit_ladder_runs, plan_ladder, read_plan, write_plan
from isoflop.ladder.fit import Doubt
from isoflop.laws import HOFFMANN, Law, optimal_allocation
from ladders import LAW, planted_loss, record_ladder, record_run

FIT_KEYS = {
    "target_flops", "level", "N_opt", "D_opt", "tokens_per_param", "batch", "loss", "exponents", "noise", "approaches",
    "conclusion", "without_opinion", "described", "leave_largest_out", "one_more_rung", "loss_name", "runs", "left_out",
    "missing", "warnings",
}  # fmt: skip


@pytest.fixture(scope="module")
def plan() -> LadderPlan:
    return plan_ladder(1e21, 3e19)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, plan: LadderPlan) -> Path:
    made = tmp_path_factory.mktemp("ladder")
    record_ladder(made, plan)
    write_plan(plan, made / "plan.yaml")
    return made


@pytest.fixture(scope="module")
def fitted(folder: Path, plan: LadderPlan) -> LadderFit:
    return fit_ladder_runs([folder], plan=plan)


def isoflop(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_planted_optimum_is_inside(fitted: LadderFit):
    truth = optimal_allocation(Law(HOFFMANN, LAW), 1e21)
    assert fitted.N_opt.low < truth.N < fitted.N_opt.high
    assert fitted.loss.low < planted_loss(fitted.N_opt.value, fitted.D_opt.value) < fitted.loss.high
    assert fitted.exponents["alpha"].low < LAW["alpha"] < fitted.exponents["alpha"].high
    assert fitted.batch.low < fitted.batch.value < fitted.batch.high
    assert fitted.finished.loss_name == "eval/val"
    at = fitted.loss_of(1e9, 1e11)
    assert at.low < planted_loss(1e9, 1e11) < at.high


def test_the_largest_rung_is_predicted(fitted: LadderFit, plan: LadderPlan):
    check = fitted.check.left_out
    assert fitted.check.well and isinstance(check, LeftOut) and check.passed and check.inside >= 2
    top = max(run.rung for run in plan.runs)
    assert {run.name for run in check.runs} == {run.name for run in plan.runs if run.rung == top}


def kaplan(N: float, D: float) -> float:
    """Kaplan et al. 2020, eq. 1.5: no irreducible loss."""
    return ((6.4e13 / N) ** (0.076 / 0.103) + 1.8e13 / D) ** 0.103


def moving(N: float, D: float) -> float:
    """β that grows with N."""
    return planted_loss(N, math.inf) + LAW["B"] * 1e9 ** -LAW["beta"] * (D / 1e9) ** -(0.33 + 0.05 * math.log(N / 1e8))


@pytest.mark.parametrize(("law", "noise"), [(kaplan, 0.002), (moving, 0.002), (planted_loss, 0.02)])
def test_runs_that_the_law_does_not_describe_are_told(
    tmp_path: Path, plan: LadderPlan, law: Callable[[float, float], float], noise: float
):
    record_ladder(tmp_path, plan, noise=noise, law=law)
    fitted = fit_ladder_runs([tmp_path], plan=plan)
    assert not fitted.check.well
    assert str(fitted.warnings[0]).startswith("the law does not describe these runs")
    assert fitted.as_dict()["described"]["well"] is False


def test_approaches_stand_side_by_side(fitted: LadderFit):
    compared = fitted.approaches
    without = compared.without
    names = [row.name for row in compared.rows]
    assert names[0].startswith("ladder") and any(name.startswith("approach 3") for name in names)
    assert len(names) + len(without) == 5


def test_one_quantity_has_one_interval_and_what_is_known_without_runs_stands_beside_it(fitted: LadderFit):
    own, *_, known = fitted.approaches.rows
    assert own.N_interval == (fitted.N_opt.low, fitted.N_opt.high)
    assert own.D_interval == (fitted.D_opt.low, fitted.D_opt.high)
    without = answer(fitted.target_flops, level=fitted.level)
    assert known.name.startswith("no run") and without.intervals is not None
    (low, high), (known_low, known_high) = known.N_interval or (0, 0), without.intervals["N"]
    assert high / low == pytest.approx(known_high / known_low, rel=0.01)  # the ladder's small models have attention


@pytest.mark.parametrize(("law", "said"), [(planted_loss, "train the target"), (moving, "do not size the target")])
def test_the_conclusion_contradicts_no_warning(
    tmp_path: Path, plan: LadderPlan, law: Callable[[float, float], float], said: str
):
    record_ladder(tmp_path, plan, law=law)
    fitted = fit_ladder_runs([tmp_path], plan=plan)
    assert fitted.conclusion.startswith(said)
    assert fitted.check.well == (said == "train the target")
    _, told, _ = isoflop("ladder", "fit", tmp_path, "--flops", "1e21")
    assert ("train the target" in told) == fitted.check.well


def test_a_notebook_shows_the_answers_and_the_warnings(fitted: LadderFit):
    shown = fitted._repr_html_()
    assert shown.startswith("<pre>at 1e+21 FLOPs, ") and "tokens per parameter" in shown
    assert all(str(warning) in str(fitted) for warning in fitted.warnings)


def test_what_a_rung_is_worth_adds_up(fitted: LadderFit):
    rung = fitted.rung
    assert rung is not None
    assert 0 < rung.waste_flops_after < rung.waste_flops < 0.2 * 1e21
    assert rung.cost_flops == pytest.approx(len(rung.sizes) * rung.budget)
    assert rung.go == (rung.saved_flops > rung.cost_flops)


def test_a_far_target_makes_a_rung_worth_its_cost(folder: Path, plan: LadderPlan):
    far = fit_ladder_runs([folder], plan=plan, target_flops=1e25)
    assert far.rung is not None and far.rung.go
    (warning,) = [each for each in far.warnings if each.doubt is Doubt.FAR]
    assert warning.numbers["reach"] == pytest.approx(1e25 / max(run.flops for run in plan.runs), rel=0.01)
    assert f"{warning.numbers['reach']:,.0f} times the largest run" in str(warning)


def test_runs_that_do_not_count_are_named(tmp_path: Path, plan: LadderPlan):
    for i, run in enumerate(plan.runs[:-1]):
        record_run(tmp_path, run, share=0.5 if i == 0 else 1.0)
    found = fit_ladder_runs([tmp_path], plan=plan)
    assert len(found.finished.runs) == len(plan.runs) - 2
    (left_out,) = found.finished.left_out
    assert re.fullmatch(rf"{plan.runs[0].name}: it ended at step [0-9,]+ of [0-9,]+ planned", left_out)
    assert set(found.finished.missing) == {plan.runs[0].name, plan.runs[-1].name}


def test_a_table_is_sent_to_the_commands_that_take_one(tmp_path: Path):
    code, _, said = isoflop("ladder", "fit", tmp_path / "runs.csv", "--flops", "1e21")
    assert code == 1 and "runs.csv): `isoflop fit` and `plan --runs` take tables" in " ".join(said.split())


def test_records_at_a_url(plan: LadderPlan):
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    with tempfile.TemporaryDirectory() as folder:
        record_ladder(Path(folder), plan)
        store.put(folder, "/ladders/mine", recursive=True)
    found = fit_ladder_runs(["memory://ladders/mine"], plan=plan)
    assert len(found.finished.runs) == len(plan.runs) and not found.finished.missing
    with pytest.raises(ValueError, match="Expected a URL that fsspec can open, got nonsense://x"):
        fit_ladder_runs(["nonsense://x"], plan=plan)
    with pytest.raises(ValueError, match=r"got 0 of 0\n.*no such folder: memory://nowhere"):
        fit_ladder_runs(["memory://nowhere"], plan=plan)


@pytest.mark.parametrize(("doubt", "ratios"), [(Doubt.OPTIMUM_ABOVE, (25, 1e9)), (Doubt.OPTIMUM_BELOW, (0, 12))])
def test_an_optimum_that_the_runs_do_not_enclose_is_told(
    tmp_path: Path, plan: LadderPlan, fitted: LadderFit, doubt: Doubt, ratios: tuple[float, float]
):
    assert doubt not in [warning.doubt for warning in fitted.warnings]
    for run in plan_ladder(1e21, 3e19, tokens_per_param=(1, 800), min_runs=16).runs:
        if ratios[0] < run.tokens / run.parameters["non_embedding_with_head"] < ratios[1]:
            record_run(tmp_path, run, noise=0.001 * (-1) ** int(run.name[:2]))
    found = fit_ladder_runs([tmp_path], target_flops=1e21)
    (warning,) = [each for each in found.warnings if each.doubt is doubt]
    best, edge = warning.numbers["best"], warning.numbers["edge"]
    assert best >= edge if doubt is Doubt.OPTIMUM_ABOVE else best <= edge


def test_one_run_is_no_verdict():
    run = Predicted("a", 3.0, 2.0, 1.9, 2.1)
    assert LeftOut((run,), 8, 3.0, 0.9, chance=0.1).verdict is Verdict.UNDECIDED
    assert LeftOut((run, run), 8, 3.0, 0.9, chance=0.02).verdict is Verdict.FAILS
    inside = Predicted("b", 2.0, 2.0, 1.9, 2.1)
    assert LeftOut((inside,), 8, 3.0, 0.9, chance=1.0).verdict is Verdict.UNDECIDED
    assert LeftOut((run, inside, inside), 8, 3.0, 0.9, chance=0.2).verdict is Verdict.HOLDS


def test_too_few_runs_say_why(tmp_path: Path, plan: LadderPlan):
    record_run(tmp_path, plan.runs[0], share=0.5)
    with pytest.raises(ValueError, match=r"at least 6 finished runs of 3 sizes, got 0 of 0\n.*it ended at step"):
        fit_ladder_runs([tmp_path], plan=plan)


def test_a_loss_that_there_is_not(folder: Path, plan: LadderPlan):
    with pytest.raises(ValueError, match="--loss: expected one of eval/val, train, got 'eval/test'"):
        fit_ladder_runs([folder], plan=plan, loss="eval/test")


def test_a_target_is_needed(folder: Path):
    with pytest.raises(ValueError, match="expected a target"):
        fit_ladder_runs([folder])


# -- from the shell ----------------------------------------------------------------------------------------------------


def test_plan_writes_what_run_reads(tmp_path: Path):
    out = tmp_path / "plan.yaml"
    arguments = ["--flops", "2e13", "--spend", "40%", "--vocab", 256, "--seq", 128, "--sizes", "20k:1M"]
    code, said, _ = isoflop("ladder", "plan", *arguments, "-o", out)
    assert code == 0, said
    assert "an even grid" in said and "before a FLOP is spent" in said
    assert all(len(line) <= 80 for line in said.split("expected at")[0].splitlines()[1:])
    plan = read_plan(out)
    assert plan.flops <= 1.05 * 8e12 and plan.vocab_size == 256
    code, said, _ = isoflop("ladder", "plan", *arguments, "--json")
    assert json.loads(said) == plan.as_dict()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--price", "3"], "--price needs --devices"),
        (["--spend", "600usd"], "needs --devices and --price"),
        (["--spend", "lots"], "--spend: expected a share of --flops"),
        (["--spend", "0.03"], "write 3% for a share"),
        (["--sizes", "30k"], "--sizes: expected LEAST:MOST"),
        (["--sizes", "a:b"], "--sizes: expected a positive number"),
        (["--lr-rule", "best"], "--lr-rule: expected one of auto"),
        (["--history", "nowhere"], "got nowhere, which does not exist"),
    ],
)
def test_plan_says_what_is_wrong(arguments: list[str], said: str):
    code, _, told = isoflop("ladder", "plan", "--flops", "1e21", *arguments)
    assert code == 1
    assert told.startswith("isoflop ladder plan: ") and said in told


def test_a_plan_says_what_it_costs_and_whether_it_buys_a_size():
    arguments = ["ladder", "plan", "--flops", "1e21", "--devices", "8xH100", "--price", "3"]
    _, said, _ = isoflop(*arguments)
    text = " ".join(said.split())
    assert "the ladder buys little or nothing in size" in text and "published alone: × or ÷ 1.33" in text
    assert re.search(
        r"cost: [\d.]+ GPU-hours, \$[\d.]+ \(NVIDIA H100.*hours where all 8 are busy; the dearest run", text
    )
    found = json.loads(isoflop(*arguments, "--mfu", "0.1", "--spend", "50usd", "--json")[1])
    assert found["usd"] == pytest.approx(50, rel=0.05) and found["gpu_hours"] == pytest.approx(found["usd"] / 3)
    expected = found["expected"]["N_opt"]
    assert expected["known_high"] / expected["estimate"] == pytest.approx(1.334, rel=0.01)
    _, said, _ = isoflop("ladder", "plan", "--flops", "1e24")
    assert "buys little" not in said


def test_fit_from_the_shell(folder: Path, fitted: LadderFit):
    code, said, _ = isoflop("ladder", "fit", folder, "--plan", folder / "plan.yaml")
    assert code == 0
    assert "largest rung left out" in said and "one more rung" in said and "approach 3" in said
    code, said, _ = isoflop("ladder", "fit", folder, "--plan", folder / "plan.yaml", "--json")
    found = json.loads(said)
    assert set(found) == FIT_KEYS
    assert found["N_opt"]["value"] == fitted.N_opt.value
    assert found == json.loads(json.dumps(fitted.as_dict()))


def test_fit_says_what_is_wrong(tmp_path: Path, folder: Path):
    code, _, told = isoflop("ladder", "fit", folder, "--plan", tmp_path / "no.yaml")
    assert code == 1 and told.startswith("isoflop ladder fit: ")
    code, _, told = isoflop("ladder", "fit", tmp_path / "none", "--flops", "1e21")
    assert code == 1 and "which does not exist" in told
