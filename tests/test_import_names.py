"""Names of logged quantities as the trainers write them, and the real logs of these trainers in small."""

from __future__ import annotations

import json
import math
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from isoflop.logs import Given, ImportResult, import_runs
from isoflop.logs.names import role_of

TAGS = [
    row.split("\t") for row in (Path(__file__).parent / "data" / "tags.tsv").read_text().splitlines() if row[0] != "#"
]
"""A name, its kind and what it is of ("": none), by the trainer that writes it."""


@pytest.mark.parametrize(("tag", "kind", "name"), TAGS)
def test_tags_of_the_trackers(tag: str, kind: str, name: str) -> None:
    role = role_of(tag)
    assert (kind, name) == (("", "") if role is None else (role.kind, role.name))


# -- logs of trainers in small -----------------------------------------------------------------------------------------


def loss_at(step: int) -> float:
    return round(2 + 6 / (1 + step) ** 0.3, 4)


def ends(result: ImportResult) -> dict[str, Any]:
    """Last step, tokens and losses of the one run."""
    (run,) = result.runs
    losses = {name: loss for point in run.points for name, loss in point.losses.items()}
    return {"step": run.points[-1].step, "tokens": run.points[-1].tokens, **losses}


def saved(path: Path, *lines: str) -> Path:
    path.write_text("\n".join([*lines, ""]))
    return path


def test_megatrons_output(tmp_path: Path) -> None:
    lines = [
        f" [2024-05-01 10:00:00] iteration {s:8d}/    2000 | consumed samples: {256 * s:12d} | elapsed time per "
        "iteration (ms): 512.3 | throughput per GPU (TFLOP/s/GPU): 150.1 | global batch size: 256 "
        f"| lm loss: {loss_at(s):.6E} | loss scale: 1.0 | grad norm: 0.951 | number of nan iterations:   0 |"
        for s in range(100, 2001, 100)
    ]
    value = loss_at(2000) + 0.1
    lines.append(
        f" validation loss at iteration 2000 | lm loss value: {value:.6E} | lm loss PPL: {math.exp(value):.6E} | "
    )
    path = saved(tmp_path / "stdout.txt", *lines)
    result = import_runs([path])
    assert ends(result) == {
        "step": 2000,
        "tokens": None,
        "train": loss_at(2000),
        "eval/validation": pytest.approx(value),
    }
    assert "consumed samples counts sequences: --seq" in " ".join(result.questions)
    assert ends(import_runs([path], Given(seq={"": 2048})))["tokens"] == 256 * 2000 * 2048


def test_torchtitans_output(tmp_path: Path) -> None:
    lines = [
        f"[rank0]:[titan] 2024-11-01 10:00:00,000 - root - INFO - step: {s:2}  \x1b[32mloss: {loss_at(s):7.4f}  "
        "\x1b[33mmemory: 20.01GiB(21.1%)  \x1b[34mtps: 6,123  \x1b[36mtflops: 300.12  \x1b[35mmfu: 30.3%\x1b[39m"
        for s in range(10, 101, 10)
    ]
    assert ends(import_runs([saved(tmp_path / "train.log", *lines)])) == {
        "step": 100,
        "tokens": None,
        "train": loss_at(100),
    }


def test_nanochats_output(tmp_path: Path) -> None:
    lines = ["Number of parameters: 560,988,160", "Total batch size 524,288 => gradient accumulation steps: 1"]
    for s in range(101):
        lines.append(
            f"step {s:05d}/21400 ({s / 214:.2f}%) | loss: {loss_at(s):.6f} | lrm: 1.00 | dt: 498.12ms | mfu: 48.1"
        )
    lines.append("Step 00100 | Validation bpb: 1.2345")
    result = import_runs([saved(tmp_path / "base.log", *lines)])
    found = ends(result)
    assert found == {"step": 100, "tokens": None, "train": loss_at(100), "eval/validation": 1.2345}
    assert result.runs[0].loss_units == {"eval/validation": "bits per byte"}
    assert result.runs[0].parameters["total"] == 560_988_160
    assert "total_batch_size 524,288, which may be tokens or sequences" in result.questions[0]


def test_nanogpts_output(tmp_path: Path) -> None:
    lines = ["number of parameters: 123.59M", "tokens per iteration will be: 491,520"]
    lines.append("step 0: train loss 8.1000, val loss 8.2000")
    lines += [f"iter {s}: loss {loss_at(s):.4f}, time 240.12ms, mfu 38.20%" for s in range(0, 101, 10)]
    result = import_runs([saved(tmp_path / "out.log", *lines)])
    assert ends(result) == {"step": 100, "tokens": 491_520 * 100, "train": loss_at(100), "eval/val": 8.2}
    assert result.runs[0].parameters["total"] == 123_590_000


def test_fairseq_logs_in_bits(tmp_path: Path) -> None:
    """Its perplexity is 2 to the power of the loss, which tells the unit."""
    lines = [
        "2023-01-01 10:00:00 | INFO | train_inner | "
        + json.dumps(
            {"loss": f"{nats / math.log(2) + 1:.3f}", "nll_loss": f"{nats / math.log(2):.3f}"}
            | {"ppl": f"{math.exp(nats):.2f}", "wpb": "25000", "num_updates": str(100 * i), "lr": "1e-4"}
        )
        for i, nats in enumerate((9.0, 7.0, 6.0, 5.0), 1)
    ]
    result = import_runs([saved(tmp_path / "train.log", *lines)])
    assert ends(result) == {"step": 400, "tokens": None, "train": pytest.approx(5.0, abs=1e-3)}


