"""`isoflop import`, and the other commands on what it wrote."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from curves import Planted
from fits import BESIROGLU, grid, hoffmann, reference
from isoflop.cli import app
from isoflop.forecast import LrPlan
from isoflop.record import Run, read_runs

RUN_KEYS = [
    "run_id",
    "name",
    "kind",
    "source",
    "record",
    "action",
    "status",
    "points",
    "parameters",
    "step",
    "tokens",
    "flops",
    "losses",
    "missing",
    "notes",
]
PLAN = LrPlan.cosine(2000, 1e-3, 100)


def call(command: str, *arguments: object) -> Any:
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def imported(*arguments: object) -> dict[str, Any]:
    """The JSON of an import that found runs."""
    result = call("import", *arguments, "--json")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    found: dict[str, Any] = json.loads(result.stdout)
    assert list(found) == ["runs", "problems", "questions"]
    assert all(sorted(run) == sorted(RUN_KEYS) for run in found["runs"])
    return found


def records(folder: Path) -> list[Run]:
    """The records of a folder; nothing in them had to be repaired."""
    runs = read_runs(folder)
    assert all(run.problems == () for run in runs)
    return runs


def hf_run(folder: Path, size: float, scale: float, steps: int = 2000, **more: Any) -> Path:
    """A finished Trainer's output whose curve is known: E falls with the size."""
    planted = Planted(E=2.4 + 2.0 * (size / 1e8) ** -0.3 * scale, noise=0.005)
    at, loss = planted.seen(PLAN, seed=int(size) % 97, every=20)
    history = [
        {
            "step": int(step),
            "loss": float(value),
            "learning_rate": float(PLAN.at(step)),
            "num_input_tokens_seen": int(step * 5e5),
        }
        for step, value in zip(at, loss, strict=True)
        if step <= steps
    ]
    folder.mkdir(parents=True)
    state = {"global_step": steps, "max_steps": 2000, "log_history": history, **more}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


# -- what is written ---------------------------------------------------------------------------------------------------


def csv_run(folder: Path, name: str = "small", rows: int = 3) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{step},{4.0 / step}" for step in range(1, rows + 1)]
    path = folder / f"{name}.csv"
    path.write_text("\n".join(["step,loss", *lines, ""]))
    return path


def test_twice_is_once_and_what_grew_is_updated(tmp_path: Path) -> None:
    source, runs = csv_run(tmp_path / "logs"), tmp_path / "runs"
    (first,) = imported(source, "-o", runs)["runs"]
    content = Path(first["record"]).read_bytes()
    (second,) = imported(source, "-o", runs)["runs"]
    assert (first["action"], second["action"]) == ("written", "unchanged")
    assert Path(second["record"]).read_bytes() == content
    csv_run(tmp_path / "logs", rows=5)
    (third,) = imported(tmp_path / "logs", "-o", runs)["runs"]
    assert (third["action"], third["points"], third["record"]) == ("updated", 5, first["record"])
    (fourth,) = imported(source, "-o", runs, "--params", "124M")["runs"]
    assert fourth["action"] == "updated" and fourth["parameters"]["total"] == 124_000_000
    assert [path.name for path in runs.iterdir()] == [Path(first["record"]).name], "nothing else is left behind"
    (run,) = records(runs)
    assert (run.name, run.status, len(run.points)) == ("small", "completed", 5)
    assert run.extra["imported"]["source"] == str(source) and run.extra["imported"]["how"]["loss train"] == "loss"


def test_a_record_that_is_no_import_is_left_alone(tmp_path: Path) -> None:
    source = csv_run(tmp_path)
    (found,) = imported(source, "-o", tmp_path / "runs")["runs"]
    path = Path(found["record"])
    header = json.loads(path.read_text().splitlines()[0])
    del header["imported"]
    path.write_text(json.dumps(header) + "\n")
    before = path.read_bytes()
    result = call("import", source, "-o", tmp_path / "runs")
    assert result.exit_code == 1 and "expected an earlier import, got another record" in result.stderr
    assert path.read_bytes() == before


