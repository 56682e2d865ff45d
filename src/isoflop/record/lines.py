"""Lines of a record: strict JSON when written; parsed in bounded memory, with problems noted, when read."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from isoflop.record.provenance import json_safe
from isoflop.record.run import MAX_INT, MAX_SECONDS, MAX_STEP, POINT_FIELDS, SCHEMA_VERSION, Point

MAX_LINE_BYTES = 1 << 20
_MAX_PROBLEMS = 20
IS_POINT = re.compile(rb'\s*\{\s*"event"\s*:\s*"point"')
_point_of_line = msgspec.json.Decoder(Point).decode
_json_of_point = msgspec.json.Encoder().encode

_BY_LOSS = ("losses", "nonfinite", "loss_units", "extra")  # their names are no secrets: "eval/nll_per_token"
_TEXTS = ("run_id", "name", "created", "framework", "parameters_method", "tokenizer", "data")
_OBJECTS = ("model", "optimizer", "task", "planned", "git", "device", "counting", "parent", "options")
_KNOWN = {"event", "isoflop", "versions", "loss_units", "parameters", *_TEXTS, *_OBJECTS}


def encode(record: dict[str, Any]) -> bytes:
    """Any event as a line of strict JSON: UTF-8, no NaN, at most `MAX_LINE_BYTES`."""
    for max_items in (1000, 100, 10):
        plain = {
            key: json_safe(value, max_items=max_items, hide_secrets=key not in _BY_LOSS)
            for key, value in record.items()
        }
        line = _dump(plain)
        if len(line) <= MAX_LINE_BYTES:
            break
    return line


def encode_point(point: Point, attempt: int) -> bytes:
    """A point's line."""
    try:
        line = b'{"event":"point","attempt":%d,%b\n' % (attempt, _json_of_point(point)[1:])
        if len(line) <= MAX_LINE_BYTES:
            return line
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):  # a number of NumPy's, say
        pass
    return encode({"event": "point", "attempt": attempt} | {key: getattr(point, key) for key in POINT_FIELDS})


def whole_point(raw: bytes) -> Point | None:
    """A line's point; None where it is no point, or not all of it is as it should be: `point_from` tells what."""
    if not IS_POINT.match(raw):
        return None
    try:
        point = _point_of_line(raw)
    except (ValueError, RecursionError):  # msgspec's errors, too
        return None
    counts = (point.tokens, point.padding, point.loss_tokens, point.flops, point.flops_hardware, point.flops_6nd)
    for count in (*counts, point.interval_steps, point.batch_tokens):
        if count is not None and count > MAX_INT:
            return None
    return point


def _dump(plain: dict[str, Any]) -> bytes:
    text = json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"  # half a surrogate pair becomes "?"


class Problems:
    """Problems found in a file, with their places: the first 20 as texts, a count of the others.

    Attributes:
        source: the file.
        at: the place that is being read, such as `:17`.
    """

    def __init__(self, source: str) -> None:
        self.source, self.at = source, ""
        self._texts: list[str] = []
        self._count = 0

    def add(self, expected: str, got: object, at: str | None = None) -> None:
        """Note what was expected at a place (the current one), and what is there."""
        self._count += 1
        if self._count <= _MAX_PROBLEMS:
            self._texts.append(f"{self.source}{self.at if at is None else at}: expected {expected}, got {shown(got)}")

    def all(self) -> tuple[str, ...]:
        """The texts, `file:line: expected …, got …`."""
        more = self._count - len(self._texts)
        return (*self._texts, f"{self.source}: and {more} more") if more else tuple(self._texts)


def shown(value: object) -> str:
    """A value from a file, short and in ASCII: a stranger's text must not steer the terminal that shows it."""
    if isinstance(value, (dict, list)):
        return f"{type(value).__name__} of {len(value)}"
    return ascii(value[:60] if isinstance(value, (str, bytes)) else value)[:80]


def bounded_lines(stream: IO[bytes], limit: int = MAX_LINE_BYTES) -> Iterator[bytes | None]:
    """Lines with their line feed, where they have one; None for one of more than `limit` bytes, which is skipped."""
    while raw := stream.readline(limit + 1):
        if len(raw) <= limit:
            yield raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = stream.readline(limit)
        yield None


def split_lines(stream: IO[bytes], problems: Problems) -> Iterator[bytes]:
    """A record's lines that aren't blank, with their line feed where they have one."""
    for number, raw in enumerate(bounded_lines(stream), 1):
        problems.at = f":{number}"
        if raw is None:
            problems.add(f"lines of at most {MAX_LINE_BYTES} bytes", "a longer one")
            continue
        if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
            problems.add("UTF-8 without a byte-order mark", raw)
            raw = raw[3:]
        if raw.strip():
            yield raw
        if not raw.endswith(b"\n"):
            return  # its rest, should a writer add it now, must not be taken for a line


