"""A growing record made small while it is read: all its events, and of its points evenly many each time they double.

What is kept is a record itself, for the one reader of records (`isoflop.record.read`). Of 100,000 lines 2,900 are
parsed, where parsing all would take seconds.

Large records made small while they are read: all events stay, and of the points evenly many each time they double.

Twice, for two tasks. `growing` follows a file that a run still writes, takes its bytes as they come, and uses the
standard library alone, for NumPy is not there yet when TensorBoard starts. `whole` reads a file that lies there once,
by NumPy: seven times faster, 10⁵ lines in 15 ms for 95 ms, which a report of a hundred runs needs.
"""

from __future__ import annotations

import re
from collections import deque
from itertools import chain
from typing import BinaryIO

from isoflop.record.lines import MAX_LINE_BYTES

LAST = 256
"""Points at the end that are all kept: a final loss is a mean over the last ones."""


PER_DOUBLING = 256
"""Points kept each time the run doubles: 850 a decade of a logarithmic axis, about as many as it has pixels."""
GLIMPSED = 6
"""The same for a first look at a large file."""
PLACES = 64
"""Places where the first look reads a line of a large file, apart by a factor, as on a logarithmic axis."""
SMALL = 1 << 18
"""Bytes of a file that is read whole at once."""
MOST_EVENTS, MOST_BYTES = 20_000, 8 << 20
"""Other lines than points that are kept, and their bytes: a record holds a few dozen."""
TOO_LONG = f"lines of more than {MAX_LINE_BYTES:,} bytes were skipped"

_POINT = re.compile(rb'\s*\{\s*"event"\s*:\s*"point"')
_WRITTEN = b'{"event":"point"'  # as isoflop writes it


class _Thinned:
    """Every line of a kind at first, then every 2nd, then every 4th; and the last ones."""

    def __init__(self, per_doubling: int) -> None:
        self.kept: list[tuple[int, bytes]] = []
        self.last: deque[tuple[int, bytes]] = deque(maxlen=min(per_doubling, LAST))
        self._count, self._stride, self._limit = 0, 1, 2 * per_doubling

    def add(self, number: int, line: bytes) -> None:
        """The next line of this kind."""
        self._count += 1
        if self._count > self._limit:
            self._stride, self._limit = 2 * self._stride, 2 * self._limit
        (self.last if self._count % self._stride else self.kept).append((number, line))


class Digest:
    """Takes a record's bytes as they come, keeps a record of bounded size.

    Attributes:
        size: bytes taken.
        problem: what of the file was left out; None: nothing.
    """

    def __init__(self, per_doubling: int = PER_DOUBLING) -> None:
        self.size = 0
        self.problem: str | None = None
        self._others: list[tuple[int, bytes]] = []  # events
        self._rest = b""  # of a line that isn't whole yet
        self._too_long = False  # inside a line beyond the limit
        self._number, self._events, self._bytes = 0, 0, 0
        # evaluations are few, and the last one counts: they are thinned apart from the training's points
        self._train, self._evaluations = _Thinned(per_doubling), _Thinned(per_doubling)

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the file."""
        self.size += len(chunk)
        lines = (self._rest + chunk).split(b"\n")
        self._rest = lines.pop()
        if lines and self._too_long:
            del lines[0]
            self._too_long = False
        for line in lines:
            self._line(line)
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest, self._too_long = b"", True
            self.problem = TOO_LONG

    def _line(self, line: bytes) -> None:
        self._number += 1
        if len(line) > MAX_LINE_BYTES:
            self.problem = TOO_LONG
        elif line.startswith(_WRITTEN) or _POINT.match(line):
            (self._evaluations if b'"eval/' in line else self._train).add(self._number, line)
        elif line:
            self._events, self._bytes = self._events + 1, self._bytes + len(line)
            if self._events > MOST_EVENTS or self._bytes > MOST_BYTES:
                self.problem = (
                    f"more than {MOST_EVENTS:,} events or {MOST_BYTES >> 20} MiB of them: the rest is left out"
                )
            else:
                self._others.append((self._number, line))

    def record(self) -> bytes:
        """What was kept, as a record, with the line that is still being written."""
        points = (lines for kind in (self._train, self._evaluations) for lines in (kind.kept, kind.last))
        lines = sorted(chain(self._others, *points))
        return b"".join(line + b"\n" for _, line in lines) + self._rest


def glimpse(stream: BinaryIO, size: int) -> bytes:
    """A first look at a file: its beginning, lines at `PLACES`, its end. Resumes in between are not seen.

    Args:
        stream: the file.
        size: its bytes, more than `SMALL`.
    """
    edge = SMALL // 4
    head, tail = Digest(GLIMPSED), Digest(GLIMPSED)
    head.feed(stream.read(edge) + stream.readline(MAX_LINE_BYTES))  # the header may be longer than the edge
    start = stream.tell()
    lines, ratio = [], (size / start) ** (1 / PLACES)
    for place in range(1, PLACES):
        at = int(start * ratio**place)
        if start < at < size - edge:
            stream.seek(at)
            found = stream.read(4096).split(b"\n")
            if len(found) > 2 and _POINT.match(found[1]):
                lines.append(found[1] + b"\n")
                start = at + len(found[0]) + len(found[1])
    stream.seek(max(start, size - edge))
    tail.feed(stream.read(edge).partition(b"\n")[2])
    return head.record() + b"".join(lines) + tail.record()
