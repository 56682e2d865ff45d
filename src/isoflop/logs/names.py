"""What the name of a logged quantity says: a loss, tokens, FLOPs, a learning rate, a step, a size; or nothing of use.

Names are split into words, whatever their case and separators; a role needs its head word, and no word that says
something else. A word that nobody knows makes a training loss a part of it (`box loss`), and names an evaluation set.
Facts are of the run, not of a step: its state, planned steps, batch, devices, experts …
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from isoflop.logs.files import cell_number, is_blank
from isoflop.record.run import Status

Kind = Literal["loss", "tokens", "step tokens", "samples", "flops", "rate", "step", "size", "own"]

_WORDS = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_WITH_UNIT = re.compile(r"([kmbtg])(tok(?:en)?s?|steps?|iters?)")  # kstep, Btok, Gtokens
_POWER = re.compile(
    r"\s*(?:[\[(]\s*[x×*]?|/)\s*(?:10(?:\^([-−]?\d+)|([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)|0(0+))|1e([+-]?\d+)|0?\.(0*1))\s*[\])]?$"
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻−", "0123456789--")
_LOG_OF_PERPLEXITY = re.compile(
    r"(?<![a-z])(?:log|ln)[ _-]?(?:ppl|perplexity)", re.IGNORECASE
)  # not `log/ppl`, `log.ppl`
_UNITS = {
    **dict.fromkeys(("k", "thousand", "thousands"), 1e3),
    **dict.fromkeys(("m", "million", "millions", "mio", "mln"), 1e6),
    **dict.fromkeys(("b", "bn", "billion", "billions", "mrd"), 1e9),
    **dict.fromkeys(("t", "trillion", "trillions"), 1e12),
}


def _words_of(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TRAIN = _words_of("train training trn")
_EVAL = _words_of("eval evaluation evaluate val valid validation validate test dev heldout")
SPLITS = _TRAIN | _EVAL
TRAINING, EVALUATIONS = _TRAIN, _words_of("eval evaluation val valid validation")
"""Words of a file's name that say which losses it holds; `test` and `dev` may be of something else."""
_PURE = _words_of("nll ce xent crossentropy lm")
"""Of several losses of one kind these leave out what is added to the cross-entropy."""
_PERPLEXITY = _words_of("ppl perplexity")
_NO_TOKENS = _words_of("byte bytes word words char chars character characters")
"""What a perplexity may be of other than a token."""
_LOSS = _words_of("loss losses bpb") | _PURE - {"lm"} | _PERPLEXITY
_COMMON = _words_of(
    "lm clm mlm language model modeling causal cross entropy mean avg average global total final step epoch batch iter "
    "iteration metrics metric token raw main all reduced micro macro trainer log logs scalars inner at data out"
)
"""Words of a loss's name that name no part of it."""
_OTHER = _words_of(
    "per sec second seconds vs max min std best lowest scale scaler samples runtime time grad norm weight coef ratio "
    "accuracy acc diff delta improvement count predict target smoothing steps patience threshold spike spikes"
)
AVERAGED = _words_of("mean avg average")
_SMOOTHED = _words_of("ema smooth smoothed running moving scaled epoch")
_PARTS = _words_of(
    "z aux auxiliary kl box cls dfl mtp balance balancing router policy reg regularization recon reconstruction commit "
    "actor critic contrastive mse mae giou g d bce load pg vf rpn mask bbox obj"
)
"""Words of losses that are a part of another, or no cross-entropy of tokens."""
_TOKEN = _words_of("token tokens tok toks")
_CUMULATIVE = _words_of("total cumulative cum global consumed seen far accumulated overall")
_COUNTED = SPLITS - _EVAL | _CUMULATIVE
_COUNTED |= _words_of(
    "n num nb number of processed input in so all throughput count the state data progress time trainer trained "
    "ntokens now until since start optim metrics"
)
_A_STEP = _words_of("step batch iteration iter update")
_SAMPLE = _words_of("sample samples sequences examples")
_FLOP = {"flop": 1.0, "flops": 1.0, "gflops": 1e9, "tflops": 1e12, "pflops": 1e15, "petaflops": 1e15, "eflops": 1e18}
_STEP = _words_of("step steps iter iters iteration iterations update updates it")
_THOUSANDS = _words_of("k thousand thousands m million millions")
_STEPPED = _TRAIN | _words_of("trainer global optimizer opt optim num n current completed the done progress at")
_PARAMETER = _words_of("params parameters param parameter")
_BODY = _words_of("non noembed nonemb nonembed nonembedding excluding without no")
_SIZED = _BODY | _words_of(
    "n num nb number of model count size total all with head active activated embedding embeddings embed emb the"
)
_NOT_A_RATE = _words_of(
    "momentum mult multiplier scale ratio decay warmup min max peak base initial end final scheduler type rates mup "
    "factor"
)
RUNS = ("run", "run_id", "run_name", "name", "Name")  # Columns that name runs, as people write them by hand
_OF_RUN = _words_of("name id n num of")
_RUN = _words_of(
    "run name id hash experiment exp trial model variant seed arm config job size width depth arch architecture "
    "optimizer dataset corpus scale label replicate layers d hidden dim group method setting key random checkpoint tag"
)
HYPERPARAMETERS = _words_of(
    "width depth layers heads dim batch seed dropout decay warmup beta beta1 beta2 momentum optimizer schedule "
    "scheduler wd bs hidden embd seq budget"
)
"""Words of columns that are of a run, not of a step of it."""
_OWN = _words_of(
    "loss tokens tokens_processed loss_tokens flops flops_6nd batch_tokens tokens_per_param "
    "tokens_per_param_non_embedding"
)
"""Of isoflop's own scalars those that the record keeps; what they say is exact."""
_LETTER = re.compile(r"([NDCLS])(?:\s*[(\[/_]\s*([kKMBT])[)\]]?)?")
_LETTERS: dict[str, Kind] = {"N": "size", "D": "tokens", "C": "flops", "L": "loss", "S": "step"}


