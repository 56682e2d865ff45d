"""What each command answers with `--json`, on records of GPTs, on a table and on records of real trainings."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from golden import planted
from golden.runs import Ran
from golden.values import CHAINS, EXACT, FITTED, REAL, check, masked
from isoflop.cli import app

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 128, "vocab_size": 500}
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 500,
    "tie_word_embeddings": False,
}
OWN = """from torch import nn

def build():
    return nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8), nn.Linear(8, 100))
"""
TRAIN = """import sys
sys.path.insert(0, {tests!r})
from golden.planted import loss_of, write_record
from pathlib import Path

def train(config):
    n, d = config["parameters"]["non_embedding_with_head"], config["tokens"]
    losses = [(i / 20, loss_of(n, d * i / 20)) for i in range(1, 21)]
    folder = Path(config["record_dir"])
    write_record(folder, config["name"], config["parameters"], losses, d, 6 * n * d, config["steps"])
"""


def answer(*arguments: object) -> dict[str, Any]:
    """Exit code, JSON and errors of a command."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of third parties; a command is no test of ours
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    found = json.loads(result.stdout) if result.stdout.startswith(("{", "[")) else result.stdout.splitlines()
    return {"exit code": result.exit_code, "answer": found, "errors": result.stderr.splitlines()}


@pytest.fixture(scope="session")
def models(base: Path) -> Path:
    import transformers

    # imported here, not again by each process that counts
    assert transformers.GPT2LMHeadModel and transformers.LlamaForCausalLM
    folder = base / "models"
    folder.mkdir()
    (folder / "gpt2.json").write_text(json.dumps(GPT2))
    (folder / "llama.json").write_text(json.dumps(LLAMA))
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        "gpt2.json --batch 2 --seq 64",
        "gpt2.json --checkpointing",
        "gpt2.json --batch 2 --seq 64 --compare",
        "llama.json --seq 32",
        "own.py:build --batch 3 --input input=BxS:int64 --seq 10",
    ],
)
def test_count(options: str, models: Path, base: Path) -> None:
    model, *rest = options.split()
    check("count", options, masked(answer("count", models / model, *rest, "--json"), base))


ON_FOLDERS = (
    "fit RUNS --draws 60",
    "fit RUNS --draws 60 --n non_embedding",
    "fit RUNS --draws 60 --n non_embedding_with_head",
    "fit RUNS --draws 60 --n total --delta lad",
    "plan --flops BUDGET --runs RUNS",
    "plan --flops BUDGET --runs RUNS --n non_embedding_with_head",
    "plan --flops BUDGET --runs RUNS --n non_embedding --level 0.9",
    "compare OPTIONS --runs RUNS",
    "backtest RUNS",
    "backtest RUNS --priors default --baselines none --at 0.5",
    "rank RUNS",
    "rank RUNS --at 0.5 --keep 3",
    "ladder fit RUNS --flops BUDGET",
)
OF_FOLDERS = {
    "gpts": {"BUDGET": "1e20", "OPTIONS": "2x200M:4B 1B:10B"},
    "real": {"BUDGET": "1e10", "OPTIONS": "2x4k:80k 10k:200k"},
}
"""What the words stand for: little is extrapolated."""
ON_TABLES = (
    "fit RUNS --draws 60",
    "fit RUNS --draws 20 --law kaplan-nd",
    "fit RUNS --draws 60 --fix alpha=0.34 --prior beta=0.36:0.05",
    "fit RUNS --draws 60 --budgets 1e17,4e17,1.6e18 --delta 1e-2",
    "fit RUNS --draws 60 --where N>1e7",
    "plan --flops 1e20 --runs RUNS",
    "plan --flops 1e20 --runs RUNS --inference-tokens 1e11",
    "plan --flops 1e20 --tokens 20B --runs RUNS",
    "compare 2x200M:4B 1B:10B --runs RUNS --gpu h100 --price 2.5",
)
ALONE = (
    "plan --flops 1e21",
    "plan --flops 1e21 --law chinchilla-refit",
    "plan --flops 1e21 --law kaplan2020-nd",
    "plan --flops 1e23 --law chinchilla-refit --unique-tokens 10B",
    "plan --flops 1e21 --law chinchilla-refit --inference-tokens 1T",
    "plan --gpu h100 --gpu-hours 1000 --mfu 0.35",
    "plan --gpu a100 --price 2 --budget-usd 10000",
    "compare 1B:20B 2x500M:20B",
    "compare 70B:1.4T 280B:300B --law chinchilla-refit --gpu h100",
    "laws",
    "ladder plan --flops 1e19",
    "ladder plan --flops 1e20 --spend 5% --model llama --max-runs 12 --level 0.8",
)


@pytest.mark.parametrize("command", ON_FOLDERS)
@pytest.mark.parametrize("folder", ["gpts", "real"])
def test_on_records(folder: str, command: str, request: pytest.FixtureRequest, base: Path) -> None:
    path = request.getfixturevalue(folder)
    for word, meaning in OF_FOLDERS[folder].items():
        command = command.replace(word, meaning)
    found = asked(command, path, base)
    if folder == "real" and found["answer"] and found["answer"].get("one_more_rung"):
        del found["answer"]["one_more_rung"]["saved_flops"]  # the small difference of two values that are held
    check(f"commands_{folder}", command, found, rel=REAL if folder == "real" else FITTED)