def test_what_is_asked_and_answered(tmp_path: Path) -> None:
    source, runs = csv_run(tmp_path), tmp_path / "runs"
    assert imported(source, "-o", runs)["questions"] == [
        f"N is not in {source}: give it with --params 124M (or --config config.json). Without it "
        "fit and plan can't use the run.",
        f"The number of tokens is not in {source}: give it with --tokens-per-step 524288. Without it the loss is "
        "known by step alone: fit, plan, backtest and rank can't use the run.",
    ]
    found = imported(source, "-o", runs, "--params", "1e6", "--tokens-per-step", "1000", "--flops-per-token", "7e6")
    assert found["questions"] == [] and found["runs"][0]["missing"] == []
    assert (found["runs"][0]["tokens"], found["runs"][0]["flops"]) == (3000, 21 * 10**9)
    (run,) = records(runs)
    assert [point.flops_6nd for point in run.points] == [6 * 10**9, 12 * 10**9, 18 * 10**9]
    assert run.counting["flops_per_token"] == 7e6


def test_answers_by_run(tmp_path: Path) -> None:
    for name in ("small-1", "small-2", "large"):
        csv_run(tmp_path / "logs", name)
    (question, _) = imported(tmp_path / "logs", "-o", tmp_path / "a")["questions"]
    assert question.startswith("N is not in the 3 runs (large, small-1, small-2): give it with --params 124M")
    assert "--params NAME=124M or --table runs.csv" in question
    options = ("--params", "small-*=1M", "--params", "large=2M", "--params", "lagre=3M", "--tokens-per-step", "100")
    found = imported(tmp_path / "logs", "-o", tmp_path / "b", *options)
    assert {run["name"]: run["parameters"]["total"] for run in found["runs"]} == {
        "large": 2_000_000,
        "small-1": 1_000_000,
        "small-2": 1_000_000,
    }
    assert found["problems"] == ["--params lagre=…: no run is called so; is it large?"]
    table = tmp_path / "answers.csv"
    table.write_text("run,params,tokens_per_step\nsmall-1,1M,100\nsmall-2,1.5M,200\nlarge,2M,300\n")
    found = imported(tmp_path / "logs", "-o", tmp_path / "c", "--table", table)
    assert [(run["parameters"]["total"], run["tokens"]) for run in found["runs"]] == [
        (2_000_000, 900),
        (1_000_000, 300),
        (1_500_000, 600),
    ]
    table.write_text("run,params\nsmall-1,many\n")
    result = call("import", tmp_path / "logs", "-o", tmp_path / "d", "--table", table)
    assert result.exit_code == 1
    assert f"{table}:2: expected params to be a positive number, got 'many'" in result.stderr


def test_the_exit_code_says_whether_anything_came(tmp_path: Path) -> None:
    good = csv_run(tmp_path)
    bad = tmp_path / "bad.csv"
    bad.write_bytes(b"\0\1")
    both = call("import", bad, good, "-o", tmp_path / "runs")
    assert both.exit_code == 0 and f"isoflop import: {bad} is" in both.stderr
    none = call("import", bad, "-o", tmp_path / "runs")
    assert none.exit_code == 1 and none.stderr.rstrip().endswith("isoflop import: no run was imported")
    wrong = call("import", good, "-o", tmp_path / "runs", "--from", "paper")
    assert wrong.exit_code == 1 and "--from: expected one of huggingface, tensorboard" in wrong.stderr
    wrong = call("import", good, "-o", tmp_path / "runs", "--params", "many")
    assert wrong.exit_code == 1 and "--params: expected a positive number, such as 124M, or RUN=124M" in wrong.stderr


def test_what_the_terminal_shows(tmp_path: Path) -> None:
    source = csv_run(tmp_path)
    shown = call("import", source, "-o", tmp_path / "runs", "--params", "124M", "--tokens-per-step", "5e5").stdout
    for text in ("small", "table", "124M", "1.5M", "1.12e+15", "written", "tokens: 500,000 a step, given"):
        assert text in shown
    assert f"Runs: 1 written. Next: isoflop fit {tmp_path / 'runs'}" in shown


def test_a_strange_name_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("run,step,loss\n../../[red]\x1b[31m<b>,1,3.0\n")
    (found,) = imported(path, "-o", tmp_path / "runs")["runs"]
    assert Path(found["record"]).parent == tmp_path / "runs" and Path(found["record"]).exists()
    assert "\x1b" not in found["name"]
    assert "[red]" in call("import", path, "-o", tmp_path / "runs").stdout


