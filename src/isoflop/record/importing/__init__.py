"""Other tools' logs → `Run`s: Hugging Face, TensorBoard, Lightning, W&B, MLflow, CSV and Parquet. docs/import.md."""

from .find import KINDS
from .given import EVERY, Given, read_answers
from .problem import ImportProblem
from .runs import Imported, ImportResult, import_runs
from .sized import Counter, Sized
from .write import write_run

__all__ = [
    "EVERY",
    "KINDS",
    "Counter",
    "Given",
    "ImportProblem",
    "ImportResult",
    "Imported",
    "Sized",
    "import_runs",
    "read_answers",
    "write_run",
]
