"""The record of a run: `Run` and `Point`, the append-only log, its reader. Standard library and msgspec."""

# ruff: noqa: F401, I001

from isoflop.record.lines import encode, encode_point
from isoflop.record.paths import Location, below, check_location, is_url, last_name, location_of
from isoflop.record.paths import read_bytes, write_bytes
from isoflop.record.provenance import git_state, json_safe, library_versions
from isoflop.record.reader import UPDATED, read_run, read_runs, read_stream, record_files
from isoflop.record.remote import RemoteLog
from isoflop.record.run import COUNTS, DEFAULT_N, PREFERRED_N, SCHEMA_VERSION, SEVERITIES, Point, Run, Status, common_n
from isoflop.record.run import RecordBusy, RecordError, RecordFinished, RecordMismatch
from isoflop.record.task import Task, recognise, task_of, task_words
from isoflop.record.lines import LAST, SMALL, Digest, due, glimpse
from isoflop.record.writer import RecordLog, new_run_id, record_path
