"""Logs of strangers, as their projects write them: each comes with its own numbers, or as a question; never others."""

# ruff: noqa: E501

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import isoflop

STEPS = [10 * i for i in range(1, 13)]
LOSSES = [round(9 - 6 * (i / 12) ** 0.5, 4) for i in range(1, 13)]
EVALUATED = {40: 5.6359, 80: 4.201, 120: 3.1}
TOKENS = 524_288  # of a step
POINTS = list(zip(STEPS, LOSSES, strict=True))
END, VAL = {"step": 120, "train": 3.0}, {"step": 120, "train": 3.0, "val": 3.1}
D = {"tokens": 120 * TOKENS}


def lines(form: Callable[[int, float], str], evaluation: Callable[[int, float], str] | None = None) -> str:
    """A line for each point, and one for each evaluation behind it."""
    told = []
    for step, loss in POINTS:
        told.append(form(step, loss))
        if evaluation and step in EVALUATED:
            told.append(evaluation(step, EVALUATED[step]))
    return "\n".join(told) + "\n"


def rows(header: str, form: Callable[[int, float], str]) -> str:
    return header + "\n" + lines(form)


def objects(**more: Callable[[int, float], Any]) -> list[dict[str, Any]]:
    return [{name: of(step, loss) for name, of in more.items()} for step, loss in POINTS]


def jsonl(given: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(one) + "\n" for one in given)


def composer(step: int, loss: float) -> str:
    return (
        f"[batch={step}/4800]:\n\t Train time/token: {step * TOKENS}\n\t Train loss/train/total: {loss}\n"
        f"\t Train metrics/train/LanguagePerplexity: {math.exp(loss):.4f}\n\t Train throughput/tokens_per_sec: 12345.7\n"
        "\t Train lr-DecoupledAdamW/group0: 0.0006"
    )


