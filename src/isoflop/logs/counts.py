"""N, tokens and FLOPs of an imported run: from its log, its model's configuration or the user; or unknown.

Each is taken from the first source that has it; the source is recorded in words.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from sys import stderr
from typing import Any

from isoflop.logs.given import Answers
from isoflop.logs.logged import FLOPS, SIZES, TOKENS, Count, Logged, first, in_order, interpolated, number, scaled
from isoflop.record.run import COUNTS, RecordError

TOKENS_PER_STEP = ("tokens_per_step", "tokens_per_batch", "batch_tokens", "total_batch_tokens")
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
NO_PADDING = "not logged: D is taken as all tokens"


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model's size.

    Attributes:
        parameters: N by convention.
        method: how it was counted.
        huggingface: N as Hugging Face's total_flos has it: without the tables of nn.Embedding, an untied head in it.
        flops_per_token: of a training step at a sequence length, where one was given.
        flops_method: how they were counted.
    """

    parameters: Mapping[str, int | None]
    method: str
    huggingface: int | None = None
    flops_per_token: float | None = None
    flops_method: str | None = None


SizeOf = Callable[[str | Mapping[str, Any], int | None], ModelSize]
"""(a config.json or its content, tokens a sequence or None) → the model's size; raises ValueError with the reason."""


def size_of_config(config: str | Mapping[str, Any], length: int | None = None) -> ModelSize:
    """The size of the model that a Hugging Face config.json describes, counted on the meta device.

    Args:
        config: the file, or its content.
        length: tokens a sequence, for the FLOPs of a token.

    Raises:
        ValueError: it can't be opened or counted.
    """
    try:
        text = Path(config).read_text(encoding="utf-8") if isinstance(config, str) else json.dumps(dict(config))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"expected a config.json that can be read, got {error}") from None
    return _counted(text, length)


@functools.lru_cache(maxsize=256)
def _counted(text: str, length: int | None) -> ModelSize:
    from isoflop.flops.calls import Uncountable
    from isoflop.flops.count import count_measured
    from isoflop.flops.open_model import candidate_calls
    from isoflop.flops.parameters import count_parameters

    with redirect_stdout(stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries' remarks while a model is built
        model = _open(text)
        theirs = model.num_parameters(exclude_embeddings=True) if hasattr(model, "num_parameters") else None
        calls: list[Any] = []
        with suppress(ValueError):  # a model without tokens as input: N is counted by module type
            calls = candidate_calls(model, 1, length or 16, {})
        for call in calls:
            with suppress(Uncountable):
                counted = count_measured(model, call)
                flops = counted.model_flops
                return ModelSize(
                    parameters=counted.parameters.by_convention(),
                    method=counted.parameters.method,
                    huggingface=theirs,
                    flops_per_token=flops / length if length and flops is not None else None,
                    flops_method=f"{counted.method}, at {length} tokens a sequence" if length else None,
                )
        parameters = count_parameters(model)
        return ModelSize(parameters=parameters.by_convention(), method=parameters.method, huggingface=theirs)


def _open(text: str) -> Any:
    from isoflop.flops.open_model import BringsCode, open_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(text, encoding="utf-8")
        try:
            return open_model(str(path)).model
        except BringsCode:
            reason = "it brings code of its own, which is not run here: `isoflop count --trust` tells N, for --params"
            raise ValueError(reason) from None
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "config.json")) from None


@dataclass
class Counts:
    """Compute of a run: N, tokens, FLOPs, and how each was obtained.

    Attributes:
        parameters: N by convention.
        tokens: processed, padding included.
        data_tokens: without padding; None: padding is not known.
        loss_tokens: labels that counted in the loss.
        flops: model FLOPs.
        flops_6nd: 6·N·tokens with N non-embedding.
        how: in words, by quantity.
        missing: of `params` and `tokens` those that are unknown.
        hint: the part of what the tokens need that the log does hold.
        problems: what could not be read.
    """

    parameters: Mapping[str, int | None] = field(default_factory=dict)
    tokens: Count | None = None
    data_tokens: Count | None = None
    loss_tokens: Count | None = None
    flops: Count | None = None
    flops_6nd: Count | None = None
    flops_per_token: float | None = None
    how: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    hint: str = ""
    problems: list[str] = field(default_factory=list)