@dataclass(frozen=True)
class Role:
    """What a column is."""

    kind: Kind
    name: str = ""  # of a loss `train` or `eval/<set>`; of a size its convention (`N`: not told)
    rank: int = 0  # of several columns for the same, the lowest is taken
    factor: float = 1.0  # what one of a count is, such as 1e9
    unit: str = ""  # of a loss `ppl`, `bpb` or `bits`, where the name says so
    parts: frozenset[str] = frozenset()  # words of an evaluation's name that are unknown: data, or a part of the loss


@functools.lru_cache(maxsize=50_000)
def words(name: str) -> list[str]:
    """The words of a name, in lower case.

    >>> words("train/CE loss"), words("metrics/eval/LanguageCrossEntropy")
    (['train', 'ce', 'loss'], ['metrics', 'eval', 'language', 'cross', 'entropy'])
    >>> words("Gtokens")
    ['b', 'tokens']
    """
    found = (word.lower() for word in _WORDS.findall(name))
    return [part for word in found for part in _parts_of(word)]


def _parts_of(word: str) -> tuple[str, ...]:
    told = _WITH_UNIT.fullmatch(word)
    return (word,) if told is None else (told[1].replace("g", "b"), told[2])


@functools.lru_cache(maxsize=50_000)
def role_of(name: str) -> Role | None:
    """The role of a column by its name; None: of no use.

    >>> [role_of(name).name for name in ("Train Loss", "eval/math_loss", "loss/valid", "val/ppl")]
    ['train', 'eval/math', 'eval/valid', 'eval/val']
    >>> [role_of(name) for name in ("value_loss", "tokens/s", "lm loss vs samples", "loss_scale")]
    [None, None, None, None]
    """
    if name.startswith("isoflop/"):
        return Role("own") if name.removeprefix("isoflop/") in _OWN else None
    if letter := _LETTER.fullmatch(name):  # `N`, `D (B)`
        factor = _UNITS[letter[2].lower()] if letter[2] else 1.0
        return Role(_LETTERS[letter[1]], {"N": "N", "L": "train"}.get(letter[1], ""), 5, factor)
    if power := _POWER.search(name):
        role = role_of(name[: power.start()])
        if role is None or role.kind != "loss":  # `val_loss/1000` is of a length, `loss (1e-3)` of a rate
            return _powered(role, power)
    found = words(name)
    if not found or len(found) > 24:
        return None
    for rule in (_step, _rate, _tokens, _size, _flops):
        if (role := rule(name, found)) is not None:
            return role
    return _loss(name, found)


