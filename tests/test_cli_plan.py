"""`isoflop plan`, `compare` and `laws` as their users meet them; numbers are worked out here, by hand."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.ladder import flops_with_attention

CHINCHILLA = 5.76e23
PLAN_KEYS = {
    "N", "D", "L", "flops", "intervals", "level", "tokens_per_param", "n_convention", "inference_flops", "recipe",
    "unique_tokens", "method", "warnings", "alternatives",
}  # fmt: skip
COMPARE_KEYS = {"options", "best", "sure", "reason", "level", "law", "warnings"}
OPTION_KEYS = {
    "option", "count", "N", "D", "flops", "loss", "interval", "excess_loss", "compute_factor", "optimal_N",
    "optimal_D",
}  # fmt: skip
LAW_KEYS = {
    "paper", "where", "n_convention", "tokenizer", "valid", "law", "parameters", "allocation", "batch",
    "learning_rate", "note",
}  # fmt: skip
NAMES = [
    "hoffmann2022-approach1", "hoffmann2022-approach2", "hoffmann2022-approach3", "hoffmann2022-approach3-unrounded",
    "besiroglu2024", "chinchilla-refit", "kaplan2020-n", "kaplan2020-nd", "kaplan2020-allocation", "porian2024",
    "muennighoff2023", "deepseek2024", "llama3-2024", "steplaw2025",
]  # fmt: skip

H100 = 989.4e12
"""Dense bfloat16 FLOP/s of an H100 SXM, by its datasheet."""

# A planted law: L = E + A/N^α + B/D^β, optimum N = G·(C/6)^a (Hoffmann et al. 2022, eq. 4).
E, A, B, ALPHA, BETA = 1.7, 406.0, 410.0, 0.34, 0.28
SHARE = BETA / (ALPHA + BETA)
G = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
BUDGETS = (1e18, 3e18, 1e19, 3e19)


def planted_loss(N: float, D: float) -> float:
    return E + A / N**ALPHA + B / D**BETA


def planted_size(C: float) -> float:
    return float(G * (C / 6) ** SHARE)


@pytest.fixture(autouse=True)
def _apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the test's own and a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four budgets of seven sizes each around the planted optimum, and two columns nobody asked for."""
    lines = []
    for C in BUDGETS:
        for k in range(-3, 4):
            N = planted_size(C) * 2 ** (0.7 * k)
            lines.append({"name": f"{C:g}/{k}", "N": N, "D": C / 6 / N, "loss": planted_loss(N, C / 6 / N), "bad": 0})
    return table(tmp_path / "runs.csv", lines)