READ: dict[str, tuple[str, str, dict[str, float]]] = {
    "nanoGPT": (
        "out.log",
        "number of parameters: 123.59M\ntokens per iteration will be: 524,288\n"
        + lines(
            lambda s, x: f"iter {s}: loss {x:.4f}, time 1234.51ms, mfu 33.21%",
            lambda s, x: f"step {s}: train loss 3.4000, val loss {x:.4f}",
        ),
        VAL | D | {"N": 123_590_000},
    ),
    "modded-nanogpt": (
        "3f2a.txt",
        "import torch\nx = 3\n====\n"
        + lines(
            lambda s, x: f"step:{s}/5100 train_loss:{x:.4f} train_time:{s * 98}ms step_avg:98.12ms",
            lambda s, x: f"step:{s}/5100 val_loss:{x:.4f} train_time:{s * 98}ms step_avg:98.76ms",
        ),
        VAL,
    ),
    "torchtune": (
        "log_1718.txt",
        lines(lambda s, x: f"Step {s} | loss:{x} lr:2e-05 tokens_per_second_per_gpu:1843.2 peak_memory_active:15.2 "),
        END | {"lr": 2e-5},
    ),
    "verl's unit of a rate": (
        "verl.log",
        lines(
            lambda s, x: f"step:{s} - train/loss:{x} - train/lr(1e-3):0.010 - train/time(s):1.52",
            lambda s, x: f"step:{s} - val/loss:{x}",
        ),
        VAL | {"lr": 1e-5},
    ),
    "OpenRLHF's progress bar": (
        "sft.log",
        lines(
            lambda s, x: (
                f"Train step of epoch 0:  8%|##  | {s}/240 [01:02<05:31,  1.21it/s, gpt_loss={x}, loss_mean={x}, lr=9.65e-6]"
            )
        ),
        {"step": 120, "asked": True},
    ),
    "tqdm": ("t.log", lines(lambda s, x: f"\r 8%|##  | {s}/240 [01:02<05:31,  1.21it/s, loss={x}]"), END),
    "DeepSpeed": (
        "ds.log",
        lines(
            lambda s, x: (
                f"[2024-01-02 03:04:05,678] [INFO] [logging.py:96:log_dist] [Rank 0] step={s}, skipped=0, "
                f"lr=[0.0001], mom=[(0.9, 0.95)]\nsteps: {s} loss: {x} iter time (s): 1.234 samples/sec: 103.7"
            )
        ),
        END,
    ),
    "Megatron-DeepSpeed": (
        "mds.log",
        lines(
            lambda s, x: (
                f" iteration {s:8d}/  500000 | consumed samples: {s * 256:12d} | consumed tokens: {s * TOKENS:12d}"
                f" | elapsed time per iteration (s): 1.23 | learning rate: 1.000E-05 | global batch size:   256 | lm loss: "
                f"{x:.6E} | loss scale: 1.0 | number of nan iterations:   0 | TFLOPs: 52.1 |"
            ),
            lambda s, x: (
                f" validation loss at iteration {s} | lm loss value: {x:.6E} | lm loss PPL: {math.exp(x):.6E} |"
            ),
        ),
        VAL | D | {"lr": 1e-5},
    ),
    "GPT-NeoX": (
        "neox.log",
        lines(
            lambda s, x: (
                f" samples/sec: 12.345 | iteration {s:8d}/  320000 | elapsed time per iteration (ms): 12345.6 | "
                f"learning rate: 1.200E-06 | approx flops per GPU: 52.1TFLOPS | lm_loss: {x:.6E} | loss scale: 4294967296.0 |"
            )
        ),
        END,
    ),
    "MaxText": (
        "mt.log",
        lines(
            lambda s, x: (
                f"completed step: {s}, seconds: 1.234, TFLOP/s/device: 123.456, Tokens/s/device: 13271.123, "
                f"total_weights: 65536, loss: {x}"
            )
        ),
        END,
    ),
    "EasyLM": (
        "metrics.jsonl",
        jsonl(objects(step=lambda s, x: s, loss=lambda s, x: x, param_norm=lambda s, x: 300.0)),
        END,
    ),
    "Flax": (
        "flax.log",
        lines(
            lambda s, x: f"Step... ({s} | Loss: {x}, Learning Rate: 0.00059)",
            lambda s, x: f"Step... ({s} | Eval Loss: {x} | Eval Perplexity: {math.exp(x)})",
        ),
        VAL | {"lr": 0.00059},
    ),
    "Lit-GPT": (
        "litgpt.log",
        "Total parameters: 1,100,048,384\n"
        + lines(
            lambda s, x: f"Epoch 1 | iter {s * 4} step {s} | loss train: {x}, val: n/a | iter time: 123.45 ms (step)"
        ),
        END | {"N": 1_100_048_384},
    ),
    "Lit-GPT's table": (
        "metrics.csv",
        rows(
            "epoch,iter,iter_time,learning_rate,loss,remaining_time,step,tokens,total_tokens,val_loss",
            lambda s, x: f"1,{s * 4},0.12,0.0004,{x},999.9,{s},{s * TOKENS // 8},{s * TOKENS},",
        ),
        END | D,
    ),
    "mistral-finetune": (
        "mf.log",
        lines(
            lambda s, x: (
                f"2024-05-24 10:00:00 (UTC) - 0:01:23 - train - INFO - step: {s:06d} - done (%): {s / 12:.1f} - "
                f"loss: {x} - lr: 6.0e-05 - peak_alloc_mem (GB): 22.1 - words_per_second: 8391.2 - ETA: >2024"
            )
        ),
        END | {"lr": 6e-5},
    ),
    "lingua": (
        "lingua.log",
        lines(
            lambda s, x: (
                f"0: INFO    24-10-30 06:07:08 - step: {s}  acc: 0  loss: {x}  grad: 1.2e+00  flops: "
                f"{3.1e14 + s * 1e11:.2e}  wps: 1.23e+05  iter:  0.51  data:  0.01  lr: 3.00e-04  mem: 43%"
            )
        ),
        END | {"lr": 3e-4, "flops": 0},
    ),
    "lingua's JSON": (
        "metrics.jsonl",
        jsonl(
            [
                {
                    "global_step": s,
                    "acc_step": 0,
                    "speed/FLOPS": 3e14 + s,
                    "optim/total_tokens": s * TOKENS,
                    "loss/out": x,
                }
                for s, x in POINTS
            ]
        ),
        END | D | {"flops": 0},
    ),
    "torchtitan": (
        "tt.log",
        lines(
            lambda s, x: (
                f"[rank0]:[titan] 2024-10-04 09:54:08,145 - root - INFO - \x1b[36mstep: {s:2d}  \x1b[32mloss: {x:7.4f}"
                "  \x1b[33mmemory: 27.51GiB(28.96%)  \x1b[34mtps: 5,243  \x1b[35mmfu: 31.2%\x1b[39m"
            )
        ),
        END,
    ),
    "nanochat": (
        "nc.log",
        lines(
            lambda s, x: (
                f"step {s:05d}/21400 ({s / 214:.2f}%) | loss: {x:.6f} | lrm: 1.00 | dt: 500.00ms | "
                "tok/sec: 1,048,576 | mfu: 48.00 | total time: 1.00m"
            ),
            lambda s, x: f"Step {s:05d} | Validation bpb: {x:.4f}",
        ),
        VAL,
    ),
    "fairseq": (
        "fs.log",
        lines(
            lambda s, x: (
                f"2022-01-01 00:00:00 | INFO | train_inner | epoch 001: {s} / 1000 loss={x / math.log(2):.5f}, "
                f"ppl={math.exp(x):.2f}, wps=12345, ups=1.2, wpb=65536, bsz=128, num_updates={s}, lr=0.0001, gnorm=1.0"
            )
        ),
        END,
    ),
    "OpenNMT": (
        "onmt.log",
        lines(
            lambda s, x: (
                f"[2021-01-01 00:00:00,123 INFO] Step {s}/100000; acc: 12.3; ppl: {math.exp(x):.2f}; xent: {x:.2f};"
                " lr: 0.00001; sents:   12345; bsz: 2345/1234/32; 12345/6789 tok/s;   123 sec;"
            )
        ),
        END,
    ),
    "Composer": ("c.log", lines(composer), END | D | {"lr": 0.0006}),
    "Composer with evaluations": (
        "c.log",
        lines(
            composer,
            lambda s, x: (
                f"[Eval batch=1/32] Eval on eval data\n[Eval batch=32/32] Eval on eval data:\n"
                f"\t Eval metrics/eval/LanguageCrossEntropy: {x}"
            ),
        ),
        VAL | D,
    ),
    "OLMo": (
        "olmo.log",
        lines(
            lambda s, x: (
                f"2024-02-03 04:05:06.789\thost:0\tolmo.train:967\tINFO\t[step={s}/739328,epoch=0]\n"
                f"    train/CrossEntropyLoss={x}\n    train/Perplexity={math.exp(x):.2f}\n"
                f"    throughput/total_tokens={s * TOKENS:,}\n    throughput/device/tokens_per_second=12,345"
            )
        ),
        END | D,
    ),
    "a notebook's table": (
        "t.tsv",
        rows("Step\tTraining Loss\tValidation Loss", lambda s, x: f"{s}\t{x}\t{x + 0.1:.4f}"),
        VAL,
    ),
    "Comet": (
        "comet.csv",
        rows(
            "experimentKey,metricName,metricValue,timestamp,step,epoch,runContext",
            lambda s, x: (
                f"abc,loss,{x},17000000{s},{s},,train"
                + (f"\nabc,loss,{EVALUATED[s]},17000000{s},{s},,validate" if s in EVALUATED else "")
            ),
        ),
        VAL,
    ),
    "Aim": (
        "aim.csv",
        "run.hash,run.name,metric.name,metric.context.subset,step,epoch,value,time\n"
        + "".join(f"a1,first,loss,train,{s},0,{x},1700000000.1\n" for s, x in POINTS)
        + "".join(f"a1,first,loss,val,{s},0,{x},1700000000.1\n" for s, x in EVALUATED.items()),
        VAL,
    ),
    "a spreadsheet": (
        "Mappe.csv",
        rows(
            "step;train loss;tokens",
            lambda s, x: f"{s};{str(x).replace('.', ',')};{f'{s * TOKENS:,}'.replace(',', '.')}",
        ).replace("\n", "\r\n"),
        END | D,
    ),
    "JSON rows": ("rows.json", json.dumps(objects(step=lambda s, x: s, loss=lambda s, x: x)), END),
    "JSON rows, indented": ("rows.json", json.dumps(objects(step=lambda s, x: s, loss=lambda s, x: x), indent=2), END),
    "JSON lists": ("lists.json", json.dumps({"step": STEPS, "loss": LOSSES}), END),
    "JSON lists by epoch": ("history.json", json.dumps({"loss": LOSSES}), {"step": 12, "train": 3.0}),
    "thousands of steps": ("k.csv", rows("step (k),loss", lambda s, x: f"{s / 1000},{x}"), END),
    "PyTorch's word model": (
        "log.txt",
        lines(
            lambda s, x: (
                f"| epoch   1 | {s:5d}/ 2928 batches | lr 20.00 | ms/batch 30.12 | loss {x:5.2f} | ppl {math.exp(x):8.2f}"
            )
        ),
        END | {"lr": 20.0},
    ),
    "Transformer-XL": (
        "log.txt",
        lines(
            lambda s, x: f"| epoch   1 step {s:8d} | {s:6d} batches | lr 0.00025 | ms/batch 123.45 | loss {x:5.2f}",
            lambda s, x: (
                f"| Eval   1 at step {s:8d} | time: 92.32s | valid loss {x:5.2f} | valid ppl {math.exp(x):9.3f}"
            ),
        ),
        VAL | {"lr": 0.00025},
    ),
    "ClearML": ("scalars.json", json.dumps({"loss": {"train": {"x": STEPS, "y": LOSSES, "name": "train"}}}), END),
    "pandas' index": ("df.csv", ",step,loss\n" + "".join(f"{i},{s},{x}\n" for i, (s, x) in enumerate(POINTS)), END),
    "fastai": (
        "h.csv",
        "epoch,train_loss,valid_loss,time\n"
        + "".join(f"{i},{x},{x + 0.1:.4f},00:12\n" for i, (_, x) in enumerate(POINTS)),
        {"step": 12, "train": 3.0, "val": 3.1},
    ),
    "Keras": (
        "h.csv",
        "epoch,accuracy,loss,val_loss\n" + "".join(f"{i},0.3,{x},{x + 0.1:.4f}\n" for i, (_, x) in enumerate(POINTS)),
        {"step": 12, "train": 3.0, "val": 3.1},
    ),
    "a Trainer's summary": (
        "all_results.json",
        json.dumps({"eval_loss": 2.9, "train_loss": 3.1, "train_runtime": 12.0, "epoch": 3.0}),
        {"val": 2.9},
    ),
    "t5x": (
        "t5x.csv",
        rows(
            "step,loss,loss_per_nontarget_token,cross_ent_loss,learning_rate",
            lambda s, x: f"{s},{x * 6e4},{x * 1.1},{x * 6e4},.01",
        ),
        {"step": 120, "asked": True},
    ),
    "fairseq's simple lines": (
        "fs.log",
        lines(
            lambda s, x: (
                f"2022-01-01 00:00:00 | INFO | train_inner | epoch 001: {s} / 1000 loss={x / math.log(2) + 0.6:.5f}, "
                f"nll_loss={x / math.log(2):.5f}, ppl={math.exp(x):.3f}, wps=12345, num_updates={s}, lr=0.0001"
            ),
            lambda s, x: (
                f"2022-01-01 00:00:00 | INFO | valid | epoch 001 | valid on 'valid' subset | loss {x / math.log(2) + 0.5}"
                f" | nll_loss {x / math.log(2)} | ppl {math.exp(x):.3f} | wps 30000 | num_updates {s} | best_loss 5.0"
            ),
        )
        + f"2022-01-01 00:00:00 | INFO | train | epoch 001 | loss 9.3 | nll_loss 8.1 | ppl 274.4 | wps 12345 | num_updates {STEPS[-1]} | lr 0.0001\n",
        VAL,
    ),
    **{
        f"marked by {mark}": (
            "m.log",
            lines(lambda s, x: f"step {s}: loss {x}", lambda s, x, mark=mark: mark.format(s, x)),
            VAL,
        )
        for mark in (
            "[VAL] step {} loss {}",
            "Eval | step {} | loss {}",
            "step {} (eval): loss {}",
            "step {} | val | loss {}",
            "INFO:eval:step {} loss {}",
            "step: {}, phase: valid, loss: {}",
            "step {}: validation results: loss={} acc=0.3",
            "root - test - step {} loss {}",
        )
    },
    "evaluations that are not made": (
        "n.log",
        lines(lambda s, x: f"step {s} | loss {x} | val: n/a | eval: 12s | next eval in 3"),
        END,
    ),
    "marks that are no splits": ("e.log", lines(lambda s, x: f"[test] step {s} loss {x} [eval: off]"), END),
    "CLU": (
        "c.log",
        lines(
            lambda s, x: f"I0101 10:00:00.123456 140 logging_writer.py:48] [{s}] learning_rate=0.0001, loss={x}",
            lambda s, x: f"I0101 10:00:00.123456 140 logging_writer.py:48] [{s}] eval_loss={x}",
        ),
        VAL | {"lr": 1e-4},
    ),
    "Ignite": ("i.log", lines(lambda s, x: f"Epoch[1] Iteration[{s}/938] Loss: {x:.4f}"), END),
    "MMEngine": (
        "mm.log",
        lines(
            lambda s, x: (
                f"2023/05/01 10:00:00 - mmengine - INFO - Iter(train) [{s:6d}/160000]  lr: 2.0000e-03  loss: {x}"
            )
        ),
        END | {"lr": 0.002},
    ),
    "MindSpore": ("ms.log", lines(lambda s, x: f"epoch: 1 step: {s}, loss is {x}"), END),
    "Sacred": (
        "metrics.json",
        json.dumps(
            {
                "train.loss": {"steps": STEPS, "timestamps": ["t"] * 12, "values": LOSSES},
                "val.loss": {"steps": [*EVALUATED], "timestamps": ["t"] * 3, "values": [*EVALUATED.values()]},
            }
        ),
        VAL,
    ),
    "ms-swift": (
        "logging.jsonl",
        jsonl(
            [
                {"loss": x, "token_acc": 0.7, "learning_rate": 1e-5, "global_step/max_steps": f"{s}/500"}
                for s, x in POINTS
            ]
        ),
        END | {"lr": 1e-5},
    ),
    **{
        f"a flag {name}": (
            "f.jsonl",
            jsonl(
                [
                    {"step": step, name: train, "loss": loss}
                    for s, x in POINTS
                    for step, train, loss in ((s, no, x), *([(s, yes, EVALUATED[s])] if s in EVALUATED else []))
                ]
            ),
            VAL,
        )
        for name, no, yes in (
            ("is_eval", False, True),
            ("train", True, False),
            ("isValidation", 0, 1),
            ("dataset", "c4", "c4-val"),
        )
    },
    "a metric a row": (
        "long.csv",
        rows(
            "step,variable,value",
            lambda s, x: f"{s},train_loss,{x}" + (f"\n{s},val_loss,{EVALUATED[s]}" if s in EVALUATED else ""),
        ),
        VAL,
    ),
    "steps of many": ("s.csv", rows("step,loss", lambda s, x: f"{s}/500,{x}"), END),
    "checkpoints": ("s.csv", rows("step,loss", lambda s, x: f"checkpoint-{s},{x}"), END),
    "units in powers": (
        "u.csv",
        rows("step/1e3,loss [nats],tokens [1e9],lr (×10⁻⁴)", lambda s, x: f"{s / 1000},{x},{s * TOKENS / 1e9},3.0"),
        END | D | {"lr": 3e-4},
    ),
    "units before": ("u.csv", rows("kstep,loss,Btok", lambda s, x: f"{s / 1000},{x},{s * TOKENS / 1e9}"), END | D),
    "a perplexity's logarithm": (
        "p.csv",
        rows("step,log_ppl,val_byte_perplexity", lambda s, x: f"{s},{x},{math.exp(x / 4)}"),
        END,
    ),
    "an evaluation that is repeated": (
        "r.csv",
        "step,train_loss,val_loss\n" + "".join(f"{s},{x},{EVALUATED.get(s // 40 * 40, '')}\n" for s, x in POINTS),
        VAL,
    ),
}
"""Project → file, content, and what must come: the last step, losses, tokens, FLOPs (0: none) and N; `asked`: the loss is in doubt."""

