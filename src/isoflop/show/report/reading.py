"""One record for the report: all of a usual one; of one with very many points so many each time they double."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass

from isoflop.record import RecordError, Run, read_run
from isoflop.record.place import is_url
from isoflop.record.read import read_stream
from isoflop.show.thinned.whole import thinned

LARGE = 1 << 20
"""Bytes of a record from which on it is thinned: some 2,000 points, more than a curve among many is drawn with."""


@dataclass(frozen=True)
class Recorded:
    """A record as the report takes it.

    Attributes:
        run: with its points, thinned where there are very many.
        thinned: whether points were left out.
    """

    run: Run
    thinned: bool = False


def read_record(path: str) -> Recorded:
    """Read one.

    Raises:
        RecordError: as `isoflop.record.read_run`.
    """
    if is_url(path) or not os.path.isfile(path) or os.path.getsize(path) <= LARGE:
        return Recorded(read_run(path))
    try:
        with open(path, "rb", buffering=0) as stream:
            content = thinned(stream)
    except OSError as error:
        raise RecordError(f"Expected a record file that can be read at {path}, got: {error}.") from error
    return Recorded(read_run(path)) if content is None else Recorded(read_stream(io.BytesIO(content), path), True)
