"""N, tokens and FLOPs of an imported run: from its log, its model's configuration or the user; or unknown.

Each is taken from the first source that has it; the source is recorded in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from isoflop.logs.cells import cell_number
from isoflop.logs.given import Answers
from isoflop.logs.logged import Count, Logged, interpolated, number, scaled
from isoflop.logs.names import role_of
from isoflop.logs.size import ModelSize, SizeOf
from isoflop.logs.tokens import token_counts
from isoflop.record.run import COUNTS, RecordError

NO_PADDING = "not logged: D is taken as all tokens"


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

    def without(self, wrong: set[str]) -> Counts:
        """Less what can't be: of `params`, `tokens` and `flops`."""
        counts = replace(self, how={what: how for what, how in self.how.items() if what not in wrong})
        if "params" in wrong:
            counts = replace(counts, parameters={}, flops_6nd=None)
        if "tokens" in wrong:
            counts.how.pop("padding", None)
            counts = replace(counts, tokens=None, data_tokens=None, loss_tokens=None, flops_6nd=None)
        return replace(counts, flops=None, flops_per_token=None) if wrong - {"loss"} else counts


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
    hints: list[str] = []
    found = next(token_counts(logged, answers, size, hints), None)
    if found is not None:
        counts.tokens = counts.data_tokens = found[0]
        counts.how |= {"tokens": found[1], "padding": NO_PADDING}
        return
    counts.missing.append("tokens")
    counts.hint = " ".join(hints)


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
    for name in logged.best("size"):
        values = {value for value in logged.columns[name].values if value >= 1}
        if len(values) == 1 and (stated := _stated(name, values.pop())) is not None:
            yield spread(stated), f"{name}, as logged"
    for name, value in logged.settings.items():
        if name not in AMBIGUOUS and (stated := _stated(name, value)) is not None:
            yield {"total": next(iter(stated.values()))}, f"{name} of its settings, taken as the total"
    takes_tokens = size is None or size.takes_tokens
    if takes_tokens and logged.total_flos and tokens is not None and (there := tokens(max(logged.total_flos))):
        yield (
            {"non_embedding": round(logged.total_flos[max(logged.total_flos)] / (6 * there))},
            "total_flos / (6·tokens): without embedding tables; of an untied output head the parameters are in it",
        )


def _stated(name: str, value: object) -> dict[str, int] | None:
    """N by convention, as a quantity of this name states it."""
    role = role_of(name)
    amount = cell_number(value) if isinstance(value, str) else number(value)
    if role is None or role.kind != "size" or amount is None or not isinstance(role.unit, float):
        return None
    amount *= role.unit
    return {role.name: int(amount)} if 1 <= amount < 1e18 and amount % 1 == 0 else None


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
        pairs = [(counted[step], value) for step, value, _ in few if step in counted]
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
    tokens, given = counts.tokens, answers.flops_per_token
    if given is not None and tokens is not None:
        yield scaled(tokens, given), given, "flops_per_token, given"
    if (own := logged.count("isoflop/flops")) is not None:
        yield own, None, _own(logged)
    for name in logged.best("flops"):
        column = logged.columns[name]
        if (seen := logged.count(name)) is not None and (len(column) == 1 or min(column.values) < max(column.values)):
            yield seen, None, f"{name}, as logged{_digits(logged)}"
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