# -- the commands that follow ------------------------------------------------------------------------------------------


def test_a_planted_law_comes_back_from_the_ends_of_runs(tmp_path: Path) -> None:
    N, D = grid(5, 5)
    rows = zip(N, D, hoffmann(N, D), strict=True)
    path = tmp_path / "ends.csv"
    path.write_text("\n".join(["N,tokens,loss", *(f"{n:.17g},{d:.17g},{loss:.17g}" for n, d, loss in rows)]))
    assert len(imported(path, "-o", tmp_path / "runs")["runs"]) == 25
    result = call("fit", tmp_path / "runs", "--json", "--draws", 20)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parameters"] == pytest.approx(BESIROGLU, rel=1e-3)


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight finished Hugging Face runs of four sizes, imported."""
    folder = tmp_path_factory.mktemp("ladder")
    names = []
    for index, size in enumerate(np.geomspace(5e7, 8e8, 4)):
        for copy in range(2):
            name = f"n{index}-{copy}"
            hf_run(folder / "logs" / name, size, 0.2 + 0.01 * copy)
            names.append(f"{name},{size}")
    table = folder / "answers.csv"
    table.write_text("\n".join(["run,params", *names]))
    found = imported(folder / "logs", "-o", folder / "runs", "--table", table)
    assert len(found["runs"]) == 8 and found["questions"] == []
    return folder / "runs"


def test_backtest_and_rank_on_imported_curves(ladder: Path) -> None:
    result = call("backtest", ladder, "--json", "--baselines", "none", "--at", "0.5")
    assert result.exit_code == 0, result.output
    (scores,) = json.loads(result.stdout).values()
    assert scores["records"]["0.5"]["n"] == 8
    result = call("rank", ladder, "--json")
    assert result.exit_code == 0, result.output
    assert [run["name"][:2] for run in json.loads(result.stdout)["runs"]] == ["n3"] * 2 + ["n2"] * 2 + ["n1"] * 2 + [
        "n0"
    ] * 2


def test_plan_on_imported_runs(ladder: Path) -> None:
    result = call("plan", "--flops", "1e21", "--runs", ladder, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["N"] > 0


# -- public data -------------------------------------------------------------------------------------------------------


def test_the_chinchilla_runs(tmp_path: Path) -> None:
    found = imported(reference("chinchilla_245.csv"), "-o", tmp_path / "runs")
    assert len(found["runs"]) == 245 and found["questions"] == found["problems"] == []
    result = call("fit", tmp_path / "runs", "--json", "--draws", 20)
    direct = call("fit", reference("chinchilla_245.csv"), "--json", "--draws", 20)
    ours, theirs = (json.loads(one.stdout)["parameters"] for one in (result, direct))
    assert ours == pytest.approx(theirs, rel=1e-4)  # N and D are whole numbers in a record


def test_public_curves(tmp_path: Path) -> None:
    index = reference("curves") / "index.csv"
    found = imported(reference("curves") / "mpl", "-o", tmp_path / "runs", "--table", index)
    assert len(found["runs"]) == 27 and found["questions"] == found["problems"] == []
    (run,) = [run for run in records(tmp_path / "runs") if run.name == "100M_cosine_24000"]
    assert (run.parameters["non_embedding"], run.planned["steps"]) == (100_000_000, 24_000)
    assert run.points[-1].tokens == run.points[-1].step * 524_288
    assert run.points[0].losses["train"] is not None and math.isfinite(run.points[0].losses["train"])
    result = call("backtest", tmp_path / "runs", "--json", "--baselines", "none", "--at", "0.5")
    assert result.exit_code == 0, result.output


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By their folders, which the answers may name too."""
    for folder in ("a", "b"):
        csv_run(tmp_path / folder, "metrics")
    found = imported(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "runs", "--params", "a/metrics=1M")
    assert [(run["name"], run["missing"]) for run in found["runs"]] == [
        ("a/metrics", ["tokens"]),
        ("b/metrics", ["params", "tokens"]),
    ]
    assert found["problems"] == []
    for folder in ("xs", "s"):  # Lightning's folders, which differ far above the file
        logs = tmp_path / "lit" / folder / "logs" / "version_0"
        logs.mkdir(parents=True)
        (logs / "metrics.csv").write_text("epoch,step,loss\n0,0,4.0\n0,1,3.0\n")
    found = imported(tmp_path / "lit", "-n", "--params", "xs/logs/version_0=1M")
    assert {run["name"]: "params" in run["missing"] for run in found["runs"]} == {
        "xs/logs/version_0": False,
        "s/logs/version_0": True,
    }


