"""W&B's files: an offline run's `run-<id>.wandb`, whose format is LevelDB's log around protobuf records.

It is read here because the wandb package has no reader of it any more (0.31). Field numbers are those of its
`wandb_internal.proto`; what is not named below is skipped.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from .files import flat, number, open_bytes, whole
from .logged import Columns, Logged
from .names import wanted
from .problem import ImportProblem, Problems, plain, why

MAGIC = b":W&B"
BLOCK = 32768
HEADER = 7  # checksum (4 bytes), length (2), kind (1)
MAX_RECORD = 1 << 26
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def is_datastore(head: bytes) -> bool:
    """By a file's first bytes."""
    return head[:4] == MAGIC


def read(path: str | os.PathLike[str], want: Callable[[str], bool] = wanted) -> list[Logged]:
    """Read an offline run: its file, or its folder.

    Raises:
        ImportProblem: it can't be read, or is none.
    """
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("run-*.wandb"))
        if not found:
            raise ImportProblem(f"{path}: expected an offline run of W&B (run-<id>.wandb), got none")
        path = found[0]
    problems = Problems(str(path))
    columns, config, run, exit_code = Columns(), dict[str, Any](), dict[str, Any](), None
    steps = StepOf()
    unused: set[str] = set()
    for record in _records(path, problems):
        kind = record.WhichOneof("kind")
        if kind == "history":
            items = {_key(item): _value(item.value_json) for item in record.history.item}
            step = steps.of(items, record.history.step.num if record.history.HasField("step") else None)
            time = number(items.get("_timestamp"))
            for name, value in items.items():
                if want(name) and (found_value := as_number(value)) is not None:
                    columns.add(name, step, found_value, float("nan") if time is None else time)
                elif len(unused) < 200:
                    unused.add(plain(name, 40))
        elif kind == "run":
            run = {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
            run["start"] = record.run.start_time.seconds or None
            config |= {_key(item): _value(item.value_json) for item in record.run.config.update}
        elif kind == "config":
            config |= {_key(item): _value(item.value_json) for item in record.config.update}
        elif kind == "exit":
            exit_code = record.exit.exit_code
    if not run and not columns:
        raise ImportProblem("; ".join(problems.all()) or f"{path}: expected a run of W&B, got a file without one")
    config.pop("_wandb", None)
    return [
        Logged(
            kind="wandb",
            source=str(path),
            key=f"wandb:{run.get('id') or path.stem}",
            name=plain(run.get("name") or run.get("id") or path.stem),
            columns=columns,
            settings=flat(config),
            config=config if "model_type" in config else None,
            planned_steps=whole(config.get("max_steps")) or None,
            status="completed" if exit_code == 0 else "interrupted",
            created=run.get("start"),
            averaged="train/global_step" in steps.seen,
            unused=tuple(sorted(unused)),
            notes=steps.notes(),
            problems=problems.all(),
        )
    ]


class StepOf:
    """Optimizer steps of a history row: what the trainer says, else W&B's own count."""

    def __init__(self) -> None:
        self.seen: set[str] = set()
        self._last: int | None = None

    def of(self, row: dict[str, Any], own: int | None) -> int:
        """The step of a row: `own` is W&B's, which counts calls of log() unless it was given one."""
        for name, more in (("trainer/global_step", 1), ("train/global_step", 0)):
            if (step := whole(row.get(name))) is not None:
                self.seen.add(name)
                self._last = step + more
                return self._last
        if self._last is not None:  # a row of such a run that does not say its step belongs to the one before
            return self._last
        found = whole(row.get("_step"))
        return found if found is not None else own or 0

    def notes(self) -> tuple[str, ...]:
        """Which were used."""
        if "trainer/global_step" in self.seen:
            return ("steps are trainer/global_step, which Lightning counts from 0: one is added",)
        if "train/global_step" in self.seen:
            return ("steps are train/global_step",)
        return ("steps are W&B's own: what log(step=) was given, else its calls",)


def as_number(value: object) -> float | None:
    """A history value as a number; NaN and infinities are texts there."""
    if isinstance(value, str) and value not in ("NaN", "Infinity", "-Infinity"):
        return None
    return number(value)


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    # the config of files beside an online run wraps each value
    return value["value"] if isinstance(value, dict) and set(value) == {"value"} else value


def _records(path: Path, problems: Problems) -> Iterator[Any]:
    from google.protobuf.message import DecodeError

    record = _message()
    for index, data in enumerate(_frames(path, problems)):
        try:
            yield record.FromString(data)
        except DecodeError as error:
            problems.add(f" (record {index})", "a record of W&B", why(error))


def _frames(path: Path, problems: Problems) -> Iterator[bytes]:
    """Records of LevelDB's log: blocks of 32 KiB, each with whole records or parts of one."""
    with open_bytes(path) as stream:
        head = stream.read(HEADER)
        if not is_datastore(head):
            raise ImportProblem(f"{path}: expected a file of W&B, which begins with :W&B, got {head[:4]!a}")
        parts: list[bytes] = []
        size, at, block = 0, HEADER, head + stream.read(BLOCK - HEADER)
        start = 0  # of the block in the file
        while block:
            while len(block) - at >= HEADER:
                checksum, length, kind = struct.unpack_from("<IHB", block, at)
                if checksum == length == kind == 0:
                    break  # the rest of the block is padding
                place = f" at byte {start + at}"
                data = block[at + HEADER : at + HEADER + length]
                if len(data) < length:
                    problems.add(place, f"{length} bytes of a record: it is cut off", f"{len(data)} bytes")
                    return
                if zlib.crc32(data, zlib.crc32(bytes([kind]))) != checksum:
                    problems.add(place, "a record whose checksum holds", data)
                    parts, size, at = [], 0, len(block)
                    break
                at += HEADER + length
                if kind in (FULL, FIRST):
                    parts, size = [], 0
                if size + length <= MAX_RECORD:
                    parts.append(data)
                size += length
                if kind in (FULL, LAST) and size <= MAX_RECORD:
                    yield b"".join(parts)
            start += len(block)
            block, at = stream.read(BLOCK), 0
        if size > 0 and kind in (FIRST, MIDDLE):
            problems.add(f" at byte {start}", "the rest of a record: it is cut off", "the end of the file")


FIELDS = {
    "Item": (("key", 1, "s"), ("nested_key", 2, "s*"), ("value_json", 16, "s")),
    "Step": (("num", 1, "i"),),
    "Time": (("seconds", 1, "i"),),
    "History": (("item", 1, "Item*"), ("step", 2, "Step")),
    "Config": (("update", 1, "Item*"),),
    "Run": (
        ("run_id", 1, "s"),
        ("project", 3, "s"),
        ("config", 4, "Config"),
        ("display_name", 8, "s"),
        ("start_time", 17, "Time"),
    ),
    "Exit": (("exit_code", 1, "i"),),
    "Record": (("history", 2, "History"), ("config", 5, "Config"), ("run", 17, "Run"), ("exit", 18, "Exit")),
}
"""Of `wandb_internal.proto` what is read: name, number and type (s text, i whole number, a message; * repeated)."""


@cache
def _message() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="isoflop_wandb.proto", package="isoflop_wandb", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in FIELDS.items():
        message = file.message_type.add(name=name)
        if name == "Record":
            message.oneof_decl.add(name="kind")
        for field, at, kind in fields:
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            made = message.field.add(name=field, number=at, label=label)
            bare = kind.rstrip("*")
            if bare in FIELDS:
                made.type, made.type_name = kinds.TYPE_MESSAGE, f".isoflop_wandb.{bare}"
            else:
                made.type = kinds.TYPE_STRING if bare == "s" else kinds.TYPE_INT64
            if name == "Record":
                made.oneof_index = 0
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("isoflop_wandb.Record"))
