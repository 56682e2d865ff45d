"""TensorBoard's event files of one folder: a run, however often it was restarted."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.logs.files import ImportProblem, flat, json_object, open_bytes, read_hparams
from isoflop.logs.given import Given
from isoflop.logs.logged import Columns, Logged
from isoflop.logs.names import SPLITS, words
from isoflop.logs.steps import FROM_ZERO
from isoflop.lookup import one_line
from isoflop.record.lines import Problems

MAX_RECORD = 1 << 26  # Bytes of an event that is read; a scalar's is some fifty
LENGTH, CHECKSUM = 12, 4
"""Bytes around an event: before it its length with a checksum, behind it its own."""
FLOATS = (1, 2)  # `DT_FLOAT` and `DT_DOUBLE` of TensorFlow's `types.proto`
ARGUMENTS, CONFIG = "args/text_summary", "model_config/text_summary"
"""JSON that Hugging Face's callback writes: its arguments, and the model's configuration."""
FLOAT32 = "TensorBoard keeps values as float32: 7 digits of a token or FLOP count are sure"


def is_event_file(name: str) -> bool:
    """True for names of event files, as TensorBoard tells them."""
    return "tfevents" in name


def is_events(start: bytes) -> bool:
    """True if a file begins with a record of TensorBoard's: a length and the length's checksum."""
    if len(start) < LENGTH:
        return False
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    small = int.from_bytes(start[:8], "little") < MAX_RECORD
    return small and bool(masked_crc32c(start[:8]) == int.from_bytes(start[8:LENGTH], "little"))


def parts_of(folder: Path) -> dict[Path, str]:
    """Folders in a run's that hold a part of it, and what to put before their tags: splits, and add_scalars' keys."""
    found = {}
    try:
        inside = sorted(one for one in folder.iterdir() if one.is_dir())
        for one in inside:
            events = [file for file in one.iterdir() if is_event_file(file.name)]
            if events and {*words(one.name)} <= SPLITS:
                found[one] = f"{one.name}/"
            elif events and "_" in one.name and (tag := _only_tag(events[0])) is not None:
                main = tag.replace("/", "_") + "_"
                if one.name.startswith(main):
                    found[one] = f"{one.name.removeprefix(main)}/"
    except OSError:
        return {}
    return found


def _only_tag(path: Path) -> str | None:
    scalars = _scalars(path, Problems(""), {})
    tags = {tag for _, (_, _, tag, _) in zip(range(20), scalars, strict=False)}
    return tags.pop() if len(tags) == 1 else None


def read(source: str, given: Given) -> list[Logged]:
    """Read a folder's event files, or one file, in the order in which they were begun, and those of its parts."""
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    parts = {folder: "", **(parts_of(path) if path.is_dir() else {})}
    files = [(file, prefix) for part, prefix in parts.items() for file in _event_files(part)]
    files = files if path.is_dir() else [(path, "")]
    if not files:
        raise ImportProblem(f"{path}: expected event files (events.out.tfevents.*), got none")
    columns, began = Columns(given.named), math.inf
    texts: dict[str, str] = {}
    told: list[str] = []
    for file, prefix in files:
        problems = Problems(str(file))
        try:
            for time, step, tag, value in _scalars(file, problems, texts):
                began = min(began, time)
                columns.add(prefix + tag, step, value, time)
        except ImportProblem as problem:
            told.append(str(problem))
        told.extend(problems.all())
    if not columns and told and not texts:
        raise ImportProblem("; ".join(told[:5]))
    lightning = read_hparams(folder / "hparams.yaml", told)
    if lightning is not None:
        columns = columns.like(
            {name: column.taken(np.arange(len(column)), column.arrays()[0] + 1) for name, column in columns.items()}
        )
    return [
        Logged(
            kind="tensorboard",
            source=str(path),
            key=os.path.realpath(folder),
            name=_name(folder),
            columns=columns,
            settings={**flat(json_object(texts.get(ARGUMENTS))), **(lightning or {})},
            config=json_object(texts.get(CONFIG)),
            created=began if math.isfinite(began) else None,
            averaged="train/epoch" in columns.unused,  # the Trainer's own tag
            single=True,
            notes=(FLOAT32,) if lightning is None else (FROM_ZERO, FLOAT32),
            problems=tuple(told),
        )
    ]


def _event_files(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if is_event_file(one.name))


def _scalars(path: Path, problems: Problems, texts: dict[str, str]) -> Iterator[tuple[float, int, str, float]]:
    """(time, step, tag, value) of a file; texts go to `texts`."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    for index, data in enumerate(_events(path, problems)):
        try:
            event = Event.FromString(data)
        except DecodeError as error:
            problems.add("an event of TensorBoard", one_line(error), at=f" (event {index})")
            continue
        for value in event.summary.value:
            tag = value.tag
            if tag.startswith("isoflop_"):  # a group of isoflop's own scalars
                tag = re.sub(r"^isoflop_[a-z]+/", "isoflop/", tag)
            kind = value.WhichOneof("value")
            if kind == "simple_value":
                yield event.wall_time, event.step, tag, value.simple_value
            elif kind == "tensor":
                if value.tag in (ARGUMENTS, CONFIG) and value.tensor.string_val:
                    texts[value.tag] = value.tensor.string_val[0].decode("utf-8", "replace")
                elif (scalar := _of_tensor(value.tensor)) is not None:
                    yield event.wall_time, event.step, tag, scalar


def _events(path: Path, problems: Problems) -> Iterator[bytes]:
    """The serialized events of a file, up to where it is cut off or broken, which is a problem.

    Raises:
        ImportProblem: it can't be read.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    with open_bytes(path) as stream:
        size, at, index = os.fstat(stream.fileno()).st_size, 0, 0
        while at < size:
            start = stream.read(LENGTH)
            length = int.from_bytes(start[:8], "little")
            body = stream.read(length + CHECKSUM) if length <= min(MAX_RECORD, size) else b""
            data, checksum = body[:length], int.from_bytes(body[length:], "little")
            if len(body) < length + CHECKSUM or masked_crc32c(data) != checksum:
                place = f" at byte {at} (event {index})"
                problems.add(
                    "a whole event: it is cut off or broken", f"{size - at} bytes that can't be read", at=place
                )
                return
            yield data
            at, index = at + LENGTH + len(body), index + 1


def _of_tensor(tensor: Any) -> float | None:
    """The one number of a float tensor, as TensorFlow 2 writes scalars."""
    from tensorboard.util.tensor_util import make_ndarray

    if tensor.dtype not in FLOATS or any(dimension.size != 1 for dimension in tensor.tensor_shape.dim):
        return None
    try:
        return float(make_ndarray(tensor).item())
    except (TypeError, ValueError):  # content that is no number
        return None


def _name(folder: Path) -> str:
    """The folder's name, with its parent's where it says nothing by itself (version_0, a date)."""
    full = Path(os.path.abspath(folder))
    common = ("version_", "run", "tb", "logs", "events", "train", "eval")
    return f"{full.parent.name}/{full.name}" if full.name.startswith(common) else full.name
