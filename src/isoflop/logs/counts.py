"""N, tokens and FLOPs of an imported run: from its log, its model's configuration or the user; or unknown.

Each is taken from the first source that has it; the source is recorded in words.
"""

from __future__ import annotations

import functools
import json
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from operator import mul
from pathlib import Path
from sys import stderr
from typing import Any

import numpy as np

from isoflop.logs.files import cell_number, plain
from isoflop.logs.given import Answers
from isoflop.logs.logged import Count, Logged, interpolated, scaled
from isoflop.logs.names import ACCUMULATE, ALL, DEVICES, EACH, EITHER, LENGTH, factor_of, kind_of, role_of, words
from isoflop.record.run import COUNTS, RecordError

NO_PADDING = "not logged: D is taken as all tokens"
OWN = "isoflop's own scalars"
AMBIGUOUS = ("N", "total", "active", "params", "parameters")
"""Names of N in a table that mean other things among hyperparameters."""
MOST_SEQUENCES = 32_768  # A batch of more is one of tokens, or rare
LARGE = 1e7  # A count beyond this is one of ones, whatever its fractions
FEWEST = 16.0  # Tokens a step below which a count is in other units
SLOWER = 0.25  # Growth of a count over its first value a step, below which it does not go on as it began
RESUMED = 4  # Intervals between steps beyond which a log begins behind its run's start
VARIES = 0.2  # Share of steps from which on a count that falls is one of each step, not of a run that began again


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """A model's size, by its Hugging Face configuration, counted on the meta device."""

    parameters: Mapping[str, int | None]  # N by convention
    method: str  # how it was counted
    huggingface: int | None = None  # N as in total_flos: without the tables of nn.Embedding, an untied head in it
    takes_tokens: bool = True  # its main input is token ids; else Hugging Face's total_flos counts pixels or frames
    flops_per_token: float | None = None  # of a training step at a sequence length, where one was given
    flops_method: str | None = None
    six_nd: bool = False  # these FLOPs are 6·N a token


SizeOf = Callable[[str | Mapping[str, Any], int | None], ModelSize]
"""(a config.json or its content, tokens a sequence or None) → the model's size; raises ValueError with the reason."""


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
    six_nd: bool = False  # the FLOPs are 6·N a token, not counted
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
    counts = Counts(loss_tokens=logged.count("isoflop/loss_tokens"))
    size = _size(logged, answers, size_of, problems)
    hints: list[str] = []
    for tokens, data, how in _token_counts(logged, answers, size, hints):
        counts.tokens, counts.data_tokens, counts.how["tokens"] = tokens, data, how
        counts.how |= {} if how == OWN else {"padding": NO_PADDING}
        break
    else:
        counts.hint = " ".join(hints)
    for parameters, how in _sizes(logged, answers, size, counts.tokens):
        counts.parameters, counts.how["params"] = parameters, how
        break
    if logged.total_flos and len(counts.missing) == 2:
        counts.hint = (
            f"Its total_flos {max(logged.total_flos.values()):.6g} is 6·N·tokens, so --config config.json gives "
            f"both N and tokens. {counts.hint}".strip()
        )
    body, active, total = (counts.parameters.get(name) for name in ("non_embedding", "active", "total"))
    if body is not None and active and total and active < total:
        body -= total - active  # of experts what a token passes through
    counts.flops_6nd = logged.count("isoflop/flops_6nd")
    if counts.flops_6nd is None and counts.tokens is not None and body:
        counts.flops_6nd = scaled(counts.tokens, 6 * body)
    for way in _flop_counts(logged, answers, size, counts):
        counts.flops, counts.flops_per_token, counts.how["flops"], counts.six_nd = way
        break
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
    if given := answers.parameters:
        yield spread(given), "given; it stands for every convention" if {*given} == {"N"} else "given"
    if own := _own_sizes(logged):
        counted = {} if size is None else size.parameters
        agree = all(counted.get(name) == amount for name, amount in own.items())
        yield counted if counted and agree else own, f"{OWN}: tokens over tokens per parameter"
    if size is not None:
        yield size.parameters, f"config.json, counted {size.method}"
    stated: dict[str, tuple[int, str]] = {}
    for name in logged.best("size"):
        values = {round(value * factor_of(name)) for value in logged.columns[name].known()[1]} - {0}
        if len(values) == 1 and (value := values.pop()) < 1e18 and (role := role_of(name)):
            stated.setdefault(role.name, (value, plain(name, 40)))
    if stated:
        more = "; it does not say of which convention: taken for each" if {*stated} == {"N"} else ""
        columns = ", ".join(name for _, name in stated.values())
        yield spread({name: value for name, (value, _) in stated.items()}), f"{columns}, as logged{more}"
    for name, value in logged.settings.items():
        amount = (cell_number(value) or 0) * factor_of(name) if kind_of(name) == "size" else 0
        if name not in AMBIGUOUS and 1 <= amount < 1e18 and amount % 1 == 0:
            yield {"total": int(amount)}, f"{name} of its settings, taken as the total"
    takes_tokens = size is None or size.takes_tokens
    if takes_tokens and logged.total_flos and tokens is not None and (there := tokens(max(logged.total_flos))):
        how = "total_flos / (6·tokens): without embedding tables; of an untied output head the parameters are in it"
        yield {"non_embedding": round(logged.total_flos[max(logged.total_flos)] / (6 * there))}, how


