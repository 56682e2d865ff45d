"""A run as another tool logged it: columns of values by step, and what their names mean."""

from __future__ import annotations

import math
import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

from isoflop.record.lines import Problems
from isoflop.record.run import RecordError, Status

MAX_STEP = 2**63 - 1
MAX_COLUMNS = 2000
"""Names kept of one run: a file of random names must not fill the memory."""
UNSORTED = 0.1
"""Steps that go back more often than this share of the time, without a repetition, are no resumes but disorder."""
Value = TypeVar("Value")


class ImportProblem(RecordError):
    """A source can't be imported; the text says what was expected, what was found and what to do."""


def read_each(
    source: str, tool: str, runs: Iterable[tuple[str, Value]], read: Callable[[Value], Logged]
) -> list[Logged]:
    """Read the runs that a tool's client gives; a broken one is a problem of the first that can be read.

    Args:
        source: the address, for messages.
        tool: its name, for messages.
        runs: (id, run).
        read: reads one; may raise anything.

    Raises:
        ImportProblem: there is none that can be read.
    """
    found, failures = [], []
    for run_id, run in runs:
        try:
            found.append(read(run))
        except Exception as error:  # of a broken run; the others are imported
            failures.append(f"{source}: run {plain(run_id)}: {tool} gave {why(error)}")
    if not found:
        raise ImportProblem("; ".join(failures[:3]) or f"{source}: expected runs, got none")
    return [replace(found[0], problems=tuple(failures)), *found[1:]]


def plain(text: str, limit: int = 200) -> str:
    """A name from a file as it may be shown and kept: printable, of bounded length."""
    kept = "".join(letter if letter.isprintable() else "?" for letter in text.strip()[:limit])
    return kept.encode("utf-8", "replace").decode("utf-8")


def why(error: BaseException) -> str:
    """A library's error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def number(value: object) -> float | None:
    """A cell's number, NaN and inf as such; None where it is none. A truth value is none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError):
        return None


def whole(value: object) -> int | None:
    """A count; None where it is none."""
    found = number(value)
    if found is None or not math.isfinite(found) or found < 0 or found % 1 or found >= 2**63:
        return None
    return int(found) if not isinstance(value, int) else value


class Column:
    """One logged quantity: steps, values and unix times (NaN where unknown), 24 bytes a value, as logged."""

    __slots__ = ("steps", "times", "values")

    def __init__(self) -> None:
        self.steps, self.values, self.times = array("q"), array("d"), array("d")

    def add(self, step: int, value: float, time: float = math.nan) -> None:
        """Append a value."""
        self.steps.append(step)
        self.values.append(value)
        self.times.append(time)

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float, float]]:
        return zip(self.steps, self.values, self.times, strict=True)


class Columns(dict[str, Column]):
    """The columns of a run that can be of use (`wanted`, or named by the user), made as they are met.

    Attributes:
        unused: names of some others, for a question about them.
    """

    def __init__(self, named: Collection[str] = ()) -> None:
        super().__init__()
        self._named = named
        self.unused: dict[str, None] = {}

    def keeps(self, name: str) -> bool:
        """True if a column of this name is kept; else its name is noted."""
        if name in self or name in self._named or (name not in self.unused and wanted(name)):
            return True
        if len(self.unused) < 200:
            self.unused[name] = None
        return False

    def add(self, name: str, step: int, value: float, time: float = math.nan) -> None:
        """Append a value to a column that is kept, unless there are too many columns or the step can't be one."""
        if not self.keeps(name) or not 0 <= step <= MAX_STEP or (name not in self and len(self) >= MAX_COLUMNS):
            return
        if name not in self:
            self[name] = Column()
        self[name].add(step, value, time)

    def read(self, name: str, step: int, cell: object, problems: Problems, time: float = math.nan) -> None:
        """Append the number of a cell; an empty cell is skipped, any other text is a problem."""
        if cell in ("", None) or not self.keeps(name):
            return
        value = number(cell)
        if value is None:
            problems.add(f"{plain(name, 40)} to be a number", cell)
        else:
            self.add(name, step, value, time)


def in_order(column: Column) -> tuple[Column, int, bool]:
    """A column by step, each step once.

    Where the steps go back, a run was resumed: what was logged at that step and beyond before is superseded, as by a
    resume line in a record. Of two values of one step the later wins. A file in another order is sorted: one whose
    steps go back all the time and never repeat.

    Returns:
        The column, how often the run was resumed, and whether it was sorted.
    """
    steps = column.steps
    if all(later > earlier for earlier, later in pairwise(steps)):
        return column, 0, False
    back = sum(later < earlier for earlier, later in pairwise(steps))
    tidy = Column()
    if back > UNSORTED * len(steps) and len(set(steps)) == len(steps):
        for row in sorted(column):
            tidy.add(*row)
        return tidy, 0, True
    for step, value, time in column:
        while tidy.steps and tidy.steps[-1] >= step:
            for kept in (tidy.steps, tidy.values, tidy.times):
                kept.pop()
        tidy.add(step, value, time)
    return tidy, back, False


