"""One record for the report: all of a usual one; of one with very many points so many each time they double."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isoflop.record import RecordError, Run, read_run
from isoflop.record.lines import parse
from isoflop.record.read import read_stream
from isoflop.show.tab.digest import Digest

LARGE = 4 << 20
"""Bytes of a record from which on it is thinned. isoflop's own stay below: 10⁷ log intervals are 3 MB."""
PER_DOUBLING = 256
"""Points that are kept each time a large record doubles: 850 a decade, more than a curve is drawn with."""
BLOCK = 1 << 22


@dataclass(frozen=True)
class Recorded:
    """A record as the report takes it.

    Attributes:
        run: with its points, thinned where there are very many.
        advice: its `advice` events as written.
        thinned: whether points were left out.
    """

    run: Run
    advice: tuple[Mapping[str, Any], ...] = ()
    thinned: bool = False


def read_record(path: str) -> Recorded:
    """Read one.

    Raises:
        RecordError: as `isoflop.record.read_run`.
    """
    if not os.path.isfile(path):
        read_run(path)  # says what is there instead
    try:
        with open(path, "rb") as stream:
            large = os.fstat(stream.fileno()).st_size > LARGE
            content = _thinned(stream) if large else stream.read()
    except OSError as error:
        raise RecordError(f"Expected a record file that can be read at {path}, got: {error}.") from error
    run = read_stream(io.BytesIO(content), path)
    lines = (line for line in content.splitlines() if line.startswith(b'{"event":"advice"'))
    advice = tuple(item for line in lines if isinstance(item := parse(line)[0], dict))
    return Recorded(run, advice, large)


def _thinned(stream: io.BufferedReader) -> bytes:
    digest = Digest(PER_DOUBLING)
    while block := stream.read(BLOCK):
        digest.feed(block)
    return digest.record()
