"""Target: other tools' logs, spoilt, through `isoflop import`'s readers."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from isoflop.logs import Given, ImportProblem, import_runs, write_run
from isoflop.record import read_run
from test_import_readers import event, mlflow_run, state
from torture.mutations import spoil_bytes, spoil_text
from torture.tables import spoil_row

CSV = b"epoch,step,train_loss,val_loss,lr\n" + b"".join(
    f"{i // 4},{10 * i},{3 - i / 20:.3f},{'' if i % 2 else 3.1 - i / 20},{1e-3 / i:g}\n".encode() for i in range(1, 12)
)
EXPORT = b'"Step","a - train/loss","a - train/loss__MIN","b - train/loss"\n' + b"".join(
    f'"{10 * i}","{3 - i / 20}","{3 - i / 20}","{3.2 - i / 20}"\n'.encode() for i in range(1, 12)
)
RUNS = b"run,N,D,loss\n" + b"".join(f"r{i},{10**6 * i},{10**8 * i},{3 - i / 10:.3f}\n".encode() for i in range(1, 9))


@functools.cache
def sources() -> dict[str, tuple[bytes, Callable[[bytes, Random], bytes]]]:
    """File by the path it has in its folder, and how it is spoilt."""
    losses = [3 - i / 20 for i in range(12)]
    return {
        "trainer_state.json": (state(*losses, num_input_tokens_seen=12_000).encode(), spoil_text),
        "events.out.tfevents.1800000000.host.1.0": (
            b"".join(event("train/loss", 10 * i, loss) for i, loss in enumerate(losses, 1)),
            spoil_bytes,
        ),
        "lightning_logs/version_0/metrics.csv": (CSV, lambda data, r: spoil_text(data, r, spoil_row)),
        "wandb_export.csv": (EXPORT, lambda data, r: spoil_text(data, r, spoil_row)),
        "runs.csv": (RUNS, lambda data, r: spoil_text(data, r, spoil_row)),
    }


def fuzz_importers(random: Random, folder: Path) -> None:
    """A log is read as runs, or what is wrong with it is told; what is read can be written and read back."""
    place = folder / "logs"
    shutil.rmtree(place, ignore_errors=True)
    if random.random() < 0.12:
        path = _mlflow(place, random)
    else:
        name = random.choice(list(sources()))
        data, spoil = sources()[name]
        path = place / name
        path.parent.mkdir(parents=True)
        for _ in range(random.choice([1, 1, 2])):
            data = spoil(data, random)
        path.write_bytes(data)
        if random.random() < 0.2:
            (path.parent / "config.json").write_bytes(spoil_text(CONFIG, random))
    given = random.choice([Given(), Given(params={"": 1000.0}), Given(tokens_per_step={"": 512.0})])
    target = random.choice([path, place])
    kind = random.choice([None, None, None, "huggingface", "tensorboard", "lightning", "wandb", "mlflow", "table"])
    try:
        result = import_runs([target], given, kind=kind, size_of=None)
    except ImportProblem as error:
        assert str(error)
        return
    assert all(isinstance(text, str) and text for text in (*result.problems, *result.questions))
    for one in result.imported:
        steps = [point.step for point in one.run.points]
        assert steps == sorted(set(steps)), steps
        json.dumps([one.run.model, one.run.extra, one.run.planned], allow_nan=False)
        written, _ = write_run(folder / "written", one.run)
        assert read_run(written).points == one.run.points
    shutil.rmtree(folder / "written", ignore_errors=True)


CONFIG = json.dumps({"model_type": "gpt2", "n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 32}).encode()


def _mlflow(place: Path, random: Random) -> Path:
    rows = "".join(f"{1_800_000_000_000 + i} {3 - i / 20} {10 * i}\n" for i in range(1, 12))
    run = mlflow_run(place, {"train_loss": rows, "val/loss": rows}, {"max_steps": "110"})
    files = [path for path in run.rglob("*") if path.is_file()]
    spoilt = random.choice(files)
    spoilt.write_bytes(spoil_text(spoilt.read_bytes(), random, spoil_bytes))
    return run
