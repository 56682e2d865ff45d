"""What a path holds: which tool wrote it is told from its content, so that files may be called as they like."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from isoflop.logs import huggingface, tensorboard
from isoflop.logs import mlflow as mlflow_api
from isoflop.logs import mlflow as mlflow_files
from isoflop.logs import table as lightning
from isoflop.logs import wandb as wandb_api
from isoflop.logs.files import csv_rows, head
from isoflop.logs.logged import ImportProblem, Problems
from isoflop.logs.table import ROWS_OF_PARQUET
from isoflop.logs.wandb import exports

KINDS = ("huggingface", "tensorboard", "lightning", "wandb", "mlflow", "table")
Source = tuple[str, str]
"""A kind of reader (`KINDS`, or `wandb-api`, `mlflow-api`) and what it is to read."""
EXPECTED = (
    "expected a Trainer's output or trainer_state.json, TensorBoard's event files, Lightning's metrics.csv, an offline "
    "run or a CSV export of W&B, MLflow's mlruns, a CSV or Parquet table, or a folder with some"
)


def find(path: str, kind: str | None = None, leave_out: Sequence[Path] = ()) -> list[Source]:
    """The runs at a path.

    Args:
        path: a file, a folder that is searched (links to folders in it are not followed), `wandb:…` or `mlflow:…`.
        kind: take it for this, whatever it looks like; of a folder, only such runs in it.
        leave_out: files that are no runs.

    Raises:
        ImportProblem: nothing is there, or nothing that is known.
    """
    if path.startswith(wandb_api.PREFIX):
        return [("wandb-api", path)]
    if path.startswith(mlflow_api.PREFIX):
        return [("mlflow-api", path)]
    place = Path(path)
    if not place.exists():
        raise ImportProblem(f"{path}: {EXPECTED}; it does not exist")
    if not place.is_dir():
        return [(_forced(place, kind) if kind else kind_of(place), path)]
    hidden = {os.path.realpath(one) for one in leave_out}
    found = [source for source in _below(place, kind) if os.path.realpath(source[1]) not in hidden]
    if not found:
        wanted = f" of the kind {kind}" if kind else ""
        raise ImportProblem(f"{path}: {EXPECTED}; there is none{wanted} in it")
    return found


def kind_of(path: Path) -> str:
    """The kind of a file, by its content.

    Raises:
        ImportProblem: it is none of those known.
    """
    start = head(path)
    if wandb_api.is_datastore(start):
        return "wandb"
    if start.startswith(mlflow_api.SQLITE):
        return "mlflow-api"
    if start.startswith(ROWS_OF_PARQUET):
        return "table"
    if _is_events(start):
        return "tensorboard"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"{"):
        if path.name == huggingface.STATE or b'"log_history"' in start or b'"global_step"' in start:
            return "huggingface"
        if b'"isoflop"' in start and b'"header"' in start:
            raise ImportProblem(f"{path}: is a record of isoflop's own: the commands read it as it is")
        raise ImportProblem(f"{path}: {EXPECTED}; got JSON of another kind")
    if not start:
        raise ImportProblem(f"{path}: {EXPECTED}; got an empty file")
    if b"\0" in start:
        raise ImportProblem(f"{path}: {EXPECTED}; got a file of another kind")
    if b"," not in start.split(b"\n", 1)[0]:
        raise ImportProblem(f"{path}: {EXPECTED}; got text whose first line has no commas")
    header = [name.strip() for name in next(csv_rows(path, Problems(str(path))), (0, [""]))[1]]
    if lightning.looks_like(header, path):
        return "lightning"
    return "wandb" if exports(header) else "table"


def _forced(path: Path, kind: str) -> str:
    if kind == "mlflow" and head(path, 16) == mlflow_api.SQLITE:
        return "mlflow-api"
    return kind


def _is_events(start: bytes) -> bool:
    """Whether a file begins with a record of TensorBoard's: its length and the length's checksum."""
    if len(start) < 12:
        return False
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    length, checksum = struct.unpack("<QI", start[:12])
    return length < tensorboard.MAX_RECORD and bool(masked_crc32c(start[:8]) == checksum)


def _below(top: Path, only: str | None) -> Iterator[Source]:
    """The runs in a folder and the folders below it, in the order of their names."""
    folders: list[tuple[Path, bool]] = [(top, False)]
    while folders:
        folder, of_trainer = folders.pop()
        inside = list(_in(folder, of_trainer, only))
        yield from inside
        if any(kind == "mlflow" or (kind == "wandb" and path == str(folder)) for kind, path in inside):
            continue
        of_trainer = of_trainer or any(kind == "huggingface" for kind, _ in inside)
        try:
            with os.scandir(folder) as entries:
                deeper = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        if of_trainer:
            deeper = [name for name in deeper if not name.startswith("checkpoint-")]
        folders += [(folder / name, of_trainer) for name in sorted(deeper, reverse=True)]


def _in(folder: Path, of_trainer: bool, only: str | None) -> Iterator[Source]:
    """The runs that a folder itself holds. Event files beside a better source of the same run are left out."""
    if only in (None, "huggingface") and huggingface.looks_like(folder):
        yield "huggingface", str(folder)
        of_trainer = only is None
    if only in (None, "mlflow") and mlflow_files.is_run(folder):
        yield "mlflow", str(folder)
        return
    try:
        files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    except OSError:
        return
    better = of_trainer
    for file in files:
        if file.suffix == ".wandb" and only in (None, "wandb"):
            yield "wandb", str(folder)
            return
        if file.suffix.lower() in (".csv", ".parquet", ".db") and not of_trainer:
            try:
                kind = kind_of(file)
            except ImportProblem:
                kind = "table"  # its reader says what is wrong
            if only in (None, kind.removesuffix("-api")):
                yield kind, str(file)
                better = better or kind == "lightning"
    if any(tensorboard.is_event_file(file.name) for file in files) and only in (None, "tensorboard") and not better:
        yield "tensorboard", str(folder)