@dataclass(frozen=True, eq=False, kw_only=True)
class Logged:
    """One run as another tool logged it.

    Attributes:
        kind: which reader: `huggingface`, `tensorboard`, `lightning`, `wandb`, `mlflow`, `table`.
        source: where it was read, for messages and for the record.
        key: what the run is known by: a second import of the same key is the same run.
        name: what its owner calls it.
        columns: by name, as logged; steps are optimizer steps done.
        settings: hyperparameters as the tool kept them, flat.
        config: a Hugging Face model configuration: its file, or its content.
        parameters: N by convention, where the log says so itself; `N` where it does not say which.
        total_flos: by step, Hugging Face's count.
        status: None where the tool does not say.
        created: unix seconds.
        averaged: losses are means over the steps since the one before.
        single: values are float32.
        ends: its one point is the end of a run, whose steps are not known.
        unused: names of columns that were not kept, for a question about them.
        notes: what the user should know of how it was read.
        problems: what could not be read.
    """

    kind: str
    source: str
    key: str
    name: str
    columns: Mapping[str, Column]
    settings: Mapping[str, Any] = field(default_factory=dict)
    config: str | Mapping[str, Any] | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    total_flos: Mapping[int, float] = field(default_factory=dict)
    status: Status | None = None
    created: float | None = None
    averaged: bool = False
    single: bool = False
    ends: bool = False
    unused: Iterable[str] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", plain(self.name) or "run")
        object.__setattr__(self, "unused", tuple(plain(name, 40) for name in self.unused)[:50])

    @property
    def names(self) -> tuple[str, ...]:
        """Names by which the user may refer to it: its name, that with its folder, its last part."""
        folder = os.path.basename(os.path.dirname(os.path.abspath(self.source)))
        return self.name, f"{folder}/{self.name}", self.name.rpartition("/")[2]

    @property
    def planned_steps(self) -> int | None:
        """Optimizer steps of the plan."""
        return whole(self.settings.get("max_steps")) or None

    def count(self, name: str) -> Count | None:
        """The count that a column logged; None where it holds none: values that are finite and don't fall."""
        if name not in self.columns:
            return None
        rows = _known(self.columns[name])
        if not rows or any(later < earlier for (_, earlier), (_, later) in pairwise(rows)):
            return None
        return interpolated([step for step, _ in rows], [value for _, value in rows])

    def rates(self) -> Count | None:
        """Learning rates by step; of several parameter groups the first."""
        names = sorted(filter(is_rate, self.columns), key=lambda name: (name.startswith("lr-"), name))
        rows = _known(self.columns[names[0]]) if names else []
        return interpolated([step for step, _ in rows], [value for _, value in rows], origin=False) if rows else None


Count = Callable[[int], float | None]
"""A quantity by optimizer steps done; None: unknown."""


def _known(column: Column) -> list[tuple[int, float]]:
    tidy, _, _ = in_order(column)
    return [(step, value) for step, value, _ in tidy if math.isfinite(value) and value >= 0]


def interpolated(steps: Sequence[int], values: Sequence[float], *, origin: bool = True) -> Count:
    """Values by step: exact where they were logged, on a line in between, unknown beyond the last.

    Args:
        steps: growing.
        values: at these steps.
        origin: 0 at step 0; else unknown before the first step.
    """

    def at(step: int) -> float | None:
        index = bisect_left(steps, step)
        if index == len(steps) or (index == 0 and steps[0] != step and not origin):
            return None
        if steps[index] == step:
            return values[index]
        before, low = (steps[index - 1], values[index - 1]) if index else (0, 0.0)
        return low + (values[index] - low) * (step - before) / (steps[index] - before)

    return at


def scaled(count: Count, factor: float) -> Count:
    """The count times a factor."""
    return lambda step: None if (value := count(step)) is None else value * factor