def _powered(role: Role | None, power: re.Match[str]) -> Role | None:
    """The role of a column in units of a power of ten: `tokens [1e9]`, `lr (x10⁻⁴)`, `step/1000`; else None.

    Counts are in units above one, rates below: with the other sign it may be the value that was multiplied.
    """
    told = power[1] or power[2] or power[4] or str(2 + len(power[3]) if power[3] else -len(power[5]))
    exponent = int(told.translate(_RAISED))
    if role is None or role.kind == "own" or (exponent < 0) != (role.kind == "rate"):
        return None
    return replace(role, factor=role.factor * float(f"1e{exponent}"))


def kind_of(name: str) -> Kind | None:
    """The kind of quantity that a column is by its name; None: of no use."""
    role = role_of(name)
    return None if role is None else role.kind


def factor_of(name: str) -> float:
    """What one of a count is by the name of its column."""
    role = role_of(name)
    return unit_of(words(name))[0] if role is None else role.factor


@functools.lru_cache(maxsize=10_000)
def run_rank(name: str) -> int | None:
    """How likely a column tells runs apart, 0 the likeliest; None: it is not one that does."""
    if name in RUNS:
        return 0
    found = set(words(name))
    return 1 if found & _RUN and found <= _RUN | _OF_RUN else None


def _loss(name: str, found: list[str]) -> Role | None:
    found, told = _without_unit(found)
    heads = {*found} & _LOSS | ({"ce"} if {"cross", "entropy"} <= {*found} else set())
    by_epoch = ("epoch", "loss") in pairwise(found)  # Keras logs `epoch_loss` by epochs
    is_nats = _LOG_OF_PERPLEXITY.search(name) is not None
    logarithm = not is_nats and ("ln" in found or re.search(r"log\d|log\s*\(", name))  # log10_loss, log(loss)
    perplexity = not is_nats and bool(heads & _PERPLEXITY)
    of_others = perplexity and not _NO_TOKENS.isdisjoint(found)
    if not heads or by_epoch or logarithm or of_others or {*found} & _OTHER:
        return None
    unit = told or ("bpb" if "bpb" in heads else "ppl" if perplexity else "")
    rest = {word for word in found if not word.isdigit()} - _LOSS - _COMMON - ({"ln"} if is_nats else set())
    if found[-1] == "value":  # Megatron's `lm loss value`; a value loss is an agent's
        rest.discard("value")
    pure = bool({*found} & _PURE or "cross" in found)
    rank = 3 * bool(unit) + (0 if pure else 2 if "total" in found else 1)
    if rest & _EVAL and not rest & (_TRAIN | _PARTS):
        return Role("loss", f"eval/{_set_of(name)}", rank, unit=unit, parts=frozenset(rest - _EVAL))
    return None if rest - _TRAIN else Role("loss", "train", rank, unit=unit)


def _without_unit(found: list[str]) -> tuple[list[str], str]:
    """The words of a loss's name but for those of its unit (`loss (bits/token)`, `nll_per_token`), and this unit."""
    there = {*found}
    if {"bits", "per", "byte"} <= there:
        return ["bpb", *(word for word in found if word not in ("bits", "per", "byte"))], ""
    if there == {"bits"} or (not there & {"nats", "bits"} and ("per", "token") not in pairwise(found)):
        return found, ""
    left = [word for word in found if word not in ("nats", "bits", "per", "token")]
    return ["loss", *left] if "bits" in there else left, "bits" if "bits" in there else ""


def _set_of(name: str) -> str:
    """The evaluation set in the name of its loss, as isoflop's callbacks name it."""
    droppable = (_LOSS | _COMMON | {"value", "nats", "bits", "per", "byte"}) - {"final"}
    rest = _WORDS.sub(lambda word: "" if word[0].lower() in droppable else word[0].lower(), name)
    rest = re.sub(r"[\s/_.:()-]*/[\s/_.:()-]*", "/", rest).strip("/_-. :()")
    rest = re.sub(r"([_ .-])[_ .-]+", r"\1", rest)
    while (shorter := re.sub(r"^(eval|evaluation)[/_. -]+", "", rest)) != rest:
        rest = shorter
    return rest.strip("/_-. :()") or "eval"


