"""The record of a run: `Run` and `Point`, the append-only log, its reader. Standard library only."""

from .cadence import due
from .log import RecordLog, new_run_id, record_path
from .provenance import git_state, json_safe, library_versions
from .read import UPDATED, read_run, read_runs
from .run import (
    SCHEMA_VERSION,
    Point,
    RecordBusy,
    RecordError,
    RecordFinished,
    RecordMismatch,
    Run,
    Status,
)

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
