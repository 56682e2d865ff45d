"""One run, written as each tool and each habit would write it, comes back; or it is asked; never as another number."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.logs import EVERY, Given, import_runs
from test_import_readers import event, mlflow_run

ROWS = 12


@dataclass(frozen=True)
class Dialect:
    """Names of the step, the losses and the tokens, and how the tokens are told: `total`, `step`, `billions` or not."""

    step: str
    train: str
    validation: str
    tokens: str
    told: str


DIALECTS = (
    Dialect("step", "loss", "val_loss", "tokens", "total"),
    Dialect("global_step", "train/loss", "eval/loss", "train/num_input_tokens_seen", "total"),
    Dialect("iteration", "lm loss", "lm loss validation", "consumed-tokens", "total"),
    Dialect("num_updates", "train/CE loss", "val/ppl", "tokens (B)", "billions"),
    Dialect("iter", "Loss/Train", "Loss/Valid", "tokens_per_step", "step"),
)


@dataclass(frozen=True)
class Planted:
    """A run: steps at which it was logged, its losses there, tokens of a step."""

    every: int
    batch: int
    losses: tuple[float, ...]

    @property
    def steps(self) -> list[int]:
        return [self.every * i for i in range(1, ROWS + 1)]

    def rows(self, dialect: Dialect) -> list[dict[str, float]]:
        """As a loop in this dialect logs it."""
        found = []
        for step, loss in zip(self.steps, self.losses, strict=True):
            tokens = {"total": step * self.batch, "step": self.batch, "billions": step * self.batch / 1e9}[dialect.told]
            held_out = math.exp(loss + 0.1) if "ppl" in dialect.validation else loss + 0.1
            found.append(
                {dialect.step: step, dialect.train: loss, dialect.validation: held_out, dialect.tokens: tokens}
            )
        return found


def as_csv(folder: Path, rows: list[dict[str, float]], name: str, separator: str = ",", comma: bool = False) -> Path:
    cell = (lambda value: repr(value).replace(".", ",")) if comma else repr
    lines = [separator.join(rows[0]), *(separator.join(map(cell, row.values())) for row in rows)]
    path = folder / f"{name}.csv"
    path.write_text("\n".join([*lines, ""]))
    return path


def as_csv_of_europe(folder: Path, rows: list[dict[str, float]]) -> Path:
    return as_csv(folder, rows, "table", ";", comma=True)


def as_utf_16(folder: Path, rows: list[dict[str, float]]) -> Path:
    path = as_csv(folder, rows, "table", "\t")
    path.write_bytes(path.read_text().encode("utf-16"))
    return path


def as_json_lines(folder: Path, rows: list[dict[str, float]]) -> Path:
    path = folder / "log.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def as_printed(folder: Path, rows: list[dict[str, float]]) -> Path:
    path = folder / "out.log"
    path.write_text("\n".join(" | ".join(f"{name}: {value!r}" for name, value in row.items()) for row in rows))
    return path


def as_database(folder: Path, rows: list[dict[str, float]]) -> Path:
    with sqlite3.connect(folder / "trackio.db") as database:
        database.execute("CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp, run_name, step, metrics)")
        for index, row in enumerate(rows):
            values = ("2025-01-01T00:00:00", "run", index, json.dumps(row))
            database.execute("INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES (?, ?, ?, ?)", values)
    return folder / "trackio.db"


def by_tag(rows: list[dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """Values by tag, where the tool keeps the steps itself."""
    step, *others = rows[0]
    return {name: [(int(row[step]), row[name]) for row in rows] for name in others}


def as_events(folder: Path, rows: list[dict[str, float]]) -> Path:
    events = [event(tag, step, value) for tag, values in by_tag(rows).items() for step, value in values]
    (folder / "events.out.tfevents.1").write_bytes(b"".join(events))
    return folder


def as_mlflow(folder: Path, rows: list[dict[str, float]]) -> Path:
    metrics = {
        tag.replace(" (B)", "_B"): "".join(f"1800000000000 {value!r} {step}\n" for step, value in values)
        for tag, values in by_tag(rows).items()
    }
    mlflow_run(folder, metrics)
    return folder / "mlruns"


def as_trainer(folder: Path, rows: list[dict[str, float]]) -> Path:
    step = next(iter(rows[0]))
    history = [{"step": row[step], **{name: value for name, value in row.items() if name != step}} for row in rows]
    state = {"global_step": history[-1]["step"], "max_steps": 0, "log_history": history}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def as_lightning(folder: Path, rows: list[dict[str, float]]) -> Path:
    """Its steps count from 0."""
    step = next(iter(rows[0]))
    moved = [{"epoch": 0, "step": row[step] - 1, **{n: v for n, v in row.items() if n != step}} for row in rows]
    (folder / "version_0").mkdir()
    as_csv(folder / "version_0", moved, "metrics")
    return folder


def as_wandb_chart(folder: Path, rows: list[dict[str, float]]) -> Path:
    step = next(iter(rows[0]))
    exported = [
        {"Step": row[step], **{f"run - {n}{end}": v for n, v in row.items() if n != step for end in ("", "__MIN")}}
        for row in rows
    ]
    return as_csv(folder, exported, "wandb_export")


def as_aim(folder: Path, rows: list[dict[str, float]]) -> Path:
    lines = [f"a1,{tag},{s},{value!r}" for tag, values in by_tag(rows).items() for s, value in values]
    path = folder / "aim.csv"
    path.write_text("\n".join(["run.hash,metric.name,step,value", *lines]))
    return path


def as_swanlab(folder: Path, rows: list[dict[str, float]]) -> Path:
    """The table of its API: an index, the step, the metrics, their times."""
    step = next(iter(rows[0]))
    table = [
        {
            "Unnamed: 0": i,
            "step": row[step],
            **{n: v for n, v in row.items() if n != step},
            "loss_timestamp": 1.7e12 + i,
        }
        for i, row in enumerate(rows)
    ]
    return as_csv(folder, table, "swanlab")


def as_megatron(folder: Path, rows: list[dict[str, float]]) -> Path:
    path = folder / "stdout.txt"
    step = next(iter(rows[0]))
    path.write_text(
        "\n".join(
            f" [2025-01-01 10:00:00] iteration {row[step]:8d}/ 90000 | elapsed time per iteration (ms): 512.3 | "
            + " | ".join(f"{name}: {value:.12E}" for name, value in row.items() if name != step)
            + " | number of nan iterations:   0 |"
            for row in rows
        )
    )
    return path


def as_python(folder: Path, rows: list[dict[str, float]]) -> Path:
    """As the Trainer prints its logs."""
    path = folder / "out.log"
    path.write_text("\n".join(map(repr, rows)))
    return path


WRITERS: tuple[Callable[[Path, list[dict[str, float]]], Path], ...] = (
    lambda folder, rows: as_csv(folder, rows, "table"),
    as_csv_of_europe,
    as_utf_16,
    as_json_lines,
    as_printed,
    as_database,
    as_events,
    as_mlflow,
    as_trainer,
    as_lightning,
    as_wandb_chart,
    as_aim,
    as_swanlab,
    as_megatron,
    as_python,
)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.step)
@pytest.mark.parametrize("write", range(len(WRITERS)))
@settings(max_examples=5)
@given(
    every=st.sampled_from([1, 10, 250]),
    batch=st.integers(1000, 10_000_000),
    losses=st.lists(st.floats(0.5, 9.0), min_size=ROWS, max_size=ROWS, unique=True),
)
def test_a_run_comes_back_or_is_asked(
    tmp_path_factory: Any, write: int, dialect: Dialect, every: int, batch: int, losses: list[float]
) -> None:
    planted = Planted(every, batch, tuple(losses))
    path = WRITERS[write](tmp_path_factory.mktemp("log"), planted.rows(dialect))
    result = import_runs([path], Given(params={EVERY: 1e8}))
    assert result.runs or result.problems
    for run in result.runs:
        exact = 1e-6 if WRITERS[write] is as_events else 1e-9
        found = {point.step: point for point in run.points}
        assert list(found) == planted.steps, "every point, at its step"
        for step, loss in zip(planted.steps, losses, strict=True):
            told = found[step].losses
            assert told["train"] == pytest.approx(loss, rel=exact)
            evaluated = [value for name, value in told.items() if name != "train"]
            assert evaluated == [pytest.approx(loss + 0.1, rel=exact)]
            if found[step].tokens is None:
                assert any("tokens" in question for question in result.questions)
            else:
                assert found[step].tokens == pytest.approx(step * batch, rel=1e-6, abs=1)
    assert len(result.runs) <= 1
