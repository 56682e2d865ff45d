"""One record followed while it grows: what came since the last look is read, or all of it where it was replaced."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, BinaryIO

from isoflop.record import Point, RecordError, Run
from isoflop.record.read import read_stream
from isoflop.show.thinned.growing import SMALL, Digest, glimpse

from .folder import Stamp, open_inside, stamp_of

if TYPE_CHECKING:
    from isoflop.show.figures.curve import RunCurve

BLOCK = 1 << 22
"""Bytes read at once."""


@dataclass(frozen=True)
class Reading:
    """What is known of one record.

    Attributes:
        run: with the points that its end is told by; None: it can't be read as a record.
        curve: its points, thinned, as columns.
        problem: why there is no run, or what was left out.
        whole: whether all of the file was looked at.
    """

    run: Run | None
    curve: RunCurve | None = None
    problem: str | None = None
    whole: bool = True


class Tail:
    """Reads one file, and later what was added to it."""

    def __init__(self, root: str, path: str) -> None:
        self.root, self.path = root, path
        self.stamp: Stamp | None = None  # of the file as it was last read
        self._digest = Digest()
        self._before = b""  # the last bytes taken, to tell a file that was written anew in its place

    def glimpse(self, size: int) -> Reading:
        """A first look at a large file, from a few of its lines."""
        try:
            with open_inside(self.root, self.path) as stream:
                return _reading(glimpse(stream, size), self.path, whole=False)
        except OSError as error:
            return Reading(None, problem=_told(error))

    def read(self) -> Reading:
        """What the file holds now."""
        try:
            with open_inside(self.root, self.path) as stream:
                stamp = stamp_of(os.fstat(stream.fileno()))
                if not self._goes_on(stream, stamp):
                    self._digest, self._before = Digest(), b""
                stream.seek(self._digest.size)
                for block in _blocks(stream, stamp.size - self._digest.size):
                    self._digest.feed(block)
                    self._before = (self._before + block)[-64:]
                self.stamp = stamp
        except OSError as error:
            self.stamp = None
            return Reading(None, problem=_told(error))
        return _reading(self._digest.record(), self.path, self._digest.problem)

    def _goes_on(self, stream: BinaryIO, stamp: Stamp) -> bool:
        """Whether the file is the one that was read so far, with nothing or something added."""
        if self.stamp is None or stamp.file != self.stamp.file or stamp.size < self._digest.size:
            return False
        stream.seek(self._digest.size - len(self._before))
        return stream.read(len(self._before)) == self._before


def is_large(stamp: Stamp) -> bool:
    """Whether a first look is worth it before all is read."""
    return stamp.size > SMALL


def _blocks(stream: BinaryIO, size: int) -> Iterator[bytes]:
    """As many bytes as the file had when it was opened, less where it was cut meanwhile."""
    while size > 0 and (block := stream.read(min(BLOCK, size))):
        size -= len(block)
        yield block


def _reading(record: bytes, path: str, problem: str | None = None, *, whole: bool = True) -> Reading:
    from isoflop.show.figures.curve import curve_of_run  # NumPy and SciPy: not while TensorBoard starts

    try:
        run = read_stream(io.BytesIO(record), path)
    except RecordError as error:
        return Reading(None, problem=str(error), whole=whole)
    return Reading(replace(run, points=_ends(run)), curve_of_run(run), problem, whole)


def _ends(run: Run) -> tuple[Point, ...]:
    """Points of the last 5% of steps, the last one of each loss, and the last of all: what an end is told by."""
    from isoflop.fit.ends import at_end  # NumPy

    last = {name: point for point in run.points for name, value in point.losses.items() if value is not None}
    steps = [point.step for point in run.points]
    late = [point for point, end in zip(run.points, at_end(steps, "train"), strict=True) if end]
    kept = {id(point) for point in (*late, *last.values(), *run.points[-1:])}
    return tuple(point for point in run.points if id(point) in kept)


def _told(error: OSError) -> str:
    return f"it can't be read: {error.strerror or error}"
