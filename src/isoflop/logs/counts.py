"""N, tokens and FLOPs of an imported run: from its log, its model's configuration or the user; or unknown.

Tokens of an optimizer step from a run's hyperparameters, where these tell every factor of it.

Which columns are the losses of a run, in which unit, and what they are in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isoflop.logs.files import number
from isoflop.logs.given import EVERY, UNITS, Answers, Counter, Sized
from isoflop.logs.logged import (
    FLOPS,
    SIZES,
    TOKENS,
    TRAIN,
    TRAIN_PERPLEXITY,
    Column,
    Logged,
    PerStep,
    Track,
    evaluation,
    first,
    in_order,
    is_perplexity,
    track_of,
)
from isoflop.record.run import COUNTS, RecordError

SETTINGS_TOKENS = ("tokens_per_step", "tokens_per_batch", "batch_tokens", "total_batch_tokens")
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
    if (name := _first(SETTINGS_TOKENS, by_name)) is not None:
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
    lacking = [] if whole is not None or each is not None else ["the batch size"]
    if whole is None and _first(ACCUMULATE, by_name) is None:
        lacking.append("the accumulation")
    if whole is None and answers.devices is None and _first(DEVICES, by_name) is None:
        lacking.append("the devices (--devices)")
    if not lengths:
        lacking.append("the length of a sequence (--seq)")
    return Found(None, f"Its settings say {said}; not known: {', '.join(lacking)}.")


def _first(names: tuple[str, ...], present: Mapping[str, float]) -> str | None:
    return next((name for name in names if name in present), None)


@dataclass
class Counts:
    """What is known of a run's compute, and how.

    Attributes:
        parameters: N by convention.
        tokens: processed, padding included; data_tokens: without it (None: padding is not known).
        flops: model FLOPs; flops_6nd: 6·N·tokens with N non-embedding.
        how: in words, by quantity.
        missing: `params`, `tokens`: what could not be told.
        hints: what the log says towards it.
    """

    parameters: dict[str, int | None] = field(default_factory=dict)
    tokens: Track | None = None
    data_tokens: Track | None = None
    loss_tokens: Track | None = None
    flops: Track | None = None
    flops_6nd: Track | None = None
    flops_per_token: float | None = None
    how: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    hints: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def counts_of(logged: Logged, answers: Answers, counter: Counter | None) -> Counts:
    """N, tokens and FLOPs of a run, each by the first of the ways that applies.

    N: the user's; isoflop's own scalars; the configuration, counted; the log's; Hugging Face's total_flos over tokens.
    Tokens: the user's; isoflop's own; the log's; total_flos over N; batch × accumulation × devices × length.
    FLOPs: the user's; isoflop's own; the log's; the configuration's at a given length; total_flos; 6·N·tokens.
    """
    counts = Counts()
    sized = _sized(logged, answers, counter, counts)
    _tokens(logged, answers, sized, counts)
    _parameters(logged, answers, sized, counts)
    _flops(logged, answers, sized, counts)
    counts.missing.sort()
    return counts


def _sized(logged: Logged, answers: Answers, counter: Counter | None, counts: Counts) -> Sized | None:
    config = answers.config or logged.config
    if config is None or counter is None:
        return None
    length = None if answers.seq is None else round(answers.seq)
    try:
        return counter(config, length)
    except (ValueError, OSError) as error:
        text = f"its config.json could not be counted: {error}"
        if answers.config is not None:
            raise RecordError(f"--config {answers.config}: {error}") from None
        counts.problems.append(f"{logged.source}: {text}")
        return None


def _tokens(logged: Logged, answers: Answers, sized: Sized | None, counts: Counts) -> None:
    columns = logged.columns
    single = " (float32)" if logged.single else ""
    processed, data = (track_of(columns.get(f"isoflop/{name}")) for name in ("tokens_processed", "tokens"))
    counts.loss_tokens = track_of(columns.get("isoflop/loss_tokens"))
    named = first(TOKENS, columns)
    seen = track_of(columns.get(named or ""))
    no_padding = "not logged: D is taken as all tokens"
    if answers.tokens_per_step is not None:
        counts.tokens = PerStep(answers.tokens_per_step)
        counts.how |= {"tokens": f"{answers.tokens_per_step:,.15g} a step, given", "padding": no_padding}
    elif processed is not None or data is not None:
        counts.tokens, counts.data_tokens = processed or data, data
        counts.how["tokens"] = f"isoflop's own scalars{single}"
        return
    elif seen is not None:
        counts.tokens = seen
        counts.how |= {"tokens": f"{named}, as logged{single}", "padding": no_padding}
    elif (from_flos := _from_total_flos(logged, sized)) is not None:
        counts.tokens = from_flos
        counts.how["tokens"] = (
            "total_flos / (6·N), N as Hugging Face counts it (without embedding tables); spread evenly over the steps "
            "between two states"
        )
        counts.how["padding"] = no_padding
    else:
        found = tokens_per_step(logged.settings, answers)
        if found.amount is not None:
            counts.tokens = PerStep(found.amount)
            counts.how |= {"tokens": f"{found.amount:,.15g} a step: {found.how}", "padding": no_padding}
        else:
            counts.missing.append("tokens")
            falls = "" if named is None else f"Its column {named} is no count of the run: it falls, or is empty. "
            other = ""
            if logged.total_flos and sized is not None:
                other = "Its total_flos is no multiple of 6·N of the config.json, which may be of another model. "
            counts.hints["tokens"] = (falls + other + found.how).strip()
    counts.data_tokens = counts.tokens


def _from_total_flos(logged: Logged, sized: Sized | None) -> Track | None:
    """Tokens where a state was saved; None where they are no whole numbers: then N is another model's."""
    if sized is None or not sized.huggingface or not logged.total_flos:
        return None
    steps = sorted(logged.total_flos)
    tokens = [logged.total_flos[step] / (6 * sized.huggingface) for step in steps]
    if any(abs(count - round(count)) > 0.01 for count in tokens):
        return None
    return Track(steps, tokens)