def spread(given: Mapping[str, int]) -> dict[str, int | None]:
    """N by convention: one number without a convention stands for each; beside others it is the total."""
    if set(given) == {"N"}:
        return dict.fromkeys(COUNTS, given["N"])
    return {"total" if name == "N" else name: given[name] for name in sorted(given, key=lambda name: name == "N")}


def _own_sizes(logged: Logged) -> dict[str, int]:
    """N from isoflop's scalars, which hold tokens over it: exact to the digits that the tool keeps."""
    found: dict[str, int] = {}
    for convention, over, tokens in (
        ("non_embedding", "flops_6nd", "tokens_processed"),
        ("non_embedding_with_head", "tokens_per_param", "tokens"),
    ):
        counted = {step: value for step, value, _ in logged.columns.get(f"isoflop/{tokens}", ())}
        for step, value, _ in logged.columns.get(f"isoflop/{over}", ()):
            if (total := counted.get(step, 0)) > 0 and value > 0:
                size = value / (6 * total) if over == "flops_6nd" else total / value
                found |= {convention: round(size)} if 0.5 <= size < 1e18 else {}
    return found


def _token_counts(
    logged: Logged, answers: Answers, size: ModelSize | None, hints: list[str]
) -> Iterator[tuple[Count, Count | None, str]]:
    """Ways to the tokens, in all and without padding, each with its source; the most reliable first.

    `hints`: what is known of the tokens where none applies.
    """
    if answers.tokens_per_step is not None:
        yield *_per_step(answers.tokens_per_step), f"{answers.tokens_per_step:,.15g} a step, given"
    processed, data = logged.count("isoflop/tokens_processed"), logged.count("isoflop/tokens")
    if (own := processed or data) is not None:
        yield own, data, OWN
    given = answers.given.tokens
    names = [given] if given is not None and given in logged.columns else logged.best("tokens")
    for name in names:
        if (seen := logged.count(name)) is not None and not _no_count(logged, name, FEWEST):
            yield seen, seen, f"{plain(name, 40)}, as logged{_of_all(logged, name)}"
    for name in [*names, *logged.best("step tokens")]:
        each, why = _of_each_step(logged, name)
        if each is not None:
            yield each, each, f"{plain(name, 40)}, {why}"
        else:
            hints.append(f"Its column {plain(name, 40)} is no count of the run: {why}.")
    stated = answers.parameters.values() if size is None else [size.huggingface] if size.takes_tokens else []
    if (from_flos := _from_total_flos(logged, stated)) is not None:
        how = "total_flos / (6·N), N as Hugging Face counts it (without embedding tables); spread evenly over the steps"
        yield from_flos, from_flos, f"{how} between two states"
    if logged.total_flos and size is not None:
        other = "is no multiple of 6·N of the config.json, which may be of another model"
        hints.append(f"Its total_flos {other if size.takes_tokens else 'counts what are no tokens'}.")
    factors = _factors(logged.settings)
    length = answers.seq or next((factors[name] for name in LENGTH if name in factors), None)
    for name in logged.best("samples"):
        if length and (seen := logged.count(name)) is not None and not _no_count(logged, name):
            counted = scaled(seen, length)
            yield counted, counted, f"{plain(name, 40)} × {length:,.15g} tokens a sequence, each full"
        else:
            hints.append(f"Its column {plain(name, 40)} counts sequences: --seq gives their length.")
    if unused := [plain(name, 40) for name in logged.columns.unused if {*words(name)} & {"token", "tokens"}]:
        hints.append(f"Columns that are not used: {', '.join(unused[:5])} (--tokens COLUMN).")
    batch, text = _of_settings(logged.settings, factors, answers)
    if batch is not None and not logged.numbered:
        yield *_per_step(batch), f"{batch:,.15g} a step: {text}"
    elif text:
        hints.append(text)
    if logged.numbered and not logged.ends:
        hints.append("Its rows are numbered for lack of a column of steps: a step is a row, unless --step names one.")


