"""Other tools' logs → `Run`s: Hugging Face, TensorBoard, Lightning, W&B, MLflow, CSV and Parquet. docs/import.md."""

from isoflop.logs.convert import Imported, ImportResult, runs_of_logs, write_run
from isoflop.logs.find import KINDS
from isoflop.logs.given import EVERY, Counter, Given, Sized, read_answers
from isoflop.logs.logged import ImportProblem

__all__ = [
    "EVERY",
    "KINDS",
    "Counter",
    "Given",
    "ImportProblem",
    "ImportResult",
    "Imported",
    "Sized",
    "read_answers",
    "runs_of_logs",
    "write_run",
]
