"""What a reader finds in another tool's log, before anything is made of it: `Column`, `Columns` and `Logged`.

Cumulative counts (tokens, FLOPs) against optimizer steps: exact where they were logged, in between on a line.

What is wrong with another tool's log: `ImportProblem` where nothing can be read, `Problems` for the parts.

What a column's name says: a training loss, an evaluation's, tokens, FLOPs, a learning rate. Nothing else is kept.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from isoflop.record.run import RecordError, Status

MAX_STEP = 2**63 - 1
MAX_COLUMNS = 2000
"""Names kept of one run: a file of random names must not fill the memory."""
UNSORTED = 0.1
"""Steps that go back more often than this share of the time, without a repetition, are no resumes but disorder."""


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
    """Columns by name, made as they are met."""

    def add(self, name: str, step: int, value: float, time: float = math.nan) -> bool:
        """Append a value to a column; False where there are too many columns, or the step can't be one."""
        column = self.get(name)
        if column is None:
            if len(self) >= MAX_COLUMNS:
                return False
            column = self[name] = Column()
        if not 0 <= step <= MAX_STEP:
            return False
        column.add(step, value, time)
        return True


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
    if back > UNSORTED * len(steps) and len(set(steps)) == len(steps):
        tidy = Column()
        for row in sorted(column):
            tidy.add(*row)
        return tidy, 0, True
    tidy = Column()
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
        parameters: N by convention, where the log says so itself.
        parameters_method: how.
        total_flos: by step, Hugging Face's count.
        planned_steps: optimizer steps of the plan.
        status: None where the tool does not say.
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
    parameters_method: str | None = None
    total_flos: Mapping[int, float] = field(default_factory=dict)
    planned_steps: int | None = None
    status: Status | None = None
    created: float | None = None
    averaged: bool = False
    single: bool = False
    ends: bool = False
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What the user may call it: its name, that with the folder it lies in, its last part."""
        folder = os.path.basename(os.path.dirname(os.path.abspath(self.source)))
        return self.name, f"{folder}/{self.name}", self.name.rpartition("/")[2]


class Track:
    """A count by step; 0 at step 0, unknown beyond the last step that is known.

    Args:
        steps: growing.
        values: at these steps.
    """

    def __init__(self, steps: Sequence[int], values: Sequence[float]) -> None:
        self._steps, self._values = steps, values

    def at(self, step: int) -> float | None:
        """The count after a step."""
        index = bisect_left(self._steps, step)
        if index == len(self._steps):
            return None
        if self._steps[index] == step:
            return self._values[index]
        before, low = (self._steps[index - 1], self._values[index - 1]) if index else (0, 0.0)
        return low + (self._values[index] - low) * (step - before) / (self._steps[index] - before)

    def times(self, factor: float) -> Track:
        """The count scaled."""
        return Track(self._steps, [value * factor for value in self._values])

    @property
    def last(self) -> float:
        """The last count."""
        return self._values[-1]


class PerStep(Track):
    """A count that grows by the same amount each step."""

    def __init__(self, amount: float) -> None:
        super().__init__((1,), (amount,))
        self._amount = amount

    def at(self, step: int) -> float | None:
        """The count after a step."""
        return self._amount * step

    def times(self, factor: float) -> Track:
        """The count scaled."""
        return PerStep(self._amount * factor)


def track_of(column: Column | None) -> Track | None:
    """The count that a column logged; None where it holds none: values that are finite and don't fall."""
    if column is None:
        return None
    tidy, _, _ = in_order(column)
    rows = [(step, value) for step, value, _ in tidy if math.isfinite(value) and value >= 0]
    if not rows or any(later[1] < earlier[1] for earlier, later in pairwise(rows)):
        return None
    return Track([step for step, _ in rows], [value for _, value in rows])


def whole_at(track: Track | None, step: int) -> int | None:
    """The count after a step as a whole number, as records hold it."""
    value = None if track is None else track.at(step)
    return None if value is None or not value < 1e36 else round(value)


_MAX_TOLD = 20  # of one source; the others are counted


class ImportProblem(RecordError):
    """A source can't be imported; the text says what was expected, what came and what to do."""


class Problems:
    """What was wrong with a source, place by place; the first ones told, the others counted."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._told: list[str] = []
        self._count = 0

    def add(self, where: str, expected: str, came: object) -> None:
        """Tell a place of the source (`:17`, ` at byte 96 (record 3)`), what it should have held and what it holds."""
        self._count += 1
        if self._count <= _MAX_TOLD:
            self._told.append(f"{self.source}{where}: expected {expected}, got {shown(came)}")

    def all(self) -> tuple[str, ...]:
        """The texts."""
        more = self._count - len(self._told)
        return (*self._told, f"{self.source}: and {more} more") if more else tuple(self._told)


def shown(value: object) -> str:
    """A value from a file, short and in ASCII: a stranger's text must not steer the terminal that shows it."""
    if isinstance(value, (dict, list)):
        return f"{type(value).__name__} of {len(value)}"
    return ascii(value[:60] if isinstance(value, (str, bytes)) else value)[:80]


def plain(text: str, limit: int = 200) -> str:
    """A name from a file as it may be shown and kept: printable, of bounded length."""
    kept = "".join(letter if letter.isprintable() else "?" for letter in text.strip()[:limit])
    return kept.encode("utf-8", "replace").decode("utf-8")


def why(error: BaseException) -> str:
    """A library's error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


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
TOKENS = (
    "num_input_tokens_seen",
    "train/num_input_tokens_seen",
    "tokens",
    "train/tokens",
    "tokens_seen",
    "train/tokens_seen",
    "num_tokens",
    "train/num_tokens",
    "n_tokens",
    "total_tokens",
    "train/total_tokens",
    "consumed_tokens",
    "train_tokens",
    "training_tokens",
    "D",
)
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

_EVALUATION = re.compile(r"(^|[/_. -])(eval|evaluation|val|valid|validation|test)\d*([/_. -]|$)", re.I)
_PERPLEXITY = re.compile(r"(^|[/_. -])(perplexity|ppl)([/_. -]|$)", re.I)
_LOSS = re.compile(r"loss|perplexity|(^|[/_. -])ppl([/_. -]|$)|nll|cross_entropy", re.I)
_ISOFLOP = (
    "loss",
    "tokens",
    "tokens_processed",
    "loss_tokens",
    "flops",
    "flops_6nd",
    "batch_tokens",
    "tokens_per_param",
    "tokens_per_param_non_embedding",
)
ISOFLOP = tuple(f"isoflop/{name}" for name in _ISOFLOP)
"""Of isoflop's own scalars those that the record keeps; what they say is exact."""
_PLAIN = {*TRAIN, *TRAIN_PERPLEXITY, *TOKENS, *FLOPS, *RATES, *ISOFLOP}


def wanted(name: str) -> bool:
    """Whether a column of this name can be of use.

    >>> [wanted(name) for name in ("train/loss", "val_ppl", "lr-AdamW/pg1", "isoflop/flops", "isoflop/mfu")]
    [True, True, True, True, False]
    """
    return name in _PLAIN or is_rate(name) or evaluation(name) is not None


def is_rate(name: str) -> bool:
    """Whether a column holds learning rates; Lightning's LearningRateMonitor calls them lr-<optimizer>."""
    return name in RATES or (name.startswith("lr-") and not name.endswith("-momentum"))


def is_perplexity(name: str) -> bool:
    """Whether a column holds exp(loss)."""
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


def first(names: Iterable[str], present: Iterable[str]) -> str | None:
    """The first of some names that is there."""
    there = set(present)
    return next((name for name in names if name in there), None)