def test_a_configuration_that_needs_code_of_its_own(tmp_path: Path) -> None:
    """It is not run; the run is imported without N."""
    folder = hf_run(tmp_path / "run", 1e8, 0.2)
    own = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "of-its-own", "auto_map": own}))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    found = imported(folder, "-o", tmp_path / "runs")
    assert found["runs"][0]["missing"] == ["params"]
    assert len(found["problems"]) == 1 and "config.json could not be counted" in found["problems"][0]
    assert not (tmp_path / "sprung").exists()


def test_experts_and_a_configuration(tmp_path: Path) -> None:
    """6·N·D of a mixture of experts counts what a token passes through; N is counted from a given config.json."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 1}
    config = tmp_path / "config.json"
    kind = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "max_position_embeddings": 64}
    config.write_text(json.dumps({**kind, **sizes, **heads}))
    source = csv_run(tmp_path)
    imported(source, "-o", tmp_path / "runs", "--config", config, "--tokens-per-step", "100")
    (run,) = records(tmp_path / "runs")
    total, active, body = (run.parameters[name] for name in ("total", "active", "non_embedding"))
    assert total and active and body and active < total
    assert run.points[-1].flops_6nd == 6 * (body - (total - active)) * 300
    config.write_text("{")
    result = call("import", source, "-o", tmp_path / "runs", "--config", config)
    assert result.exit_code == 1 and f"--config {config}: expected a Hugging Face config.json" in result.stderr


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    source = csv_run(tmp_path)
    (found,) = imported(source, "-n")["runs"]
    assert (found["action"], found["record"], found["points"]) == ("not written", None, 3)
    assert call("import", source, "-n", "-o", tmp_path / "runs").exit_code == 0
    assert not (tmp_path / "runs").exists()
    assert call("import", source).exit_code == 2


def test_a_fit_leaves_out_runs_without_the_loss_of_most(tmp_path: Path) -> None:
    """Eight runs with a training loss, two with an evaluation's alone."""
    N, D = grid(3, 3)
    rows = [f"{n:.17g},{d:.17g},{loss:.17g}," for n, d, loss in zip(N, D, hoffmann(N, D), strict=True)]
    path = tmp_path / "ends.csv"
    path.write_text("\n".join(["N,tokens,loss,val_loss", *rows, "1e9,2e10,,2.5", "2e9,4e10,,2.4"]))
    imported(path, "-o", tmp_path / "runs")
    result = call("fit", tmp_path / "runs", "--json", "--draws", 20)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n"] == 9
    assert "left out: ends:11, ends:12: it has no loss 'train' with its tokens (it has eval/val)" in result.stderr


def test_a_question_names_an_answer_that_works(tmp_path: Path) -> None:
    """Each option that a question or problem names is pasted, and it is gone."""
    path = tmp_path / "log.csv"
    path.write_text(
        "epoch,step,objective\n" + "".join(f"{e},{s},{4 - s / 50}\n" for e in range(3) for s in range(1, 9))
    )
    first = call("import", path, "-o", tmp_path / "runs")
    assert first.exit_code == 1 and "--run COLUMN" in first.stderr and "objective" in first.stderr
    second = call("import", path, "-o", tmp_path / "runs", "--run", "epoch")
    assert second.exit_code == 1 and "--loss COLUMN" in second.stderr
    answers = ("--run", "epoch", "--loss", "objective", "--params", "124M", "--tokens-per-step", "524288")
    found = imported(path, "-o", tmp_path / "runs", *answers)
    assert len(found["runs"]) == 3 and found["questions"] == found["problems"] == []
    assert {run["tokens"] for run in found["runs"]} == {8 * 524_288}