def _parameters(logged: Logged, answers: Answers, sized: Sized | None, counts: Counts) -> None:
    if answers.parameters:
        counts.parameters = spread(answers.parameters)
        counts.how["params"] = "given; it stands for every convention" if set(answers.parameters) == {"N"} else "given"
    elif own := _own_parameters(logged):
        counted = {} if sized is None else sized.parameters
        agree = all(counted.get(name) == size for name, size in own.items())
        counts.parameters = dict(counted) if counted and agree else dict(own)
        single = " (float32)" if logged.single else ""
        counts.how["params"] = f"isoflop's own scalars: tokens over tokens per parameter{single}"
    elif sized is not None:
        counts.parameters, counts.how["params"] = dict(sized.parameters), f"config.json, counted {sized.method}"
    elif logged.parameters:
        counts.parameters = spread(logged.parameters)
        counts.how["params"] = logged.parameters_method or "as logged"
        if "N" in logged.parameters and len(logged.parameters) == 1:
            counts.how["params"] += "; it does not say of which convention: taken for each"
    elif found := _in_settings(logged.settings):
        counts.parameters, name = {"total": found[1]}, found[0]
        counts.how["params"] = f"{name} of its settings, taken as the total"
    elif logged.total_flos and counts.tokens is not None:
        last = max(logged.total_flos)
        tokens = counts.tokens.at(last)
        if tokens:
            counts.parameters = {"non_embedding": round(logged.total_flos[last] / (6 * tokens))}
            counts.how["params"] = (
                "total_flos / (6·tokens): without embedding tables; of an untied output head the parameters are in it"
            )
    if not any(counts.parameters.values()):
        counts.missing.append("params")
        if logged.total_flos and counts.tokens is None:
            counts.hints["tokens"] = (
                f"Its total_flos {max(logged.total_flos.values()):.6g} is 6·N·tokens, so --config config.json gives "
                f"both N and tokens. {counts.hints.get('tokens', '')}".strip()
            )


def spread(given: Mapping[str, int]) -> dict[str, int | None]:
    """N by convention: one number without a convention stands for each; beside others it is the total."""
    if set(given) == {"N"}:
        return dict.fromkeys(COUNTS, given["N"])
    named: dict[str, int | None] = {name: value for name, value in given.items() if name != "N"}
    if "N" in given:
        named.setdefault("total", given["N"])
    return named


def _own_parameters(logged: Logged) -> dict[str, int]:
    """N from isoflop's scalars, which hold tokens over it: exact to the digits that the tool keeps."""
    found = {}
    for convention, over, tokens, factor in (
        ("non_embedding", "flops_6nd", "tokens_processed", 1 / 6),
        ("non_embedding_with_head", "tokens_per_param", "tokens", None),
    ):
        many, few = logged.columns.get(f"isoflop/{tokens}"), logged.columns.get(f"isoflop/{over}")
        if not many or not few:
            continue
        counted = dict(zip(many.steps, many.values, strict=True))
        pairs = [(counted[step], value) for step, value, _ in in_order(few)[0] if step in counted]
        if not pairs or not pairs[-1][0] > 0 or not pairs[-1][1] > 0:
            continue
        tokens_there, value = pairs[-1]
        size = tokens_there / value if factor is None else value * factor / tokens_there
        if 0.5 <= size < 1e18:
            found[convention] = round(size)
    return found


def _in_settings(settings: Mapping[str, object]) -> tuple[str, int] | None:
    for name in SIZES:
        value = number(settings.get(name)) if name not in ("N", "total", "active", "params", "parameters") else None
        if value is not None and 1 <= value < 1e18 and value % 1 == 0:
            return name, int(value)
    return None


