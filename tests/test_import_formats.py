"""Logs as real projects write them: each comes back right, or is asked about; and each question's answer works."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from isoflop.cli import app
from isoflop.logs import import_runs
from test_import_names import loss_at as loss
from test_import_readers import event, mlflow_run

STEPS = range(10, 201, 10)
LAST, BATCH = loss(200), 8192


def lines(of: Callable[[int], str], *more: str, first: Sequence[str] = (), steps: Sequence[int] = STEPS) -> str:
    return "\n".join([*first, *map(of, steps), *more, ""])


def curve(header: str, of: Callable[[int], str], steps: Sequence[int] = STEPS) -> str:
    return lines(of, first=[header], steps=steps)


READ: list[tuple[str, str, dict[str, Any]]] = [
    # nanotron logging/base.py: human_format with K, M, B
    (
        "nanotron.log",
        lines(
            lambda s: f"[INFO|DP=0] iteration: {s} / 200 | consumed_tokens: {s * BATCH // 1000}K | lm_loss: {loss(s)}"
        ),
        {"train": LAST, "tokens": 1638_000},
    ),
    # OLMo-core train/callbacks/console_logger.py: a block a step
    (
        "olmo.log",
        lines(
            lambda s: (
                f"INFO [step={s}/200,epoch=1]\n    throughput/total tokens={s * BATCH:,d}\n    train/CE loss={loss(s)}"
            )
        ),
        {"train": LAST, "tokens": 200 * BATCH},
    ),
    # Megatron-LM training.py: arguments, lines, validation
    (
        "megatron.txt",
        lines(
            lambda s: (
                f" iteration {s:6d}/   200 | consumed samples: {16 * s:12d} | lm loss: {loss(s):.6E} | grad norm: 1 |"
            ),
            " validation loss at iteration 200 | lm loss value: 3.500000E+00 | lm loss PPL: 3.311545E+01 | ",
            first=["  seq_length ...................................... 512"],
        ),
        {"train": LAST, "eval/validation": 3.5, "tokens": 200 * 16 * 512},
    ),
    # karpathy/llm.c train_gpt2.cu: main.log; karpathy/build-nanogpt train_gpt2.py: log.txt
    (
        "main.log",
        lines(lambda s: f"s:{s} trl:{loss(s):.4f} lr:0.000300 norm:1.20", "s:200 tel:3.5000", "s:200 eval:0.2950"),
        {"train": LAST, "eval/val": 3.5},
    ),
    (
        "log.txt",
        lines(lambda s: f"{s} train {loss(s):.6f}", "200 val 3.5000", "200 hella 0.2463"),
        {"train": LAST, "eval/val": 3.5},
    ),
    # KellerJordan/modded-nanogpt: a loss at validations alone
    (
        "record.txt",
        lines(lambda s: f"step:{s}/200 {'' if s % 50 else f'val_loss:{loss(s)} '}train_time:{s}ms step_avg:98.76ms"),
        {"eval/val": LAST},
    ),
    # stanford-crfm/levanter callbacks: tqdm's rate behind the step
    (
        "levanter.log",
        lines(
            lambda s: f"INFO :: Progress on:train {s}.0it/200.0it rate:1.2it/s remaining:01:00 postfix:loss={loss(s)}"
        ),
        {"train": LAST},
    ),
    # Lightning-AI/litgpt pretrain.py: an iteration is a micro-batch
    (
        "litgpt.log",
        lines(lambda s: f"Epoch 1 | iter {4 * s} step {s} | loss train: {loss(s)}, val: n/a | iter time: 350.12 ms"),
        {"train": LAST},
    ),
    # fairseq progress_bar.py, JSON: bits, and an epoch's part beside the step
    (
        "fairseq.log",
        lines(
            lambda s: (
                "INFO | train_inner | "
                + json.dumps(
                    {"update": s / 1000, "loss": loss(s) / math.log(2), "ppl": math.exp(loss(s)), "num_updates": s}
                )
            ),
            "INFO | valid | " + json.dumps({"valid_loss": 5.0, "valid_ppl": 32.0, "valid_num_updates": 200}),
        ),
        {"train": LAST, "eval/valid": 5 * math.log(2)},
    ),
    # DeepSpeed runtime/engine.py, PaddleNLP trainer.py, MaxText metric_logger.py
    ("ds.log", lines(lambda s: f"steps: {s} loss: {loss(s)} iter time (s): 0.312 samples/sec: 51.2"), {"train": LAST}),
    (
        "paddle.log",
        lines(lambda s: f"[INFO] - loss: {loss(s)}, learning_rate: 3e-05, global_step: {s}"),
        {"train": LAST},
    ),
    (
        "maxtext.log",
        lines(lambda s: f"completed step: {s}, seconds: 0.5, TFLOP/s/device: 9.1, loss: {loss(s)}"),
        {"train": LAST},
    ),
    # exports: comet-ml get_metrics, neptune's exporter, SwanLab's API, a sweep with epochs
    (
        "comet.csv",
        curve("experimentKey,metricName,metricValue,step", lambda s: f"a,train_loss,{loss(s)},{s}"),
        {"train": LAST},
    ),
    (
        "neptune.csv",
        curve("run_id,attribute_path,step,float_value", lambda s: f"r,train/loss,{s},{loss(s)}"),
        {"train": LAST},
    ),
    ("swanlab.csv", curve(",step,train/loss,loss_timestamp", lambda s: f"{s},{s},{loss(s)},1.7e12"), {"train": LAST}),
    # units in names and marks of spreadsheets
    (
        "bits.csv",
        curve("step,loss (bits/token)", lambda s: f"{s},{loss(s) / math.log(2)!r}"),
        {"train": LAST},
    ),
    ("nats.csv", curve("step,nll_per_token", lambda s: f"{s},{loss(s)}"), {"train": LAST}),
    ("bpb.csv", curve("step,loss,val_bits_per_byte", lambda s: f"{s},{loss(s)},1.1"), {"train": LAST, "eval/val": 1.1}),
]


@pytest.mark.parametrize(("name", "text", "right"), READ, ids=[name for name, _, _ in READ])
def test_what_projects_write(name: str, text: str, right: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    (run,) = import_runs([tmp_path / name]).runs
    losses = {of: value for point in run.points for of, value in point.losses.items()}
    assert run.points[-1].step == 200
    assert run.points[-1].tokens == right.pop("tokens", None)
    assert losses == {of: pytest.approx(value, rel=1e-6) for of, value in right.items()}


def test_grouping_points_beside_decimal_commas(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("step;loss;tokens\n1.000;3,100;8.192.000\n2.000;3,050;16.384.000\n")
    (run,) = import_runs([tmp_path / "table.csv"]).runs
    assert [(point.step, point.losses["train"], point.tokens) for point in run.points] == [
        (1000, 3.1, 8_192_000),
        (2000, 3.05, 16_384_000),
    ]


ASKED: list[tuple[str, str, str]] = [
    (
        "times.csv",
        curve("step,loss", lambda s: f"{1_700_000_000 + s},{loss(s)}"),
        "begins at 1,700,000,010, as times do",
    ),
    # deepspeed/monitor/csv_monitor.py: a file a tag, its steps are samples
    ("Train_Samples_train_loss.csv", curve("step,train_loss", lambda s: f"{16 * s},{loss(s)}"), "count samples"),
    ("twice.csv", curve("step,loss,loss", lambda s: f"{s},{loss(s)},3.0"), "several columns are called loss"),
    (
        "ranks.jsonl",
        lines(lambda s: f'{{"rank": {s // 10 % 2}, "step": {s // 20}, "loss": {loss(s)}}}'),
        "share their step",
    ),
    # flairNLP/flair training.log, mmdet 2: iterations begin again each epoch
    ("flair.log", lines(lambda s: f"epoch {1 + s // 70} - iter {s % 70 or 70}/70 - loss {loss(s)}"), "goes back"),
    ("page.csv", "<!DOCTYPE html><html><body>step: 1 loss: 2.0</body></html>", "is a web page"),
    ("table.xlsx", "PK\x03\x04", "is a compressed file"),
    ("log10.csv", curve("step,log10_loss", lambda s: f"{s},{loss(s)}"), "no loss is in it"),
]


@pytest.mark.parametrize(("name", "text", "said"), ASKED, ids=[name for name, _, _ in ASKED])
def test_what_is_refused_with_its_cause(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    result = import_runs([tmp_path / name])
    assert not result.runs
    assert said in result.problems[0]


@pytest.mark.parametrize(
    ("header", "of", "said"),
    [
        ("step,loss,tokens", lambda s: f"{s},3.0,{s * 8.1925}", "it holds fractions"),
        ("step,loss,tokens", lambda s: f"{s},3.0,{s // 2}", "a step, as if in thousands or millions"),
        ("step,loss,num_tokens", lambda s: f"{s},3.0,{BATCH + s}", "it does not grow as it began"),
        ("step,loss,total_tokens", lambda s: f"{s},3.0,{BATCH * 200}", "in each row"),
        ("step,loss,tokens_per_gpu", lambda s: f"{s},3.0,{BATCH * s}", "Columns that are not used: tokens_per_gpu"),
    ],
)
def test_tokens_that_are_no_count(header: str, of: Callable[[int], str], said: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(curve(header, of))
    result = import_runs([tmp_path / "log.csv"])
    assert result.runs[0].points[-1].tokens is None
    assert any(said in question for question in result.questions), result.questions


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        # DeepSpeed's train_batch_size is of all devices; a Trainer's batch_size may be of one
        ({"train_batch_size": 256, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 4}, 256 * 2048),
        ({"train_batch_size": 256, "gradient_accumulation_steps": 4}, None),
        ({"batch_size": 8, "gradient_accumulation_steps": 4}, None),
        ({"micro_batch_size": 8, "gradient_accumulation_steps": 4}, 8 * 4 * 8 * 2048),
        ({"micro_batch_size": 8, "gradient_accumulation_steps": 4, "tensor_parallel_size": 2}, None),
        ({"total_batch_size": 16384}, None),  # nanochat's are tokens
        ({"global_batch_size": 64}, 64 * 2048),
    ],
)
def test_tokens_of_settings(settings: dict[str, int], tokens: int | None, tmp_path: Path) -> None:
    params = {"seq_length": "2048", "world_size": "8", **{name: str(value) for name, value in settings.items()}}
    mlflow_run(tmp_path, {"loss": "1800000000000 3.0 1\n"}, params)
    (run,) = import_runs([tmp_path]).runs
    assert run.points[-1].tokens == tokens


def test_tokens_beside_several_devices_are_those_of_all_as_a_note_says(tmp_path: Path) -> None:
    for column, doubted in (("num_tokens", True), ("consumed_tokens", False)):
        (tmp_path / "log.csv").write_text(curve(f"step,loss,{column},world_size", lambda s: f"{s},3.0,{s * BATCH},8"))
        (one,) = import_runs([tmp_path / "log.csv"]).imported
        assert one.run.points[-1].tokens == 200 * BATCH
        assert any("those of all 8 devices (world_size)" in note for note in one.notes) is doubted


def test_flops_in_other_units_or_of_each_step_are_no_compute(tmp_path: Path) -> None:
    for name, of in (("units", lambda s: s * 0.0123), ("each", lambda s: 5e12 + s)):
        (tmp_path / f"{name}.csv").write_text(curve("step,loss,flops", lambda s, of=of: f"{s},3.0,{of(s)!r}"))
        assert import_runs([tmp_path / f"{name}.csv"]).runs[0].points[-1].flops is None


def test_an_evaluation_by_epochs_beside_steps_is_left_out(tmp_path: Path) -> None:
    events = [event("Loss/train", s, loss(s)) for s in STEPS] + [event("Loss/val", e, 3.0) for e in range(1, 11)]
    (tmp_path / "events.out.tfevents.1").write_bytes(b"".join(events))
    result = import_runs([tmp_path])
    assert {name for point in result.runs[0].points for name in point.losses} == {"train"}
    assert any("Loss/val: its steps 1 to 10 look like epochs" in note for note in result.imported[0].notes)


def stepped(header: str, form: str = "{s},3.0", steps: Sequence[int] = (1, 2, 3)) -> str:
    return header + "\n" + "".join(form.format(s=s, x=4 - s / 50) + "\n" for s in steps)


ENDS = "name,N,D,loss\n"
ENDS_OF_SWEEP = "params,train_steps,loss\n" + "".join(
    f"{n}e6,{s},{3 + 1 / n + 100 / s}\n" for n in (30, 60, 90) for s in (500, 1400, 3400, 9100)
)
QUESTIONS = [  # a log, what is asked of it, and the answer as the question names it
    (stepped("epoch,batch_no,loss", "1,{s},3.0"), "--step names one", "--step batch_no"),
    ("n_m,tokens,loss\n8,3e9,3.0\n4,2e9,2.9\n", "--run COLUMN", "--run n_m"),
    ("lr,loss\n1e-3,3.0\n3e-3,2.9\n1e-4,3.5\n3e-4,3.2\n", "goes up and down", "--run lr"),
    ("dropout,loss\n.1,3.0\n.2,2.9\n", "dropout is of a run", "--run dropout"),
    ("at,loss\n1,3.0\n2,3.1\n3,2.9\n", "does not fall", "--step at"),
    (stepped("step,objective", "{s},{x}"), "--loss COLUMN", "--loss objective"),
    (stepped("step,objective", "{s},{x}"), "--loss eval/val=COLUMN", "--loss eval/val=objective"),
    (stepped("step,loss", "{s},3{s}.0"), "--loss-unit bits (or ppl)", "--loss-unit ppl"),
    (stepped("step,loss", "{s},3{s}.0"), "or --loss COLUMN", "--loss loss"),
    (stepped("step,loss,other", "{s},-3.0,3.0"), "no cross-entropy is below 0", "--loss other"),
    (stepped("step,total_loss,aux_loss", "{s},3.1,.1"), "may be a sum", "--loss total_loss"),
    (stepped("step,loss,perplexity", "{s},3.0,90.0"), "its unit with --loss-unit", "--loss loss --loss-unit nats"),
    (stepped("step,loss,mytok", "{s},3.0,512"), "--tokens-per-step 524288", "--tokens-per-step 524288"),
    (stepped("step,loss,tokens_ours", "{s},3.0,{s}000000"), "(--tokens COLUMN)", "--tokens tokens_ours"),
    (stepped("step,loss,consumed samples", "{s},3.0,{s}6"), "--seq gives their length", "--seq 2048"),
    (stepped("step,loss,tokens", "{s},3.0,{s}.5"), "it holds fractions", "--tokens-per-step 524288"),
    (stepped("step,rank,loss", "{s},0,3.0\n{s},1,3.5"), "share their step", "--run rank"),
    (
        "part,step,loss\n" + "".join(f"{p},{s},{4 - s / 50}\n" for p in (1, 2, 3) for s in range(1, 9)),
        "goes back 2 times",
        "--run part",
    ),
    (stepped("step,at,loss", "17{s:08d}00,{s},3.0"), "as times do", "--step at"),
    (
        "w,lr,step,loss\n" + "".join(f"{w},{r},{s},3.0\n" for w in (1, 2) for r in (1, 2) for s in (1, 2)),
        "--run COLUMN",
        "--run w --run lr",
    ),
    (stepped("step,loss"), "--params 124M", "--params 124M"),
    (stepped("step,loss,N,tokens", "{s},1.{s},124e6,{s}e9"), "divided by accumulation steps", "--loss-unit nats"),
    ("step,loss\n1,15.0\n2,13.0\n3,7.0\n", "it may be in bits", "--loss-unit bits"),
    (ENDS_OF_SWEEP, "--run 'params' --run 'train_steps'", "--run params --run train_steps"),
    (ENDS_OF_SWEEP, "curves: --run 'params'", "--run params"),
    (ENDS + "a,124,8e9,3.0\n", "as if in millions", "--params 124M"),
    (ENDS + "a,124e6,8,3.0\n", "--tokens-per-step 8.2B", "--tokens-per-step 8.2B"),
    (ENDS + "a,1e12,2e6,3.0\n", "tokens a parameter", "--params 124M --tokens-per-step 524288"),
    (
        "name,N,D,C,loss\na,1e8,1e9,1e22,3.0\n",
        "--tokens-per-step 524288 --params 124M",
        "--tokens-per-step 524288 --params 124M",
    ),
    ("name,N,D,C,loss\na,1e8,1e9,1e22,3.0\n", "times 6·N·D", "--flops-per-token 6e8"),
    (ENDS + "a,124e6,8e9,3.0\nb,,8e9,3.0\nc,,8e9,3.0\n", "--params NAME=124M", "--params b=124M --params c=12M"),
    ("name,N,D,loss\na,124e6,8e9,3.0\nb,124e6,,3.0\n", "--tokens-per-step", "--tokens-per-step b=524288000"),
]


@pytest.mark.parametrize(("text", "asked", "answer"), QUESTIONS, ids=[asked for _, asked, _ in QUESTIONS])
def test_the_answer_that_a_question_names_works(text: str, asked: str, answer: str, tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(text)
    answers = answer.split()
    command = ["import", str(tmp_path / "log.csv"), "-n"]
    before, after = (CliRunner().invoke(app, [*command, *more]) for more in ((), answers))
    assert asked in before.stderr
    assert after.exit_code == 0
    assert asked not in after.stderr
