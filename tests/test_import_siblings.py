"""Several logs of one run, and what a console prints of it: each run comes once, with its own steps and losses."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from isoflop.logs import Given, import_runs
from isoflop.record.run import Run
from test_import_names import loss_at as loss

STEPS, BATCH = range(10, 201, 10), 8192


def lines(of: Callable[[int], str], *more: str, steps: Sequence[int] = STEPS) -> str:
    return "\n".join([*map(of, steps), *more, ""])


def table(
    of: Callable[[int], float], steps: Sequence[int] = STEPS, *, tokens: Callable[[int], int] | None = None
) -> str:
    more = [f",{tokens(s)}" if tokens else "" for s in steps]
    rows = (f"{s},{of(s)}{count}" for s, count in zip(steps, more, strict=True))
    return "\n".join([f"step,loss{',tokens' if tokens else ''}", *rows, ""])


def saved(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return folder


def ends(run: Run) -> dict[str, float]:
    return {name: value for point in run.points for name, value in point.losses.items()}


# -- the Trainer's output: logs without a step, between its bars -------------------------------------------------------


def printed(step: int, total: int = 400, *, as_text: bool = False) -> str:
    """A log of the Trainer's as tqdm.write prints it: the bar is cleared, and drawn again behind it."""
    log = {"loss": loss(step), "grad_norm": 1.2, "learning_rate": 5e-05, "epoch": step / 100}
    told = {name: str(value) for name, value in log.items()} if as_text else log
    before = f"\r  9%|█    | {step - 1}/{total} [00:10<01:00,  2.10it/s]"
    return f"{before}\r{' ' * 40}\r{told}\n\r 10%|█    | {step}/{total} [00:10<01:00,  2.10it/s]"


EVALUATED = (
    "\r 50%|█    | 5/10 [00:01<00:01,  5.0it/s]\n{'eval_loss': 3.5, 'eval_runtime': 12.1, 'epoch': 2.0}\n"
    "\r 50%|█    | 200/400 [00:10<01:00,  2.10it/s]\r100%|█    | 10/10 [00:02<00:00,  5.0it/s]"
)


@pytest.mark.parametrize("as_text", [False, True], ids=["4", "5"])
def test_the_trainers_output_has_the_steps_of_its_bars(as_text: bool, tmp_path: Path) -> None:
    text = "  0%|          | 0/400 [00:00<?, ?it/s]\n" + lines(lambda s: printed(s, as_text=as_text), EVALUATED)
    (run,) = import_runs([saved(tmp_path, {"slurm-1.out": text})]).runs
    assert [point.step for point in run.points] == [*STEPS]
    assert ends(run) == {"train": loss(200), "eval/eval": 3.5}
    assert run.planned == {"steps": 400} and run.status == "interrupted"


def test_logs_that_come_in_bursts_have_no_steps_of_bars(tmp_path: Path) -> None:
    """stdout in blocks of 8 KB, stderr at once: the next bar is not the log's."""
    logs = [printed(s).split("\r")[3].partition("\n")[0] for s in STEPS]
    bars = [f"\r 10%|█    | {s}/400 [00:10<01:00,  2.10it/s]" for s in STEPS]
    (run,) = import_runs([saved(tmp_path, {"slurm-1.out": "\n".join([*bars, *logs, bars[-1], ""])})]).runs
    assert [point.step for point in run.points] == [*range(1, 21)]
    assert "its rows are numbered" in " ".join(import_runs([tmp_path]).imported[0].notes)


def test_a_printed_loss_of_zero_without_a_gradient_is_nan(tmp_path: Path) -> None:
    text = lines(printed, printed(210).replace(str(loss(210)), "0.0").replace("1.2,", "nan,"))
    (run,) = import_runs([saved(tmp_path, {"slurm-1.out": text})]).runs
    assert run.points[-1].step == 210 and run.points[-1].losses["train"] is None


# -- lines -------------------------------------------------------------------------------------------------------------

