"""isoflop: scaling laws in your Trainer. One callback tells where a run's compute goes and whether it is well spent.

    from isoflop.lightning import IsoFLOPMonitor        # Trainer(callbacks=[IsoFLOPMonitor()])
    from isoflop.transformers import IsoFLOPCallback    # Trainer(callbacks=[IsoFLOPCallback()])
    isoflop.Monitor(model)                              # a plain loop, Accelerate, Fabric
    isoflop.count(model, input_ids=ids)                 # parameters and FLOPs of one training step
    isoflop.fit_law, isoflop.plan                       # a scaling law of finished runs, the best size for a budget

Nothing is imported before it is used: `import isoflop` loads neither torch nor NumPy nor a trainer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.figures import study
    from isoflop.fit import fit_law
    from isoflop.fit.plan import plan
    from isoflop.flops.calls import Uncountable
    from isoflop.flops.count import StepCount, count
    from isoflop.flops.operators import register_flop_formula
    from isoflop.flops.tokens import TokenCount
    from isoflop.laws import optimal_allocation, published
    from isoflop.live.monitor import Monitor
    from isoflop.logs import import_runs
    from isoflop.record import Point, RecordError, Run, read_run, read_runs
    from isoflop.report.page import write_report


__version__ = "0.1.0"
__all__ = [
    "Monitor",
    "Point",
    "RecordError",
    "Run",
    "StepCount",
    "TokenCount",
    "Uncountable",
    "__version__",
    "count",
    "fit_law",
    "import_runs",
    "optimal_allocation",
    "plan",
    "published",
    "read_run",
    "read_runs",
    "register_flop_formula",
    "study",
    "write_report",
]

_HOME = {
    "Monitor": "isoflop.live.monitor",
    "TokenCount": "isoflop.flops.tokens",
    "StepCount": "isoflop.flops.count",
    "Uncountable": "isoflop.flops.calls",
    "count": "isoflop.flops.count",
    "register_flop_formula": "isoflop.flops.operators",
    "Point": "isoflop.record",
    "RecordError": "isoflop.record",
    "Run": "isoflop.record",
    "read_run": "isoflop.record",
    "read_runs": "isoflop.record",
    "import_runs": "isoflop.logs",
    "fit_law": "isoflop.fit",
    "plan": "isoflop.fit.plan",
    "optimal_allocation": "isoflop.laws",
    "published": "isoflop.laws",
    "study": "isoflop.figures",
    "write_report": "isoflop.report.page",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'isoflop' has no attribute {name!r}")