ASKED = {
    "steps by epoch": ("p.log", "".join(f"Epoch {e}/3, Step {s}/120, Loss: {x}\n" for e in (1, 2, 3) for s, x in POINTS), "goes back 2 times"),
    "micro-batches": ("m.jsonl", jsonl([{"iter": 4 * s + m, "optimizer_step": s, "loss": x + m} for s, x in POINTS for m in range(4)]), "share their step"),
    "ranks": ("r.jsonl", jsonl([{"rank": r, "step": s, "loss": x + r} for s, x in POINTS for r in range(4)]), "share their step"),
    "a series without its name": ("train_loss.csv", rows("step,timestamp,value", lambda s, x: f"{s},2024-01-02,{x}"), "--loss COLUMN"),
    "SwanLab's chart": ("c.csv", rows("step,run-1-loss,run-1-loss_timestamp", lambda s, x: f"{s},{x},17{s}"), "--loss COLUMN"),
    "runs side by side": ("w.csv", rows("step,baseline,ours", lambda s, x: f"{s},{x},{x}"), "--loss COLUMN"),
    "parts alone": ("u.csv", rows("epoch,train/box_loss,train/cls_loss", lambda s, x: f"{s},{x},{x}"), "no loss is in it"),
    "values in its first row": ("e.log", lines(lambda s, x: f"[h] INFO: 1epoch:train:{s}batch: iter_time=0.1, loss={x}, acc=0.3"), "text that is no table"),
    "a loss's logarithm": ("l.csv", rows("step,log(loss)", lambda s, x: f"{s},{math.log(x)}"), "no loss is in it"),
    "rewards": ("ppo.log", lines(lambda s, x: f"step:{s} - actor/pg_loss:0.01 - critic/score/mean:0.3"), "text that is no table"),
    "a sweep's ends": ("s.csv", rows("lr,loss", lambda s, x: f"{(s % 40) / 1e4},{x}"), "goes up and down"),
    "ends by a setting": ("s.csv", rows("dropout,loss", lambda s, x: f"{s / 1e3},{x}"), "is of a run"),
    "ends in no order": ("s.csv", "note,loss\n" + "".join(f"x,{3 + (7 * i % 5) / 9}\n" for i in range(12)), "does not fall"),
}  # fmt: skip


