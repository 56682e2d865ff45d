"""`RunInfo`: what a trainer's adapter knows of the run, its plan and where numbers are shown; and the run's task.

The task (`isoflop.record.Task`) is recognised by the trainer's and the model's classes, parameters and loss.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.data import IterableDataset
from tqdm import tqdm

from isoflop.flops.parameters import copies, has_shape, numel, original_class, unwrap
from isoflop.flops.totals import Operators, data_parallel_ranks, world_size
from isoflop.guard import Guard, attempt, declare
from isoflop.live.log_step import AxisPoint, LogStep
from isoflop.live.scheduler import Calls
from isoflop.record.paths import PASSPORT, Location, last_name
from isoflop.record.reader import names_in
from isoflop.record.task import Task, recognise, task_words

_NO_FOLDER = re.compile(r'[<>:"/\\\\|?*\x00-\x1f]+')
"""What a file system refuses in a name."""
LONGEST = 140
"""Bytes of a folder's name: 255 are the most, 143 in an encrypted home."""
LAYOUT = declare("seeing which ranks share a batch", "tokens and FLOPs of ranks that do are counted more than once")


def steps_of_epoch(loader: Any, accumulate: int) -> int | None:
    """Optimizer steps in which a loader's data set is seen once; None: a stream, or none is known."""
    data = getattr(loader, "dataset", None)
    if isinstance(data, IterableDataset) or attempt(len, data) is None:
        return None
    batches = attempt(len, loader)
    return -(-batches // accumulate) if batches else None


class Sink(Protocol):
    """Where scalars go. `boundary` is its name in `guard.BOUNDARIES`."""

    boundary: str

    def write(self, step: int, scalars: Mapping[str, float], axes: Sequence[AxisPoint]) -> None:
        """Scalars against the optimizer step, and the points on compute axes (TensorBoard's alone)."""

    def text(self, step: int, tag: str, markdown: str) -> None:
        """A text at the optimizer step, where the sink shows texts."""

    def flush(self) -> None:
        """A checkpoint is saved: what was written is in files from here on."""

    def close(self) -> None:
        """The run has ended."""


@dataclass(kw_only=True)
class RunInfo:
    """One run as its trainer describes it.

    Attributes:
        together: every rank makes the same calls at the same steps, so that an evaluation may sum over ranks.
        own: the folder below the record's that holds this run's events and passport: "" is that folder itself, None
            is still to be decided, for another run's may be there (plain loops, or a trainer's output folder).
        say: prints the terminal's line.
    """

    framework: str = "loop"  # "lightning", "transformers" or "loop"
    record_dir: Path = Path("runs/isoflop")  # the default folder of the record
    log_every: int = 10  # the default interval, in optimizer steps
    logs_itself: bool = False  # the trainer decides when to log (it calls `Monitor.log`), not the interval
    together: bool = False
    lockstep: bool = False  # all ranks make as many steps; else no collective is safe: one may never come to it
    run_name: str | None = None
    run_id: str | None = None  # of the record, once that is open
    record: Location | None = None  # the record, from then on
    own: str | None = ""
    events: Path | None = None  # TensorBoard's folder, where it is not the record's
    total_steps: int | None = None  # planned optimizer steps; None: endless or unknown
    epoch_steps: int | None = None  # optimizer steps in which the data set is seen once; None: a stream, or unknown
    optimizer: Any = None
    schedule: str | None = None
    scheduler: Any = None  # sets the optimizer's learning rate; None: nobody does
    scheduler_calls: Calls | None = None  # optimizer steps done → steps that the scheduler has made; None: one each
    future_unknown: str | None = None  # why the learning rates to come can't be asked for
    accumulate: int | None = None
    dtype: torch.dtype | None = None  # of the matrix products; None: to be seen at the first forward pass
    precision: str | None = None
    data_parallel: int | None = None  # ranks with data of their own; None: all
    grad_scaler: Any = None  # AMP's scaler of the loss
    tokenizer: str | None = None
    data: str | None = None
    trainer: tuple[str, ...] = ()  # names of its class and of its arguments'
    label_smoothing: float = 0.0  # of the trainer's loss
    micro_batches: int | None = None  # of a step, as they are counted; None: they are not
    notes: list[str] = field(default_factory=list)  # what is not measured, for the line of the run's start
    task: Task = field(default_factory=Task)  # what is trained, as it was recognised
    guard: Guard = field(default_factory=Guard)  # what has stepped aside
    sinks: list[Sink] = field(default_factory=list)
    say: Callable[[str], None] = tqdm.write  # leaves a progress bar whole

    @property
    def planned(self) -> dict[str, Any]:
        """`Run.planned` of the record, as it is known before the first forecast."""
        schedule = self.schedule or (None if self.scheduler is None else type(self.scheduler).__name__)
        return {"steps": self.total_steps, "schedule": schedule, "accumulate": self.accumulate}

    def own_folder(self, folder: Path) -> Path:
        """Where this run's events and passport go: `folder`, or one below it, called as the run is."""
        if self.own is None:
            self.place(folder)
        return folder / (self.own or "")

    def place(self, folder: Location) -> str:
        """Decide on `own`, and return the run's name: TensorBoard lists it by its folder, so both are the same.

        Args:
            folder: of the record, or its URL.
        """
        local = self.local(folder)
        called = last_name(local)
        if self.own is not None:
            return self.run_name or called
        names = names_in(folder) if isinstance(folder, Path) else set()

        def taken(own: str) -> bool:
            events = any((local / own).glob("events.out.tfevents.*"))
            return events or (local / own / f"{PASSPORT}.json").exists() or (own or called) in names

        name = str(self.run_name or "").encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")
        named = _NO_FOLDER.sub("-", name).strip(" .-") or called
        numbered = (f"{named}-{n}" for n in count(2))
        first = "" if named == called else named
        self.own = next(own for own in chain([first], numbered) if not taken(own))
        return self.own or called

    def local(self, folder: Location) -> Path:
        """TensorBoard's folder; of a record's URL one of this machine, for object stores can't append to files."""
        return self.events or (folder if isinstance(folder, Path) else self.record_dir / last_name(folder))

    def see_layout(self, model: nn.Module | None, given: int | None) -> None:
        """Set `data_parallel`: as the user says (`given`), as the trainer knows, or as the parameters show.

        Raises:
            ValueError: a number that does not divide the job's ranks.
        """
        ranks = world_size()
        if given is not None and given < ranks and ranks % given:
            raise ValueError(f"data_parallel= expects a number that divides the job's {ranks} ranks, got {given}")
        if given is not None:
            self.data_parallel = min(given, ranks)
        elif self.data_parallel is None:
            with self.guard.part(LAYOUT):
                self.data_parallel = data_parallel_ranks(model)

    def draw(self, step: int, points: Sequence[AxisPoint]) -> None:
        """Write points on compute axes alone."""
        for sink in self.sinks if points else ():
            if sink.boundary not in self.guard.aside:
                with self.guard.part(sink.boundary):
                    sink.write(step, {}, points)

    def tell(self, line: str) -> None:
        """Print a line that is no warning; `logging.getLogger("isoflop").setLevel(logging.WARNING)` silences it."""
        self.guard.tell(self.say, line)


_TABLES = re.compile(r"pos|rotary|sinus|freq")
"""Names of frozen tables that nobody trains, as a Whisper from scratch has."""
_TABLE = re.compile(r"(Vocab|Token|Word|Parallel)\w*Embedding")
"""Classes of tables that are not torch's, as Megatron's VocabParallelEmbedding."""
_ADAPTERS = re.compile(r"lora_|adapter|prompt_encoder|\.ia3_|hada_|vera_lambda|oft_")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_READ = ("is_encoder_decoder", "vision_config", "audio_config", "speech_config", *_EXPERTS)
DEPTH = 3
"""Modules so deep tell what a model is: Lightning's module, its network, that one's body."""
FIRST = 100
"""Optimizer steps up to which the mean loss of the first interval stands for a first loss that is not known."""


def describe_task(run: RunInfo, model: nn.Module | None, given: Any = None) -> Task:
    """The task before the first step.

    Args:
        run: for the classes of the trainer and the optimizers.
        model: that is trained, wrapped or not.
        given: the user's `task=`.
    """
    words = {} if given is None else task_words(given)
    known: dict[str, Any] = {"optimizers": list(_optimizers(run.optimizer)), "given": words}
    if model is None:
        return recognise(run.trainer, **known)
    model = unwrap(model)
    config = _config(model)
    parameters = [
        (name, parameter, numel(parameter)) for name, parameter in model.named_parameters() if has_shape(parameter)
    ]
    same = {name for name, each in copies(model).items() if attempt(_begins_as, model.get_parameter(name), each)}
    parameters = [row for row in parameters if row[0] not in same]  # averaged weights are frozen, and nothing is tuned
    total = sum(size for _, _, size in parameters) or 1
    loaded = sum(size for _, each, size in parameters if getattr(each, "_is_hf_initialized", False))
    fixed = [(name, size) for name, each, size in parameters if not each.requires_grad]
    adapted = any(each.requires_grad and _ADAPTERS.search(name.lower()) for name, each, _ in parameters)
    losses = (m.label_smoothing for m in model.modules() if isinstance(m, nn.CrossEntropyLoss))
    table = any(isinstance(m, nn.Embedding) or _TABLE.search(type(m).__name__) for m in model.modules())
    convolutions = any(isinstance(m, nn.Conv2d) for m in model.modules())
    halves = table and not convolutions and _has_two_halves(model)  # images have encoders and decoders, too
    return recognise(
        [*run.trainer, *_class_names(model), *["EncoderDecoder"] * halves],
        inputs=next(
            (str(m.main_input_name) for m in model.modules() if isinstance(_get(m, "main_input_name"), str)), None
        ),
        config={name: _get(config, name) for name in _READ},
        table=table,
        convolutions=convolutions,
        loaded=loaded / total,
        frozen=sum(size for name, size in fixed if not _TABLES.search(name.lower())) / total,
        adapter=bool(fixed) and adapted,
        experts=any((_number(_get(config, name)) or 0) > 1 for name in _EXPERTS),
        smoothing=max([run.label_smoothing, *losses]),
        **known,
    )


def _has_two_halves(model: nn.Module) -> bool:
    """Whether an encoder stands beside a decoder, as networks: of one matrix each they are a table and a head."""
    for module in model.modules():
        inside = dict(module.named_children())
        halves = [inside[name].parameters() for name in ("encoder", "decoder") if name in inside]
        two = len(halves) == 2 and all(sum(p.dim() > 1 for p in half) > 1 for half in halves)
        if two or isinstance(module, nn.TransformerDecoderLayer):
            return True
    return False


def _begins_as(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the first values of this rank are the same."""
    a, b = (getattr(each, "to_local", lambda each=each: each)().detach().reshape(-1)[:64] for each in (one, other))
    return torch.equal(a, b)


def look_again(task: Task, step: LogStep, model: nn.Module | None, accumulate: int | None) -> Task:
    """The task at the first log step of a run: experts and heads by use, and the first step's loss against ln V."""
    parameters, totals = step.parameters, step.totals
    if parameters is not None and parameters.idle:  # a teacher and averaged weights are not active either
        task = task.having(experts=True)
    by_use = parameters is not None and parameters.method.startswith("by use")
    headless = by_use and parameters is not None and parameters.non_embedding == parameters.non_embedding_with_head
    if headless and task.modality == "text":
        task = task.having(objective=task.objective or "headless")
    if totals.tokens_known is None and task.objective in (None, "headless") and task.modality in (None, "text"):
        task = task.having(modality="other")  # a table alone, of users or of categories, is no text
    if not step.whole or step.before.steps:
        return task
    first = step.first_loss if step.first_loss is not None else step.loss if step.step <= FIRST else None
    tokens, labels = totals.data_tokens, totals.loss_tokens_known
    names, part = step.made_by or Operators()  # of positions, padding among them
    share = min(part * totals.processed, labels or math.inf) / tokens if tokens else part
    of = "interval" if step.first_loss is None else "step"
    return task.seen(first, vocabulary_of(model), share, accumulate, of, names)


def vocabulary_of(model: nn.Module | None) -> int | None:
    """Tokens that the model tells apart: by its configuration, or the rows of the largest table that has a head."""
    if model is None:
        return None
    model = unwrap(model)
    config = _config(model)
    for place in (config, _get(config, "text_config")):
        if (size := _number(_get(place, "vocab_size"))) is not None:
            return size
    outputs = {m.out_features for m in model.modules() if isinstance(m, nn.Linear)}
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return max((size for size in rows if size in outputs), default=None)


def _class_names(model: nn.Module) -> list[str]:
    """Of the model, its base classes and the modules in it, from the outside in; torch's own are left out."""
    modules = [m for name, m in model.named_modules() if name.count(".") < DEPTH - 1]
    kinds = [kind for m in modules for kind in original_class(m).__mro__]
    names = [k.__name__ for k in kinds if not k.__module__.startswith("torch.") and k is not object]
    return list(dict.fromkeys(names))


def _optimizers(optimizer: Any) -> Iterator[str]:
    if isinstance(optimizer, list | tuple):
        for each in optimizer:
            yield from _optimizers(each)
    elif optimizer is not None:
        yield type(getattr(optimizer, "optimizer", optimizer)).__name__  # Accelerate's and Fabric's wrappers


def _config(model: nn.Module) -> Any:
    """Of the model, or of the first module in it that has one."""
    found = (attempt(getattr, m, "config", None) for name, m in model.named_modules() if name.count(".") < DEPTH - 1)
    return next((config for config in found if config is not None), None)


def _get(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, dict) else attempt(getattr, config, name, None)


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
