"""N, tokens and FLOPs of an imported run: from its log, its model's configuration or the user; or unknown.

Each is taken from the first source that has it; the source is recorded in words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from isoflop.logs.files import cell_number, plain
from isoflop.logs.given import Answers
from isoflop.logs.logged import Count, Logged, interpolated, scaled
from isoflop.logs.names import factor_of, kind_of, role_of, words
from isoflop.logs.size import ModelSize, SizeOf
from isoflop.record.run import COUNTS, RecordError

NO_PADDING = "not logged: D is taken as all tokens"
AMBIGUOUS = ("N", "total", "active", "params", "parameters")
"""Names of N in a table that mean other things among hyperparameters."""
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
MOST_SEQUENCES = 32_768  # A batch of more is one of tokens, or rare
LARGE = 1e7  # A count beyond this is one of ones, whatever its fractions
FEWEST = 16.0  # Tokens a step below which a count is in other units
SLOWER = 0.25  # Growth of a count over its first value a step, below which it does not go on as it began
VARIES = 0.2  # Share of steps from which on a count that falls is one of each step, not of a run that began again


@dataclass
class Counts:
    """Compute of a run: N, tokens, FLOPs, and how each was obtained."""

    parameters: Mapping[str, int | None] = field(default_factory=dict)  # N by convention
    tokens: Count | None = None  # processed, padding included
    data_tokens: Count | None = None  # without padding
    loss_tokens: Count | None = None  # labels that counted in the loss
    flops: Count | None = None  # of the model
    flops_6nd: Count | None = None  # 6·N·tokens with N non-embedding
    flops_per_token: float | None = None
    how: dict[str, str] = field(default_factory=dict)  # in words, by quantity
    hint: str = ""  # the part of what the tokens need that the log does hold

    @property
    def missing(self) -> tuple[str, ...]:
        """Of `params` and `tokens` those that are unknown."""
        known = {"params": any(self.parameters.values()), "tokens": self.tokens is not None}
        return tuple(what for what, is_known in known.items() if not is_known)

    def without(self, wrong: set[str]) -> Counts:
        """Less what can't be: of `params`, `tokens` and `flops`."""
        counts = replace(self, how={what: how for what, how in self.how.items() if what not in wrong})
        if "params" in wrong:
            counts = replace(counts, parameters={}, flops_6nd=None)
        if "tokens" in wrong:
            counts.how.pop("padding", None)
            counts = replace(counts, tokens=None, data_tokens=None, loss_tokens=None, flops_6nd=None)
        return replace(counts, flops=None, flops_per_token=None) if wrong - {"loss"} else counts


def counts_of(logged: Logged, answers: Answers, size_of: SizeOf | None, problems: list[str]) -> Counts:
    """N, tokens and FLOPs of a run, by optimizer step, each by the first of the ways that applies.

    N: the user's; isoflop's own scalars; the configuration, counted; the log's; Hugging Face's total_flos over tokens.
    Tokens: the user's; isoflop's own; the log's; total_flos over N; batch × accumulation × devices × length.
    FLOPs: the user's; isoflop's own; the log's; the configuration's at a given length; total_flos; 6·N·tokens.
    """
    counts = Counts()
    size = _size(logged, answers, size_of, problems)
    _count_tokens(logged, answers, size, counts)
    found = next(_sizes(logged, answers, size, counts.tokens), None)
    if found is not None:
        counts.parameters, counts.how["params"] = found
    if logged.total_flos and len(counts.missing) == 2:
        counts.hint = (
            f"Its total_flos {max(logged.total_flos.values()):.6g} is 6·N·tokens, so --config config.json gives "
            f"both N and tokens. {counts.hint}".strip()
        )
    _count_flops(logged, answers, size, counts)
    return counts


def _size(logged: Logged, answers: Answers, size_of: SizeOf | None, problems: list[str]) -> ModelSize | None:
    config = answers.config or logged.config
    if config is None or size_of is None:
        return None
    try:
        return size_of(config, None if answers.seq is None else round(answers.seq))
    except (ValueError, OSError) as error:
        if answers.config is not None:
            raise RecordError(f"--config {answers.config}: {error}") from None
        problems.append(f"{logged.source}: its config.json could not be counted: {error}")
        return None