@pytest.mark.parametrize("project", READ)
def test_a_strangers_log_comes_with_its_own_numbers(project: str, tmp_path: Path) -> None:
    name, content, expected = READ[project]
    (tmp_path / name).write_text(content)
    result = isoflop.import_runs([tmp_path / name])
    (run,) = result.runs
    last, losses = run.points[-1], {name: loss for point in run.points for name, loss in point.losses.items()}
    doubted = any("may be a sum" in question or "never falls" in question for question in result.questions)
    assert doubted == bool(expected.get("asked"))
    if "step" in expected:
        assert last.step == expected["step"] and len(run.points) == 12
    if "train" in expected or "val" in expected:
        evaluated = [loss for name, loss in losses.items() if name != "train"]
        assert losses.get("train") == (pytest.approx(expected["train"], rel=2e-3) if "train" in expected else None)
        assert evaluated == ([pytest.approx(expected["val"])] if "val" in expected else [])
    assert last.tokens == expected.get("tokens")
    assert next(iter(run.parameters.values()), None) == expected.get("N")
    if "lr" in expected:
        assert last.lr == pytest.approx(expected["lr"])
    if "flops" in expected and "N" not in expected:
        assert last.flops is None


@pytest.mark.parametrize("kind", ASKED)
def test_what_can_not_be_told_is_asked(kind: str, tmp_path: Path) -> None:
    name, content, told = ASKED[kind]
    (tmp_path / name).write_text(content)
    result = isoflop.import_runs([tmp_path / name])
    assert not result.runs and told in " ".join(result.problems)