def _of_all(logged: Logged, name: str) -> str:
    """That a count is taken as that of all devices, where it may be of one."""
    factors, role = _factors(logged.settings), role_of(name)
    devices = next(((each, factors[each]) for each in DEVICES if factors.get(each, 1) > 1), None)
    if devices is None or role is None or role.rank == 0:  # a total, by its name
        return ""
    return f", taken as those of all {devices[1]:,.15g} devices ({devices[0]}): if they are of one, --tokens-per-step"


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
    gap, growth = steps[1] - steps[0], values[1] - values[0]
    if steps[0] > RESUMED * gap and values[0] <= 2 * growth:
        return f"it begins again at step {steps[0]:,}, as after a resume"
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
            return _per_step(float(values[0]) * factor)[0], f"{values[0] * factor:,.15g} a step"
        return None, f"it is {values[0]:,.15g} in each row, of a step or of the {steps[1] - steps[0]:,} between two"
    falls = float((np.diff(values) < 0).mean())
    if told and not falls and ("fractions" in no_count or not no_count):
        return None, no_count or "it grows as a total does"
    varies = falls >= VARIES or (not falls and "began" in no_count)
    if alone and steps[0] <= 1 and (told or (varies and len(values) > 9)):
        return interpolated(steps, np.cumsum(values) * factor), "of each step, added up"
    return None, "it falls, or is empty" if falls else no_count or "it is of single steps, not all of which were logged"


def _per_step(amount: float) -> tuple[Count, Count]:
    count = functools.partial(mul, amount)
    return count, count


def _from_total_flos(logged: Logged, sizes: Iterable[int | None]) -> Count | None:
    """Tokens where a state was saved; None where they are no whole numbers by any N: then it is another model's."""
    steps = sorted(logged.total_flos)
    for N in sizes if steps else ():
        tokens = [logged.total_flos[step] / (6 * N) for step in steps] if N else [0.5]
        if all(abs(count - round(count)) <= 0.01 for count in tokens):
            return interpolated(steps, tokens)
    return None


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
        several = "the accumulation" in needed and any(one and one[1] > 1 for one in (accumulation, devices))
        if size >= MOST_SEQUENCES or tokens:
            return None, f"Its settings say {name} {size:,.15g}, which may be tokens or sequences."
        if name in EITHER and several:
            return None, f"Its settings say {name} {size:,.15g}, which may be of a device or of all."
    known = [factor for factor in needed.values() if factor is not None]
    text = " × ".join(f"{name} {value:,.15g}" for name, value in known)
    lacking = [what for what, factor in needed.items() if factor is None]
    if not lacking:
        return math.prod(value for _, value in known), f"{text}, each sequence full"
    return None, f"Its settings say {text}; not known: {', '.join(lacking)}." if known else ""