def _flops(logged: Logged, answers: Answers, sized: Sized | None, counts: Counts) -> None:
    columns, tokens = logged.columns, counts.tokens
    single = " (float32)" if logged.single else ""
    body = counts.parameters.get("non_embedding")
    active, total = counts.parameters.get("active"), counts.parameters.get("total")
    if body is not None and active and total and active < total:
        body -= total - active  # of experts what a token passes through
    counts.flops_6nd = track_of(columns.get("isoflop/flops_6nd"))
    if counts.flops_6nd is None and tokens is not None and body:
        counts.flops_6nd = tokens.times(6 * body)
    named = first(FLOPS, columns)
    if answers.flops_per_token is not None and tokens is not None:
        counts.flops_per_token = answers.flops_per_token
        counts.flops = tokens.times(answers.flops_per_token)
        counts.how["flops"] = "flops_per_token, given"
    elif (own := track_of(columns.get("isoflop/flops"))) is not None:
        counts.flops, counts.how["flops"] = own, f"isoflop's own scalars{single}"
    elif (seen := track_of(columns.get(named or ""))) is not None:
        counts.flops, counts.how["flops"] = seen, f"{named}, as logged{single}"
    elif sized is not None and sized.flops_per_token is not None and tokens is not None:
        counts.flops_per_token = sized.flops_per_token
        counts.flops = tokens.times(sized.flops_per_token)
        counts.how["flops"] = f"config.json, {sized.flops_method}"
    elif logged.total_flos:
        counts.flops = _like_tokens(logged, tokens)
        counts.how["flops"] = "Hugging Face's total_flos, 6·N·tokens without attention"
    elif counts.flops_6nd is not None:
        counts.flops, counts.how["flops"] = counts.flops_6nd, "6·N·tokens, N non-embedding"
    elif tokens is not None and total:
        counts.flops, counts.how["flops"] = tokens.times(6 * total), "6·N·tokens, N in total"


def _like_tokens(logged: Logged, tokens: Track | None) -> Track:
    """total_flos is known where a state was saved; in between it grows as the tokens do."""
    last = max(logged.total_flos)
    there = None if tokens is None else tokens.at(last)
    if tokens is not None and there and len(logged.total_flos) == 1:
        return tokens.times(logged.total_flos[last] / there)
    steps = sorted(logged.total_flos)
    return Track(steps, [logged.total_flos[step] for step in steps])


_SAID = {
    "bits": "bits per token, as declared: × ln 2",
    "ppl": "perplexity: its natural logarithm",
    "bpb": "bits per byte, as declared: kept so",
}


@dataclass(frozen=True)
class Losses:
    """The losses of a run by name, in order; `units` where they are not nats; how each was obtained."""

    columns: Mapping[str, Column] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    taken: Mapping[str, str] = field(default_factory=dict)


def losses_of(logged: Logged, answers: Answers) -> Losses:
    """The training loss and those of evaluations: the columns that the user names, else those whose names tell.

    Of several columns for one loss that with most values is taken (a mean over the run is logged once), isoflop's own
    before any other, a loss before a perplexity.
    """
    chosen: dict[str, str] = {}
    for column in logged.columns:
        name = _loss_of(column)
        if name is not None and (name not in chosen or _rank(logged, column) < _rank(logged, chosen[name])):
            chosen[name] = column
    for name, column in answers.loss.items():
        if column in logged.columns:
            chosen = {loss: other for loss, other in chosen.items() if other != column}
            chosen[name] = column
    found: dict[str, Column] = {}
    units: dict[str, str] = {}
    notes: list[str] = []
    for name in sorted(chosen, key=lambda one: (one != "train", one)):
        column = chosen[name]
        tidy, resumed, disorder = in_order(logged.columns[column])
        if resumed:
            times = "once" if resumed == 1 else f"{resumed} times"
            notes.append(f"{column}: its steps go back {times}, as after a resume: the later values count")
        if disorder:
            notes.append(f"{column}: its steps are in no order: sorted")
        unit = _unit(column, name, answers)
        if unit == "bpb":
            units[name] = "bits per byte"
        if unit != "nats":
            notes.append(f"{name} ({column}) is {_SAID[unit]}")
        found[name] = converted(tidy, unit)
    return Losses(found, units, tuple(notes), chosen)


def converted(column: Column, unit: str) -> Column:
    """A column of losses in nats per token (of bits per byte: as they are)."""
    if unit in ("nats", "bpb"):
        return column
    result = Column()
    for step, value, time in column:
        result.add(step, value * math.log(2) if unit == "bits" else _log(value), time)
    return result


def _log(perplexity: float) -> float:
    return math.log(perplexity) if perplexity > 0 else math.nan


def _loss_of(column: str) -> str | None:
    if column in TRAIN or column in TRAIN_PERPLEXITY:
        return "train"
    name = evaluation(column)
    return None if name is None else f"eval/{name}"


def _rank(logged: Logged, column: str) -> tuple[bool, bool, int, int]:
    order = TRAIN.index(column) if column in TRAIN else len(TRAIN)
    return (column != "isoflop/loss", is_perplexity(column), -len(logged.columns[column]), order)


def _unit(column: str, name: str, answers: Answers) -> str:
    unit = answers.loss_unit.get(name, answers.loss_unit.get(EVERY, "nats"))
    assert unit in UNITS
    if column == "isoflop/loss":
        return "nats"
    return "ppl" if is_perplexity(column) else unit
