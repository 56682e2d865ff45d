"""N, tokens and FLOPs of an imported run: from its log, its model's configuration or the user; or unknown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from isoflop.record.conventions import COUNTS
from isoflop.record.run import RecordError

from .files import number
from .given import Answers
from .logged import Logged, in_order
from .names import FLOPS, SIZES, TOKENS, first
from .settings import tokens_per_step
from .sized import Counter, Sized
from .track import PerStep, Track, track_of


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
