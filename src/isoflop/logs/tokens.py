"""Tokens of a run by optimizer step: counted by the log, or batch × accumulation × devices × length; or unknown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from isoflop.logs.cells import cell_number
from isoflop.logs.given import Answers
from isoflop.logs.logged import Count, Logged, first, interpolated, number, plain, scaled
from isoflop.logs.names import role_of, words
from isoflop.logs.size import ModelSize

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
MOST_SEQUENCES = 32_768
"""A batch of more is one of tokens, or rare."""
VARIES = 0.2
"""Share of steps from which on a count that falls is one of each step, not of a run that began again."""


def token_counts(
    logged: Logged, answers: Answers, size: ModelSize | None, hints: list[str]
) -> Iterator[tuple[Count, str]]:
    """Ways to the tokens by step, padding unknown, each with its source; the most reliable first.

    Args:
        logged: the run, by optimizer step.
        answers: of the user.
        size: of the model, where it has a configuration.
        hints: gets what is known towards the tokens, for a question.
    """
    if answers.tokens_per_step is not None:
        yield _per_step(answers.tokens_per_step), f"{answers.tokens_per_step:,.15g} a step, given"
    single = " (float32)" if logged.single else ""
    given = answers.tokens
    names = [given] if given is not None and given in logged.columns else logged.best("tokens")
    for name in names:
        if (seen := logged.count(name)) is not None and not _stands(logged, name):
            yield seen, f"{plain(name, 40)}, as logged{single}"
    for name in [*names, *logged.best("step tokens")]:
        each, why = _of_each_step(logged, name)
        if each is not None:
            yield each, f"{plain(name, 40)}, {why}{single}"
        else:
            hints.append(f"Its column {plain(name, 40)} is no count of the run: {why}.")
    if (from_flos := _from_total_flos(logged, size)) is not None:
        yield (
            from_flos,
            "total_flos / (6·N), N as Hugging Face counts it (without embedding tables); spread evenly over the steps "
            "between two states",
        )
    if logged.total_flos and size is not None:
        other = "is no multiple of 6·N of the config.json, which may be of another model"
        hints.append(f"Its total_flos {other if size.takes_tokens else 'counts what are no tokens'}.")
    length = answers.seq or _first_number(logged.settings, LENGTH)
    for name in logged.best("samples"):
        if length and (seen := logged.count(name)) is not None and not _stands(logged, name):
            yield scaled(seen, length), f"{plain(name, 40)} × {length:,.15g} tokens a sequence, each full"
        else:
            hints.append(f"Its column {plain(name, 40)} counts sequences: --seq gives their length.")
    if unused := [plain(name, 40) for name in logged.columns.unused if {*words(name)} & {"token", "tokens"}]:
        hints.append(f"Columns that are not used: {', '.join(unused[:5])} (--tokens COLUMN).")
    batch, text = tokens_per_step(logged.settings, answers)
    if batch is not None and not logged.numbered:
        yield _per_step(batch), f"{batch:,.15g} a step: {text}"
    elif text:
        hints.append(text)
    if logged.numbered and not logged.ends:
        hints.append("Its rows are numbered for lack of a column of steps: a step is a row, unless --step names one.")


def _first_number(settings: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    bare = {key.rpartition("/")[2].replace("-", "_").lower(): value for key, value in settings.items()}
    return next((value for name in names if (value := number(bare.get(name))) and value > 0), None)


def _stands(logged: Logged, name: str) -> bool:
    """True for a count that stands still: it is one of each step."""
    values = logged.columns[name].arrays()[1]
    return len(values) > 1 and bool((values == values[0]).all())


def _of_each_step(logged: Logged, name: str) -> tuple[Count | None, str]:
    """Tokens of each step, added up, if each step was logged or all are the same; or why not."""
    steps, values, _ = logged.columns[name].arrays()
    role = role_of(name)
    unit = role.unit if role is not None and isinstance(role.unit, float) else 1.0
    told = role is not None and role.kind == "step tokens"
    known = np.isfinite(values) & (values > 0)
    if not known.all() or len(values) < 2:
        return None, "it falls, or is empty"
    alone = bool((np.diff(steps) == 1).all())
    if (values == values[0]).all():
        if told or alone:
            return _per_step(float(values[0]) * unit), f"{values[0] * unit:,.15g} a step"
        return None, f"it is {values[0]:,.15g} in each row, of a step or of the {steps[1] - steps[0]:,} between two"
    falls = float((np.diff(values) < 0).mean())
    if alone and steps[0] <= 1 and (told or (falls >= VARIES and len(values) > 9)):
        return interpolated(steps.tolist(), (np.cumsum(values) * unit).tolist()), "of each step, added up"
    return None, "it falls, or is empty" if falls else "it is of single steps, not all of which were logged"


def _per_step(amount: float) -> Count:
    return lambda step: amount * step


def _from_total_flos(logged: Logged, size: ModelSize | None) -> Count | None:
    """Tokens where a state was saved; None where they are no whole numbers: then N is another model's."""
    if size is None or not size.huggingface or not size.takes_tokens or not logged.total_flos:
        return None
    steps = sorted(logged.total_flos)
    tokens = [logged.total_flos[step] / (6 * size.huggingface) for step in steps]
    if any(abs(count - round(count)) > 0.01 for count in tokens):
        return None
    return interpolated(steps, tokens)


def tokens_per_step(settings: Mapping[str, Any], answers: Answers) -> tuple[float | None, str]:
    """Batch × accumulation × devices × sequence length, if all four are known, and which they are; nothing is assumed.

    Returns:
        Tokens of an optimizer step and how they come about; or None and what is known towards them.
    """
    numbers: dict[str, float] = {}
    for key, value in settings.items():
        amount = cell_number(value) if isinstance(value, str) else number(value)
        if amount is not None and 0 < amount < 1e15 and amount % 1 == 0:
            role = role_of(key)
            if role is not None and role.kind == "step tokens" and isinstance(role.unit, float):
                return amount * role.unit, f"{plain(key, 40)} of its settings"
            numbers.setdefault(key.rpartition("/")[2].replace("-", "_").lower(), amount)
    if "init_from" in settings and "block_size" in settings:  # nanoGPT divides its accumulation by the devices
        return None, "Its gradient_accumulation_steps are those of all devices together, or of each."
    factors = {"the batch size": first(ALL, numbers)}
    if factors["the batch size"] is None:
        devices = first(DEVICES, numbers) if answers.devices is None else ("devices (given)", answers.devices)
        factors = {
            "the batch size": first(EACH, numbers),
            "the accumulation": first(ACCUMULATE, numbers),
            "the devices (--devices)": devices,
        }
    length = first(LENGTH, numbers) if answers.seq is None else ("seq (given)", answers.seq)
    factors["the length of a sequence (--seq)"] = length
    if (batch := factors["the batch size"]) is not None and batch[1] >= MOST_SEQUENCES:
        return None, f"Its settings say {batch[0]} {batch[1]:,.15g}, which may be tokens or sequences."
    known = [factor for factor in factors.values() if factor is not None]
    text = " × ".join(f"{name} {value:,.15g}" for name, value in known)
    lacking = [what for what, factor in factors.items() if factor is None]
    if not lacking:
        return math.prod(value for _, value in known), f"{text}, each sequence full"
    return None, f"Its settings say {text}; not known: {', '.join(lacking)}." if known else ""