def counts_of(logged: Logged, answers: Answers, size_of: SizeOf | None) -> Counts:
    """N, tokens and FLOPs of a run, each by the first of the ways that applies.

    N: the user's; isoflop's own scalars; the configuration, counted; the log's; Hugging Face's total_flos over tokens.
    Tokens: the user's; isoflop's own; the log's; total_flos over N; batch × accumulation × devices × length.
    FLOPs: the user's; isoflop's own; the log's; the configuration's at a given length; total_flos; 6·N·tokens.
    """
    counts = Counts()
    size = _size(logged, answers, size_of, counts)
    _count_tokens(logged, answers, size, counts)
    found = next(_sizes(logged, answers, size, counts.tokens), None)
    if found is not None:
        counts.parameters, counts.how["params"] = found
    if not any(counts.parameters.values()):
        counts.missing.insert(0, "params")
        if logged.total_flos and counts.tokens is None:
            counts.hint = (
                f"Its total_flos {max(logged.total_flos.values()):.6g} is 6·N·tokens, so --config config.json gives "
                f"both N and tokens. {counts.hint}".strip()
            )
    _count_flops(logged, answers, size, counts)
    return counts


def _size(logged: Logged, answers: Answers, size_of: SizeOf | None, counts: Counts) -> ModelSize | None:
    config = answers.config or logged.config
    if config is None or size_of is None:
        return None
    try:
        return size_of(config, None if answers.seq is None else round(answers.seq))
    except (ValueError, OSError) as error:
        if answers.config is not None:
            raise RecordError(f"--config {answers.config}: {error}") from None
        counts.problems.append(f"{logged.source}: its config.json could not be counted: {error}")
        return None


def _own(logged: Logged) -> str:
    """Source of a number: isoflop's own scalars."""
    return f"isoflop's own scalars{_digits(logged)}"


def _digits(logged: Logged) -> str:
    return " (float32)" if logged.single else ""


def _count_tokens(logged: Logged, answers: Answers, size: ModelSize | None, counts: Counts) -> None:
    counts.loss_tokens = logged.count("isoflop/loss_tokens")
    processed, data = logged.count("isoflop/tokens_processed"), logged.count("isoflop/tokens")
    if answers.tokens_per_step is None and (processed is not None or data is not None):
        counts.tokens, counts.data_tokens, counts.how["tokens"] = processed or data, data, _own(logged)
        return
    batch, text = tokens_per_step(logged.settings, answers)
    found = next(_token_counts(logged, answers, size, batch, text), None)
    if found is not None:
        counts.tokens = counts.data_tokens = found[0]
        counts.how |= {"tokens": found[1], "padding": NO_PADDING}
        return
    counts.missing.append("tokens")
    named, hints = first(TOKENS, logged.columns), [text] if text else []
    if logged.total_flos and size is not None:
        hints.insert(0, "Its total_flos is no multiple of 6·N of the config.json, which may be of another model.")
    if named is not None:
        hints.insert(0, f"Its column {named[0]} is no count of the run: it falls, or is empty.")
    counts.hint = " ".join(hints)


