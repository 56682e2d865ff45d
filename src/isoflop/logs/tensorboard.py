"""TensorBoard's event files of one folder: a run, however often it was restarted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from isoflop.logs.files import flat, open_bytes, read_yaml, whole
from isoflop.logs.logged import Columns, ImportProblem, Logged, Problems, plain, wanted, why
from isoflop.logs.table import FROM_ZERO, one_more

MAX_RECORD = 1 << 26
"""Bytes of an event that is read; a scalar's is some fifty."""
FRAME = 16
"""Bytes around an event: its length and two checksums."""
FLOATS = (1, 2)
"""`DT_FLOAT` and `DT_DOUBLE` of TensorFlow's `types.proto`."""
TEXTS = ("args/text_summary", "model_config/text_summary")
"""JSON that Hugging Face's callback writes: its arguments, and the model's configuration."""


def is_event_file(name: str) -> bool:
    """By its name, as TensorBoard tells them."""
    return "tfevents" in name


def read(path: str | os.PathLike[str], want: Callable[[str], bool] = wanted) -> list[Logged]:
    """Read a folder's event files, or one file, in the order in which they were begun.

    Raises:
        ImportProblem: none can be read.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    files = sorted(one for one in path.iterdir() if is_event_file(one.name)) if path.is_dir() else [path]
    if not files:
        raise ImportProblem(f"{path}: expected event files (events.out.tfevents.*), got none")
    columns, began = Columns(), math.inf
    texts: dict[str, str] = {}
    unused: set[str] = set()
    told: list[str] = []
    for file in files:
        problems = Problems(str(file))
        try:
            for time, step, tag, value in _scalars(file, problems, texts):
                began = min(began, time)
                if want(tag):
                    columns.add(tag, step, value, time)
                elif len(unused) < 200:
                    unused.add(plain(tag, 40))
        except ImportProblem as problem:
            told.append(str(problem))
        told.extend(problems.all())
    if not columns and told and not texts:
        raise ImportProblem("; ".join(told[:5]))
    settings, lightning = _settings(folder, texts, told)
    notes = []
    if lightning:
        one_more(columns)
        notes.append(FROM_ZERO)
    notes.append("TensorBoard keeps values as float32: 7 digits of a token or FLOP count are sure")
    return [
        Logged(
            kind="tensorboard",
            source=str(path),
            key=os.path.realpath(folder),
            name=_name(folder),
            columns=columns,
            settings=settings,
            config=_object(texts.get(TEXTS[1])),
            planned_steps=whole(settings.get("max_steps")) or None,
            created=began if math.isfinite(began) else None,
            averaged="train/epoch" in unused,  # the Trainer's own tag
            single=True,
            unused=tuple(sorted(unused)),
            notes=tuple(notes),
            problems=tuple(told),
        )
    ]


def _scalars(path: Path, problems: Problems, texts: dict[str, str]) -> Iterator[tuple[float, int, str, float]]:
    """(time, step, tag, value) of a file; texts go to `texts`."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    for index, data in enumerate(_events(path, problems)):
        try:
            event = Event.FromString(data)
        except DecodeError as error:
            problems.add(f" (event {index})", "an event of TensorBoard", why(error))
            continue
        for value in event.summary.value:
            kind = value.WhichOneof("value")
            if kind == "simple_value":
                yield event.wall_time, event.step, value.tag, value.simple_value
            elif kind == "tensor":
                if value.tag in TEXTS and value.tensor.string_val:
                    texts[value.tag] = value.tensor.string_val[0].decode("utf-8", "replace")
                elif (scalar := _of_tensor(value.tensor)) is not None:
                    yield event.wall_time, event.step, value.tag, scalar


def _events(path: Path, problems: Problems) -> Iterator[bytes]:
    """The serialized events of a file, by TensorBoard's loader, which stops in silence where the file is broken.

    Raises:
        ImportProblem: it can't be read.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    with open_bytes(path) as stream:
        events = iter(RawEventFileLoader(str(path)).Load())
        size, at, index = os.fstat(stream.fileno()).st_size, 0, 0
        while at < size:
            stream.seek(at)
            if int.from_bytes(stream.read(8), "little") > min(MAX_RECORD, size):  # the loader would allocate it
                break
            data = next(events, None)
            if data is None:
                break
            yield data
            at, index = at + len(data) + FRAME, index + 1
        if at < size:
            place = f" at byte {at} (event {index})"
            problems.add(place, "a whole event: it is cut off or broken", f"{size - at} bytes that can't be read")


def _of_tensor(tensor: Any) -> float | None:
    """The one number of a float tensor, as TensorFlow 2 writes scalars."""
    from tensorboard.util.tensor_util import make_ndarray

    if tensor.dtype not in FLOATS or any(dimension.size != 1 for dimension in tensor.tensor_shape.dim):
        return None
    try:
        return float(make_ndarray(tensor).item())
    except (TypeError, ValueError):  # content that is no number
        return None


def _settings(folder: Path, texts: dict[str, str], told: list[str]) -> tuple[dict[str, Any], bool]:
    """Hyperparameters beside the scalars, and whether Lightning wrote them, which counts steps from 0."""
    settings = flat(_object(texts.get(TEXTS[0])) or {})
    hparams = folder / "hparams.yaml"
    if not hparams.is_file():
        return settings, False
    try:
        settings |= flat(read_yaml(hparams))
    except ImportProblem as problem:
        told.append(str(problem))
    return settings, True


def _object(text: str | None) -> dict[str, Any] | None:
    """A JSON object in a text that the Trainer's callback wrote."""
    if not text:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _name(folder: Path) -> str:
    """The folder's name, with its parent's where it says nothing by itself (version_0, a date)."""
    full = Path(os.path.abspath(folder))
    common = ("version_", "run", "tb", "logs", "events", "train", "eval")
    name = f"{full.parent.name}/{full.name}" if full.name.startswith(common) else full.name
    return plain(name) or "run"