TRAIN = (
    "isoflop/loss",
    "train/loss",
    "train_loss",
    "loss/train",
    "loss",
    "training_loss",
    "training/loss",
    "train/loss_step",
    "train_loss_step",
    "train/lm_loss",
    "train/ce_loss",
    "train/cross_entropy",
    "lm loss",
    "train/train_loss",
    "train_loss_epoch",
    "train/loss_epoch",
    "final_loss",
    "L",
)
"""Training losses in nats, the likeliest first."""
TRAIN_PERPLEXITY = ("train/perplexity", "train_perplexity", "train/ppl", "train_ppl", "perplexity", "ppl")
_SEEN = ("num_input_tokens_seen", "tokens", "tokens_seen", "num_tokens", "n_tokens", "total_tokens", "consumed_tokens")
TOKENS = (*(f"{prefix}{name}" for name in _SEEN for prefix in ("", "train/")), "train_tokens", "training_tokens", "D")
"""Tokens since the run began."""
FLOPS = ("flops", "train/flops", "total_flops", "train/total_flops", "compute", "training_flops", "C")
RATES = ("learning_rate", "train/learning_rate", "lr", "train/lr", "learning-rate", "optimizer/lr", "train/lr_0")
SIZES = {
    **dict.fromkeys(("N", "params", "parameters", "n_params", "num_params", "num_parameters", "model_size"), "N"),
    **dict.fromkeys(("n_parameters", "total_params", "total_parameters"), "total"),
    **dict.fromkeys(("N_non_embedding", "N_noembed", "non_embedding", "params_non_embedding"), "non_embedding"),
    "non_embedding_with_head": "non_embedding_with_head",
    "total": "total",
    "active": "active",
    "model/num_parameters": "total",  # Hugging Face's callback in W&B
}
"""Names of N, and its convention; `N` where the name does not tell."""
STEPS = ("step", "global_step", "train/global_step", "trainer/global_step", "_step", "Step", "iteration", "iter", "S")
RUNS = ("run", "run_id", "run_name", "name", "Name")
_OWN = ("loss", "tokens", "tokens_processed", "loss_tokens", "flops", "flops_6nd", "batch_tokens", "tokens_per_param")
OWN = tuple(f"isoflop/{name}" for name in (*_OWN, "tokens_per_param_non_embedding"))
"""Of isoflop's own scalars those that the record keeps; what they say is exact."""

_EVALUATION = re.compile(r"(^|[/_. -])(eval|evaluation|val|valid|validation|test)\d*([/_. -]|$)", re.I)
_PERPLEXITY = re.compile(r"(^|[/_. -])(perplexity|ppl)([/_. -]|$)", re.I)
_LOSS = re.compile(r"loss|perplexity|(^|[/_. -])ppl([/_. -]|$)|nll|cross_entropy", re.I)
_PLAIN = {*TRAIN, *TRAIN_PERPLEXITY, *TOKENS, *FLOPS, *RATES, *OWN}


def first(names: Iterable[str], present: Mapping[str, Value]) -> tuple[str, Value] | None:
    """The first of some names that is there, and what it stands for."""
    return next(((name, present[name]) for name in names if name in present), None)


def wanted(name: str) -> bool:
    """True for names of losses, counts of tokens or FLOPs, learning rates, and isoflop's own scalars.

    >>> [wanted(name) for name in ("train/loss", "val_ppl", "lr-AdamW/pg1", "isoflop/flops", "isoflop/mfu")]
    [True, True, True, True, False]
    """
    return name in _PLAIN or is_rate(name) or evaluation(name) is not None


def is_rate(name: str) -> bool:
    """True for names of learning rates; Lightning's LearningRateMonitor calls them lr-<optimizer>."""
    return name in RATES or (name.startswith("lr-") and not name.endswith("-momentum"))


def is_perplexity(name: str) -> bool:
    """True for names of exp(loss)."""
    return bool(_PERPLEXITY.search(name))


def evaluation(name: str) -> str | None:
    """The evaluation set that a column is the loss of, or None; named as isoflop's callbacks name it.

    >>> [evaluation(name) for name in ("eval_loss", "eval/math_loss", "val/ppl", "loss/valid", "value_loss")]
    ['eval', 'math', 'val', 'valid', None]
    """
    lowered = name.lower()
    if "train" in lowered or lowered.startswith("isoflop/") or not _LOSS.search(lowered):
        return None
    if not _EVALUATION.search(lowered):
        return None
    rest = _PERPLEXITY.sub("/", lowered.replace("cross_entropy", "").replace("nll", "").replace("loss", ""))
    for double in ("//", "__", "/_", "_/", "--"):
        rest = rest.replace(double, "/")
    rest = rest.removesuffix("epoch").strip("/_-. ")
    for prefix in ("eval/", "eval_", "eval."):
        rest = rest.removeprefix(prefix)
    return rest or "eval"