@pytest.mark.parametrize("command", ON_TABLES)
def test_on_a_table(command: str, table: Path, base: Path) -> None:
    check("commands_table", command, asked(command, table, base), rel=FITTED)


@pytest.mark.parametrize("command", ALONE)
def test_alone(command: str, base: Path) -> None:
    check("commands", command, asked(command, base, base), rel=FITTED if "ladder" in command else EXACT)


def test_a_law_that_is_no_law(base: Path) -> None:
    check("commands", "laws nobody", asked("laws nobody", base, base))


def asked(command: str, path: Path, base: Path) -> Any:
    """The masked answer to a command, in which RUNS stands for a path."""
    words = [str(path) if word == "RUNS" else word for word in command.split()]
    return masked(answer(*words, "--json"), base)


# -- a ladder from plan to fit ---------------------------------------------------------------------------------------


def test_a_ladder(tmp_path: Path) -> None:
    plan, runs = tmp_path / "plan.yaml", tmp_path / "runs"
    target = ["--flops", "1e16", "--spend", "1e14", "--max-runs", "9"]
    arguments = [*target, "--sizes", "50k:2M", "--seq", "32", "--vocab", "500"]
    told: dict[str, Any] = {"plan": answer("ladder", "plan", *arguments, "-o", plan, "--json")}
    (tmp_path / "train.py").write_text(TRAIN.format(tests=str(Path(__file__).parents[1])))
    train = f"{tmp_path / 'train.py'}:train"
    names = [run["name"] for run in told["plan"]["answer"]["runs"]]
    first = answer("ladder", "run", plan, "--train", train, "--out", runs, "--engine", "local", "--only", names[0])
    told["run one"] = {**first, "errors": []}  # a table that is drawn while it trains
    for run in told["plan"]["answer"]["runs"]:
        n, d = run["parameters"]["non_embedding_with_head"], run["tokens"]
        losses = [(i / 20, planted.loss_of(n, d * i / 20)) for i in range(1, 21)]
        if not list(runs.rglob(f"isoflop-{run['name']}.jsonl")):
            planted.write_record(runs / run["name"], run["name"], run["parameters"], losses, d, 6 * n * d, run["steps"])
    told["fit"] = answer("ladder", "fit", runs, "--plan", plan, "--json")
    told["fit for more"] = answer("ladder", "fit", runs, "--flops", "1e17", "--level", "0.8", "--json")
    check("ladder", "plan, run, fit", masked(told, tmp_path), rel=CHAINS)


# -- other tools' logs -----------------------------------------------------------------------------------------------


def imported(base: Path, tmp_path: Path, *arguments: object) -> Any:
    """The answer of `isoflop import`, and the records that it wrote."""
    told = answer("import", *arguments, "-o", tmp_path / "records", "--json")
    records = {}
    for i, path in enumerate(sorted((tmp_path / "records").glob("*.jsonl"))):
        # times are those of the log, or of the import
        lines = [{**json.loads(line), "time": None} for line in path.read_text(encoding="utf-8").splitlines()]
        points = [line for line in lines if line["event"] == "point"]
        others = [line for line in lines if line["event"] != "point"]
        records[str(i)] = {"others": others, "points": len(points), "first": points[:1], "last": points[-1:]}
    name_of_records = {path.stem: f"<record {i}>" for i, path in enumerate(sorted((tmp_path / "records").glob("*")))}
    return masked(_renamed([told, records], name_of_records), tmp_path, base)


def _renamed(value: Any, names: dict[str, str]) -> Any:
    text = json.dumps(value, ensure_ascii=False)
    for name, new in names.items():
        text = text.replace(name, new).replace(name.removeprefix("isoflop-"), new)
    return json.loads(text)


def test_import_of_the_trainers_state(transformers: Ran, base: Path, tmp_path: Path) -> None:
    state = transformers.folder / "checkpoint-160"
    told = imported(base, tmp_path, state, "--from", "huggingface", "--params", 3408, "--tokens-per-step", 512)
    check("import", "huggingface", told, rel=FITTED)


def test_import_of_events(lightning: Ran, base: Path, tmp_path: Path) -> None:
    told = imported(base, tmp_path, lightning.folder / "events", "--from", "tensorboard", "--loss", "isoflop/loss")
    check("import", "tensorboard", told, rel=FITTED)


def test_import_of_a_table(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "logged.csv"
    rows = [f"{step},{2 + step**-0.5:.5f},{(2.1 + step**-0.5):.5f}" for step in range(10, 401, 10)]
    path.write_text("\n".join(["step,train_loss,val_loss", *rows]))
    options = ("--from", "table", "--params", "124M", "--tokens-per-step", "500000", "--loss", "eval/val=val_loss")
    check("import", "table", imported(base, tmp_path, path, *options))
    check("import", "table, without N", imported(base, tmp_path, path, "--from", "table"))