def _tokens(name: str, found: list[str]) -> Role | None:
    there = {*found}
    if not there & _TOKEN and "ntokens" not in there:
        return _samples(there)
    if {"loss", "trainable", "label", "target"} & there:
        return None
    factor, left = unit_of(found)
    left -= _TOKEN
    if left & _A_STEP and left <= _A_STEP | {"per", "global", "total", "in", "train", "n", "num", "will", "be"}:
        return Role("step tokens", factor=factor)
    if not left <= _COUNTED:
        return None
    return Role("tokens", rank=0 if left & _CUMULATIVE else 1, factor=factor)


def _samples(there: set[str]) -> Role | None:
    counted = there & {"consumed", "seen", "time", "total"} and there - _SAMPLE <= _COUNTED
    return Role("samples") if there & _SAMPLE and counted else None


def unit_of(found: list[str]) -> tuple[float, set[str]]:
    """The factor that the name tells (`tokens (B)`, `n_params_M`), and the other words."""
    for index in (-1, 0):
        if len(found) > 1 and found[index] in _UNITS:
            return _UNITS[found[index]], {*found[:-1]} if index else {*found[1:]}
    return 1.0, {*found}


def _flops(name: str, found: list[str]) -> Role | None:
    there = {*found}
    heads = [word for word in found if word in _FLOP]
    if not heads:
        return Role("flops", rank=2) if name.lower() == "compute" else None
    rest = there - set(heads)
    if not rest <= _COUNTED | {"model", "hardware", "spent", "compute", "estimated"}:
        return None
    if _FLOP[heads[0]] != 1.0 and not rest & _CUMULATIVE:
        return None  # TFLOPs alone are a rate
    return Role("flops", rank=0 if rest & _CUMULATIVE else 1, factor=_FLOP[heads[0]])


def _rate(name: str, found: list[str]) -> Role | None:
    there = {*found}
    told = "lr" in there or ("learning" in there and "rate" in there)
    if not told or there & (_NOT_A_RATE | _LOSS):
        return None
    rank = len(name) + (100 if "group" in there or name.startswith("lr-") else 0)
    return Role("rate", rank=rank)


def _step(name: str, found: list[str]) -> Role | None:
    there = {*found}
    if name == "time/batch":  # Composer's
        return Role("step", rank=1)
    factor, left = unit_of(found) if there & _THOUSANDS else (1.0, there)
    if not there & _STEP or not left <= _STEP | _STEPPED:
        return None
    if factor != 1.0:
        return Role("step", rank=4, factor=factor)
    if name in ("_step", "Step"):  # of W&B and TensorBoard: what log() was given, else its calls
        return Role("step", rank=9)
    if "global" in there or "optim" in there or "optimizer" in there or "opt" in there:
        return Role("step", rank=0)
    return Role("step", rank=1 if there & {"step", "steps"} else 2 if there & {"update", "updates"} else 3)


def _size(name: str, found: list[str]) -> Role | None:
    if name in ("total", "active"):
        return Role("size", name)
    there = {*found}
    factor, left = unit_of(found)
    body = _BODY & there
    head = there & _PARAMETER or left == {"model", "size"} or name.startswith(("N_", "N "))
    left -= _PARAMETER
    if not (head or (body and any("emb" in word for word in there))) or not left <= _SIZED:
        return None
    if body:
        convention = "non_embedding_with_head" if {"with", "head"} <= left else "non_embedding"
    elif left & {"active", "activated"}:
        convention = "active"
    else:
        convention = "total" if "total" in left or "/" in name or name == "n_parameters" else "N"
    return Role("size", convention, factor=factor)


def part_words(name: str) -> set[str]:
    """Words that make a column of training no loss but a part of one (`train/box_loss`: box); empty: it is none."""
    found = {*words(name)}
    if "loss" not in found or found & (_EVAL | _OTHER | _SMOOTHED):
        return set()
    return {word for word in found if not word.isdigit()} - _LOSS - _COMMON - _TRAIN


