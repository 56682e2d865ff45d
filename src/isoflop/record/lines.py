"""Lines of a record: strict JSON when written; parsed in bounded memory, with problems noted, when read; and thinned.

Of a run's points evenly many are kept each time the run doubles. With P points a doubling, point k is kept where k is a
multiple of its stride 2^b, b = ⌈log2(k / 2P)⌉: every point up to 2P, every 2nd up to 4P, every 4th up to 8P. The
strides are powers of two, so the kept points nest, and they follow from k alone: a resumed run goes on as it began. The
writer asks `due` for each point. Readers of large records use `Digest`, which thins the lines of a file in the same way
and keeps all of the last ones: of 100,000 lines 2,900 are left to be parsed.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO

import msgspec

from isoflop.record.provenance import json_safe
from isoflop.record.run import MAX_INT, MAX_SECONDS, MAX_STEP, POINT_FIELDS, SCHEMA_VERSION, Point

MAX_LINE_BYTES = 1 << 20
_MAX_PROBLEMS = 20
IS_POINT = re.compile(rb'\s*\{\s*"event"\s*:\s*"point"')
_point_of_line = msgspec.json.Decoder(Point).decode
_json_of_line = msgspec.json.Decoder().decode
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
        return _json_of_line(raw), None  # in a sixth of the time; what it refuses is looked at again below
    except (ValueError, RecursionError):
        pass
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


def bounded(record: dict[str, Any]) -> dict[str, Any]:
    """Values of a header as the writer bounds them: a stranger's nesting would break what compares or prints it."""
    return {key: json_safe(value, max_items=2000, hide_secrets=False) for key, value in record.items()}


def header_fields(record: dict[str, Any], problems: Problems) -> dict[str, Any] | None:
    """Arguments of `Run` from a header line's `bounded` values; None, with a problem, if it has no schema version."""
    schema = whole(record.get("isoflop"))
    if not schema:
        problems.add('a schema version in the header\'s "isoflop"', record.get("isoflop"))
        return None
    if schema > SCHEMA_VERSION:
        problems.add(f"a schema up to {SCHEMA_VERSION}, so upgrade isoflop (what it knows was read)", schema)
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


LAST = 256
"""Points at the end that are all kept: a final loss is a mean over the last ones."""
PER_DOUBLING = 256
"""Points kept each time the run doubles: 850 a decade of a logarithmic axis, about as many as it has pixels."""
GLIMPSED = 6
"""The same for a first look at a large file."""
GLIMPSES = 64
"""Lines that the first look reads between a file's beginning and end, spaced by a constant factor."""
SMALL = 1 << 18
"""Bytes of a file that is read whole at once."""
MOST_EVENTS, MOST_BYTES = 20_000, 8 << 20
"""Other lines than points that are kept, and their bytes: a record holds a few dozen."""
TOO_LONG = f"lines of more than {MAX_LINE_BYTES:,} bytes were skipped"

_WRITTEN, _EVALUATION = b'{"event":"point"', b'"eval/'  # as isoflop writes them