def test_a_grid_is_told_apart_by_its_rates_and_sizes(tmp_path: Path) -> None:
    cells = [(rate, width) for rate in (0.001, 0.002, 0.004) for width in (128, 256, 512)]
    told = "".join(f"{rate},{width},{s},{x + rate + 16 / width:.4f}\n" for rate, width in cells for s, x in POINTS)
    (tmp_path / "grid.csv").write_text("lr,width,step,loss\n" + told)
    runs = isoflop.import_runs([tmp_path / "grid.csv"]).runs
    assert [run.name for run in runs] == [f"width {width}, lr {rate:g}" for rate, width in cells]
    for (rate, width), run in zip(cells, runs, strict=True):
        assert len(run.points) == 12 and run.points[-1].lr == rate
        assert run.points[-1].losses["train"] == pytest.approx(3 + rate + 16 / width, abs=1e-4)


def test_of_experts_what_is_active_computes(tmp_path: Path) -> None:
    (tmp_path / "moe.csv").write_text("name,active_params,total_params,tokens,loss\na,1e8,8e8,2e9,3.0\n")
    (run,) = isoflop.import_runs([tmp_path / "moe.csv"]).runs
    assert run.parameters == {"active": 100_000_000, "total": 800_000_000}
    assert run.points[-1].flops == 6 * 10**8 * 2 * 10**9