def test_what_a_table_says_of_its_runs_reaches_a_fit(tmp_path: Path) -> None:
    """Their state, planned steps, epochs and experts, as where `fit` reads the table itself."""
    N, D = grid(3, 4)
    rows = [f"{n:.17g},{d:.17g},{loss:.17g}" for n, d, loss in zip(N, D, hoffmann(N, D), strict=True)]
    path = tmp_path / "runs.csv"
    state = ["finished"] * 10 + ["crashed", "running"]
    path.write_text("\n".join(["N,tokens,loss,State", *(f"{r},{s}" for r, s in zip(rows, state, strict=True))]))
    imported(path, "-o", tmp_path / "states")
    assert [run.status for run in records(tmp_path / "states")].count("completed") == 10
    table, read = call("fit", path, "--draws", 20), call("fit", tmp_path / "states", "--draws", 20)
    for done in (table, read):
        assert "fitted to 10 runs" in done.stdout and done.stderr.count("left out: ") == 2

    steps = [f"run{i},finished,{row},{4000 if i else 300},4000" for i, row in enumerate(rows)]
    path.write_text("\n".join(["Name,State,N,tokens,loss,_step,trainer.max_steps", *steps]))
    imported(path, "-o", tmp_path / "planned")
    assert "it ended at step 300 of 4,000 planned" in call("fit", tmp_path / "planned", "--draws", 20).stderr

    path.write_text("\n".join(["N,tokens,loss,epochs", *(f"{r},{1 + i % 3}" for i, r in enumerate(rows))]))
    imported(path, "-o", tmp_path / "epochs")
    assert "8 of 12 runs saw tokens again (column 'epochs')" in call("fit", tmp_path / "epochs", "--draws", 20).stderr
    answer = json.loads(call("fit", tmp_path / "epochs", "--draws", 20, "--json").stdout)
    assert any("8 of 12 runs saw tokens again" in text for text in answer["warnings"])

    path.write_text(
        "\n".join(["params,tokens,loss,active", *(f"{r},{n / 6:.0f}" for r, n in zip(rows, N, strict=True))])
    )
    imported(path, "-o", tmp_path / "experts")
    flops = sorted(run.points[-1].flops or 0 for run in records(tmp_path / "experts"))
    assert flops == pytest.approx(sorted(N * D), rel=1e-6)  # 6·(N/6)·D
    for source, take in ((path, "--column N='active'"), (tmp_path / "experts", "--n active")):
        told = call("fit", source, "--draws", 20).stderr
        assert "12 of 12 runs are mixtures of experts" in told and take in told


def test_groups_reach_a_fit(tmp_path: Path) -> None:
    """--group keeps a column of a table and a hyperparameter of a tracker's run; fit --group takes it."""
    N, D = grid(3, 3)
    path = tmp_path / "ends.csv"
    rows = [
        f"{corpus},{n:.17g},{d:.17g},{loss + more:.17g}"
        for corpus, more in (("c4", 0.0), ("pile", 0.3))
        for n, d, loss in zip(N, D, hoffmann(N, D), strict=True)
    ]
    path.write_text("\n".join(["corpus,N,tokens,loss", *rows]))
    imported(path, "-o", tmp_path / "runs", "--group", "corpus")
    assert {run.extra["imported"]["groups"]["corpus"] for run in records(tmp_path / "runs")} == {"c4", "pile"}
    result = call("fit", tmp_path / "runs", "--group", "corpus", "--own", "E", "--json", "--draws", 20)
    assert result.exit_code == 0, result.output
    own = json.loads(result.stdout)["parameters"]
    assert own["E[pile]"] - own["E[c4]"] == pytest.approx(0.3, abs=1e-3)
    run = tmp_path / "mlruns" / "0" / "abc"
    for name, text in {"meta.yaml": "run_id: abc\n", "metrics/loss": "1 3.0 1\n", "params/corpus": "c4"}.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(text)
    imported(run, "-o", tmp_path / "tracked", "--group", "corpus")
    assert records(tmp_path / "tracked")[0].extra["imported"]["groups"] == {"corpus": "c4"}
    result = call("import", run, "-o", tmp_path / "no", "--group", "corpsu")
    assert result.exit_code == 0 and "--group corpsu: no log has such a column; is it corpus?" in result.stderr