def _token_counts(
    logged: Logged, answers: Answers, size: ModelSize | None, batch: float | None, text: str
) -> Iterator[tuple[Count, str]]:
    """Ways to the tokens by step, padding unknown, each with its source; the most reliable first."""
    given, named = answers.tokens_per_step, first(TOKENS, logged.columns)
    if given is not None:
        yield _per_step(given), f"{given:,.15g} a step, given"
    if named is not None and (seen := logged.count(named[0])) is not None:
        yield seen, f"{named[0]}, as logged{_digits(logged)}"
    if (from_flos := _from_total_flos(logged, size)) is not None:
        yield (
            from_flos,
            "total_flos / (6·N), N as Hugging Face counts it (without embedding tables); spread evenly over the steps "
            "between two states",
        )
    if batch is not None:
        yield _per_step(batch), f"{batch:,.15g} a step: {text}"


def _per_step(amount: float) -> Count:
    return lambda step: amount * step


def _from_total_flos(logged: Logged, size: ModelSize | None) -> Count | None:
    """Tokens where a state was saved; None where they are no whole numbers: then N is another model's."""
    if size is None or not size.huggingface or not logged.total_flos:
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
        amount = number(value)
        if amount is not None and 0 < amount < 1e15 and amount % 1 == 0:
            numbers.setdefault(key.rpartition("/")[2], amount)
    if (whole := first(TOKENS_PER_STEP, numbers)) is not None:
        return whole[1], f"{whole[0]} of its settings"
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
    known = [factor for factor in factors.values() if factor is not None]
    text = " × ".join(f"{name} {value:,.15g}" for name, value in known)
    lacking = [what for what, factor in factors.items() if factor is None]
    if not lacking:
        return math.prod(value for _, value in known), f"{text}, each sequence full"
    return None, f"Its settings say {text}; not known: {', '.join(lacking)}." if known else ""


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
        parameters = counted if counted and agree else own
        yield parameters, f"isoflop's own scalars: tokens over tokens per parameter{_digits(logged)}"
    if size is not None:
        yield size.parameters, f"config.json, counted {size.method}"
    if logged.parameters:
        alone = set(logged.parameters) == {"N"}
        more = "; it does not say of which convention: taken for each" if alone else ""
        yield spread(logged.parameters), f"as the file says{more}"
    for name in SIZES:
        stated = number(logged.settings.get(name)) if name not in AMBIGUOUS else None
        if stated is not None and 1 <= stated < 1e18 and stated % 1 == 0:
            yield {"total": int(stated)}, f"{name} of its settings, taken as the total"
    if logged.total_flos and tokens is not None and (there := tokens(max(logged.total_flos))):
        yield (
            {"non_embedding": round(logged.total_flos[max(logged.total_flos)] / (6 * there))},
            "total_flos / (6·tokens): without embedding tables; of an untied output head the parameters are in it",
        )


AMBIGUOUS = ("N", "total", "active", "params", "parameters")
"""Names of N in a table that mean other things among hyperparameters."""


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
        many, few = logged.columns.get(f"isoflop/{tokens}"), logged.columns.get(f"isoflop/{over}")
        if not many or not few:
            continue
        counted = dict(zip(many.steps, many.values, strict=True))
        pairs = [(counted[step], value) for step, value, _ in in_order(few)[0] if step in counted]
        if not pairs or not pairs[-1][0] > 0 or not pairs[-1][1] > 0:
            continue
        total, value = pairs[-1]
        size = value / (6 * total) if over == "flops_6nd" else total / value
        if 0.5 <= size < 1e18:
            found[convention] = round(size)
    return found


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
    tokens, given, named = counts.tokens, answers.flops_per_token, first(FLOPS, logged.columns)
    if given is not None and tokens is not None:
        yield scaled(tokens, given), given, "flops_per_token, given"
    if (own := logged.count("isoflop/flops")) is not None:
        yield own, None, _own(logged)
    if named is not None and (seen := logged.count(named[0])) is not None:
        yield seen, None, f"{named[0]}, as logged{_digits(logged)}"
    if size is not None and size.flops_per_token is not None and tokens is not None:
        yield scaled(tokens, size.flops_per_token), size.flops_per_token, f"config.json, {size.flops_method}"
    if logged.total_flos:
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