def test_ends_of_runs_are_never_one_curve(tmp_path: Path) -> None:
    """Tables of finished runs with any columns: a run a row, or a question."""
    settings = (
        "lr",
        "width",
        "n_layers",
        "batch_size",
        "dropout",
        "wd",
        "notes",
        "accuracy",
        "gpu_hours",
        "ratio",
        "tokens",
    )
    for seed in range(300):
        dice = random.Random(seed)
        n = dice.randint(3, 20)
        table = {
            name: [dice.choice((1, 2, 4, 8, 16)) for _ in range(n)]
            for name in dice.sample(settings, dice.randint(0, 5))
        }
        if "tokens" in table:
            table["tokens"] = [int(10 ** dice.uniform(8, 11)) for _ in range(n)]
        table[dice.choice(("loss", "val_loss", "final_loss"))] = [round(dice.uniform(2, 4), 4) for _ in range(n)]
        cells = "".join(",".join(map(str, row)) + "\n" for row in zip(*table.values(), strict=True))
        (tmp_path / f"{seed}.csv").write_text(",".join(table) + "\n" + cells)
        result = isoflop.import_runs([tmp_path / f"{seed}.csv"])
        assert (len(result.runs) == n or result.problems) and all(len(run.points) == 1 for run in result.runs), cells