_NO, _YES = ("false", "0", "no"), ("true", "1", "yes")
_DONE = {*("finished", "completed", "complete", "done", "success", "succeeded", "successful", "ok", "ended")}
_UNDER_WAY = re.compile("running|scheduled|pending|queued|waiting|in progress|active|^training$")
_STOPPED = re.compile(
    r"crash|fail|kill|interrupt|stop|diverg|explod|preempt|evict|oom|memory|nan\b|inf\b|early|abort|cancel|"
    "time ?out|timed|error|un(finish|success)|incomplete|prun|suspend|paus"
)


def flag_of(name: str) -> str | None:
    """The split of which a column says whether a row is of it (`is_eval`, `train`), by its name.

    A row may be valid, or a run a test; `eval` alone may say that an evaluation came behind the step.
    """
    found = words(name)
    split = found[-1] if found and found[:-1] in ([], ["is"]) else ""
    return split if split in TRAINING | (EVALUATIONS - {"valid"} if len(found) > 1 else frozenset()) else None


def split_of(flag: str, name: str, cell: object) -> str | None:
    """The split of a row by a cell of such a column; None: it is no flag (a column `train` may be a loss).

    >>> split_of("eval", "is_eval", "1"), split_of("train", "train", False), split_of("train", "train", "1")
    ('eval', 'eval', None)
    """
    said = str(cell).strip().lower()
    if said not in _YES + _NO or (name.lower() == flag and said in ("0", "1")):
        return None
    return flag if said in _YES else "train" if flag in _EVAL else "eval"


NO_END: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("status", "state"), ()),
    **dict.fromkeys(("diverged", "crashed", "failed", "stoppedearly", "earlystopped"), _YES),
    **dict.fromkeys(("finished", "completed"), _NO),
}
"""Columns that say whether a run came to its end: by words, or by cells of one that did not."""


def end_of(fact: str, cell: str) -> Status | None:
    """Whether a run came to its end, by a cell of a column of `NO_END`; None: the cell does not tell.

    >>> [end_of("status", cell) for cell in ("Early_Stopped", "out of memory", "COMPLETED", "not finished", "Pending")]
    ['interrupted', 'interrupted', 'completed', 'interrupted', 'running']
    >>> end_of("status", "finished, 0 errors"), end_of("state", "good"), end_of("diverged", "no"), end_of("failed", "1")
    (None, None, None, 'interrupted')
    """
    if fact not in ("status", "state"):
        said = cell.strip().lower()
        ended = said in (_YES if NO_END[fact] == _NO else ()) or said in _DONE
        return "interrupted" if said in NO_END[fact] else "completed" if ended else None
    told = words(cell)
    done, text = not _DONE.isdisjoint(told), " ".join(told)
    negated = not {"not", "never", "no"}.isdisjoint(told)
    if done and negated:
        return "interrupted"
    found = [re.search(rf"\b(?:{kind.pattern})", text) for kind in (_STOPPED, _UNDER_WAY)]
    if negated or done == any(found):  # nothing known, or one contradicts the other
        return None
    return "completed" if done else "interrupted" if found[0] else "running"


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
    told = {end_of(name, str(facts[name])) for name in NO_END if name in facts}
    if "interrupted" in told or "running" in told:
        return "running" if "running" in told else "interrupted"
    return "completed" if "completed" in told else None


def unknown_states(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """Cells of columns of states that do not tell whether a run came to its end, a line for each column, for people.

    >>> unknown_states([{"status": "finished"}, {"status": "good"}, {"status": ""}])
    ["column 'status' does not say whether runs finished ('good' of 1 run): they count as finished"]
    """
    found: dict[str, list[str]] = {}
    for row in rows:
        for name, cell in row.items():
            fact = _plain(name)
            if fact in ("status", "state") and not is_blank(cell) and end_of(fact, cell) is None:
                found.setdefault(name, []).append(cell.strip()[:40])
    return [
        f"column {name!r} does not say whether runs finished ({', '.join(map(repr, list(dict.fromkeys(cells))[:3]))} "
        f"of {len(cells)} run{'s' * (len(cells) > 1)}): they count as finished"
        for name, cells in found.items()
    ]


def settings_of(facts: Mapping[str, str]) -> dict[str, Any]:
    """Facts with numbers where they are some."""
    return {name: word if (number := cell_number(word)) is None else number for name, word in facts.items()}