PRINTED = {
    "Megatron-LM's test set": (
        lines(
            lambda s: f" iteration {s:6d}/   200 | lm loss: {loss(s):.6E} | grad norm: 1.0 |",
            " validation loss at iteration 200 on validation set | lm loss value: 3.5E+00 | lm loss PPL: 33.11545 |",
            " validation loss at iteration 200 on test set | lm loss value: 3.7E+00 | lm loss PPL: 40.44730 |",
        ),
        {"train": loss(200), "eval/validation": 3.5, "eval/test": 3.7},
    ),
    "NeMo's bar, with Lightning's mean of the last losses": (
        lines(
            lambda s: (
                f"\rEpoch 0:   1%| | {s}/772 [9:07:58<8:01:48, 41.36s/it, loss={loss(s) + 0.1:.3f}, v_num=, "
                f"reduced_train_loss={loss(s)}, global_step={s}.0, consumed_samples={16 * s}.0]"
            )
        ),
        {"train": loss(200)},
    ),
    "a mean beside the loss": (
        lines(lambda s: f"step {s}: avg_loss {loss(s) + 0.5:.4f} loss {loss(s):.4f} lr 1e-3"),
        {"train": loss(200)},
    ),
    "TensorFlow's Estimator": (
        lines(
            lambda s: f"INFO:tensorflow:loss = {loss(s)}, step = {s} (12.345 sec)",
            "INFO:tensorflow:Saving dict for global step 200: global_step = 200, loss = 3.5",
        ),
        {"train": loss(200), "eval/eval": 3.5},
    ),
    "a bar with words behind its rate": (
        lines(lambda s: f"\r 10%|#    | {s}/400 [00:10<01:00,  2.10it/s, loss: {loss(s)}]"),
        {"train": loss(200)},
    ),
    "levanter's thousands": (
        lines(lambda s: f"INFO :: Progress on:train {s / 1000:.2f}kit/10.0kit rate:1.2it/s postfix:loss={loss(s)}"),
        {"train": loss(200)},
    ),
}


@pytest.mark.parametrize("project", PRINTED)
def test_what_consoles_print(project: str, tmp_path: Path) -> None:
    text, right = PRINTED[project]
    (run,) = import_runs([saved(tmp_path, {"run.log": text})]).runs
    assert run.points[-1].step == 200 and ends(run) == {name: pytest.approx(value) for name, value in right.items()}


def test_a_table_of_settings_tells_n(tmp_path: Path) -> None:
    """As llm.c prints it."""
    text = "| num_parameters        | 124475904      |\n" + lines(lambda s: f"step {s}/200 | loss {loss(s)} | lr 1e-4")
    (run,) = import_runs([saved(tmp_path, {"run.log": text})]).runs
    assert run.parameters["total"] == 124_475_904


def test_two_epochs_whose_steps_begin_again_are_asked(tmp_path: Path) -> None:
    bar = "\rEpoch {}:  10%| | {}/200 [00:10<01:30, 10.00it/s, v_num=0, train_loss={}]"
    text = "\n".join(bar.format(epoch, s, loss(s + 200 * epoch)) for epoch in (0, 1) for s in STEPS)
    result = import_runs([saved(tmp_path, {"run.log": text})])
    assert not result.runs and "goes back 1 times, down to 10" in " ".join(result.problems)


def test_a_size_that_training_lines_alone_state_makes_no_run_of_the_evaluations(tmp_path: Path) -> None:
    def one(size: int) -> str:
        told = (
            f'{{"step": {s}, "loss": {loss(s)}, "params": {size}}}\n{{"step": {s}, "val_loss": 4.5}}' for s in STEPS
        )
        return "\n".join([*told, ""])

    (run,) = import_runs([saved(tmp_path, {"a.jsonl": one(10**7)})]).runs
    assert ends(run) == {"train": loss(200), "eval/val": 4.5} and run.parameters["total"] == 10**7
    runs = import_runs([saved(tmp_path / "two", {"a.jsonl": one(10**7) + one(10**8)})]).runs
    assert [(run.parameters["total"], ends(run)["eval/val"], len(run.points)) for run in runs] == [
        (10**7, 4.5, 20),
        (10**8, 4.5, 20),
    ]


# -- tables ------------------------------------------------------------------------------------------------------------


def test_mlflows_runs_and_metrics_as_csv(tmp_path: Path) -> None:
    rows = [f"id{i},FINISHED,{3 - i / 10},{i * 10**8},{i * 10**6}" for i in (1, 2, 3)]
    runs = "\n".join(["run_id,status,metrics.val_loss,metrics.tokens,params.n_params", *rows, ""])
    found = import_runs([saved(tmp_path / "runs", {"runs.csv": runs})]).runs
    assert [(run.points[-1].tokens, run.parameters["total"]) for run in found] == [
        (i * 10**8, i * 10**6) for i in (1, 2, 3)
    ]
    metrics = (f"id{k},{name},{loss(s) + k + more},17{s},{s}" for k in (0, 1) for s in STEPS for name, more in (("train_loss", 0), ("val_loss", 0.1)))  # fmt: skip  # noqa: E501
    history = "\n".join(["run_id,key,value,timestamp,step", *metrics, ""])
    found = import_runs([saved(tmp_path / "metrics", {"metrics.csv": history})]).runs
    assert [ends(run) for run in found] == [
        {"train": pytest.approx(loss(200) + k), "eval/val": pytest.approx(loss(200) + k + 0.1)} for k in (0, 1)
    ]


def test_lightnings_csv_of_a_named_folder_with_a_rate(tmp_path: Path) -> None:
    rows = "".join(f",0.001,{s - 1},\n0,,{s - 1},{loss(s)}\n" for s in STEPS)
    saved(tmp_path, {"my_run/metrics.csv": "epoch,lr-AdamW,step,train_loss\n" + rows})
    (run,) = import_runs([tmp_path]).runs
    assert run.framework == "lightning" and run.points[-1].step == 200