def test_llama_factory_and_any_loops_json_lines(tmp_path: Path) -> None:
    rows = [{"current_steps": s, "total_steps": 300, "loss": loss_at(s), "total_tokens": 4096 * s} for s in (10, 300)]
    path = saved(tmp_path / "trainer_log.jsonl", *map(json.dumps, rows))
    assert ends(import_runs([path])) == {"step": 300, "tokens": 300 * 4096, "train": loss_at(300)}
    rows = [
        {"phase": phase, "step": s, "loss": loss_at(s) + (phase == "val")}
        for s in (10, 20)
        for phase in ("train", "val")
    ]
    path = saved(tmp_path / "log.jsonl", *map(json.dumps, rows))
    assert ends(import_runs([path])) == {"step": 20, "tokens": None, "train": loss_at(20), "eval/val": loss_at(20) + 1}


def test_trackios_database(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "project.db") as database:
        database.execute(
            "CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT)"
        )
        for name in ("a", "b"):
            for i in range(5):
                row = {"train/loss": loss_at(i), "train/global_step": 10 * i, "eval": {"loss": 3.0}}
                values = (f"2025-01-01T00:00:0{i}", name, i, json.dumps(row))
                database.execute("INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?)", values)
    result = import_runs([tmp_path])
    assert [run.name for run in result.runs] == ["a", "b"]
    assert (result.runs[0].points[-1].step, result.runs[0].points[-1].losses) == (
        40,
        {"train": loss_at(4), "eval/eval": 3.0},
    )


def test_aims_export(tmp_path: Path) -> None:
    """A row holds one value of one metric in one context."""
    rows = ["run.hash,metric.name,metric.context,step,epoch,value"]
    for run, more in (("abc", 0.0), ("def", 0.5)):
        for subset in ("train", "val"):
            rows += [
                f"{run},loss,{{'subset': '{subset}'}},{s},0,{loss_at(s) + more + (subset == 'val')}" for s in (10, 20)
            ]
    result = import_runs([saved(tmp_path / "aim.csv", *rows)])
    assert [run.points[-1].losses for run in result.runs] == [
        {"train": loss_at(20) + more, "eval/val": loss_at(20) + more + 1} for more in (0.0, 0.5)
    ]


def test_parts_of_a_loss_are_no_loss(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "results.csv", "epoch,train/box_loss,train/cls_loss,val/box_loss", "1,3.0,2.0,3.1", "2,2.9,1.9,3.0"
    )
    (problem,) = import_runs([path]).problems
    assert "no loss is in it" in problem and "train/box_loss" in problem
    (run,) = import_runs([path], Given(loss={"train": "train/box_loss"})).runs
    assert run.points[-1].losses == {"train": 2.9}


# -- what can't be is asked --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("params,tokens,loss\n124,2.5,3.3\n355,7.1,3.0\n", "N is 124, fewer than a model has"),
        ("params,tokens,loss\n124000000,2.5,3.3\n", "it holds fractions, as if in thousands, millions"),
        ("params,tokens,loss\n124000000,25,3.3\n", "D is 25, fewer tokens than a run has"),
        ("params,tokens,loss\n1000000,20000000000000,3.3\n", "tokens a parameter"),
        ("params,tokens,flops,loss\n1000000,20000000,1.2e17,3.3\n", "are 1e+03 times 6·N·D"),
        ("step,loss\n10,6000.0\n20,5000.0\n", "train never falls below 5000 nats"),
        ("step,student_loss,total_loss\n10,3.0,6.0\n20,2.0,4.0\n", "total_loss may be a sum: there are student_loss"),
        ("step,loss\n10,0.5\n20,-0.5\n", "no cross-entropy is below 0"),
        ("step,train_loss,train_ppl\n10,8.0,100.0\n20,7.0,50.0\n", "ln train_ppl is"),
    ],
)
def test_what_can_not_be_is_asked_and_left_out(rows: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(rows)
    result = import_runs([path])
    assert any(said in question for question in result.questions), result.questions
    assert all(run.points[-1].flops is None for run in result.runs)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            "rank,step,loss\n" + "".join(f"{r},{s},{4 - s / 50 + r}\n" for s in range(9) for r in range(4)),
            "share their step",
        ),
        (
            "epoch,step,loss\n" + "".join(f"{e},{s},3.0\n" for e in range(4) for s in range(9)),
            "step goes back 3 times, down to 0",
        ),
    ],
)
def test_steps_that_can_not_be_told_are_asked(rows: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(rows)
    result = import_runs([path])
    (problem,) = result.problems
    assert said in problem and "--run COLUMN" in problem
    column = rows.partition(",")[0]
    assert column in problem.partition("not used:")[2]
    assert len(import_runs([path], Given(run=(column,))).runs) == 4


def test_tokens_of_an_interval_are_asked(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss,tokens\n" + "".join(f"{s},3.0,5242880\n" for s in range(10, 100, 10)))
    result = import_runs([path])
    assert result.runs[0].points[-1].tokens is None
    assert "of a step or of the 10 between two" in result.questions[1]


def test_a_copy_and_a_fork(tmp_path: Path) -> None:
    rows = [(s, loss_at(s)) for s in range(10, 200, 10)]
    for name, those in (("whole", rows), ("copy", rows[:9]), ("fork", rows[:9] + [(s, v + 0.1) for s, v in rows[9:]])):
        saved(tmp_path / f"{name}.csv", "step,loss", *(f"{s},{v}" for s, v in those))
    result = import_runs([tmp_path])
    assert sorted(run.name for run in result.runs) == ["fork", "whole"]
    told = " ".join(note for one in result.imported for note in one.notes)
    assert "copy.csv is a copy" in told and "shares its first 9 values with" in told
