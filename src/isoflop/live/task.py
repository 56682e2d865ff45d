"""Recognises the task of a run (`isoflop.record.Task`) by its trainer's and model's classes, parameters and loss."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from isoflop.flops.parameters import has_shape, numel, original_class, unwrap
from isoflop.guard import attempt
from isoflop.live.log_step import LogStep
from isoflop.live.run_info import RunInfo
from isoflop.record.task import Task, recognise, task_words

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
    total = sum(size for _, _, size in parameters) or 1
    loaded = sum(size for _, each, size in parameters if getattr(each, "_is_hf_initialized", False))
    fixed = [(name, size) for name, each, size in parameters if not each.requires_grad]
    adapted = any(each.requires_grad and _ADAPTERS.search(name.lower()) for name, each, _ in parameters)
    losses = (m.label_smoothing for m in model.modules() if isinstance(m, nn.CrossEntropyLoss))
    return recognise(
        [*run.trainer, *_class_names(model)],
        inputs=next(
            (str(m.main_input_name) for m in model.modules() if isinstance(_get(m, "main_input_name"), str)), None
        ),
        config={name: _get(config, name) for name in _READ},
        table=any(isinstance(m, nn.Embedding) or _TABLE.search(type(m).__name__) for m in model.modules()),
        convolutions=any(isinstance(m, nn.Conv2d) for m in model.modules()),
        loaded=loaded / total,
        frozen=sum(size for name, size in fixed if not _TABLES.search(name.lower())) / total,
        adapter=bool(fixed) and adapted,
        experts=any((_number(_get(config, name)) or 0) > 1 for name in _EXPERTS),
        smoothing=max([run.label_smoothing, *losses]),
        **known,
    )


def look_again(task: Task, step: LogStep, model: nn.Module | None, accumulate: int | None) -> Task:
    """The task at the first log step of a run: experts and heads by use, and the first step's loss against ln V."""
    parameters, totals = step.parameters, step.totals
    if parameters is not None and parameters.active is not None and parameters.active < parameters.total:
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
    share = labels / tokens if tokens and labels else None
    return task.seen(first, vocabulary_of(model), share, accumulate)


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
