"""FLOPs, tokens, parameters, time and device of a training step. Imports torch; no trainer, no law, no file.

A module is imported when one of the names below is asked for: the table of devices' peaks needs no torch.
"""

from __future__ import annotations

from isoflop.lookup import face

__getattr__ = face(
    __name__,
    {
        "calls": "Call OutermostCalls Shape Uncountable listen shapes signature tensors_in watch",
        "cost": "StepCost",
        "count": "ModuleCount Opinion StepCount count_measured count_otherwise opinions",
        "counter": "FlopCount FlopCounter",
        "device": "DTYPES Peak known_devices lookup_peak model_device peak_by_short_name",
        "inputs": "candidate_calls context_of describe_call parse_input",
        "measure": "Measurement measure_flops run_once",
        "open_model": "Opened",
        "operators": "APART ESTIMATED FORMULA GIVEN MEASURED OBSERVED SIX_ND WATCHED TransformerShape "
        "formula_of kaplan operator_name palm register_flop_formula shape_of six_n",
        "parameters": "Parameters count_parameters unwrap",
        "step": "StepObserver",
        "tokens": "TokenCount count_tokens",
        "totals": "Clock Totals data_parallel_ranks rank sum_over_ranks world_size",
    },
)