def _sizes(
    logged: Logged, answers: Answers, size: ModelSize | None, tokens: Count | None
) -> Iterator[tuple[Mapping[str, int | None], str]]:
    """Ways to N by convention, each with its source; the most reliable first."""
    if answers.parameters:
        alone = set(answers.parameters) == {"N"}
        yield spread(answers.parameters), "given; it stands for every convention" if alone else "given"
    if own := _own_sizes(logged):
        counted = {} if size is None else size.parameters
        agree = all(counted.get(name) == amount for name, amount in own.items())
        how = f"isoflop's own scalars: tokens over tokens per parameter{logged.digits}"
        yield counted if counted and agree else own, how
    if size is not None:
        yield size.parameters, f"config.json, counted {size.method}"
    if logged.parameters:
        alone = set(logged.parameters) == {"N"}
        more = "; it does not say of which convention: taken for each" if alone else ""
        yield spread(logged.parameters), f"as the file says{more}"
    for name in logged.best("size"):
        values = {value for value in logged.columns[name].values if value >= 1}
        if len(values) == 1 and (stated := _stated(name, values.pop())) is not None:
            yield spread(stated), f"{name}, as logged"
    for name, value in logged.settings.items():
        if name not in AMBIGUOUS and (stated := _stated(name, value)) is not None:
            yield {"total": next(iter(stated.values()))}, f"{name} of its settings, taken as the total"
    takes_tokens = size is None or size.takes_tokens
    if takes_tokens and logged.total_flos and tokens is not None and (there := tokens(max(logged.total_flos))):
        how = "total_flos / (6·tokens): without embedding tables; of an untied output head the parameters are in it"
        yield {"non_embedding": round(logged.total_flos[max(logged.total_flos)] / (6 * there))}, how


def _stated(name: str, value: object) -> dict[str, int] | None:
    """N by convention, as a quantity of this name states it."""
    role, amount = role_of(name), cell_number(value)
    if role is None or role.kind != "size" or amount is None:
        return None
    amount *= role.factor
    return {role.name: int(amount)} if 1 <= amount < 1e18 and amount % 1 == 0 else None


def spread(given: Mapping[str, int]) -> dict[str, int | None]:
    """N by convention: one number without a convention stands for each; beside others it is the total."""
    if set(given) == {"N"}:
        return dict.fromkeys(COUNTS, given["N"])
    named: dict[str, int | None] = {name: value for name, value in given.items() if name != "N"}
    if "N" in given:
        named.setdefault("total", given["N"])
    return named


def _own_sizes(logged: Logged) -> dict[str, int]:
    """N from isoflop's scalars, which hold tokens over it: exact to the digits that the tool keeps."""
    found = {}
    for convention, over, tokens in (
        ("non_embedding", "flops_6nd", "tokens_processed"),
        ("non_embedding_with_head", "tokens_per_param", "tokens"),
    ):
        counted = {step: value for step, value, _ in logged.columns.get(f"isoflop/{tokens}", ())}
        shared = [
            (counted[step], value) for step, value, _ in logged.columns.get(f"isoflop/{over}", ()) if step in counted
        ]
        if not shared or not min(shared[-1]) > 0:
            continue
        total, value = shared[-1]
        size = value / (6 * total) if over == "flops_6nd" else total / value
        if 0.5 <= size < 1e18:
            found[convention] = round(size)
    return found


def _count_tokens(logged: Logged, answers: Answers, size: ModelSize | None, counts: Counts) -> None:
    counts.loss_tokens = logged.count("isoflop/loss_tokens")
    processed, data = logged.count("isoflop/tokens_processed"), logged.count("isoflop/tokens")
    if answers.tokens_per_step is None and (processed is not None or data is not None):
        counts.tokens, counts.data_tokens = processed or data, data
        counts.how["tokens"] = f"isoflop's own scalars{logged.digits}"
        return
    hints: list[str] = []
    found = next(_token_counts(logged, answers, size, hints), None)
    if found is not None:
        counts.tokens = counts.data_tokens = found[0]
        counts.how |= {"tokens": found[1], "padding": NO_PADDING}
        return
    counts.hint = " ".join(hints)


def _token_counts(
    logged: Logged, answers: Answers, size: ModelSize | None, hints: list[str]
) -> Iterator[tuple[Count, str]]:
    """Ways to the tokens, padding unknown, each with its source; the most reliable first. `hints`: what is known."""
    if answers.tokens_per_step is not None:
        yield _per_step(answers.tokens_per_step), f"{answers.tokens_per_step:,.15g} a step, given"
    given = answers.tokens
    names = [given] if given is not None and given in logged.columns else logged.best("tokens")
    for name in names:
        if (seen := logged.count(name)) is not None and not _no_count(logged, name, FEWEST):
            yield seen, f"{plain(name, 40)}, as logged{logged.digits}"
    for name in [*names, *logged.best("step tokens")]:
        each, why = _of_each_step(logged, name)
        if each is not None:
            yield each, f"{plain(name, 40)}, {why}{logged.digits}"
        else:
            hints.append(f"Its column {plain(name, 40)} is no count of the run: {why}.")
    if (from_flos := _from_total_flos(logged, size)) is not None:
        how = "total_flos / (6·N), N as Hugging Face counts it (without embedding tables); spread evenly over the steps"
        yield from_flos, f"{how} between two states"
    if logged.total_flos and size is not None:
        other = "is no multiple of 6·N of the config.json, which may be of another model"
        hints.append(f"Its total_flos {other if size.takes_tokens else 'counts what are no tokens'}.")
    factors = _factors(logged.settings)
    length = answers.seq or next((factors[name] for name in LENGTH if name in factors), None)
    for name in logged.best("samples"):
        if length and (seen := logged.count(name)) is not None and not _no_count(logged, name):
            yield scaled(seen, length), f"{plain(name, 40)} × {length:,.15g} tokens a sequence, each full"
        else:
            hints.append(f"Its column {plain(name, 40)} counts sequences: --seq gives their length.")
    if unused := [plain(name, 40) for name in logged.columns.unused if {*words(name)} & {"token", "tokens"}]:
        hints.append(f"Columns that are not used: {', '.join(unused[:5])} (--tokens COLUMN).")
    batch, text = _of_settings(logged.settings, factors, answers)
    if batch is not None and not logged.numbered:
        yield _per_step(batch), f"{batch:,.15g} a step: {text}"
    elif text:
        hints.append(text)
    if logged.numbered and not logged.ends:
        hints.append("Its rows are numbered for lack of a column of steps: a step is a row, unless --step names one.")