def table(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


def run(*args: object) -> Any:
    return CliRunner().invoke(app, [*map(str, args)], catch_exceptions=False)


def shown(*args: object) -> str:
    """What people see: no line wider than the terminal, nothing on stderr."""
    done = run(*args)
    assert (done.exit_code, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    return str(done.stdout)


def read(*args: object, warned: bool = False) -> dict[str, Any]:
    """What machines read: one JSON object, without NaN, and nothing else on stdout."""
    done = run(*args, "--json")
    assert done.exit_code == 0, done.stderr
    assert bool(done.stderr) == warned, done.stderr

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found: dict[str, Any] = json.loads(done.stdout, parse_constant=refuse)
    assert done.stdout.count("\n") == 1
    return found


def failed(*args: object, code: int = 1) -> str:
    """What it says when it can't, with and without --json; stdout stays empty."""
    done, as_json = run(*args), run(*args, "--json")
    assert (done.exit_code, done.stdout) == (code, ""), done.stderr
    assert (as_json.exit_code, as_json.stdout, as_json.stderr) == (code, "", done.stderr)
    said = unstyle(done.stderr)
    assert "Traceback" not in said
    if code == 1:
        assert said.startswith(f"isoflop {args[0]}: ") and said.count("\n") == 1
    return " ".join(said.replace("│", " ").split())


def unstyle(text: str) -> str:
    """Without colours, which Typer gives its boxes on GitHub."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def surrounded(found: dict[str, Any]) -> None:
    for name, (low, high) in found["intervals"].items():
        assert low <= found[name] * (1 + 1e-12) and found[name] <= high * (1 + 1e-12), name


# -- plan: the answer ------------------------------------------------------------------------------------------------


def test_plan_by_our_refit() -> None:
    found = read("plan", "--flops", "5.76e23", "--law", "chinchilla-refit")
    assert set(found) == PLAN_KEYS and set(found["intervals"]) == {"N", "D", "L", "flops"}
    assert found["N"] == pytest.approx(73.2e9, abs=0.05e9)
    assert found["D"] == pytest.approx(1.31e12, abs=0.005e12)
    assert found["flops"] == CHINCHILLA and found["level"] == 0.8
    assert 6 * found["N"] * found["D"] == pytest.approx(CHINCHILLA, rel=1e-9)
    assert found["tokens_per_param"] == pytest.approx(found["D"] / found["N"])
    surrounded(found)
    for name in ("N", "D", "L"):
        low, high = found["intervals"][name]
        assert low < found[name] < high
    wide = read("plan", "--flops", "5.76e23", "--law", "chinchilla-refit", "--level", "0.95")
    assert wide["level"] == 0.95
    for name in ("N", "D", "L"):
        assert wide["intervals"][name][0] < found["intervals"][name][0]
        assert wide["intervals"][name][1] > found["intervals"][name][1]


@pytest.mark.parametrize(
    ("law", "N", "D", "L"),
    [
        # E, A, B, α, β as printed: Besiroglu et al. 2024, table 1; Hoffmann et al. 2022, eq. 10
        ("besiroglu2024", 72.2e9, 1.33e12, 1.8172 + 482.01 / 72.2e9**0.3478 + 2085.43 / 1.33e12**0.3658),
        ("hoffmann2022-approach3", 32.2e9, 2.98e12, 1.69 + 406.4 / 32.2e9**0.34 + 410.7 / 2.98e12**0.28),
    ],
)
def test_plan_by_a_published_law(law: str, N: float, D: float, L: float) -> None:
    found = read("plan", "--flops", "5.76e23", "--law", law)
    assert found["N"] == pytest.approx(N, rel=2e-3) and found["D"] == pytest.approx(D, rel=3e-3)
    assert found["L"] == pytest.approx(L, abs=1e-4)
    assert 6 * found["N"] * found["D"] == pytest.approx(CHINCHILLA, rel=1e-9)
    assert found["intervals"] == {}, "published without draws"
    assert law not in {row["name"] for row in found["alternatives"]}


def test_plan_without_law_or_runs() -> None:
    found = read("plan", "--flops", "1e21")
    assert 15 <= found["D"] / found["N"] <= 27
    assert 6 * found["N"] * found["D"] == pytest.approx(1e21, rel=1e-9)
    low, high = found["intervals"]["L"]
    assert 2.2 < low < found["L"] < high < 2.4, "published laws say 2.29 to 2.35"
    assert high - low > 0.05, "the corpus is not Chinchilla's"
    assert any("Chinchilla's corpus and tokenizer" in told for told in found["warnings"])
    surrounded(found)
    low, high = found["intervals"]["N"]
    assert low < found["N"] / 1.1 and found["N"] * 1.1 < high
    others = {row["name"]: row for row in found["alternatives"]}
    assert set(others["besiroglu2024"]) == {"name", "N", "D", "L", "n_convention"}
    assert {"D = 20·N", "kaplan2020-allocation", "N counted total"} <= set(others)
    assert others["hoffmann2022-approach3"]["N"] < others["besiroglu2024"]["N"] < others["kaplan2020-allocation"]["N"]


def test_plan_for_people() -> None:
    said = shown("plan", "--flops", "5.76e23", "--law", "chinchilla-refit", "--gpu", "h100", "--price", "2.5")
    assert said.startswith("model   Llama") and "parameters in all" in said  # the law counts all, a recipe the head's
    N, D, _, loss, flops, cost, *_ = said[said.index("\nN ") + 1 :].splitlines()
    assert N.split()[:2] == ["N", "73.2B"] and D.split()[:2] == ["D", "1.31T"] and "80%" in N
    assert loss.startswith("loss ") and flops.split()[:2] == ["FLOPs", "5.76e+23"]
    # 5.76e23 / (989.4e12 × .4 × 3600 s) = 404,285.4 hours
    assert cost.startswith("cost of this optimum: 404,285 GPU-hours, $1,010,714 (NVIDIA H100 SXM")
    assert "\nby: our fit to 240 of Hoffmann" in said and "\n    " in said, "long lines break between words"
    rows = {line.split("  ")[0]: line.split() for line in said[said.index("\nothers") :].splitlines()}
    assert rows["besiroglu2024"][1:] == ["72.2B", "1.33T", "18.4", "1.974", "total"]
    assert rows["deepseek2024"][-1] == "non-emb."


def test_plan_with_tokens_fixed() -> None:
    found = read("plan", "--flops", "1e21", "--tokens", "100B")
    assert found["D"] == 1e11 and found["N"] == pytest.approx(1e21 / 6e11)
    assert found == read("plan", "--flops", "1e21", "--tokens", "1e11"), "as in `compare`, 100B is 1e11"
    assert any("D is fixed" in warning for warning in found["warnings"])
    said = shown("plan", "--flops", "1e21", "--tokens", "100B")
    assert "note: D is fixed; the optimum would be 2.89B parameters on 57.7B tokens" in said


@pytest.mark.parametrize("law", [(), ("--law", "besiroglu2024")])
def test_plan_with_inference(law: tuple[str, ...]) -> None:
    free = read("plan", "--flops", "1e21", *law)
    some = read("plan", "--flops", "1e21", "--inference-tokens", "1e11", *law)
    many = read("plan", "--flops", "1e21", "--inference-tokens", "1T", *law)
    assert many["N"] < some["N"] < free["N"]
    assert free["inference_flops"] == 0
    for found, served in ((some, 1e11), (many, 1e12)):
        # training 6·N·D and serving 2·N·tokens share the budget (Sardana et al. 2023)
        assert found["inference_flops"] == pytest.approx(2 * found["N"] * served)
        assert found["flops"] == pytest.approx(6 * found["N"] * found["D"])
        assert found["flops"] + found["inference_flops"] == pytest.approx(1e21)
        surrounded(found)
    assert read("plan", "--flops", "1e21", "--inference-tokens", "0", *law) == free
    assert "to serve" in shown("plan", "--flops", "1e21", "--inference-tokens", "1T", *law)


def test_plan_with_few_unique_tokens() -> None:
    law = ("--law", "muennighoff2023")
    free = read("plan", "--flops", "1e21", *law)
    enough = read("plan", "--flops", "1e21", "--unique-tokens", "1e13", *law)
    few = read("plan", "--flops", "1e21", "--unique-tokens", "1e10", *law)
    assert enough["N"] == pytest.approx(free["N"], rel=1e-3) and enough["L"] == pytest.approx(free["L"], rel=1e-6)
    assert few["N"] < free["N"] and few["D"] > free["D"], "Muennighoff et al. 2023: rather epochs than parameters"
    assert few["L"] > free["L"] and few["unique_tokens"] == 1e10 and free["unique_tokens"] is None
    assert 6 * few["N"] * few["D"] == pytest.approx(1e21)
    assert "over 10B unique tokens" in shown("plan", "--flops", "1e21", "--unique-tokens", "10B", *law)


# -- plan: the budget ------------------------------------------------------------------------------------------------


def test_plan_by_dollars_and_hours() -> None:
    flops = 10e6 / 2.5 * 3600 * H100 * 0.4
    h100 = ("--gpu", "h100", "--price", "2.5", "--mfu", "0.4")
    found = read("plan", "--budget-usd", "10e6", *h100)
    assert found["flops"] == pytest.approx(flops, rel=1e-12)
    assert found["gpu_hours"] == pytest.approx(4e6) and found["usd"] == pytest.approx(10e6)
    same = read("plan", "--flops", repr(flops))
    assert found["N"] == pytest.approx(same["N"]) and found["D"] == pytest.approx(same["D"])
    assert set(found) == PLAN_KEYS | {"gpu_hours", "usd"}
    assert read("plan", "--budget-usd", "10M", *h100[:4]) == found, "10M is 10e6, an MFU of 0.4 is assumed"
    hours = read("plan", "--gpu-hours", "4e6", "--gpu", "NVIDIA H100 SXM", "--mfu", "0.2")
    assert hours["flops"] == pytest.approx(flops / 2, rel=1e-12), "names as the refusal lists them are taken"
    assert hours["gpu_hours"] == pytest.approx(4e6) and hours["usd"] is None
    said = shown("plan", "--gpu-hours", "0.5", "--gpu", "h100")
    assert "cost of this optimum: 0.5 GPU-hours (NVIDIA H100 SXM: 989.4 TFLOP/s peak, MFU 40%" in " ".join(said.split())


# -- plan: own runs --------------------------------------------------------------------------------------------------


def test_plan_by_own_runs(sweep: Path) -> None:
    C = 1e20
    planted = planted_size(C)
    alone = read("plan", "--flops", C)
    own = read("plan", "--flops", C, "--runs", sweep)
    before, after = (abs(math.log(found["N"] / planted)) for found in (alone, own))
    assert after < before / 2 and after < math.log(1.1)
    width = [math.log(found["intervals"]["N"][1] / found["intervals"]["N"][0]) for found in (alone, own)]
    assert width[1] < width[0], "runs make it surer"
    assert own["intervals"]["N"][0] < planted < own["intervals"]["N"][1]
    surrounded(own)
    assert 6 * own["N"] * own["D"] == pytest.approx(C) and "your own" in own["method"]
    raw = {row["name"]: row for row in own["alternatives"]}["own approach 3, raw"]
    assert raw["N"] == pytest.approx(planted, rel=1e-3), "noise-free: the fit itself is exact"


def test_what_n_of_own_runs_counts(sweep: Path) -> None:
    unknown = read("plan", "--flops", "1e20", "--runs", sweep)
    assert unknown["n_convention"] == "unknown"
    assert any("(--n; " in warning for warning in unknown["warnings"]), "the hint is an option of this command"
    told = read("plan", "--flops", "1e20", "--runs", sweep, "--n", "non_embedding")
    assert told["n_convention"] == "non_embedding" and not any("--n" in warning for warning in told["warnings"])
    assert told["N"] == unknown["N"]
    assert "expected one of total" in failed("plan", "--flops", "1e20", "--runs", sweep, "--n", "totl")


def test_own_runs_by_column_and_row(sweep: Path, tmp_path: Path) -> None:
    lines = list(csv.DictReader(sweep.read_text().splitlines()))
    renamed = [{"seen": line["D"], **{k: v for k, v in line.items() if k != "D"}} for line in lines]
    wrong = [{**line, "loss": "9", "bad": 1} for line in renamed[::5]]
    other = table(tmp_path / "other.csv", [*renamed, *wrong])
    said = failed("plan", "--flops", "1e20", "--runs", other)
    assert "no column is known to be D" in said and "name, N, loss, bad" in said and "--column D=" in said
    taken = ("--column", "D=seen", "--where", "bad==0")
    assert read("plan", "--flops", "1e20", "--runs", other, *taken) == read("plan", "--flops", "1e20", "--runs", sweep)
    assert "'nope'" in failed("plan", "--flops", "1e20", "--runs", other, "--column", "D=nope")
    assert "--column: expected NAME=VALUE, got 'D'" in failed(
        "plan", "--flops", "1e20", "--runs", other, "--column", "D"
    )
    assert "leaves none of" in failed("plan", "--flops", "1e20", "--runs", sweep, "--where", "bad>1")
    assert "no column 'Z'" in failed("plan", "--flops", "1e20", "--runs", sweep, "--where", "Z>1")


def test_few_own_runs_change_little_and_it_is_said(tmp_path: Path) -> None:
    two = table(tmp_path / "two.csv", [{"N": n, "D": 1e18 / 6 / n, "loss": 3.1} for n in (1e7, 2e7)])
    found = read("plan", "--flops", "1e20", "--runs", two)
    assert 0.5 < found["N"] / read("plan", "--flops", "1e20")["N"] < 2
    assert any("do not determine the best size" in warning for warning in found["warnings"])
    assert "do not determine the best size" in shown("plan", "--flops", "1e20", "--runs", two)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (None, ["missing.csv", "does not exist", "expected a CSV file"]),
        ("", ["is empty", "columns' names"]),
        ("N,loss\n1e7,3\n", ["known to be D", "N, loss", "--column D="]),
        ("N,D,loss\n1e7,1e9,nan\n2e7,1e9,nan\n", ["its loss is nan: it diverged"]),
        ("N,D,loss\n1e7,0,3\n2e7,1e9,3\n", ["column 'D'", "0"]),
        ("N,D,loss\n1e7,many,3\n2e7,1e9,3\n", ["line 2", "column 'D'", "'many'", "expected a number"]),
        ("N,D,loss\n10,1e9,3.1\n20,1e9,3\n30,1e9,2.9\n", ["column 'N'", "millions"]),
    ],
)
@pytest.mark.parametrize("command", [("plan", "--flops", "1e20"), ("compare", "1B:20B", "2B:10B")])
def test_bad_runs(command: tuple[str, ...], text: str | None, parts: list[str], tmp_path: Path) -> None:
    path = Path("missing.csv")
    if text is not None:
        path.write_text(text)
    said = failed(*command, "--runs", path)
    assert all(part in said for part in parts), said


# -- plan: refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ((), ["expected a budget", "--flops, --budget-usd, --gpu-hours", "got none", "--flops 1e21"]),
        (("--flops", "1e21", "--gpu-hours", "3"), ["got --flops and --gpu-hours", "all but one"]),
        (("--flops", "1e21", "--law", "chinchila-refit"), ["'chinchila-refit'", "did you mean 'chinchilla-refit'"]),
        (("--flops", "1e21", "--law", "kaplan2020-n"), ["'kaplan2020-n' cannot answer this"]),
        (("--flops", "1e21", "--law", "steplaw2025"), ["'steplaw2025' cannot answer this"]),
        (("--flops", "1e21", "--gpu", "h1000"), ["'h1000'", "did you mean 'h100'", "NVIDIA A100"]),
        (("--flops", "1e21", "--devices", "64"), ["--devices: expected COUNTxDEVICE, such as 64xH100, got '64'"]),
        (("--flops", "1e21", "--price", "2"), ["--price needs --gpu", "--gpu h100"]),
        (("--flops", "1e21", "--mfu", "0.3"), ["--mfu needs --gpu", "--gpu h100"]),
        (("--flops", "1e21", "--where", "N>1"), ["--where needs --runs"]),
        (("--flops", "1e21", "--n", "total"), ["--n needs --runs"]),
        (("--flops", "1e21", "--column", "D=x"), ["--column needs --runs"]),
        (("--flops", "1e21", "--runs", "x.csv", "--law", "besiroglu2024"), ["--law or --runs, got both", "leave"]),
        (("--gpu-hours", "3"), ["--gpu-hours needs --gpu", "add --gpu h100"]),
        (("--budget-usd", "3"), ["--budget-usd needs --gpu and --price", "add --gpu h100 --price 2.5"]),
        (("--budget-usd", "3", "--gpu", "h100"), ["--budget-usd needs --price", "add --price 2.5"]),
        (("--flops", "1e3"), ["FLOPs", "1000", "PF-days"]),
        (("--flops", "1e21", "--tokens", "100"), ["tokens", "100", "millions"]),
    ],
)
def test_plan_refuses(args: tuple[str, ...], parts: list[str]) -> None:
    said = failed("plan", *args)
    assert all(part in said for part in parts), said


@pytest.mark.parametrize(
    "option", ["--flops", "--tokens", "--inference-tokens", "--unique-tokens", "--price", "--budget-usd", "--gpu-hours"]
)
@pytest.mark.parametrize("value", ["-1", "many", "nan", "inf", "3Q"])
def test_numbers_refused_by_name(option: str, value: str) -> None:
    budget = () if option == "--flops" else ("--flops", "1e21")
    said = failed("plan", *budget, option, value, code=2)
    assert option in said and "expected a" in said and f"got '{value}'" in said and "2e11 or 200B" in said


def test_zero_and_shares_refused() -> None:
    assert "expected a positive number" in failed("plan", "--flops", "0", code=2)
    assert "--level" in failed("plan", "--flops", "1e21", "--level", "80", code=2)
    assert "--mfu" in failed("plan", "--flops", "1e21", "--gpu", "h100", "--mfu", "40", code=2)


# -- compare ---------------------------------------------------------------------------------------------------------

THREE = ("100B:200B", "2x50B:300B", "200B:100B")
FLOPS = (6 * 100e9 * 200e9, 2 * 6 * 50e9 * 300e9, 6 * 200e9 * 100e9)


def test_compare() -> None:
    found = read("compare", *THREE)
    assert set(found) == COMPARE_KEYS and all(set(row) == OPTION_KEYS for row in found["options"])
    assert [row["option"] for row in found["options"]] == list(THREE), "as given"
    assert [row["flops"] for row in found["options"]] == pytest.approx(FLOPS, rel=1e-12)
    assert [(row["count"], row["N"], row["D"]) for row in found["options"]] == [
        (1, 100e9, 200e9),
        (2, 50e9, 300e9),
        (1, 200e9, 100e9),
    ]
    assert found["best"] == min(found["options"], key=lambda row: row["loss"])["option"] == "2x50B:300B"
    assert found["best"] in found["reason"]
    for row in found["options"]:
        low, high = row["interval"]
        assert low < row["loss"] < high
        assert row["excess_loss"] >= 0 and row["compute_factor"] >= 1
        each = row["flops"] / row["count"]
        assert 6 * row["optimal_N"] * row["optimal_D"] == pytest.approx(each), "of one run's compute"
    assert found["sure"] is False and "not sure" in found["reason"]
    wide = read("compare", *THREE, "--level", "0.95")
    assert wide["level"] == 0.95
    assert wide["options"][0]["interval"][0] < found["options"][0]["interval"][0]


def test_compare_says_what_its_intervals_leave_out() -> None:
    alone, repeats = "law's constants alone", "Muennighoff et al. 2023"
    assert alone in " ".join(shown("compare", *THREE).split())
    (warning,) = read("compare", *THREE)["warnings"]
    assert alone in warning
    assert read("compare", *THREE, "--law", "hoffmann2022-approach3")["warnings"] == [], "no interval, nothing left out"
    assert repeats not in shown("compare", *THREE, "--unique-tokens", "300B"), "nothing repeats"
    found = read("compare", *THREE, "--unique-tokens", "299B", warned=True)["warnings"]
    assert len(found) == 2 and repeats in found[0] and "or a published law's loss includes that" in found[0]


def test_plan_says_what_attention_takes_of_fixed_tokens_and_whose_the_cost_is() -> None:
    asked = ("plan", "--flops", "1e21", "--tokens", "50B", "--gpu", "h100")
    said, found = " ".join(shown(*asked).split()), read(*asked)
    assert found["recipe"]["D"] == found["D"] and found["recipe"]["N"] < found["N"]
    assert "and is smaller because attention takes" in said and "has fewer tokens" not in said
    assert "has fewer tokens because attention takes" in " ".join(shown("plan", "--flops", "1e21").split())
    assert "cost of this optimum: " in said
    hours = found["recipe"]["gpu_hours"]
    assert found["gpu_hours"] == pytest.approx(1e21 / (H100 * 0.4) / 3600)
    assert f"{hours:,.0f} hours on one" in said


def test_compare_by_a_law_by_hand() -> None:
    found = read("compare", "1B:20B", "3x2B:10B", "--law", "hoffmann2022-approach3")
    losses = [1.69 + 406.4 / N**0.34 + 410.7 / D**0.28 for N, D in ((1e9, 20e9), (2e9, 10e9))]
    assert [row["loss"] for row in found["options"]] == pytest.approx(losses)
    assert found["best"] == "1B:20B" and found["sure"] is None
    assert [row["interval"] for row in found["options"]] == [None, None]
    said = shown("compare", "1B:20B", "3x2B:10B", "--law", "hoffmann2022-approach3")
    assert "80%" not in said.splitlines()[0], "no column without what it would hold"


def test_compare_with_money() -> None:
    found = read("compare", *THREE, "--gpu", "h100", "--price", "2.5", "--mfu", "0.5")
    # attention is priced, too: plan's convention
    shapes = (
        flops_with_attention(100e9, 200e9),
        2 * flops_with_attention(50e9, 300e9),
        flops_with_attention(2e11, 1e11),
    )
    assert all(1.01 < each / flops < 1.05 for each, flops in zip(shapes, FLOPS, strict=True))
    hours = [each / (H100 * 0.5) / 3600 for each in shapes]
    assert [row["gpu_hours"] for row in found["options"]] == pytest.approx(hours)
    assert [row["usd"] for row in found["options"]] == pytest.approx([2.5 * each for each in hours])
    assert all(set(row) == OPTION_KEYS | {"gpu_hours", "usd"} for row in found["options"])
    unpriced = read("compare", *THREE, "--gpu", "h100", "--mfu", "0.5")
    assert [row["usd"] for row in unpriced["options"]] == [None] * 3
    said = shown("compare", *THREE, "--gpu", "h100", "--price", "2.5", "--mfu", "0.5")
    assert f"{hours[0]:,.0f}" in said and f"${2.5 * hours[1]:,.0f}" in said
    assert said.count("NVIDIA H100 SXM") == 1, "the price is said once"
    assert "dollars" not in shown("compare", *THREE, "--gpu", "h100")


def test_compare_for_people() -> None:
    said = shown("compare", *THREE)
    head, *rows = said.splitlines()[:4]
    assert head.split() == ["option", "FLOPs", "loss", "80%", "over", "optimum", "compute"]
    assert [row.split()[:2] for row in rows] == [
        ["100B:200B", "1.2e+23"],
        ["2x50B:300B", "1.8e+23"],
        ["200B:100B", "1.2e+23"],
    ]
    assert len({len(row) for row in (head, *rows)}) == 1, "columns end where they should"
    assert "\n2x50B:300B has the least expected loss" in said and "\nover optimum: " in said and "\nby: " in said
    assert len({len(line) for line in shown("compare", "1B:20B", "1T:1B").splitlines()[:3]}) == 1


def test_compare_by_own_runs(sweep: Path) -> None:
    found = read("compare", "1B:20B", "2B:10B", "--runs", sweep)
    losses = [planted_loss(1e9, 20e9), planted_loss(2e9, 10e9)]
    assert [row["loss"] for row in found["options"]] == pytest.approx(losses, rel=1e-4)
    assert found["best"] == "1B:20B" and "28 runs" in found["law"]
    assert found["options"][0]["optimal_N"] == pytest.approx(planted_size(1.2e20), rel=1e-2)


def test_compare_warns_of_few_runs_on_stderr(tmp_path: Path) -> None:
    two = table(tmp_path / "two.csv", [{"N": n, "D": 1e18 / 6 / n, "loss": 10 / n**0.07} for n in (1e7, 2e7)])
    found = read("compare", "1B:20B", "2B:10B", "--runs", two, warned=True)
    assert any("2 runs" in warning for warning in found["warnings"])
    assert any("do not determine the best size" in warning for warning in found["warnings"])
    low, high = found["options"][0]["interval"]
    assert found["best"] == "1B:20B" and high / low > 1.2


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("100B:200B", "100B:200B"), ["different options", "100B:200B twice", "leave one out"]),
        (("100B:200B", "1x1e11:2e11"), ["different options", "100B:200B twice"]),
        (("100B-200B", "1B:2B"), ["COUNTxN:D", "'100B-200B'", "2x50B:300B"]),
        (("1B:2B:3B",), ["COUNTxN:D", "'1B:2B:3B'"]),
        (("1B:-2B",), ["COUNTxN:D", "'1B:-2B'"]),
        (("2.5x1B:2B",), ["whole number of runs", "'2.5'"]),
        (("0x1B:2B",), ["whole number of runs", "'0'"]),
        (("1G:2B",), ["suffix k, M, B or T", "'G'"]),
        (("1:2",), ["'1:2'", "parameters", "millions"]),
        ((*THREE, "--law", "besiroglu"), ["'besiroglu'", "did you mean 'besiroglu2024'"]),
        ((*THREE, "--law", "porian2024"), ["'porian2024' cannot answer this", "besiroglu2024"]),
        ((*THREE, "--law", "kaplan2020-n"), ["'kaplan2020-n' cannot answer this"]),
        ((*THREE, "--law", "besiroglu2024", "--runs", "x.csv"), ["--law or --runs, got both"]),
        ((*THREE, "--where", "N>1"), ["--where needs --runs"]),
        (("115k:614k", "115k:410k"), ["115k:614k: L is open", "factor 1,000 of the runs", "--runs"]),
        (("1B:20B", "1T:1M"), ["1T:1M: L is open: the law's 15.3 nats are more than those of a uniform guess"]),
        (("100k:1M", "1B:2B", "--law", "muennighoff2023"), ["100k:1M: L is open"]),
        ((*THREE, "--price", "2"), ["--price needs --gpu"]),
        ((*THREE, "--gpu", "x100"), ["'x100'", "NVIDIA A100"]),
    ],
)
def test_compare_refuses(args: tuple[str, ...], parts: list[str]) -> None:
    said = failed("compare", *args)
    assert all(part in said for part in parts), said


def test_compare_without_options() -> None:
    assert "N:D" in failed("compare", code=2)


# -- laws ------------------------------------------------------------------------------------------------------------


def test_laws() -> None:
    found = read("laws")
    assert set(NAMES) <= set(found)
    for name, entry in found.items():
        assert set(entry) == LAW_KEYS and entry["paper"] and entry["where"] and entry["valid"], name
    assert found["besiroglu2024"]["parameters"].keys() == {"E", "A", "B", "alpha", "beta"}
    assert found["hoffmann2022-approach3"]["parameters"] == {
        "E": 1.69,
        "A": 406.4,
        "B": 410.7,
        "alpha": 0.34,
        "beta": 0.28,
    }
    assert found["kaplan2020-allocation"]["parameters"] is None and found["kaplan2020-allocation"]["allocation"]
    assert "0.571" in found["steplaw2025"]["batch"] and found["steplaw2025"]["learning_rate"]
    said = shown("laws")
    assert {line.split()[0] for line in said.splitlines() if line and line[0] != " "} >= set(found)
    assert "…" not in said, "nothing is cut off"


def test_laws_says_where_each_serves() -> None:
    """What the list promises of `--law` is what `plan` and `compare` do."""
    promised = {
        line[:34].strip(): line[34:49] for line in shown("laws").splitlines() if line[:1] not in ("", " ") and line[34:]
    }
    for name in read("laws"):
        for command, args in (("plan", ("--flops", "1e21")), ("compare", ("1B:20B", "2B:10B"))):
            works = run(command, *args, "--law", name, "--json").exit_code == 0
            assert (command in promised[name]) == works, (command, name)


def test_one_law_in_full() -> None:
    said = shown("laws", "besiroglu2024")
    assert said.startswith("besiroglu2024: Besiroglu et al. 2024 (arXiv:2404.10102)")
    assert all(part in said for part in ("L(N,D) = E + A/N^α + B/D^β", "alpha = 0.3478", "N total", "tokenizer"))
    assert "--law of isoflop plan and compare" in said
    one = read("laws", "besiroglu2024")
    assert one == {"besiroglu2024": read("laws")["besiroglu2024"]}
    for name in read("laws"):
        assert shown("laws", name).startswith(f"{name}: ")


def test_unknown_law() -> None:
    said = failed("laws", "chinchila-refit")
    assert "'chinchila-refit'" in said and "did you mean 'chinchilla-refit'?" in said
    assert all(name in said for name in NAMES)


@pytest.mark.parametrize("command", ["plan", "compare", "laws"])
def test_help(command: str) -> None:
    done = run(command, "--help")
    assert done.exit_code == 0
    said = " ".join(unstyle(done.stdout).replace("│", " ").split())
    assert "--json" in said
    assert ("0.4 unless given" in said) == (command != "laws")