DOUBTED = {
    "tokens for steps": ("step,loss", lambda s, x: f"{s * TOKENS},{x}", "its steps lie 5,242,880 apart, as tokens or samples do"),
    "zeros for no evaluation": ("step,train_loss,val_loss", lambda s, x: f"{s},{x},{EVALUATED.get(s, 0)}", "eval/val is 0 at 9 of its 12 points"),
    "a sum over devices": ("step,loss,train/loss", lambda s, x: f"{s},{x},{x / 8}", "loss is 8 times train/loss at each step"),
}  # fmt: skip


@pytest.mark.parametrize("kind", DOUBTED)
def test_what_is_in_doubt_is_asked(kind: str, tmp_path: Path) -> None:
    header, form, told = DOUBTED[kind]
    (tmp_path / "a.csv").write_text(rows(header, form))
    assert told in " ".join(isoflop.import_runs([tmp_path / "a.csv"]).questions)


def test_a_folder_may_be_the_split_of_its_files(tmp_path: Path) -> None:
    for split, points in (("train", POINTS), ("eval", EVALUATED.items())):
        (tmp_path / split).mkdir()
        (tmp_path / split / "loss.tsv").write_text("step\tloss\n" + "".join(f"{s}\t{x}\n" for s, x in points))
    (run,) = isoflop.import_runs([tmp_path]).runs
    assert {name for point in run.points for name in point.losses} == {"train", "eval/eval"}
    assert run.points[-1].losses == {"train": 3.0, "eval/eval": 3.1}


def test_runs_that_were_deleted_stay_out(tmp_path: Path) -> None:
    for name, stage in (("kept", "active"), ("gone", "deleted")):
        folder = tmp_path / "mlruns" / "0" / name
        (folder / "metrics").mkdir(parents=True)
        (folder / "meta.yaml").write_text(f"lifecycle_stage: {stage}\nrun_id: {name}\nrun_name: {name}\nstatus: 3\n")
        (folder / "metrics" / "loss").write_text("".join(f"{1700000000000 + s} {x} {s}\n" for s, x in POINTS))
    result = isoflop.import_runs([tmp_path / "mlruns"])
    assert [run.name for run in result.runs] == ["kept"] and "deleted in MLflow" in " ".join(result.problems)


def test_rows_that_are_no_steps_have_no_batch(tmp_path: Path) -> None:
    """A row of tokens and a loss may be a thousand steps: tokens between two rows are no batch."""
    (tmp_path / "t.csv").write_text(rows("tokens,loss", lambda s, x: f"{s * TOKENS},{x}"))
    (run,) = isoflop.import_runs([tmp_path / "t.csv"]).runs
    assert run.points[-1].tokens == 120 * TOKENS and {point.batch_tokens for point in run.points} == {None}