def _no_count(logged: Logged, name: str, fewest: float = 0.0) -> str:
    """Why a column that does not fall is no count since the run began; "": it is one. `fewest`: a step has."""
    column, factor = logged.columns[name], factor_of(name)
    steps, values, _ = column.arrays()
    if factor == 1.0 and (values[np.isfinite(values)] % 1).any() and np.nanmax(values) < LARGE:
        return "it holds fractions, as if in thousands, millions or billions"
    if column.stands():
        return f"it is {values[0]:,.15g} in each row"
    if len(values) < 2 or not values[0] > 0 or not steps[0] > 0:
        return ""
    if values[-1] * factor < fewest * steps[-1]:
        return f"it makes {values[-1] * factor / steps[-1]:.3g} a step, as if in thousands or millions"
    slow = (values[-1] - values[0]) / (steps[-1] - steps[0]) < SLOWER * values[0] / steps[0]
    return "it does not grow as it began: of single steps, or of a part of the run" if slow else ""


def _of_each_step(logged: Logged, name: str) -> tuple[Count | None, str]:
    """Tokens of each step, added up, if each step was logged or all are the same; or why not."""
    steps, values, _ = logged.columns[name].arrays()
    role = role_of(name)
    factor, told = (1.0, False) if role is None else (role.factor, role.kind == "step tokens")
    total = role is not None and role.kind == "tokens" and role.rank == 0  # a total that stands still is the plan's
    known = np.isfinite(values) & (values > 0)
    no_count = _no_count(logged, name, FEWEST)
    if not known.all() or len(values) < 2:
        return None, no_count or "it falls, or is empty"
    if logged.numbered:
        return None, "a row may be of several steps"
    alone = bool((np.diff(steps) == 1).all())
    if logged.columns[name].stands() and values[0] * factor >= FEWEST:
        if told or (alone and not total):
            return _per_step(float(values[0]) * factor), f"{values[0] * factor:,.15g} a step"
        return None, f"it is {values[0]:,.15g} in each row, of a step or of the {steps[1] - steps[0]:,} between two"
    falls = float((np.diff(values) < 0).mean())
    if told and not falls and ("fractions" in no_count or not no_count):
        return None, no_count or "it grows as a total does"
    varies = falls >= VARIES or (not falls and "began" in no_count)
    if alone and steps[0] <= 1 and (told or (varies and len(values) > 9)):
        return interpolated(steps, np.cumsum(values) * factor), "of each step, added up"
    return None, "it falls, or is empty" if falls else no_count or "it is of single steps, not all of which were logged"


def _per_step(amount: float) -> Count:
    return lambda step: amount * step


def _from_total_flos(logged: Logged, size: ModelSize | None) -> Count | None:
    """Tokens where a state was saved; None where they are no whole numbers: then N is another model's."""
    if size is None or not size.huggingface or not size.takes_tokens or not logged.total_flos:
        return None
    steps = sorted(logged.total_flos)
    tokens = [logged.total_flos[step] / (6 * size.huggingface) for step in steps]
    whole = all(abs(count - round(count)) <= 0.01 for count in tokens)
    return interpolated(steps, tokens) if whole else None


def _factors(settings: Mapping[str, Any]) -> dict[str, float]:
    """The whole numbers among hyperparameters, by the last part of their names."""
    found: dict[str, float] = {}
    for key, value in settings.items():
        amount = cell_number(value)
        if amount is not None and 0 < amount < 1e15 and amount % 1 == 0:
            found.setdefault(key.rpartition("/")[2].replace("-", "_").lower(), amount)
    return found


