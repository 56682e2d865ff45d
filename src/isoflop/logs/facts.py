"""What rows of a table or log say of their run, not of a step: state, planned steps, batch, devices, experts …"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from isoflop.logs.files import cell_number
from isoflop.record.run import Status

_NO, _YES = ("false", "0", "no"), ("true", "1", "yes")
_ENDED = ("finished", "completed", "complete", "done", "success", "succeeded")
_UNDER_WAY = ("running", "scheduled", "pending")
_STOPPED = ("crashed", "failed", "killed", "interrupted", "stopped", "diverged", "preempted", "oom")
NO_END: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("status", "state"), (*_UNDER_WAY, *_STOPPED)),
    **dict.fromkeys(("diverged", "crashed", "failed", "stoppedearly", "earlystopped"), _YES),
    **dict.fromkeys(("finished", "completed"), _NO),
}
"""Cells, by column, of a run that did not come to its end."""
ALL = ("global_batch_size", "total_batch_size", "effective_batch_size", "total_train_batch_size")
"""Sequences of a step, on all devices and with accumulation."""
EACH = ("per_device_train_batch_size", "micro_batch_size", "device_batch_size", "train_micro_batch_size_per_gpu")
"""Sequences of a micro-batch on one device."""
EITHER = ("batch_size", "train_batch_size")  # Sequences of a micro-batch to some, of a step to others
ACCUMULATE = ("gradient_accumulation_steps", "accumulate_grad_batches", "accumulation_steps", "grad_accum_steps")
LENGTH = (
    *("seq_len", "seq_length", "sequence_length", "block_size", "context_length"),
    *("max_seq_length", "max_seq_len", "seq"),
)
DEVICES = ("world_size", "num_devices", "n_gpus", "num_gpus", "devices")
PLANNED = ("max_steps", "total_steps", "planned_steps", "max_iters")
EPOCHS = ("epochs", "num_epochs", "n_epochs")
UNIQUE = ("unique_tokens",)
EXPERTS = ("experts", "num_experts", "n_experts", "num_local_experts", "n_routed_experts")
DATA = (*EPOCHS, *UNIQUE, *EXPERTS)
"""Facts that a law must know of, or its runs: they go into the record, as columns of `isoflop fit`."""


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


_FACTS = {
    _plain(name): name for name in (*NO_END, *PLANNED, *DATA, *ALL, *EACH, *EITHER, *ACCUMULATE, *LENGTH, *DEVICES)
}


def fact_of(name: str) -> str | None:
    """The fact that a column holds by its name's last part; None: none.

    >>> fact_of("State"), fact_of("trainer.max_steps"), fact_of("epoch")
    ('state', 'max_steps', None)
    """
    return _FACTS.get(_plain(re.split(r"[./]", name)[-1]))


def status_of(facts: Mapping[str, Any]) -> Status | None:
    """Whether a run finished, by its facts; None: they don't say.

    >>> status_of({"state": "crashed"}), status_of({"state": "Finished"}), status_of({"finished": "no"}), status_of({})
    ('interrupted', 'completed', 'interrupted', None)
    """
    told = {name: str(facts[name]).strip().lower() for name in NO_END if name in facts}
    if any(word in NO_END[name] for name, word in told.items()):
        return "running" if any(word in _UNDER_WAY for word in told.values()) else "interrupted"
    ends = (*_ENDED, *(_YES if told.keys() & {"finished", "completed"} else ()))
    return "completed" if any(word in ends for word in told.values()) else None


def settings_of(facts: Mapping[str, str]) -> dict[str, Any]:
    """Facts with numbers where they are some."""
    return {name: word if (number := cell_number(word)) is None else number for name, word in facts.items()}