def test_a_column_of_bits_alone_is_no_loss(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("bits,step\n" + "".join(f"4,{s}\n" for s in STEPS))
    assert not isoflop.import_runs([tmp_path / "q.csv"]).runs


def test_a_file_that_is_no_log_is_refused_in_two_lines(tmp_path: Path) -> None:
    """Trax' console, whose bars look like a table's."""
    text = lines(
        lambda s, x: f"Step {s:6d}: train CrossEntropyLoss |  {x:.8f}\nStep {s:6d}: train         Accuracy |  0.1"
    )
    (tmp_path / "trax.log").write_text(text)
    assert len(isoflop.import_runs([tmp_path / "trax.log"]).problems) == 2


def test_a_model_for_development_is_no_evaluation(tmp_path: Path) -> None:
    told = "".join(f"{name},{s},{x + add:.4f}\n" for name, add in (("gpt", 0.0), ("gpt-dev", 0.1)) for s, x in POINTS)
    (tmp_path / "models.csv").write_text("model,step,loss\n" + told)
    assert [run.points[-1].losses for run in isoflop.import_runs([tmp_path / "models.csv"]).runs] == [
        {"train": 3.0},
        {"train": 3.1},
    ]


HEALTHY = {
    "a part that is an evaluation": ("h.log", lines(lambda s, x: f"step {s} | train: loss {x}" + f" | val: loss {x + 1}" * (s in EVALUATED))),
    "a part in brackets": ("h.log", lines(lambda s, x: f"step {s} loss {x}" + f" [val] loss {x + 1}" * (s in EVALUATED))),
    "two means": ("h.log", lines(lambda s, x: f"step {s}: loss {x}" + f" (train), {x + 1} (val)" * (s in EVALUATED))),
    "an evaluation under way": ("h.log", lines(lambda s, x: f"step {s} loss {x}" + " eval: running" * (s in EVALUATED))),
    "a logger called test": ("h.log", lines(lambda s, x: f"2024-01-01 - test - INFO - step {s} loss {x}") + "step 130 loss 3.0\n"),
    "rows that are valid": ("h.csv", rows("step,loss,is_valid", lambda s, x: f"{s},{x},{s != 50}")),
    "rows with an evaluation behind": ("h.csv", rows("step,loss,eval", lambda s, x: f"{s},{x},{s in EVALUATED}")),
    "a run in a folder called eval": ("eval/h.csv", rows("step,loss", lambda s, x: f"{s},{x}")),
    "a test of the code": ("h.jsonl", jsonl([{"step": s, "loss": x, "test": True} for s, x in POINTS])),
    "a step of many": ("h.jsonl", jsonl([{"train/step": f"{s}/500", "loss": x} for s, x in POINTS])),
    "a dotted path": ("h.csv", rows("step,log.ppl", lambda s, x: f"{s},{math.exp(x)}")),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEALTHY)
def test_words_beside_a_training_loss_make_it_no_evaluation(kind: str, tmp_path: Path) -> None:
    name, content = HEALTHY[kind]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    (run,) = isoflop.import_runs([tmp_path / name]).runs
    losses = [point.losses.get("train") for point in run.points]
    assert losses[:12] == [pytest.approx(x) for _, x in POINTS] and {n for p in run.points for n in p.losses} == {
        "train"
    }


@pytest.mark.parametrize(
    ("column", "runs"),
    [("tag", ("gpt", "gpt-test")), ("key", ("gpt", "gpt-dev")), ("dataset", ("c4", "c4-train"))],
)
def test_runs_with_words_of_splits_in_their_names_stay_two(column: str, runs: tuple[str, str], tmp_path: Path) -> None:
    told = "".join(f"{run},{s},{x + add:.4f}\n" for run, add in zip(runs, (0.0, 0.1), strict=True) for s, x in POINTS)
    (tmp_path / "r.csv").write_text(f"{column},step,loss\n" + told)
    ends = [run.points[-1].losses for run in isoflop.import_runs([tmp_path / "r.csv"]).runs]
    assert ends == [{"train": 3.0}, {"train": 3.1}]


def test_a_number_in_a_name_is_a_unit_of_rates_and_no_end_of_losses(tmp_path: Path) -> None:
    form = rows("step,loss,lr (0.001),val_loss/2000,val/loss (1000)", lambda s, x: f"{s},{x},0.3,{x + 2},{x + 1}")
    (tmp_path / "r.csv").write_text(form)
    last = isoflop.import_runs([tmp_path / "r.csv"]).runs[0].points[-1]
    assert last.lr == pytest.approx(3e-4) and last.losses == {"train": 3.0, "eval/val/1000": 4.0, "eval/val/2000": 5.0}


@pytest.mark.parametrize(
    ("form", "last"),
    [
        ("train,{0},{1}\nval_c4,{0},{2}\nval_pile,{0},{3}", {"eval/val_c4": 4.0, "eval/val_pile": 5.0}),
        ("{4},{0},{1}", {}),
    ],
)
def test_words_of_one_split_are_all_kept(form: str, last: dict[str, float], tmp_path: Path) -> None:
    """The last one took the others' place."""
    told = rows("split,step,loss", lambda s, x: form.format(s, x, x + 1, x + 2, "train_a" if s % 20 else "Train_b"))
    (tmp_path / "s.csv").write_text(told)
    (run,) = isoflop.import_runs([tmp_path / "s.csv"]).runs
    assert len(run.points) == 12 and run.points[-1].losses == {"train": 3.0} | last
