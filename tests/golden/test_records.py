"""What a run of each trainer records, shows in TensorBoard and says."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from golden.clock import START
from golden.runs import Ran
from golden.values import check, masked

TRAINED = 1e-4
"""Relative tolerance of what follows from a float32 training."""
TRAINERS = ("plain", "lightning", "transformers")


@pytest.fixture(params=TRAINERS)
def trainer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ran(trainer: str, request: pytest.FixtureRequest) -> Ran:
    found = request.getfixturevalue(trainer)
    assert isinstance(found, Ran)
    return found


def test_the_record(trainer: str, ran: Ran, base: Path) -> None:
    lines = lines_of(ran)
    found = {
        "events": [f"{name} × {len(list(same))}" for name, same in groupby(map(kind_of, lines))],
        "points": columns([line for line in lines if line["event"] == "point"]),
        "others": [line for line in lines if line["event"] != "point"],
    }
    check("records", trainer, masked(found, base), rel=TRAINED)


def test_the_record_as_it_is_read(trainer: str, ran: Ran, base: Path) -> None:
    run = ran.run
    found = {
        **{name: getattr(run, name) for name in ("name", "status", "attempts", "problems")},
        "steps": [point.step for point in run.points],
        "train": [point.losses.get("train") for point in run.points],
        "end": {name: value for name, value in (run.end or {}).items() if name != "time"},
        "advice": [item.get("reason") for item in run.advice],
    }
    check("records", f"{trainer}, as read", masked(found, base), rel=TRAINED)


def test_what_tensorboard_shows(trainer: str, ran: Ran) -> None:
    check("tensorboard", trainer, {name: tags for name, tags in shown(ran.folder)}, rel=TRAINED, additions=False)


def test_what_is_said(trainer: str, ran: Ran, base: Path) -> None:
    check("said", trainer, [masked(line, base) for line in ran.said if keeps(line)], rel=TRAINED)


def test_the_ladder_of_small_runs(series: list[Ran]) -> None:
    names = ("step", "tokens", "flops", "losses.train")
    few = {ran.folder.name: {name: columns(points_of(ran))[name] for name in names} for ran in series}
    check("records", "series", few, rel=TRAINED)


def keeps(line: str) -> bool:
    """Whether a line is isoflop's: trainers talk too. Of the log steps' lines one in five."""
    if line.startswith("step "):
        return line.split(" ")[1].endswith("0")
    return line.startswith(("isoflop", "WARNING", "ERROR", "  | "))


def lines_of(ran: Ran) -> list[dict[str, Any]]:
    """Of the record, with the script's time: 8 digits of the time since 1970 would show no seconds."""
    lines = [json.loads(line) for line in ran.record.read_text(encoding="utf-8").splitlines()]
    return [{**line, "time": line["time"] - START} if "time" in line else line for line in lines]


def points_of(ran: Ran) -> list[dict[str, Any]]:
    return [line for line in lines_of(ran) if line["event"] == "point"]


def kind_of(line: dict[str, Any]) -> str:
    """A line's event; of a point also whose loss it holds."""
    return " ".join([line["event"], *(name for name in line.get("losses", {}) if name != "train")])


def columns(points: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Values by field over points, inner fields by "outer.inner"."""
    rows = [dict(_flat({name: value for name, value in point.items() if name != "event"})) for point in points]
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


def _flat(point: dict[str, Any], above: str = "") -> Any:
    for name, value in point.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def shown(folder: Path) -> Any:
    """By folder of event files: steps and values by tag, and texts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    for place in sorted({path.parent for path in folder.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0})
        events.Reload()
        tags: dict[str, Any] = {}
        for tag in sorted(events.Tags()["scalars"]):
            scalars = events.Scalars(tag)
            tags[tag] = {"steps": [each.step for each in scalars], "values": [each.value for each in scalars]}
        for tag in sorted(set(events.Tags()["tensors"]) - {"custom_scalars__config__"}):
            texts = [each.tensor_proto.string_val for each in events.Tensors(tag)]
            tags[tag] = [text.decode() for each in texts for text in each]
        yield place.relative_to(folder).as_posix(), tags
