"""The record's reader fuzzed by coverage (atheris), in a process of its own: it ends by exiting."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def run_guided(seconds: float) -> list[Any]:
    """Rows of the table; none where atheris is not installed."""
    from torture.__main__ import Row

    if find_spec("atheris") is None:
        print("atheris is not installed: the reader is not fuzzed by coverage")
        return []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="isoflop-guided-") as folder:
        command = [sys.executable, "-m", "torture.guided", folder, f"-max_total_time={seconds:.0f}", "-max_len=20000"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    counts = re.findall(r"^(?:#|Done )(\d+)", done.stderr, re.M)
    lost = int(done.returncode != 0)
    if lost:
        print(done.stderr[-3000:])
    cases = max((int(count) for count in counts), default=0)
    return [Row("cases: the record's reader, by coverage", cases, lost, time.monotonic() - began)]


def main(folder: Path, options: list[str]) -> None:
    """Fuzz until the time is over; an exception ends it with a code that is not 0."""
    import atheris

    with atheris.instrument_imports(include=["isoflop.record"]):
        from torture.records import GOLDEN, check_reader, whole

    corpus = folder / "corpus"
    corpus.mkdir()
    for name, data in (("golden", GOLDEN.read_bytes()), ("whole", whole())):
        (corpus / name).write_bytes(data)
    (folder / "found").mkdir()
    arguments = [sys.argv[0], f"-artifact_prefix={folder}/found/", *options, str(corpus)]
    atheris.Setup(arguments, lambda data: check_reader(data, folder) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
