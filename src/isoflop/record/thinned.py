"""Thinning: of a run's points evenly many are kept each time the run doubles.

With P points a doubling, point k is kept where k is a multiple of its stride 2^b, b = ⌈log2(k / 2P)⌉: every point up to
2P, every 2nd up to 4P, every 4th up to 8P. The strides are powers of two, so the kept points nest, and they follow from
k alone: a resumed run goes on as it began. The writer asks `due` for each
point. Readers of large records use `Digest`, which thins the lines of a file in the same way and keeps all of the last
ones: of 100,000 lines 2,900 are left to be parsed.
"""

from __future__ import annotations

from collections import deque
from typing import BinaryIO

from isoflop.record.lines import IS_POINT, MAX_LINE_BYTES

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

_WRITTEN = b'{"event":"point"'  # as isoflop writes it


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
        # Nearly all lines are training points; only the others are looked at one by one. A "/" is in every evaluation.
        others = [i for i, line in enumerate(lines) if b"/" in line or not line.startswith(_WRITTEN)]
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
            (self._evaluations if b'"eval/' in line else self._train).add(number, [line])
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