def parse(raw: bytes) -> tuple[Any, str | None]:
    """A line's JSON value, or None and what was expected of it. No NaN, no number beyond a double's range."""
    try:
        text = raw.decode("utf-8")
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
        if "\\ud" in text.lower():  # half a surrogate pair could not be printed or stored: it becomes "?"
            value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    except UnicodeDecodeError:
        return None, "UTF-8"
    except (ValueError, RecursionError):
        return None, "one whole JSON object with finite numbers"
    return value, None


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is not finite")
    return value


def header_fields(record: dict[str, Any], problems: Problems) -> dict[str, Any] | None:
    """Arguments of `Run` from a header line; None, with a problem, if it has no schema version."""
    schema = whole(record.get("isoflop"))
    if not schema:
        problems.add('a schema version in the header\'s "isoflop"', record.get("isoflop"))
        return None
    if schema > SCHEMA_VERSION:
        problems.add(f"a schema up to {SCHEMA_VERSION}, so upgrade isoflop (what it knows was read)", schema)
    # Bounded as the writer bounds it: a stranger's nesting would break what compares or prints it.
    record = {key: json_safe(value, max_items=2000, hide_secrets=False) for key, value in record.items()}
    header: dict[str, Any] = {"schema": schema, "extra": {k: v for k, v in record.items() if k not in _KNOWN}}
    for names, kind, expected in ((_TEXTS, str, "a text"), (_OBJECTS, dict, "an object")):
        for name in names:
            value = record.get(name)
            if isinstance(value, kind):
                header[name] = value
            elif value is not None:
                problems.add(f"{name} to be {expected}", value)
    for name in ("versions", "loss_units"):
        header[name] = _items(name, record, lambda value: value if isinstance(value, str) else None, problems)
    header["parameters"] = _items("parameters", record, whole, problems, unknown=True)
    if "run_id" not in header:
        problems.add("a run_id in the header", record.get("run_id"))
        header["run_id"] = Path(problems.source).stem.removeprefix("isoflop-")
    return header


def point_from(record: dict[str, Any], problems: Problems) -> Point | None:
    """A line's point without its invalid values, each a problem; None without a step."""
    step = step_of(record, problems)
    if step is None:
        return None
    values: dict[str, Any] = {}
    for name, convert in _CONVERT.items():
        if (value := record.get(name)) is not None and (converted := convert(value)) is not None:
            values[name] = converted
        elif value is not None:
            problems.add(f"{name} to be a number in its range", value)
    for name in ("losses", "extra"):
        values[name] = _items(name, record, _number, problems, unknown=True)
    values["nonfinite"] = _items("nonfinite", record, {"nan": "nan", "inf": "inf", "-inf": "-inf"}.get, problems)
    return Point(step=step, **values)


def step_of(record: dict[str, Any], problems: Problems) -> int | None:
    """A line's step; None, with a problem, if it has none."""
    step = whole(record.get("step"))
    if step is None or step > MAX_STEP:
        problems.add("a step (a whole number from 0)", record.get("step"))
        return None
    return step


def whole(value: object) -> int | None:
    """A count from 0 to `MAX_INT`, also one that another tool wrote as 1e21; else None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if 0 <= value <= MAX_INT and value % 1 == 0 else None


def _number(value: object, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if low <= value <= high else None


_CONVERT: dict[str, Callable[[object], Any]] = {
    **dict.fromkeys(("tokens", "padding", "loss_tokens", "flops", "flops_hardware", "flops_6nd"), whole),
    **dict.fromkeys(("time", "wall_time", "training_time"), lambda value: _number(value, 0, MAX_SECONDS)),
    "interval_steps": whole,
    "batch_tokens": lambda value: whole(value) if isinstance(value, int) else _number(value, 0),
    "lr": _number,
}


def _items(
    name: str, record: dict[str, Any], convert: Callable[[Any], Any], problems: Problems, *, unknown: bool = False
) -> dict[str, Any]:
    """Items of an object whose values convert, each other one a problem; nulls stay if `unknown`."""
    given = record.get(name)
    if not isinstance(given, dict):
        if given is not None:
            problems.add(f"{name} to be an object", given)
        return {}
    kept: dict[str, Any] = {}
    for key, value in given.items():
        converted = None if value is None else convert(value) if isinstance(value, (str, int, float)) else None
        if converted is not None or (unknown and value is None):
            kept[key] = converted
        elif value is not None:
            problems.add(f"{name}[{key[:40]!a}] of another type or range", value)
    return kept
