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

from isoflop.lookup import face

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


__version__ = "0.2.0"
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

__getattr__ = face(
    __name__,
    {
        "figures": "study",
        "fit": "fit_law",
        "fit.plan": "plan",
        "flops.calls": "Uncountable",
        "flops.count": "StepCount count",
        "flops.operators": "register_flop_formula",
        "flops.tokens": "TokenCount",
        "laws": "optimal_allocation published",
        "live.monitor": "Monitor",
        "logs": "import_runs",
        "record": "Point RecordError Run read_run read_runs",
        "report.page": "write_report",
    },
)
