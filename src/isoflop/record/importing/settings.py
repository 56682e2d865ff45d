"""Tokens of an optimizer step from a run's hyperparameters, where these tell every factor of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .files import number
from .given import Answers

TOKENS = ("tokens_per_step", "tokens_per_batch", "batch_tokens", "total_batch_tokens")
ALL = ("global_batch_size", "total_batch_size", "effective_batch_size", "total_train_batch_size")
"""Sequences of a step, on all devices and with accumulation."""
EACH = ("per_device_train_batch_size", "micro_batch_size", "batch_size", "train_batch_size")
"""Sequences of a micro-batch on one device."""
ACCUMULATE = ("gradient_accumulation_steps", "accumulate_grad_batches", "accumulation_steps", "grad_accum_steps")
LENGTH = (
    "seq_len",
    "seq_length",
    "sequence_length",
    "block_size",
    "context_length",
    "max_seq_length",
    "max_seq_len",
    "max_length",
)
DEVICES = ("world_size", "num_devices", "n_gpus", "num_gpus", "devices")


@dataclass(frozen=True)
class Found:
    """Tokens of a step and how they come about; or None and what is known towards it."""

    amount: float | None
    how: str


def tokens_per_step(settings: Mapping[str, Any], answers: Answers) -> Found:
    """Batch × accumulation × devices × sequence length, if all four are known; nothing is assumed."""
    by_name: dict[str, float] = {}
    for key, value in settings.items():
        amount = number(value)
        if amount is not None and 0 < amount < 1e15 and amount % 1 == 0:
            by_name.setdefault(key.rsplit("/", 1)[-1], amount)
    if (name := _first(TOKENS, by_name)) is not None:
        return Found(by_name[name], f"{name} of its settings")
    known: dict[str, float] = {}
    whole, each = _first(ALL, by_name), _first(EACH, by_name)
    if whole is not None:
        known[whole] = by_name[whole]
    else:
        accumulate, devices = _first(ACCUMULATE, by_name), _first(DEVICES, by_name)
        if each is not None:
            known[each] = by_name[each]
        if accumulate is not None:
            known[accumulate] = by_name[accumulate]
        if answers.devices is not None:
            known["devices (given)"] = answers.devices
        elif devices is not None:
            known[devices] = by_name[devices]
    factors = 1 if whole is not None else 3
    length = _first(LENGTH, by_name)
    lengths = {"seq (given)": answers.seq} if answers.seq is not None else {length: by_name[length]} if length else {}
    said = " × ".join(f"{name} {value:,.15g}" for name, value in [*known.items(), *lengths.items()])
    if len(known) == factors and lengths:
        amount = 1.0
        for value in (*known.values(), *lengths.values()):
            amount *= value or 1
        return Found(amount, f"{said}, each sequence full")
    if not said:
        return Found(None, "")
    lacking = []
    if whole is None:
        lacking += [] if each is not None else ["a batch size"]
        lacking += [] if _first(ACCUMULATE, by_name) is not None else ["the accumulation"]
        lacking += [] if answers.devices is not None or _first(DEVICES, by_name) is not None else ["--devices"]
    lacking += [] if lengths else ["--seq"]
    return Found(None, f"Its settings say {said}; {' and '.join(lacking)} would make it whole.")


def _first(names: tuple[str, ...], present: Mapping[str, float]) -> str | None:
    return next((name for name in names if name in present), None)
