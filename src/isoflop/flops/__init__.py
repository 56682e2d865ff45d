"""FLOPs, tokens, parameters, time and device of a training step. Imports torch; no trainer, no law, no file.

A module is imported when one of the names below is asked for: the table of devices' peaks needs no torch.
"""

# ruff: noqa: F401, I001

from __future__ import annotations

from typing import TYPE_CHECKING

from isoflop.lookup import face

if TYPE_CHECKING:
    from isoflop.flops.apart import run_apart
    from isoflop.flops.calls import Call, OutermostCalls, Shape, Uncountable, listen
    from isoflop.flops.calls import shapes, signature, tensors_in, watch
    from isoflop.flops.clock import Clock, Phase
    from isoflop.flops.config_shape import APART, ESTIMATED, FORMULA, GIVEN, MEASURED, OBSERVED, SIX_ND, WATCHED
    from isoflop.flops.config_shape import TransformerShape
    from isoflop.flops.config_shape import kaplan, palm, shape_of, six_n, width_of
    from isoflop.flops.cost import StepCost
    from isoflop.flops.count import ModuleCount, StepCount, count_measured, count_otherwise
    from isoflop.flops.counter import FlopCount, FlopCounter
    from isoflop.flops.device import DTYPES, Device, Peak, known_devices, lookup_peak, model_device, peak_by_short_name
    from isoflop.flops.measure import Measurement, measure_flops, run_once
    from isoflop.flops.inputs import candidate_calls, context_of, describe_call, parse_input
    from isoflop.flops.open_model import Opened
    from isoflop.flops.operators import formula_of, operator_name, register_flop_formula
    from isoflop.flops.other_counters import Opinion, opinions
    from isoflop.flops.parameters import Parameters, count_parameters, original_class, unwrap
    from isoflop.flops.step import StepObserver
    from isoflop.flops.tokens import TokenCount, count_tokens
    from isoflop.flops.totals import Totals, data_parallel_ranks, rank, sum_over_ranks, world_size

__getattr__ = face(
    __name__,
    {
        "apart": "run_apart",
        "calls": "Call OutermostCalls Shape Uncountable listen shapes signature tensors_in watch",
        "clock": "Clock Phase",
        "config_shape": "APART ESTIMATED FORMULA GIVEN MEASURED OBSERVED SIX_ND WATCHED TransformerShape "
        "kaplan palm shape_of six_n width_of",
        "cost": "StepCost",
        "count": "ModuleCount StepCount count_measured count_otherwise",
        "counter": "FlopCount FlopCounter",
        "device": "DTYPES Device Peak known_devices lookup_peak model_device peak_by_short_name",
        "measure": "Measurement measure_flops run_once",
        "inputs": "candidate_calls context_of describe_call parse_input",
        "open_model": "Opened",
        "operators": "formula_of operator_name register_flop_formula",
        "other_counters": "Opinion opinions",
        "parameters": "Parameters count_parameters original_class unwrap",
        "step": "StepObserver",
        "tokens": "TokenCount count_tokens",
        "totals": "Totals data_parallel_ranks rank sum_over_ranks world_size",
    },
)