def _flop_counts(
    logged: Logged, answers: Answers, size: ModelSize | None, counts: Counts
) -> Iterator[tuple[Count, float | None, str, bool]]:
    """Ways to the FLOPs by step, the best first: FLOPs per token where known, the source, and whether it is 6·N."""
    tokens, given = counts.tokens, answers.flops_per_token
    if given is not None and tokens is not None:
        yield scaled(tokens, given), given, "flops_per_token, given", False
    if (own := logged.count("isoflop/flops")) is not None:
        yield own, None, OWN, False
    for name in logged.best("flops"):
        if (seen := logged.count(name)) is not None and not _no_count(logged, name):
            yield seen, None, f"{name}, as logged", False
    if size is not None and size.flops_per_token is not None and tokens is not None:
        each = size.flops_per_token
        yield scaled(tokens, each), each, f"config.json, {size.flops_method}", size.six_nd
    if logged.total_flos and (tokens is not None or (size is not None and size.takes_tokens)):
        yield _like_tokens(logged, tokens), None, "Hugging Face's total_flos, 6·N·tokens without attention", True
    if counts.flops_6nd is not None:
        yield counts.flops_6nd, None, "6·N·tokens, N non-embedding", True
    for which, name in (("active", "active"), ("in total", "total")):  # of experts what a token passes through
        if tokens is not None and (size_ := counts.parameters.get(name)):
            yield scaled(tokens, 6 * size_), None, f"6·N·tokens, N {which}", True


def _like_tokens(logged: Logged, tokens: Count | None) -> Count:
    """total_flos is known where a state was saved; in between it grows as the tokens do."""
    steps = sorted(logged.total_flos)
    there = None if tokens is None else tokens(steps[-1])
    if tokens is not None and there and len(steps) == 1:
        return scaled(tokens, logged.total_flos[steps[-1]] / there)
    return interpolated(steps, [logged.total_flos[step] for step in steps])


def size_of_config(config: str | Mapping[str, Any], length: int | None = None) -> ModelSize:
    """The size of the model that a Hugging Face config.json describes; see `SizeOf`."""
    try:
        text = Path(config).read_text(encoding="utf-8") if isinstance(config, str) else json.dumps(dict(config))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"expected a config.json that can be read, got {error}") from None
    return _counted(text, length)


@functools.lru_cache(maxsize=256)
def _counted(text: str, length: int | None) -> ModelSize:
    from isoflop.flops.calls import Uncountable
    from isoflop.flops.count import count_measured
    from isoflop.flops.inputs import candidate_calls
    from isoflop.flops.operators import SIX_ND
    from isoflop.flops.parameters import count_parameters

    with redirect_stdout(stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries' remarks while a model is built
        model = _open(text)
        theirs = model.num_parameters(exclude_embeddings=True) if hasattr(model, "num_parameters") else None
        takes = getattr(model, "main_input_name", "input_ids") in ("input_ids", "decoder_input_ids")
        calls: list[Any] = []
        with suppress(ValueError):  # a model without tokens as input: N is counted by module type
            calls = candidate_calls(model, 1, length or 16, {})
        counted = None
        for call in calls:
            with suppress(Uncountable):
                counted = count_measured(model, call)
                break
        parameters = count_parameters(model) if counted is None else counted.parameters
        flops = counted.model_flops if counted is not None and length else None
        return ModelSize(
            parameters=parameters.by_convention(),
            method=parameters.method,
            huggingface=theirs,
            takes_tokens=takes,
            flops_per_token=None if flops is None or not length else flops / length,
            flops_method=f"{counted.method}, at {length} tokens a sequence" if counted and length else None,
            six_nd=counted is not None and counted.method == SIX_ND,
        )


def _open(text: str) -> Any:
    from isoflop.flops.open_model import BringsCode, open_model

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(text, encoding="utf-8")
        try:
            return open_model(str(path)).model
        except BringsCode:
            reason = (
                "it brings code of its own, which is not run here: take N from `isoflop count --trust`, for --params"
            )
            raise ValueError(reason) from None
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "config.json")) from None
