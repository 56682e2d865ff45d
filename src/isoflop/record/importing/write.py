"""Imported runs as isoflop's records: a file each, whole or not at all, the same source always the same file."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from isoflop import __version__
from isoflop.record.log import RecordLog, record_path
from isoflop.record.read import read_run
from isoflop.record.run import RecordError, Run

Action = Literal["written", "updated", "unchanged"]


def write_run(folder: str | os.PathLike[str], run: Run) -> tuple[Path, Action]:
    """Write a run's record into a folder.

    A record of the same source that says the same is left alone; one that says less, or otherwise, is replaced in one
    step, so that a reader sees the old one or the new one.

    Returns:
        Its file, and what was done.

    Raises:
        RecordError: the folder can't be written, or the file is no import of this source.
    """
    path = record_path(folder, run.run_id)
    print_of_run = fingerprint(run)
    action: Action = "written"
    if path.exists():
        there = read_run(path).extra.get("imported")
        if not isinstance(there, dict):
            raise RecordError(f"{path}: expected an earlier import, got another record: choose another folder")
        if there.get("fingerprint") == print_of_run:
            return path, "unchanged"
        action = "updated"
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".isoflop-import-", dir=folder) as part:
            log = RecordLog.create(part, run.run_id, header_of(run, print_of_run))
            for point in run.points:
                log.point(point)
            if run.end is not None:
                last = run.points[-1]
                counts = {
                    name: getattr(last, name) for name in ("tokens", "padding", "loss_tokens", "flops", "flops_6nd")
                }
                log.end(run.end["step"], run.end["status"], **counts)
            log.close()
            os.replace(log.path, path)
    except OSError as error:
        raise RecordError(
            f"Expected a folder that can be made and written, but {path} gave: {error}. Set -o."
        ) from None
    return path, action


def header_of(run: Run, print_of_run: str) -> dict[str, Any]:
    """The header line of an imported run."""
    kept = ("name", "framework", "model", "parameters", "parameters_method", "optimizer", "planned", "device")
    fields = {name: getattr(run, name) for name in (*kept, "counting", "loss_units")}
    if run.created:
        fields["created"] = run.created
    imported = {**run.extra["imported"], "fingerprint": print_of_run}
    return {**fields, "versions": {"isoflop": __version__}, "imported": imported}


def fingerprint(run: Run) -> str:
    """Of all that a record of the run would say, but for the time of its file."""
    values = asdict(run)
    del values["created"], values["path"]
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:20]
