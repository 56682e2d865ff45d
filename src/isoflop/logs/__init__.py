"""Other tools' logs → `Run`s: Hugging Face, TensorBoard, Lightning, W&B, MLflow, CSV and Parquet. docs/import.md."""

# ruff: noqa: F401

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.logs.convert import Imported, write_run
    from isoflop.logs.counts import ModelSize
    from isoflop.logs.files import ImportProblem, amount
    from isoflop.logs.given import EVERY, Given, read_answers
    from isoflop.logs.importing import KINDS, ImportResult, import_runs

__getattr__ = face(
    __name__,
    {
        "convert": "Imported write_run",
        "counts": "ModelSize",
        "files": "ImportProblem amount",
        "given": "EVERY Given read_answers",
        "importing": "KINDS ImportResult import_runs",
    },
)
