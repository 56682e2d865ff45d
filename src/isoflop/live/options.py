"""The options that `IsoFLOPMonitor`, `IsoFLOPCallback` and `isoflop.Monitor` share, in one place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

from isoflop.advice import Advice, Thresholds
from isoflop.forecast import LrPlan
from isoflop.lookup import need as must
from isoflop.record.paths import check_location
from isoflop.record.task import task_words

NOISE_SCALE = ("auto", "split", "off")


# In a union what takes fewer values comes first: LightningCLI tries them in order, and a path takes a list as its text.


class OptionsDict(TypedDict, total=False):
    """`Options` as keyword arguments (for type checkers and editors); their meaning is there."""

    record_dir: str | os.PathLike[str] | None
    log_every: int | None
    tokens_fn: Callable[[Any], Any] | None
    flops_per_token: float | None
    num_params: int | None
    peak_flops: float | Literal["measured"] | None
    fit_on: str | bool | None
    history: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] | None
    lr_plan: Callable[[int], float] | str | None
    target_loss: float | None
    inference_tokens: float | None
    unique_tokens: float | None
    intent: Literal["optimal", "overtrain"] | None
    task: Sequence[str] | str | None
    price_per_hour: float | None
    on_advice: Literal["warn", "stop"] | Callable[[Advice], Any]
    thresholds: Thresholds | None
    noise_scale: str | bool
    data_parallel: int | None


POSITIVE = (
    "flops_per_token",
    "peak_flops",
    "target_loss",
    "inference_tokens",
    "unique_tokens",
    "price_per_hour",
)
"""Options that are positive numbers."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user can set; None: measured or taken from the trainer.

    Attributes:
        record_dir: folder of the run's record, or its URL, such as s3://bucket/runs (default: beside the trainer's
            logs; a plain loop: `runs/isoflop`).
        log_every: optimizer steps between two points (default: the trainer's logging interval; a plain loop: 10).
        tokens_fn: batch → tokens processed, or a `TokenCount`, where the batch's layout is not one that isoflop
            reads. Lightning passes the batch; Hugging Face and a plain loop pass what the model is called with: the
            tuple of its arguments, or a dict if there are keyword arguments.
        flops_per_token: FLOPs of a training step (forward and backward) per processed token, instead of
            the measured count: for pipeline, context and expert parallelism and custom kernels.
        num_params: N, instead of the count of the model's parameters, in every convention: where the model that
            this process holds is only a part.
        peak_flops: dense peak of one device in FLOP/s at the run's dtype, instead of the datasheet's; "measured": what
            `isoflop peak` reached on this machine.
        fit_on: the loss that is forecast: `train` (the default), `eval/<name>`, or `off`.
        history: records of finished runs, or folders of them, that the forecast learns from.
        lr_plan: where the scheduler can't be asked, a function optimizer step → learning rate (or its fraction of the
            peak), or a schedule by name: "cosine:warmup=2000,end=0.1", linear, wsd, constant (docs/forecast-live.md).
        target_loss: final loss aimed at, in nats per token: the advice says when it is out of reach.
        inference_tokens: tokens that the model will serve; a small model may then be the right one.
        unique_tokens: tokens in the data set; more are repeats.
        intent: "overtrain" where the model is meant to be smaller than compute-optimal; default "optimal".
        task: what is trained, where isoflop does not see it: "pretraining", or words for the start (scratch, continued,
            finetuning, adapter), the objective (causal, masked, seq2seq, contrastive, preference, reinforcement,
            classification, regression, generative) and the modality (text, image, audio, other).
        price_per_hour: of all devices together, in your currency.
        on_advice: "warn" (default); "stop" ends the run where it diverges or its target is out of reach; or a function
            of an `Advice`, called on the first rank, whose answer "stop" ends the run.
        thresholds: when something is said (`isoflop.advice.Thresholds`).
        noise_scale: "auto": measure the gradient noise scale where that changes nothing (gradient accumulation, DDP);
            "split": also on one device without accumulation, by now and then taking a step's batch in two halves;
            "off": not at all.
        data_parallel: ranks with data of their own, where others share a batch with them and that is not seen
            (default: seen from the parameters' device meshes; else all ranks).
    """

    record_dir: str | os.PathLike[str] | None = None
    log_every: int | None = None
    tokens_fn: Callable[[Any], Any] | None = None
    flops_per_token: float | None = None
    num_params: int | None = None
    peak_flops: float | Literal["measured"] | None = None
    fit_on: str | None = None
    history: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] | None = None
    lr_plan: Callable[[int], float] | str | None = None
    target_loss: float | None = None
    inference_tokens: float | None = None
    unique_tokens: float | None = None
    intent: Literal["optimal", "overtrain"] | None = None
    task: Sequence[str] | str | None = None
    price_per_hour: float | None = None
    on_advice: Literal["warn", "stop"] | Callable[[Advice], Any] = "warn"
    thresholds: Thresholds | None = None
    noise_scale: str = "auto"
    data_parallel: int | None = None

    def __post_init__(self) -> None:
        def need(name: str, holds: bool, expected: str) -> None:
            must(f"{name}=", holds, expected, getattr(self, name))

        for name in POSITIVE:
            value = getattr(self, name)
            given = value is not None and (name, value) != ("peak_flops", "measured")
            expected = "a positive number" + (" or 'measured'" if name == "peak_flops" else "")
            need(name, not given or (_is_a(value, int | float) and 0 < value < float("inf")), expected)
        for name in ("log_every", "num_params", "data_parallel"):
            value = getattr(self, name)
            need(name, value is None or (_is_a(value, int) and value >= 1), "a whole number of at least 1")
        need("noise_scale", self.noise_scale in NOISE_SCALE, f"one of {', '.join(NOISE_SCALE)}")
        need("tokens_fn", self.tokens_fn is None or callable(self.tokens_fn), "a function of a batch")
        if self.record_dir is not None:
            need("record_dir", isinstance(self.record_dir, str | os.PathLike), "a path or a URL")
            need("record_dir", not _reads_as_list(self.record_dir), "a path or a URL, not a list")
            check_location(self.record_dir)
        need("fit_on", self.fit_on is None or _is_loss(self.fit_on), "'train', 'eval/<name>' or 'off'")
        need("history", all(isinstance(p, str | os.PathLike) for p in self.history_paths), "a path or a list of paths")
        need("history", not any(map(_reads_as_list, self.history_paths)), "a list of paths, not the text of one")
        need("intent", self.intent in (None, "optimal", "overtrain"), "'optimal' or 'overtrain'")
        if self.task is not None:
            words = isinstance(self.task, str | list | tuple) and all(isinstance(word, str) for word in self.task)
            need("task", words, "words such as 'finetuning causal'")
            task_words(self.task)
        asks = self.on_advice in ("warn", "stop") or callable(self.on_advice)
        need("on_advice", asks, "'warn', 'stop' or a function")
        need("thresholds", isinstance(self.thresholds, Thresholds | None), "isoflop.advice.Thresholds(…)")
        if isinstance(self.lr_plan, str):
            try:
                LrPlan.named(self.lr_plan, 10**9)
            except ValueError as error:
                raise ValueError(f"lr_plan={self.lr_plan!r}: {error}") from None
        else:
            schedule = "a function of the optimizer step or a schedule by name, such as 'cosine:warmup=2000,end=0.1'"
            need("lr_plan", self.lr_plan is None or callable(self.lr_plan), schedule)

    @property
    def history_paths(self) -> list[Any]:
        """`history` as a list; empty where it is not given."""
        if self.history is None:
            return []
        return list(self.history) if isinstance(self.history, list | tuple) else [self.history]

    @classmethod
    def of(cls, **options: Any) -> Options:
        """Options from keyword arguments.

        Raises:
            ValueError: a value that can't be.
            TypeError: an option that does not exist.
        """
        if isinstance(given := options.get("noise_scale"), bool):  # YAML reads a plain off as False
            options["noise_scale"] = "auto" if given else "off"
        if options.get("fit_on") is False:
            options["fit_on"] = "off"
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            names = (*known, "optimizer", "scheduler", "total_steps", "run_name")  # those of a plain loop too
            near = [close for name in unknown for close in get_close_matches(name, names, 1)]
            meant = f"; did you mean {', '.join(near)}?" if near else "."
            raise TypeError(f"isoflop has no option {', '.join(unknown)}{meant} Its options are {', '.join(known)}")
        return cls(**options)

    def given(self) -> dict[str, Any]:
        """The options that were set, as plain values for the record's header."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            name: value if isinstance(value, int | float) else str(value)
            for name, value in values.items()
            if value is not None and (name, value) not in (("on_advice", "warn"), ("noise_scale", "auto"))
        }


def _reads_as_list(path: Any) -> bool:
    """True for "['runs/a']": a list that something has made a text of."""
    return isinstance(path, str) and path.strip()[:1] + path.strip()[-1:] == "[]" and not os.path.exists(path)


def _is_loss(value: Any) -> bool:
    return isinstance(value, str) and (value in ("train", "off") or (value.startswith("eval/") and len(value) > 5))


def _is_a(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