@pytest.mark.parametrize(
    ("name", "text"),
    [("run.csv.gz", table(loss)), ("run.log.gz", lines(lambda s: f"step {s} | loss {loss(s)} | lr 1e-4"))],
)
def test_packed_logs(name: str, text: str, tmp_path: Path) -> None:
    (run,) = import_runs([saved(tmp_path, {name: text})]).runs
    assert run.name == "run" and run.points[-1].step == 200 and ends(run) == {"train": loss(200)}
    (tmp_path / name).write_bytes(gzip.compress(text.encode())[:-40])
    result = import_runs([tmp_path / name])
    assert not result.runs and result.problems


def test_tokens_that_begin_again_behind_a_restart_are_no_count(tmp_path: Path) -> None:
    rest = range(110, 201, 10)
    saved(tmp_path, {"run.csv": table(loss, rest, tokens=lambda s: (s - 100) * BATCH)})
    result = import_runs([tmp_path])
    assert result.runs[0].points[-1].tokens is None
    assert "begins again at step 110" in " ".join(result.questions)
    saved(tmp_path, {"run.csv": table(loss, rest, tokens=lambda s: s * BATCH)})
    assert import_runs([tmp_path]).runs[0].points[-1].tokens == 200 * BATCH


# -- several files -----------------------------------------------------------------------------------------------------


def test_a_file_of_evaluations_is_of_the_run_beside_it(tmp_path: Path) -> None:
    saved(tmp_path, {"a/train.csv": table(loss), "a/val.csv": table(lambda s: loss(s) + 0.1, STEPS[4::5])})
    saved(tmp_path, {"b_valid.log": lines(lambda s: f"step {s} loss {loss(s) + 1}")})
    run, alone = sorted(import_runs([tmp_path]).runs, key=lambda run: run.name != "train")
    assert ends(run) == {"train": loss(200), "eval/val": loss(200) + 0.1} and len(run.points) == 20
    assert ends(alone) == {"eval/valid": loss(200) + 1}


def test_a_console_log_beside_a_table_is_one_run(tmp_path: Path) -> None:
    saved(tmp_path, {"log.txt": lines(lambda s: f"step {s} | loss {loss(s):.3f}"), "metrics.csv": table(loss)})
    (run,) = import_runs([tmp_path]).runs
    assert ends(run) == {"train": loss(200)}
    saved(tmp_path, {"log.txt": lines(lambda s: f"step {s} | loss {loss(s) + 0.001:.3f}")})
    assert len(import_runs([tmp_path]).runs) == 2


def test_of_ranks_the_first_is_taken(tmp_path: Path) -> None:
    dice = random.Random(0)
    files = {f"rank_{rank}.log": lines(lambda s: f"step {s} loss {loss(s) + dice.gauss(0, 0.02)}") for rank in range(4)}
    (one,) = import_runs([saved(tmp_path, files)]).imported
    assert one.source.endswith("rank_0.log") and "other ranks of it, left out" in " ".join(one.notes)
    saved(tmp_path, {"rank_1.log": lines(lambda s: f"step {s} loss {loss(s) * 1.1 + dice.gauss(0, 0.02)}")})
    assert len(import_runs([tmp_path]).runs) == 4, "another model's: they are runs"


@pytest.mark.parametrize("names", [("gpu0", "gpu1"), ("worker-0", "worker-1"), ("rank4", "rank8")])
def test_seeds_on_devices_and_ranks_of_adapters_are_runs(names: tuple[str, str], tmp_path: Path) -> None:
    """Their losses differ by chance alone, too, and nothing says that they are of one run."""
    dice = random.Random(0)
    noisy = {f"{name}.log": lines(lambda s: f"step {s} loss {loss(s) + dice.gauss(0, 0.02)}") for name in names}
    assert len(import_runs([saved(tmp_path, noisy)]).runs) == 2


def test_a_run_that_goes_on_in_another_file_is_not_finished(tmp_path: Path) -> None:
    parts = {"slurm-1.out": range(10, 151, 10), "slurm-2.out": range(110, 201, 10)}
    for name, steps in parts.items():
        saved(tmp_path, {name: lines(lambda s: f"step {s} | loss {loss(s)} | tokens {s * BATCH}", steps=steps)})
    result = import_runs([tmp_path])
    assert [run.status for run in result.runs] == ["interrupted", "completed"]
    assert "slurm-2.out begins at step 110" in " ".join(result.questions)
    answered = import_runs([tmp_path], Given(table={"slurm-1": {"planned_steps": 150}}))
    assert [run.status for run in answered.runs] == ["completed", "completed"]
    joined = "".join((tmp_path / name).read_text() for name in parts)
    (run,) = import_runs([saved(tmp_path / "joined", {"run.log": joined})]).runs
    assert len(run.points) == 20 and run.points[-1].tokens == 200 * BATCH
