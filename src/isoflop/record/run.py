"""`Run` (one training run as its record holds it), `Point` (one moment of it), conventions of N, errors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, make_dataclass
from statistics import median
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct
from msgspec.structs import force_setattr, replace

from isoflop.console import html_table

SCHEMA_VERSION = 1  # the version this code writes; docs/record.md says what it holds

MAX_INT = 10**36  # beyond any count here (a run of 1e30 FLOPs is out of this world)
MAX_STEP = 2**63 - 1
MAX_SECONDS = 2.5e11  # the year 9892: later ones overflow what shows dates

Status = Literal["running", "completed", "interrupted"]


class RecordError(ValueError):
    """A record can't be written or read; the text says what was expected, what was found and what to do."""


class RecordBusy(RecordError):
    """Another process is writing this record: start a file of your own."""


class RecordMismatch(RecordError):
    """The record is of another model: start a file of your own."""


class RecordFinished(RecordError):
    """The record ended beyond the step to resume: start a branch, with `parent={"run_id", "step"}`.

    Attributes:
        run_id: the finished run's name.
        step: its last optimizer step.
    """

    def __init__(self, message: str, run_id: str, step: int) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.step = step


Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]


class Point(Struct, frozen=True, kw_only=True, gc=False):
    """One moment of a run. Counts are cumulative since the run began; unknown is None.

    Losses go by name (`train`, `eval/<set>` …), in nats per loss token unless `Run.loss_units` says
    otherwise. A loss of NaN or ±inf becomes None in `losses` and its name goes to `nonfinite`; any other
    number that is not finite becomes None. So a point holds finite numbers only, and equals itself read back.

    >>> point = Point(step=10, tokens=4096, padding=96, losses={"train": float("nan")})
    >>> point.data_tokens, point.losses, point.nonfinite
    (4000, {'train': None}, {'train': 'nan'})
    """

    step: Annotated[int, Meta(ge=0, le=MAX_STEP)]  # optimizer steps done
    tokens: Count | None = None  # tokens processed (what the compute was spent on), padding included
    padding: Count | None = None  # of them padding, by the attention mask; 0 where there is none
    loss_tokens: Count | None = None  # labels that counted in the loss
    flops: Count | None = None  # model FLOPs, measured count (1 multiply-add = 2 FLOPs, no recomputation)
    flops_hardware: Count | None = None  # FLOPs with recomputation
    flops_6nd: Count | None = None  # 6 · N non-embedding · tokens processed
    losses: Mapping[str, float | None] = {}  # nats per loss token
    nonfinite: Mapping[str, Literal["nan", "inf", "-inf"]] = {}  # by loss
    lr: float | None = None  # learning rate of the last step (the first parameter group's)
    batch_tokens: Count | Annotated[float, Meta(ge=0)] | None = None  # mean a step over the interval, processed
    interval_steps: Count = 1  # optimizer steps averaged into losses["train"]
    time: Seconds | None = None  # unix seconds
    wall_time: Seconds | None = None  # seconds since the run began, all attempts, without the gaps between them
    training_time: Seconds | None = None  # seconds: wall_time less evaluation, checkpoints, compilation
    extra: Mapping[str, float | None] = {}  # later fields (mfu, …)

    def __post_init__(self) -> None:
        numbers = (self.lr, self.batch_tokens, self.time, self.wall_time, self.training_time)
        for values in (self.losses.values(), self.extra.values(), numbers):
            for value in values:
                if value is not None and value - value != 0:  # NaN or infinite
                    self._clean()
                    return

    def _clean(self) -> None:
        bad = {name: _name(loss) for name, loss in self.losses.items() if not _finite(loss)}
        clean: dict[str, Any] = {
            "losses": {name: None if name in bad else loss for name, loss in self.losses.items()},
            "nonfinite": {**self.nonfinite, **bad},
            "extra": {name: value if _finite(value) else None for name, value in self.extra.items()},
        }
        for name in ("lr", "batch_tokens", "time", "wall_time", "training_time"):
            clean[name] = value if _finite(value := getattr(self, name)) else None
        for name, value in clean.items():
            force_setattr(self, name, value)

    @property
    def data_tokens(self) -> int | None:
        """D of the laws: tokens processed less padding. None where either is unknown."""
        return None if self.tokens is None or self.padding is None else self.tokens - self.padding

    def merged(self, later: Point) -> Point:
        """This point and a later line of its step: the later one wins, what it leaves out stays."""
        known = {name: value for name in POINT_FIELDS if (value := getattr(later, name)) is not None}
        if "train" not in later.losses:  # an evaluation's line says nothing of the training interval
            known["interval_steps"] = self.interval_steps
        nonfinite = {name: kind for name, kind in self.nonfinite.items() if name not in later.losses}
        known["losses"] = {**self.losses, **later.losses}
        known["nonfinite"] = {**nonfinite, **later.nonfinite}
        known["extra"] = {**self.extra, **later.extra}
        return replace(self, **known)


