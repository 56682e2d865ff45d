"""Other tools' files, made by hand: whole, broken, truncated, foreign."""

from __future__ import annotations

import json
import math
import random
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.logs import EVERY, Given, ImportResult, ModelSize, import_runs
from isoflop.record import RecordError, Run

# -- files as their tools write them -----------------------------------------------------------------------------------


def state(*losses: float, every: int = 10, **more: Any) -> str:
    """A trainer_state.json."""
    history = [
        {"epoch": 0.1 * i, "loss": loss, "learning_rate": 1e-3 / i, "step": every * i}
        for i, loss in enumerate(losses, 1)
    ]
    last = every * len(losses)
    whole = {"global_step": last, "max_steps": last, "log_history": history, "total_flos": 0, **more}
    return json.dumps(whole, indent=2)


def event(tag: str, step: int, value: float, time: float = 1.8e9) -> bytes:
    """One scalar in TensorBoard's format."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
    return framed(Event(wall_time=time, step=step, summary=summary).SerializeToString())


def framed(data: bytes) -> bytes:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


BLOCK, HEADER = 32768, 7
"""Of LevelDB's log: bytes of a block, and of the header of a part of a record in it."""


def datastore(*rows: dict[str, Any], config: dict[str, Any] | None = None, exit_code: int | None = 0) -> bytes:
    """A run-….wandb: LevelDB's log of protobuf records; skips the test where wandb is not installed."""
    make = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="wandb is not installed").Record
    records = [make()]
    run = records[0].run
    run.run_id, run.display_name, run.project = "abc123", "offline", "project"
    for key, value in (config or {}).items():
        run.config.update.add(key=key, value_json=json.dumps(value))
    for row in rows:
        record = make()
        for key, value in row.items():
            record.history.item.add(nested_key=[key], value_json=json.dumps(value))
        record.history.step.num = row["_step"]
        records.append(record)
    if exit_code is not None:
        records.append(make())
        records[-1].exit.exit_code = exit_code
        records[-1].exit.SetInParent()
    file = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    for record in records:
        data, first = record.SerializeToString(), True
        while data or first:
            room = BLOCK - len(file) % BLOCK
            if room < HEADER:
                file += b"\0" * room
                continue
            part, data = data[: room - HEADER], data[room - HEADER :]
            kind = {(True, True): 1, (True, False): 2, (False, False): 3, (False, True): 4}[first, not data]
            file += struct.pack("<IHB", zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            first = False
    return file


def mlflow_run(folder: Path, metrics: dict[str, str], params: dict[str, str] | None = None, status: int = 3) -> Path:
    """A run of MLflow's file store."""
    run = folder / "mlruns" / "0" / "0123456789abcdef"
    (run / "params").mkdir(parents=True)
    (run / "meta.yaml").write_text(
        f"run_id: {run.name}\nrun_name: by-hand\nstart_time: 1800000000000\nstatus: {status}\n"
    )
    for name, text in metrics.items():
        (run / "metrics" / name).parent.mkdir(parents=True, exist_ok=True)
        (run / "metrics" / name).write_text(text)
    for name, text in (params or {}).items():
        (run / "params" / name).write_text(text)
    return run


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def one(result: ImportResult) -> Run:
    (run,) = result.runs
    return run


def curve(run: Run, name: str = "train") -> dict[int, float | None]:
    return {point.step: point.losses[name] for point in run.points if name in point.losses}


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def test_the_latest_state_that_can_be_read(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-20" / "trainer_state.json", state(3.0, 2.0, max_steps=30))
    broken = write(tmp_path / "checkpoint-30" / "trainer_state.json", state(3.0, 2.0, 1.0)[:150])
    result = import_runs([tmp_path])
    assert curve(one(result)) == {10: 3.0, 20: 2.0}
    assert one(result).status == "interrupted"
    (problem,) = result.problems
    assert problem.startswith(f"{broken}:") and "expected JSON" in problem and "cut off" in problem


def test_a_loss_of_zero_is_a_nan(tmp_path: Path) -> None:
    path = write(tmp_path / "trainer_state.json", state(3.0, 0.0, 2.0))
    result = import_runs([path])
    points = one(result).points
    assert [point.losses["train"] for point in points] == [3.0, None, 2.0]
    assert points[1].nonfinite == {"train": "nan"}
    assert any("loss 0.0 at step 20" in note and "NaN" in note for note in result.imported[0].notes)


def test_nan_in_json(tmp_path: Path) -> None:
    path = write(tmp_path / "trainer_state.json", state(3.0, math.nan, math.inf, 2.0))
    points = one(import_runs([path])).points
    assert [dict(point.nonfinite) for point in points] == [{}, {"train": "nan"}, {"train": "inf"}, {}]


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    """What would run as it is unpickled stays where it is."""
    import pickle

    class Trap:
        def __reduce__(self) -> Any:
            return open, (str(tmp_path / "sprung"), "w")

    write(tmp_path / "out" / "trainer_state.json", state(3.0, 2.0))
    write(tmp_path / "out" / "training_args.bin", pickle.dumps(Trap()))
    assert len(import_runs([tmp_path / "out"]).runs) == 1
    assert not (tmp_path / "sprung").exists()


def test_the_mean_over_the_run_is_no_point(tmp_path: Path) -> None:
    text = json.loads(state(3.0, 2.0))
    text["log_history"].append({"step": 20, "train_loss": 2.5, "train_runtime": 9.0, "total_flos": 6e9})
    path = write(tmp_path / "trainer_state.json", json.dumps(text))
    assert curve(one(import_runs([path]))) == {10: 3.0, 20: 2.0}


def test_tokens_are_spread_between_states(tmp_path: Path) -> None:
    """total_flos / (6·N) at each state; 20 steps of 100 tokens, then 10 of 200."""
    size = ModelSize(parameters={"non_embedding": 50}, method="by hand", huggingface=50)
    write(tmp_path / "config.json", "{}")
    for step, tokens in ((20, 2000), (30, 4000)):
        text = state(*([3.0] * (step // 10)), max_steps=30, total_flos=6.0 * 50 * tokens)
        write(tmp_path / f"checkpoint-{step}" / "trainer_state.json", text)
    run = one(import_runs([tmp_path], size_of=lambda config, length: size))
    assert [(point.step, point.tokens) for point in run.points] == [(10, 1000), (20, 2000), (30, 4000)]


def test_a_configuration_of_another_model(tmp_path: Path) -> None:
    """6·N·tokens that is no multiple of 6·N: no tokens are taken from it, and it is said."""
    size = ModelSize(parameters={"non_embedding": 70}, method="by hand", huggingface=70)
    write(tmp_path / "config.json", "{}")
    write(tmp_path / "trainer_state.json", state(3.0, 2.0, total_flos=6.0 * 50 * 2000))
    result = import_runs([tmp_path], size_of=lambda config, length: size)
    assert result.imported[0].missing == ("tokens",)
    assert "Its total_flos is no multiple of 6·N of the config.json" in result.questions[0]


# -- TensorBoard -------------------------------------------------------------------------------------------------------


def test_restarts_in_several_files(tmp_path: Path) -> None:
    write(tmp_path / "events.out.tfevents.1.host.1", b"".join(event("train/loss", 10 * i, 4.0) for i in range(1, 6)))
    write(tmp_path / "events.out.tfevents.2.host.1", b"".join(event("train/loss", 10 * i, 2.0) for i in range(3, 5)))
    result = import_runs([tmp_path])
    assert curve(one(result)) == {10: 4.0, 20: 4.0, 30: 2.0, 40: 2.0}, "step 50 of the first attempt is superseded"
    assert any("go back once" in note for note in result.imported[0].notes)


def test_a_truncated_event_file(tmp_path: Path) -> None:
    whole = [event("loss", step, 3.0) for step in range(1, 9)]
    path = write(tmp_path / "events.out.tfevents.1", b"".join(whole)[:-5])
    result = import_runs([tmp_path])
    assert list(curve(one(result))) == list(range(1, 8))
    start = sum(map(len, whole[:-1]))
    assert result.problems[0].startswith(f"{path} at byte {start} (event 7): expected ")
    assert "cut off" in result.problems[0]


def test_an_event_with_a_flipped_bit(tmp_path: Path) -> None:
    """TensorBoard's loader stops there; what comes before is read, and the rest is told."""
    events = [bytearray(event("loss", step, 3.0)) for step in range(1, 5)]
    events[2][20] ^= 1
    path = write(tmp_path / "events.out.tfevents.1", b"".join(map(bytes, events)))
    result = import_runs([tmp_path])
    assert list(curve(one(result))) == [1, 2]
    place = f"{path} at byte {2 * len(events[0])} (event 2)"
    assert result.problems[0].startswith(f"{place}: expected a whole event: it is cut off or broken, got ")


@pytest.mark.parametrize("length", [1 << 27, 1 << 40, (1 << 64) - 1])
def test_an_event_that_claims_to_be_huge(length: int, tmp_path: Path) -> None:
    """Its length's checksum holds: nothing of that size is allocated."""
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    said = struct.pack("<Q", length)
    huge = said + struct.pack("<I", masked_crc32c(said)) + b"x" * 100
    write(tmp_path / "events.out.tfevents.1", event("loss", 1, 3.0) + huge)
    tracemalloc.start()
    try:
        result = import_runs([tmp_path])
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()
    assert list(curve(one(result))) == [1] and "(event 1): expected a whole event" in result.problems[0]


def test_tensorflows_scalars_and_the_trainers_texts(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("args", json.dumps({"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}))
        writer.add_image("sample", torch_image(), 1)
        for step in (1, 2):
            writer.add_scalar("train/loss", 3.0 / step, step, new_style=True)
    size = Given(seq={EVERY: 128}, devices={EVERY: 8}, params={EVERY: 1e6})
    run = one(import_runs([tmp_path], size))
    assert curve(run) == {1: 3.0, 2: 1.5}
    assert [point.tokens for point in run.points] == [4 * 2 * 8 * 128, 2 * 4 * 2 * 8 * 128]
    (question,) = import_runs([tmp_path], Given(params={EVERY: 1e6})).questions
    assert "per_device_train_batch_size 4 × gradient_accumulation_steps 2" in question
    assert "not known: the devices (--devices), the length of a sequence (--seq)." in question


def torch_image() -> Any:
    import torch

    return torch.zeros(3, 2, 2)


# -- Lightning ---------------------------------------------------------------------------------------------------------


def test_a_truncated_metrics_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "metrics.csv", "epoch,step,train_loss\n0,0,4.0\n0,x,3.5\n0,2,3.0\n0,3,2.")
    result = import_runs([tmp_path])
    assert curve(one(result)) == {1: 4.0, 3: 3.0, 4: 2.0}
    assert result.problems == (f"{path}:3: expected step to be a number, got 'x'",)
    path = write(tmp_path / "metrics.csv", "epoch,step,train_loss,lr\n0,0,4.0,0.1\n0,1,3.")
    result = import_runs([tmp_path])
    assert curve(one(result)) == {1: 4.0}, "a value of a row that was cut off may be cut itself"
    assert result.problems == (f"{path}:3: expected 4 values, as in the first row, got '3 values'",)


def test_hyperparameters_that_are_objects(tmp_path: Path) -> None:
    write(tmp_path / "metrics.csv", "epoch,step,train_loss\n0,0,4.0\n")
    write(
        tmp_path / "hparams.yaml",
        "path: !!python/object/apply:os.system ['touch sprung']\nglobal_batch_size: 8\nmodel:\n  block_size: 16\n",
    )
    run = one(import_runs([tmp_path]))
    assert run.points[0].tokens == 8 * 16
    assert not Path("sprung").exists()


def test_event_files_beside_a_csv_log_are_left_out(tmp_path: Path) -> None:
    """The CSV has double precision."""
    write(tmp_path / "metrics.csv", "epoch,step,train_loss\n0,0,4.0\n")
    write(tmp_path / "events.out.tfevents.1", event("train_loss", 0, 4.0))
    assert [one.kind for one in import_runs([tmp_path]).imported] == ["lightning"]
    assert [one.kind for one in import_runs([tmp_path], kind="tensorboard").imported] == ["tensorboard"]


# -- W&B ---------------------------------------------------------------------------------------------------------------


def test_an_offline_run_over_several_blocks(tmp_path: Path) -> None:
    rows = [{"_step": step, "_timestamp": 1.8e9 + step, "train/loss": 3.0 / step} for step in range(1, 1500)]
    folder = tmp_path / "offline-run-1"
    path = write(folder / "run-abc123.wandb", datastore(*rows, config={"global_batch_size": 4, "seq_len": 8}))
    assert path.stat().st_size > 2 * BLOCK
    run = one(import_runs([tmp_path]))
    assert (run.name, run.status, run.points[-1].step) == ("offline", "completed", 1499)
    assert run.points[-1].tokens == 1499 * 32 and run.points[0].time == 1.8e9 + 1
    mean = sum(3.0 / step for step in range(1025, 1027)) / 2
    assert curve(run)[1026] == pytest.approx(mean, rel=1e-12), "thinned as isoflop's own record is"
    whole = path.read_bytes()
    write(path, whole[: len(whole) // 2])
    result = import_runs([tmp_path])
    assert one(result).status == "interrupted" and "expected a whole run of W&B" in result.problems[0]
    assert curve(one(result)) == {
        step: loss for step, loss in curve(run).items() if step <= one(result).points[-1].step
    }


@pytest.mark.parametrize(("key", "more"), [("train/global_step", 0), ("trainer/global_step", 1)])
def test_steps_of_the_trainer_inside_wandb(key: str, more: int, tmp_path: Path) -> None:
    """W&B's own step counts calls of log()."""
    rows = [{"_step": i, key: 10 * i, "train/loss": 3.0, "train/nan": "NaN"} for i in range(3)]
    write(tmp_path / "run-abc123.wandb", datastore(*rows, exit_code=1))
    run = one(import_runs([tmp_path]))
    assert list(curve(run)) == [more, 10 + more, 20 + more] and run.status == "interrupted"


def test_a_damaged_offline_run(tmp_path: Path) -> None:
    """What W&B's command can read is imported, under any file name; what it complains of is told."""
    content = bytearray(datastore(*({"_step": step, "val": 1, "train.loss": 3.0} for step in range(1, 5)), config={}))
    content[-30] ^= 1  # in the last row
    path = write(tmp_path / "of-a-friend.bin", bytes(content))
    result = import_runs([path])
    assert list(curve(one(result))) == [1, 2, 3]
    assert result.problems[0].startswith(f"{path}: expected a whole run of W&B, got ")
    assert import_runs([write(tmp_path / "run-x.wandb", b":W&Brubbish")]).problems[0].startswith(str(tmp_path))


def test_an_offline_run_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    path = write(tmp_path / "run-x.wandb", b":W&B\xe1\xbe\0")
    (problem,) = import_runs([path]).problems
    assert problem.startswith(f"{path}: ") and problem.endswith('not installed: pip install "wandb>=0.31"')


def test_a_chart_exported_from_wandb(tmp_path: Path) -> None:
    text = (
        '"Step","big - train/loss","big - train/loss__MIN","big - train/loss__MAX","small - train/loss"\n'
        '"1","4.0","4.0","4.0","5.0"\n"2","3.0","3.0","3.0",""\n'
    )
    result = import_runs([write(tmp_path / "wandb_export_1.csv", text)])
    assert {run.name: curve(run) for run in result.runs} == {"big": {1: 4.0, 2: 3.0}, "small": {1: 5.0}}
    assert {one.kind for one in result.imported} == {"wandb"}
    wrong = write(tmp_path / "other.csv", text.replace("Step", "Relative Time (Process)"))
    (problem,) = import_runs([wrong]).problems
    assert problem.endswith("set the chart's x-axis to Step")


def test_charts_of_one_run_are_joined_and_answered_by_the_name_that_is_listed(tmp_path: Path) -> None:
    def chart(loss: str, steps: tuple[int, ...], name: str = "big") -> str:
        return "\n".join([f'"Step","{name} - {loss}"', *(f"{step},{4 - step / 100}" for step in steps)]) + "\n"

    train, val = write(tmp_path / "a.csv", chart("train/loss", (10, 20, 30))), chart("val/loss", (20, 30))
    write(tmp_path / "b.csv", val)
    given = Given(params={"big": 25e6}, tokens_per_step={"*b*": 5e5})
    result = import_runs([tmp_path], given)
    (run,) = result.runs
    assert result.questions == () and run.name == "big"
    assert [[*point.losses] for point in run.points] == [["train"], ["train", "eval/val"], ["train", "eval/val"]]
    assert [point.tokens for point in run.points] == [5e6, 10e6, 15e6]
    assert f"{tmp_path / 'b.csv'} is of it too: joined" in result.imported[0].notes
    # the same loss, another folder, or a curve that ends far earlier: of another run, called by its file
    write(tmp_path / "b.csv", chart("train/loss", (10, 20, 30)).replace("3.9", "3.5"))
    assert [run.name for run in import_runs([tmp_path]).runs] == ["a/big", "b/big"]
    named = import_runs([tmp_path], Given(params={"b/big": 25e6, "a/*": 50e6}))
    assert [run.parameters["total"] for run in named.runs] == [50e6, 25e6] and not named.problems
    write(tmp_path / "b.csv", chart("val/loss", (5, 10)))
    assert len(import_runs([tmp_path]).runs) == 2
    write(tmp_path / "b.csv", "")
    assert len(import_runs([train, write(tmp_path / "further" / "b.csv", val)]).runs) == 2


def test_a_chart_without_a_loss_is_joined_to_the_one_with_it(tmp_path: Path) -> None:
    """Learning rate, tokens and perplexity are other charts of W&B's page; each run has its part of each."""

    def chart(metric: str, value: Callable[[int], float], runs: Sequence[str] = ("big", "small")) -> str:
        lines = [f"{step},{','.join(repr(value(step)) for _ in runs)}" for step in range(10, 60, 10)]
        return "\n".join([f"Step,{','.join(f'{run} - {metric}' for run in runs)}", *lines]) + "\n"

    rate = write(tmp_path / "a.csv", chart("train/lr", lambda step: 1e-3 * step))
    alone = import_runs([tmp_path])
    assert not alone.runs
    assert alone.problems == (
        f"{rate}: no loss is in it; its columns are train/lr, run: export the loss's chart into the same folder too, "
        "or name the one with --loss COLUMN (an evaluation's with --loss eval/val=COLUMN)",
    )
    write(tmp_path / "b.csv", chart("train/loss", lambda step: 4 - step / 100, ["big"]))
    write(tmp_path / "c.csv", chart("num_tokens", lambda step: 5e5 * step))
    write(tmp_path / "d.csv", chart("train/ppl", lambda step: math.exp(4 - step / 100)))
    result = import_runs([tmp_path])
    big, small = sorted(result.runs, key=lambda run: run.name)
    assert [(point.lr, point.tokens) for point in big.points] == [(1e-3 * s, 5e5 * s) for s in range(10, 60, 10)]
    for run in (big, small):  # whose loss is the logarithm of its perplexity
        assert [point.losses["train"] for point in run.points] == pytest.approx([3.9, 3.8, 3.7, 3.6, 3.5])
    assert not result.problems


def test_runs_of_wandbs_api(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"_step": i, "train/loss": 3.0 / i, "isoflop/tokens_processed": 64 * i} for i in (1, 2)]

    class Broken:
        id = "worse"
        config = MappingProxyType[str, Any]({})

        def scan_history(self, page_size: int) -> Any:
            raise OSError("gone")

    good = SimpleNamespace(
        id="abc",
        name="a",
        config={"lr": 1.0},
        state="finished",
        created_at="2026-01-02T03:04:05Z",
        scan_history=lambda page_size: rows,
    )
    api = SimpleNamespace(runs=lambda path: [Broken(), good], run=lambda path: good)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Api=lambda: api))
    result = import_runs(["wandb:me/project"])
    run = one(result)
    assert (run.name, run.status, run.created, curve(run)) == (
        "a",
        "completed",
        "2026-01-02T03:04:05+00:00",
        {1: 3.0, 2: 1.5},
    )
    assert result.imported[0].source == "wandb:me/project/abc"
    assert result.problems == ("wandb:me/project: run worse: W&B gave OSError: gone",)
    assert one(import_runs(["wandb:me/project/abc"])) == run
    (problem,) = import_runs(["wandb:me"]).problems
    assert "expected wandb:entity/project or wandb:entity/project/run" in problem
    monkeypatch.setitem(sys.modules, "wandb", None)
    (problem,) = import_runs(["wandb:me/project"]).problems
    assert problem.endswith("wandb is not installed: pip install wandb, then wandb login")


# -- MLflow ------------------------------------------------------------------------------------------------------------


def test_mlflows_files(tmp_path: Path) -> None:
    lines = "1800000001000 3.0 1\n1800000002000 nan 2\nrubbish\n1800000003000 2.0 3\n1800000004000 1."
    run = mlflow_run(tmp_path, {"train/loss": lines, "gpu": "1 2 3\n"}, {"global_batch_size": "4", "seq_len": "8"})
    result = import_runs([tmp_path])
    found = one(result)
    assert curve(found) == {1: 3.0, 2: None, 3: 2.0}
    assert (found.name, found.status, found.points[2].tokens) == ("by-hand", "completed", 96)
    where = run / "metrics" / "train" / "loss"
    assert result.problems == (
        f"{where}:3: expected `milliseconds value step`, got b'rubbish\\n'",
        f"{where}:5: expected `milliseconds value step`, got b'1800000004000 1.'",
    )


def test_mlflows_client(monkeypatch: pytest.MonkeyPatch) -> None:
    class Page(list[Any]):
        token = None

    info = SimpleNamespace(run_id="r", run_name="n", status="FAILED", start_time=1_800_000_000_000)
    run = SimpleNamespace(info=info, data=SimpleNamespace(metrics={"loss": 1.0, "gpu": 2.0}, params={"max_steps": "9"}))
    history = [SimpleNamespace(step=step, value=3.0 / step, timestamp=1000 * step) for step in (1, 2)]
    client = SimpleNamespace(
        search_experiments=lambda page_token: Page([SimpleNamespace(name="e", experiment_id="0")]),
        search_runs=lambda ids, page_token: Page([run]),
        get_metric_history=lambda run_id, name: history,
    )
    module = SimpleNamespace(MlflowClient=lambda tracking_uri: client)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(tracking=module))
    monkeypatch.setitem(sys.modules, "mlflow.tracking", module)
    run = one(import_runs(["mlflow:http://host"]))
    assert (run.name, run.status, run.planned["steps"], curve(run)) == ("n", "interrupted", 9, {1: 3.0, 2: 1.5})
    (problem,) = import_runs(["mlflow:http://host#other"]).problems
    assert problem == "mlflow:http://host#other: expected runs, got none"
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    (problem,) = import_runs(["mlflow:http://host"]).problems
    assert problem.endswith("mlflow is not installed: pip install mlflow")


# -- tables ------------------------------------------------------------------------------------------------------------


def test_curves_of_several_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "runs.csv", "run,step,tokens,loss,val_ppl,lr\na,1,64,4,,0.1\nb,1,64,5,,\na,2,128,3,8,0.2\n")
    result = import_runs([path])
    first, second = result.runs
    assert (first.name, curve(first), curve(second)) == ("a", {1: 4.0, 2: 3.0}, {1: 5.0})
    assert curve(first, "eval/val") == {2: pytest.approx(math.log(8))}
    assert [point.lr for point in first.points] == [0.1, 0.2]
    assert any("perplexity: its natural logarithm" in note for note in result.imported[0].notes)


def test_ends_of_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "ends.csv", "N,tokens,flops,loss\n1000,20000,1.3e8,3.0\n2000,40000,5e8,2.5\n")
    runs = import_runs([path]).runs
    assert [(run.parameters["non_embedding"], run.points[0].tokens, run.points[0].flops) for run in runs] == [
        (1000, 20000, 130_000_000),
        (2000, 40000, 500_000_000),
    ]
    assert [run.name for run in runs] == ["ends:2", "ends:3"]


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="the extra isoflop[parquet] is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"step": [1, 2], "loss": [3.0, None], "val_loss": [None, 2.0]}
    parquet.write_table(arrow.table(columns), tmp_path / "run.parquet")
    run = one(import_runs([tmp_path / "run.parquet"]))
    assert (curve(run), curve(run, "eval/val")) == ({1: 3.0}, {2: 2.0})
    whole = (tmp_path / "run.parquet").read_bytes()
    write(tmp_path / "run.parquet", whole[:-20])
    (problem,) = import_runs([tmp_path / "run.parquet"]).problems
    assert "expected a Parquet file that can be read" in problem


def test_units(tmp_path: Path) -> None:
    path = write(tmp_path / "run.csv", "step,train_loss,val_loss\n1,2.0,1.0\n")
    run = one(import_runs([path], Given(loss_unit={"train": "bits", "eval/val": "bpb"})))
    assert run.points[0].losses == {"train": pytest.approx(2 * math.log(2)), "eval/val": 1.0}
    assert run.loss_units == {"eval/val": "bits per byte"}
    with pytest.raises(RecordError, match="--loss-unit: expected one of nats, bits, ppl, bpb, mean, got 'dB'"):
        import_runs([path], Given(loss_unit={EVERY: "dB"}))


def test_a_column_of_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "run.csv", "iter,objective,heldout\n1,3.0,3.5\n2,2.0,2.5\n")
    (problem,) = import_runs([path]).problems
    assert problem == (
        f"{path}: no loss is in it; its columns are objective, heldout: name the one with --loss COLUMN (an "
        "evaluation's with --loss eval/val=COLUMN)"
    )
    run = one(import_runs([path], Given(loss={"train": "objective", "eval/held": "heldout"})))
    assert (curve(run), curve(run, "eval/held")) == ({1: 3.0, 2: 2.0}, {1: 3.5, 2: 2.5})


def test_a_column_of_steps_of_another_name(tmp_path: Path) -> None:
    path = write(tmp_path / "run.csv", "samples done,loss\n" + "".join(f"{5 * i},{9 - i}\n" for i in range(1, 8)))
    assert list(curve(one(import_runs([path])))) == [1, 2, 3, 4, 5, 6, 7]
    assert list(curve(one(import_runs([path], Given(step="samples done"))))) == [5, 10, 15, 20, 25, 30, 35]
    (problem,) = import_runs([path], Given(step="updates")).problems
    assert problem == f"{path}: --step: expected one of its columns loss, samples done, got 'updates'"


def test_tokens_that_fall_are_no_count_of_the_run(tmp_path: Path) -> None:
    """Some loops begin again at a resume or an epoch."""
    path = write(tmp_path / "run.csv", "step,loss,tokens\n1,3.0,100\n2,2.0,200\n3,1.0,50\n")
    result = import_runs([path], Given(params={EVERY: 1e6}))
    assert [point.tokens for point in one(result).points] == [None, None, None]
    assert "Its column tokens is no count of the run" in result.questions[0]


def rows_of(*rows: tuple[int, float]) -> str:
    return "".join(["step,loss\n", *(f"{step},{loss!r}\n" for step, loss in rows)])


@pytest.mark.parametrize(
    ("rows", "kept", "note"),
    [
        ([(1, 1.0), (2, 2.0), (3, 3.0), (2, 2.5)], {1: 1.0, 2: 2.5}, "go back once, as after a resume"),
        ([(3, 3.0), (1, 1.0), (2, 2.0)], {1: 1.0, 2: 2.0, 3: 3.0}, "are in no order: sorted"),
    ],
)
def test_steps_that_go_back_and_steps_in_no_order(rows: Any, kept: dict[int, float], note: str, tmp_path: Path) -> None:
    result = import_runs([write(tmp_path / "run.csv", rows_of(*rows))])
    assert curve(one(result)) == kept
    assert note in " ".join(result.imported[0].notes)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 9)), min_size=1, max_size=60))