def _of_settings(
    settings: Mapping[str, Any], factors: Mapping[str, float], answers: Answers
) -> tuple[float | None, str]:
    """Tokens of a step: batch × accumulation × devices × length, and which they are; or None, and what is known.

    All four must be known: nothing is assumed.
    """
    for key in factors:
        if kind_of(key) == "step tokens":
            return factors[key] * factor_of(key), f"{plain(key, 40)} of its settings"
    if "init_from" in settings and "block_size" in settings:  # nanoGPT divides its accumulation by the devices
        return None, "Its gradient_accumulation_steps are those of all devices together, or of each."

    def first(names: tuple[str, ...]) -> tuple[str, float] | None:
        return next(((name, factors[name]) for name in names if name in factors), None)

    split = any("parallel" in name and "data" not in name and value > 1 for name, value in factors.items())
    accumulation = first(ACCUMULATE)
    devices = ("devices (given)", answers.devices) if answers.devices else None if split else first(DEVICES)
    length = ("seq (given)", answers.seq) if answers.seq else first(LENGTH)
    batch = first(ALL) or (first(("train_batch_size",)) if "train_micro_batch_size_per_gpu" in factors else None)
    needed = {"the batch size": batch}
    if batch is None:
        needed = {"the batch size": first(EACH) or first(EITHER), "the accumulation": accumulation}
        needed["the devices (--devices)"] = devices
    needed["the length of a sequence (--seq)"] = length
    if (batch := needed["the batch size"]) is not None:
        name, size = batch
        tokens = name == "total_batch_size" and length is not None and size >= length[1] and size % length[1] == 0
        if size >= MOST_SEQUENCES or tokens:
            return None, f"Its settings say {name} {size:,.15g}, which may be tokens or sequences."
        if (
            name in EITHER
            and "the accumulation" in needed
            and any(one and one[1] > 1 for one in (accumulation, devices))
        ):
            return None, f"Its settings say {name} {size:,.15g}, which may be of a device or of all."
    known = [factor for factor in needed.values() if factor is not None]
    text = " × ".join(f"{name} {value:,.15g}" for name, value in known)
    lacking = [what for what, factor in needed.items() if factor is None]
    if not lacking:
        return math.prod(value for _, value in known), f"{text}, each sequence full"
    return None, f"Its settings say {text}; not known: {', '.join(lacking)}." if known else ""


def _count_flops(logged: Logged, answers: Answers, size: ModelSize | None, counts: Counts) -> None:
    body, active, total = (counts.parameters.get(name) for name in ("non_embedding", "active", "total"))
    if body is not None and active and total and active < total:
        body -= total - active  # of experts what a token passes through
    counts.flops_6nd = logged.count("isoflop/flops_6nd")
    if counts.flops_6nd is None and counts.tokens is not None and body:
        counts.flops_6nd = scaled(counts.tokens, 6 * body)
    found = next(_flop_counts(logged, answers, size, counts), None)
    if found is not None:
        counts.flops, counts.flops_per_token, counts.how["flops"] = found


def _flop_counts(
    logged: Logged, answers: Answers, size: ModelSize | None, counts: Counts
) -> Iterator[tuple[Count, float | None, str]]:
    """Ways to the FLOPs by step, with FLOPs per token where known and the source; the most reliable first."""
    tokens, given = counts.tokens, answers.flops_per_token
    if given is not None and tokens is not None:
        yield scaled(tokens, given), given, "flops_per_token, given"
    if (own := logged.count("isoflop/flops")) is not None:
        yield own, None, f"isoflop's own scalars{logged.digits}"
    for name in logged.best("flops"):
        if (seen := logged.count(name)) is not None and not _no_count(logged, name):
            yield seen, None, f"{name}, as logged{logged.digits}"
    if size is not None and size.flops_per_token is not None and tokens is not None:
        yield scaled(tokens, size.flops_per_token), size.flops_per_token, f"config.json, {size.flops_method}"
    if logged.total_flos and (tokens is not None or (size is not None and size.takes_tokens)):
        yield _like_tokens(logged, tokens), None, "Hugging Face's total_flos, 6·N·tokens without attention"
    if counts.flops_6nd is not None:
        yield counts.flops_6nd, None, "6·N·tokens, N non-embedding"
    if tokens is not None and (total := counts.parameters.get("total")):
        yield scaled(tokens, 6 * total), None, "6·N·tokens, N in total"


def _like_tokens(logged: Logged, tokens: Count | None) -> Count:
    """total_flos is known where a state was saved; in between it grows as the tokens do."""
    steps = sorted(logged.total_flos)
    there = None if tokens is None else tokens(steps[-1])
    if tokens is not None and there and len(steps) == 1:
        return scaled(tokens, logged.total_flos[steps[-1]] / there)
    return interpolated(steps, [logged.total_flos[step] for step in steps])