POINT_FIELDS = Point.__struct_fields__
_as_dataclass = make_dataclass("_as_dataclass", [(name, Any) for name in POINT_FIELDS])
type.__setattr__(Point, "__dataclass_fields__", vars(_as_dataclass)["__dataclass_fields__"])
"""`dataclasses.asdict`, `replace` and `fields` take a point, too: a Struct is read ten times as fast as a dataclass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run as its record tells it: the header's fields, then its points by step."""

    run_id: str
    name: str = ""
    created: str = ""  # ISO 8601, UTC
    schema: int = SCHEMA_VERSION
    framework: str | None = None  # "lightning", "transformers", "loop" …
    model: dict[str, Any] = field(default_factory=dict)  # class, config …
    parameters: dict[str, int | None] = field(default_factory=dict)  # N by convention: total, non_embedding …
    parameters_method: str | None = None  # how N was counted
    optimizer: dict[str, Any] | None = None
    task: dict[str, Any] = field(default_factory=dict)  # what it trains (record.task.Task); of earlier versions empty
    planned: dict[str, Any] = field(default_factory=dict)  # steps, tokens, schedule …
    tokenizer: str | None = None
    data: str | None = None
    git: dict[str, Any] | None = None  # commit, dirty, branch
    versions: dict[str, str] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    counting: dict[str, Any] = field(default_factory=dict)  # method and conventions of the FLOP count
    loss_units: dict[str, str] = field(default_factory=dict)  # by loss name; absent: nats per loss token
    parent: dict[str, Any] | None = None  # {"run_id", "step"}: branched from another run's checkpoint
    options: dict[str, Any] = field(default_factory=dict)  # isoflop's options of this run
    extra: dict[str, Any] = field(default_factory=dict)  # header keys this version doesn't know
    points: tuple[Point, ...] = ()  # by step, resumes applied
    advice: tuple[dict[str, Any], ...] = ()  # findings as written (docs/record.md), by step, resumes applied
    status: Status = "running"  # "running": no end line, so still running, or killed
    end: dict[str, Any] | None = None  # the last end line: step, status, time, totals; None while running
    planned_since: int = 0  # the step of the resume since which `planned` has its steps
    attempts: int = 1  # 1 + resumes
    problems: tuple[str, ...] = ()  # what the reader had to repair or skip
    path: str | None = None

    @property
    def steps_done(self) -> int:
        """Optimizer steps done: of the last point, or as many as the end line states."""
        stated = (self.end or {}).get("step")
        last = self.points[-1].step if self.points else 0
        return max(last, stated) if isinstance(stated, int) else last

    @property
    def unique_tokens(self) -> float | None:
        """Tokens of the data set, as the user gave them."""
        stated = self.options.get("unique_tokens")
        return float(stated) if isinstance(stated, int | float) and stated > 0 else None

    @property
    def not_ended(self) -> str:
        """Why it did not come to its planned end, and that its loss rose; "": it did, whatever its loss is there."""
        if self.status == "running":
            return "it is not finished"
        return "; ".join(filter(None, (self.stopped, self.rose))) if self.stopped else ""

    @property
    def stopped(self) -> str:
        """Why it ended before its plan; "": it did not, or it still runs."""
        if self.status == "running":
            return ""
        planned = self.planned.get("steps")
        early = stopped_early(self.steps_done, planned) if isinstance(planned, int | float) else ""
        return early or (f"it was {self.status}" if self.status != "completed" else "")

    @property
    def rose(self) -> str:
        """That the training loss ended far above the lowest before, beyond its noise, or is no number; "": it did not.

        Medians of a twentieth of the points are compared: data that change may do it too. "" while the run trains.
        """
        if self.status == "running" or not self.points:
            return ""
        if "train" in self.points[-1].nonfinite:
            return "its training loss is no finite number at the end"
        known = [(point.step, loss) for point in self.points if (loss := point.losses.get("train")) is not None]
        each = max(len(known) // PARTS, 3)
        parts = [known[i - each : i] for i in range(len(known), each - 1, -each)]
        if len(parts) < 4:
            return ""
        losses = [loss for _, loss in known]
        off = (abs(b - (a + c) / 2) for a, b, c in zip(losses, losses[1:], losses[2:], strict=False))
        noise = median(off) / each**0.5
        medians = [median(loss for _, loss in part) for part in parts]
        end, low = medians[0], min(medians)
        if low <= 0 or end - low < max(RISEN * low, NOISES * noise):
            return ""
        return f"its training loss ended at {end:.4g}, after {low:.4g} at step {parts[medians.index(low)][-1][0]:,}"

    def __str__(self) -> str:
        last = self.points[-1].step if self.points else 0
        return f"{self.name or self.run_id}: {self.status}, {last:,} steps, {len(self.points):,} points"

    def __repr__(self) -> str:
        return f"<Run {self}>"  # a list of runs is read in a notebook; its points are thousands of lines

    def _repr_html_(self) -> str:
        last = self.points[-1] if self.points else None
        losses = {name: loss for point in self.points for name, loss in point.losses.items()}
        rows = {
            "status": self.status,
            "steps": f"{last.step if last else 0:,} of {self.planned.get('steps') or 'unknown'}",
            **{f"N {name.replace('_', ' ')}": f"{count:,}" for name, count in self.parameters.items() if count},
            "D, tokens": f"{last.data_tokens:,}" if last and last.data_tokens else "unknown",
            "C, training FLOPs": f"{last.flops:.4g}" if last and last.flops else "unknown",
            **{f"loss, {name}": "unknown" if loss is None else f"{loss:.4f}" for name, loss in losses.items()},
            "advice": f"{len(self.advice)}",
        }
        return html_table(self.name or self.run_id, rows, self.problems[:3])


PARTS, RISEN, NOISES = 20, 0.1, 10.0
"""Parts of a curve whose medians are compared; rise from the lowest, as a share of it and in median distances of a loss
from its neighbours' mean over √n, from which on it is told. Judgements: that distance is .8 standard deviations of a
loss, and the lowest of twenty medians lies two of theirs below."""
ENDED = 0.98
"""Share of its planned steps that a run must have done: one that was stopped before has no final loss."""


def stopped_early(last_step: float, planned: float) -> str:
    """Why a run that ended did not come to its planned end; "": it did, or no step is known.

    >>> stopped_early(979, 1000), stopped_early(980, 1000)
    ('it ended at step 979 of 1,000 planned', '')
    """
    if 0 < last_step < ENDED * planned:
        return f"it ended at step {last_step:,.0f} of {planned:,.0f} planned"
    return ""


COUNTS = ("total", "trainable", "non_embedding", "non_embedding_with_head", "active")
"""Parameter counts of a record (`isoflop.flops.parameters` defines them)."""
DEFAULT_N: Final = "non_embedding_with_head"
"""N of every law that is fitted or asked. Without the head's matrix the N of small models shrinks to a fraction of what
computes, and fitted exponents are off (Porian et al. 2024; Pearce and Song 2024). `non_embedding` stays the N of 6·N·D
and of Kaplan et al.'s laws."""
PREFERRED_N = (DEFAULT_N, "total", "non_embedding")
"""In this order, where runs do not state the default one."""
SEVERITIES = ("critical", "warning", "info", "note")
"""Of advice, the highest first."""


def common_n(runs: Iterable[Mapping[str, int | None]]) -> str:
    """The first of `PREFERRED_N` that all runs state which state any of them; else the one that most state.

    Args:
        runs: the parameter counts of each run (`Run.parameters`).

    >>> common_n([{"total": 10, "non_embedding": 6}, {"total": 20, "non_embedding_with_head": 18}, {}])
    'total'
    """
    counts = [each for each in runs if any(each.get(name) for name in PREFERRED_N)]
    stated = {name: sum(bool(each.get(name)) for each in counts) for name in PREFERRED_N}
    return max(PREFERRED_N, key=lambda name: stated[name])  # of equals the first


def _finite(value: float | None) -> bool:
    # An int is finite by itself; math.isfinite would overflow on one beyond 1e308.
    return value is None or isinstance(value, int) or math.isfinite(value)


def _name(value: float | None) -> str:
    assert value is not None
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