def test_each_step_is_there_once(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, float]]) -> None:
    path = write(tmp_path_factory.getbasetemp() / "run.csv", rows_of(*rows))
    result = import_runs([path])
    if not result.runs:
        told = ("its steps are not clear: step goes back", "share their step with another")
        assert any(text in result.problems[0] for text in told)
        return
    if len({step for step, _ in rows}) == 1 < len(rows):
        return  # a constant is no step: the rows are numbered
    found = curve(one(result))
    assert list(found) == sorted(found)
    assert found[rows[-1][0]] == rows[-1][1], "what was logged last always counts"


# -- what is no log ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.csv", "", "is an empty file"),
        ("weights.bin", b"\0\1\2\3" * 20, "is a file of another kind"),
        ("package.json", '{"name": "x"}', "is JSON of another kind"),
        ("isoflop-a.jsonl", '{"event":"header","isoflop":1}\n', "is a record of isoflop's own"),
        ("notes.txt", "the loss was fine\nat step 3\n", "is text that is no table, without lines of steps and losses"),
        ("numbers.csv", "1,2\n3,4\n", "expected a table whose first row names two columns"),
    ],
)
def test_foreign_files(name: str, content: str | bytes, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    result = import_runs([path])
    assert not result.runs
    (problem,) = result.problems
    assert problem.startswith(str(path)) and said in problem


def test_the_others_are_imported(tmp_path: Path) -> None:
    write(tmp_path / "a" / "trainer_state.json", "{")
    write(tmp_path / "b" / "metrics.csv", "epoch,step,train_loss\n0,0,4.0\n")
    write(tmp_path / "c" / "events.out.tfevents.1", b"rubbish that is longer than a header")
    write(tmp_path / "d" / "run-x.wandb", b":W&Brubbish")
    result = import_runs([tmp_path, tmp_path / "nothing"])
    assert len(result.runs) == 1 and len(result.problems) == 4


PUT_IN = (b"\n", b",", b'"', b"nan", b"1e999", b"-1", b"[" * 2000, b"\xff\0", b"9" * 5000)
KIND_OF = {
    "trainer_state.json": "huggingface",
    "events.out.tfevents.1": "tensorboard",
    "metrics.csv": "lightning",
    "table.csv": "table",
    "mlruns": "mlflow",
}


def example(name: str) -> bytes:
    """A file of each kind that can be read."""
    return {
        "trainer_state.json": state(3.0, 2.0).encode(),
        "events.out.tfevents.1": b"".join(event("loss", step, 3.0) for step in range(1, 5)),
        "metrics.csv": b"epoch,step,train_loss,val_loss\n0,0,4.0,\n0,1,3.0,3.5\n",
        "table.csv": b"run,step,N,loss\na,1,1000,3.0\na,2,1000,2.0\n",
        "mlruns": b"1800000001000 3.0 1\n1800000002000 2.0 2\n",
    }[name]


@pytest.mark.parametrize("name", KIND_OF)
@settings(max_examples=40)
@given(data=st.data())
def test_whatever_the_bytes_a_reader_answers(name: str, data: st.DataObject, tmp_path_factory: Any) -> None:
    """Bytes changed, cut out or put in: runs, or a problem that is told; never an error."""
    content = bytearray(example(name))
    rng = random.Random(data.draw(st.integers(0, 2**32)))
    for _ in range(rng.randint(1, 5)):
        at, kind = rng.randrange(len(content) + 1), rng.randrange(4)
        if kind == 0 and at < len(content):
            content[at] = rng.randrange(256)
        elif kind == 1:
            del content[at : at + rng.randint(1, 40)]
        elif kind == 2:
            content[at:at] = rng.choice(PUT_IN)
        else:
            del content[at:]
    folder = tmp_path_factory.mktemp("fuzzed")
    if name == "mlruns":
        path = mlflow_run(folder, {})
        write(path / "metrics" / "loss", bytes(content))
    else:
        path = write(folder / name, bytes(content))
    for kind in (None, KIND_OF[name]):
        result = import_runs([path], kind=kind)
        assert result.runs or result.problems
