"""The record of a run: `Run` and `Point`, the append-only log, its reader. Standard library and msgspec."""

from isoflop.record.lines import encode, encode_point
from isoflop.record.paths import (
    Location,
    below,
    check_location,
    is_url,
    last_name,
    location_of,
    read_bytes,
    write_bytes,
)
from isoflop.record.provenance import git_state, json_safe, library_versions
from isoflop.record.reader import UPDATED, read_run, read_runs, read_stream, record_files
from isoflop.record.remote import RemoteLog
from isoflop.record.run import (
    COUNTS,
    DEFAULT_N,
    PREFERRED_N,
    SCHEMA_VERSION,
    SEVERITIES,
    Point,
    RecordBusy,
    RecordError,
    RecordFinished,
    RecordMismatch,
    Run,
    Status,
    common_n,
)
from isoflop.record.task import MODALITIES, OBJECTIVES, STARTS, Task, recognise, task_of, task_words
from isoflop.record.thinned import LAST, SMALL, Digest, due, glimpse
from isoflop.record.writer import RecordLog, new_run_id, record_path

__all__ = [
    "COUNTS",
    "DEFAULT_N",
    "LAST",
    "MODALITIES",
    "OBJECTIVES",
    "PREFERRED_N",
    "SCHEMA_VERSION",
    "SEVERITIES",
    "SMALL",
    "STARTS",
    "UPDATED",
    "Digest",
    "Location",
    "Point",
    "RecordBusy",
    "RecordError",
    "RecordFinished",
    "RecordLog",
    "RecordMismatch",
    "RemoteLog",
    "Run",
    "Status",
    "Task",
    "below",
    "check_location",
    "common_n",
    "due",
    "encode",
    "encode_point",
    "git_state",
    "glimpse",
    "is_url",
    "json_safe",
    "last_name",
    "library_versions",
    "location_of",
    "new_run_id",
    "read_bytes",
    "read_run",
    "read_runs",
    "read_stream",
    "recognise",
    "record_files",
    "record_path",
    "task_of",
    "task_words",
    "write_bytes",
]
