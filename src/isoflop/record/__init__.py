"""The record of a run: `Run` and `Point`, the append-only log, its reader. Standard library only."""

from isoflop.record.provenance import git_state, json_safe, library_versions
from isoflop.record.reader import UPDATED, read_run, read_runs
from isoflop.record.run import (
    SCHEMA_VERSION,
    Point,
    RecordBusy,
    RecordError,
    RecordFinished,
    RecordMismatch,
    Run,
    Status,
)
from isoflop.record.writer import RecordLog, due, new_run_id, record_path

__all__ = [
    "SCHEMA_VERSION",
    "UPDATED",
    "Point",
    "RecordBusy",
    "RecordError",
    "RecordFinished",
    "RecordLog",
    "RecordMismatch",
    "Run",
    "Status",
    "due",
    "git_state",
    "json_safe",
    "library_versions",
    "new_run_id",
    "read_run",
    "read_runs",
    "record_path",
]
