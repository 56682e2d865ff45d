"""A large record made small in one reading: all its events, and of its points evenly many each time they double.

What is left is a record itself, for the one reader of records. Lines are found by NumPy, a block of the file at a time,
and only what is kept becomes Python objects: 10⁵ lines take 50 ms or so, where parsing all of them takes seconds.
"""

from __future__ import annotations

from io import BufferedIOBase, RawIOBase

import numpy as np
from numpy.typing import NDArray

from isoflop.record.lines import MAX_LINE_BYTES
from isoflop.record.thinned import LAST

PER_DOUBLING = 64
"""Points kept each time a run doubles: 210 a decade of a logarithmic axis; a hundred curves are drawn with fewer."""
BLOCK = 1 << 21
"""Bytes looked at at once: they stay in a processor's cache."""
KIND = len(b'{"event":"')
"""Where the first letter of the event stands, as isoflop writes it; a line that is written otherwise is kept."""
Indices = NDArray[np.intp]


class _Kind:
    """Lines of one kind: every one at first, then every 2nd, then every 4th; and the last ones."""

    def __init__(self) -> None:
        self.count = 0
        self.last: list[tuple[int, bytes]] = []

    def among(self, found: Indices) -> Indices:
        """Which of the next lines are kept for good."""
        count = self.count + np.arange(1, len(found) + 1)
        self.count += len(found)
        doublings = np.ceil(np.log2(np.maximum(count / (2 * PER_DOUBLING), 1))).astype(np.int64)
        return found[count % (1 << doublings) == 0]


def thinned(stream: BufferedIOBase | RawIOBase) -> bytes | None:
    """The record in few lines; None: it has lines too long to be a record's, and must be read as a whole.

    Args:
        stream: of the file, from its beginning; without a buffer of its own it is faster.
    """
    kept: dict[int, bytes] = {}
    training, evaluations = _Kind(), _Kind()  # evaluations are few, and the last one counts
    buffer = bytearray(BLOCK + MAX_LINE_BYTES)
    letters, view = np.frombuffer(buffer, dtype=np.uint8), memoryview(buffer)
    number, rest = 0, 0  # lines so far; bytes of a line that isn't whole yet, at the buffer's beginning
    while size := stream.readinto(view[rest : rest + BLOCK]):
        size += rest
        ends = np.flatnonzero(letters[:size] == ord("\n"))
        rest = size - int(ends[-1]) - 1 if len(ends) else size
        if rest >= MAX_LINE_BYTES:
            return None
        if len(ends):
            lines = _Lines(buffer, ends, number)
            point, evaluated = lines.points(letters), lines.holding(b'"eval/', size - rest)
            kept.update(lines.of(np.flatnonzero(~point)))
            for kind, mine in ((training, point & ~evaluated), (evaluations, point & evaluated)):
                found = np.flatnonzero(mine)
                kept.update(lines.of(kind.among(found)))
                kind.last = [*kind.last, *lines.of(found[-LAST:])][-LAST:]
            number += len(ends)
            buffer[:rest] = buffer[size - rest : size]
    kept.update([*training.last, *evaluations.last])
    return b"".join(kept[i] for i in sorted(kept)) + bytes(buffer[:rest])


class _Lines:
    """The whole lines of a block, by index.

    Args:
        buffer: with the block.
        ends: of the lines [lines].
        number: lines before them.
    """

    def __init__(self, buffer: bytearray, ends: Indices, number: int) -> None:
        self._buffer, self._ends, self._number = buffer, ends, number
        self._starts = np.concatenate([[0], ends[:-1] + 1])

    def points(self, letters: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Which are points [lines]."""
        return (self._ends - self._starts > KIND) & (letters[self._starts + KIND] == ord("p"))

    def holding(self, text: bytes, size: int) -> NDArray[np.bool_]:
        """Which hold a text [lines]; it ends in a letter that few lines have, which is looked for first."""
        last, length, found = text[-1:], len(text), []
        at = self._buffer.find(last, 0, size)
        while at >= 0:
            if self._buffer.startswith(text, max(at - length + 1, 0)):
                found.append(at)
            at = self._buffer.find(last, at + 1, size)
        hold = np.zeros(len(self._ends), dtype=bool)
        hold[np.searchsorted(self._ends, np.array(found, dtype=np.intp))] = True
        return hold

    def of(self, which: Indices) -> list[tuple[int, bytes]]:
        """Number in the file, and text with its line feed."""
        pairs = zip(which.tolist(), self._starts[which].tolist(), self._ends[which].tolist(), strict=True)
        return [(self._number + i, bytes(self._buffer[start : end + 1])) for i, start, end in pairs]