def due(log_index: int, per_doubling: int = 512) -> bool:
    """Decide if the log interval of this index gets a point in the record.

    n intervals give at most `per_doubling * (log2(n / per_doubling) + 2)` points for n ≥ `per_doubling`: with 512 of
    them, 10^4 intervals give 2,673, and 10^7 give 7,778 (about 3 MB).

    Args:
        log_index: 1, 2, 3 …: the interval's number since the run began (step // log_every).
        per_doubling: points each time the run doubles.

    >>> [index for index in range(1, 41) if due(index, per_doubling=4)]
    [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40]
    """
    if log_index < 1 or per_doubling < 1:
        raise ValueError(f"expected log_index ≥ 1 and per_doubling ≥ 1, got {log_index} and {per_doubling}")
    return log_index % (1 << ((log_index - 1) // (2 * per_doubling)).bit_length()) == 0  # `_stride`, of each log step


def _stride(index: int, per_doubling: int) -> int:
    """The stride at an index; it holds for all up to `2 * per_doubling * stride`."""
    return 1 << ((index - 1) // (2 * per_doubling)).bit_length()


class _Kind:
    """Lines of one kind, thinned, by their number in the file; `per_doubling` and `last` as of `Digest`."""

    def __init__(self, per_doubling: int, last: int) -> None:
        self._kept: dict[int, bytes] = {}
        self._last: deque[tuple[int, bytes]] = deque(maxlen=last)
        self._per_doubling, self._count = per_doubling, 0

    def add(self, number: int, lines: list[bytes]) -> None:
        """Take lines that follow each other; `number`: of the first."""
        before, at = self._count, self._count
        self._count += len(lines)
        while at < self._count:
            stride = _stride(at + 1, self._per_doubling)
            until = min(self._count, 2 * self._per_doubling * stride)
            for i in range(at - at % stride + stride - before - 1, until - before, stride):
                self._kept[number + i] = lines[i]
            at = until
        first = max(len(lines) - LAST, 0)
        self._last.extend(enumerate(lines[first:], number + first))

    def lines(self) -> dict[int, bytes]:
        """Those that are kept."""
        return self._kept | dict(self._last)


class Digest:
    """Takes a record's bytes as they come, and keeps a record of bounded size: all events, the points thinned.

    Args:
        per_doubling: points kept each time the run doubles.
        last: points at the end that are all kept.

    Attributes:
        size: bytes taken.
        problem: what of the file was left out; None: nothing.
    """

    def __init__(self, per_doubling: int = PER_DOUBLING, last: int = LAST) -> None:
        self.size = 0
        self.problem: str | None = None
        self._events: dict[int, bytes] = {}
        self._rest = b""  # of a line that isn't whole yet
        self._too_long = False  # inside a line beyond the limit
        self._number, self._bytes = 0, 0  # lines taken; bytes of events
        # evaluations are few, and the last one counts: they are thinned apart from the training's points
        self._train, self._evaluations = _Kind(per_doubling, last), _Kind(per_doubling, last)

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the file."""
        self.size += len(chunk)
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if lines and self._too_long:
            lines[0], self._too_long = b"", False
        if lines and max(map(len, lines)) > MAX_LINE_BYTES:
            lines = [line if len(line) <= MAX_LINE_BYTES else b"" for line in lines]
            self.problem = TOO_LONG
        self._take(lines)
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest, self._too_long = b"", True
            self.problem = TOO_LONG

    def _take(self, lines: list[bytes]) -> None:
        # Nearly all lines are training points; only the others are looked at one by one.
        others = [i for i, line in enumerate(lines) if _EVALUATION in line or not line.startswith(_WRITTEN)]
        at = 0
        for i in others:
            if at < i:
                self._train.add(self._number + at, lines[at:i])
            self._other(self._number + i, lines[i])
            at = i + 1
        if at < len(lines):
            self._train.add(self._number + at, lines[at:])
        self._number += len(lines)

    def _other(self, number: int, line: bytes) -> None:
        if line.startswith(_WRITTEN) or IS_POINT.match(line):
            (self._evaluations if _EVALUATION in line else self._train).add(number, [line])
        elif line:
            self._bytes += len(line)
            if len(self._events) < MOST_EVENTS and self._bytes <= MOST_BYTES:
                self._events[number] = line
            else:
                self.problem = (
                    f"more than {MOST_EVENTS:,} events or {MOST_BYTES >> 20} MiB of them: the rest is left out"
                )

    def record(self) -> bytes:
        """The kept lines as a record, with the line that is still being written."""
        lines = {**self._events, **self._train.lines(), **self._evaluations.lines()}
        return b"".join(lines[number] + b"\n" for number in sorted(lines)) + self._rest


def glimpse(stream: BinaryIO, size: int) -> bytes:
    """A first look at a file: its beginning, up to `GLIMPSES` lines, its end. Resumes in between are not seen.

    Args:
        stream: the file.
        size: its bytes, more than `SMALL`.
    """
    edge = SMALL // 4
    head, tail = Digest(GLIMPSED, GLIMPSED), Digest(GLIMPSED, GLIMPSED)
    head.feed(stream.read(edge) + stream.readline(MAX_LINE_BYTES))  # the header may be longer than the edge
    start = stream.tell()
    lines, ratio = [], (size / start) ** (1 / GLIMPSES)
    for i in range(1, GLIMPSES):
        at = int(start * ratio**i)
        if start < at < size - edge:
            stream.seek(at)
            found = stream.read(4096).split(b"\n")
            if len(found) > 2 and IS_POINT.match(found[1]):
                lines.append(found[1] + b"\n")
                start = at + len(found[0]) + len(found[1])
    stream.seek(max(start, size - edge))
    tail.feed(stream.read(edge).partition(b"\n")[2])
    return head.record() + b"".join(lines) + tail.record()
