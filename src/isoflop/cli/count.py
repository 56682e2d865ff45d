"""`isoflop count MODEL`: parameters by convention and FLOPs of one training step by module, allocating nothing.

What `isoflop count` prints: parameters and FLOPs by convention, the tree by module, other counters' opinions.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.common import AsJson, print_json, tell

if TYPE_CHECKING:
    from torch import nn

    from isoflop.flops.calls import Call
    from isoflop.flops.count import ModuleCount, StepCount
    from isoflop.flops.open_model import Opened


def count(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A Hugging Face config.json, a folder with one or a name on its hub; module:function or "
            "file.py:function that builds a model; or a LightningModule's checkpoint (.ckpt).",
        ),
    ],
    batch: Annotated[int, typer.Option(min=1, help="Sequences (images, clips) in the step.")] = 1,
    seq: Annotated[
        int | None, typer.Option(min=1, help="Tokens a sequence (default: the model's context, at most 1024).")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=SHAPE:DTYPE",
            help="What training gives the model beside or instead of tokens, such as "
            "pixel_values=8x3x224x224:float32; B and S stand for --batch and --seq. Repeatable.",
        ),
    ] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="With activation checkpointing (Hugging Face models).")
    ] = False,
    compare: Annotated[
        bool, typer.Option("--compare", help="Beside fvcore, torch's FlopCounterMode and Hugging Face, with reasons.")
    ] = False,
    as_json: AsJson = False,
    depth: Annotated[int, typer.Option(min=0, help="Levels of the module tree.")] = 4,
    module_class: Annotated[
        str | None, typer.Option("--class", metavar="MODULE:CLASS", help="The LightningModule of a checkpoint.")
    ] = None,
    trust: Annotated[
        bool,
        typer.Option("--trust", help="Run code that comes with the model: a checkpoint's objects, a hub's files."),
    ] = False,
) -> None:
    """Count a model: parameters by convention, FLOPs of one training step (not multiply-adds) as a tree by module.

    Nothing is allocated or computed: a 70B configuration takes seconds on a laptop. A model whose code depends on
    values is run once with random inputs, if it is small; the output says so.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # what a user's code prints is no part of the output
    with redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries' remarks while a model is built, which nobody asked for here
        from isoflop.flops.calls import Uncountable
        from isoflop.flops.open_model import open_model
        from isoflop.lookup import CannotOpen

        try:
            opened = open_model(model, module_class, trust)
            if opened.note:
                tell("count", opened.note)
            if checkpointing:
                build = opened.build
                opened = replace(opened, model=_checkpointed(opened.model), build=lambda: _checkpointed(build()))
            call, counted = _count(opened, batch, seq, inputs or [])
        except (CannotOpen, Uncountable, ValueError) as error:
            tell("count", error)
            raise typer.Exit(1) from None
        opinions: tuple[Any, ...] = ()
        if compare:
            from isoflop.flops.other_counters import opinions as others

            opinions = others(opened.model, call, counted)
    if as_json:
        print_json(as_object(counted, opinions if compare else None))
        return
    from isoflop.flops.open_model import describe_call

    print_count(opened.name, describe_call(call), counted, opinions, depth)


def _count(opened: Opened, batch: int, seq: int | None, inputs: list[str]) -> tuple[Call, StepCount]:
    from isoflop.flops.calls import Uncountable
    from isoflop.flops.count import count_measured, count_otherwise
    from isoflop.flops.open_model import (
        DEFAULT_LENGTH,
        candidate_calls,
        context_of,
        describe_call,
        parse_input,
        unnamed,
    )

    context = context_of(opened.model)
    length = seq or min(context or DEFAULT_LENGTH, DEFAULT_LENGTH)
    if context is not None and length > context:
        tell(
            "count",
            f"the model is made for {context:,} positions, fewer than --seq {length:,}; counted as if it had them",
        )
    given = dict(parse_input(text, batch, length) for text in inputs)
    calls = candidate_calls(opened.model, batch, length, given)
    for name in unnamed(opened.model, given):
        tell("count", f"{type(opened.model).__name__}.forward names no input {name!r}: it may do nothing with it")
    tokens = batch * seq if seq is not None else None
    reasons: list[str] = []
    for call in calls:
        try:
            return call, count_measured(opened.model, call, tokens)
        except Uncountable as reason:
            reasons.append(str(reason))
    failures: list[str] = []
    for call, why in zip(calls, reasons, strict=True):
        try:
            return call, count_otherwise(opened.model, call, why, opened.build, tokens)
        except Uncountable as failure:
            failures.append(f"with {describe_call(call)}: {failure}")
    tried = "\n  ".join(failures)
    raise Uncountable(f"{tried}\n  Say with --input name=shape:dtype what training gives the model")


def _checkpointed(model: nn.Module) -> nn.Module:
    enable: Any = getattr(model, "gradient_checkpointing_enable", None)
    if enable is None or not getattr(model, "supports_gradient_checkpointing", True):
        raise ValueError(
            f"--checkpointing: {type(model).__name__} has no gradient_checkpointing_enable(), as Hugging Face's models "
            "do; let the code that builds the model switch its checkpointing on"
        )
    enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def as_object(counted: StepCount, opinions: tuple[Any, ...] | None = None) -> dict[str, Any]:
    """The object that `--json` prints: exact integers, null for what is unknown."""
    flops = counted.flops
    result: dict[str, Any] = {
        "parameters": counted.parameters.by_convention(),
        "flops": {
            "model": counted.model_flops,
            "hardware": None if flops is None else flops.hardware,
            "causal": None if flops is None else flops.causal,
            "6nd": counted.six_nd,
        },
        "method": f"{counted.method} ({counted.reason})" if counted.reason else counted.method,
        "uncounted": list(counted.uncounted),
    }
    if opinions is not None:
        result["compare"] = [
            {
                "counter": opinion.counter,
                "convention": opinion.convention,
                "flops": opinion.flops,
                "ours": opinion.ours,
                "difference": opinion.difference,
                "reasons": list(opinion.reasons),
            }
            for opinion in opinions
        ]
    return result


_N = (
    ("total", "every parameter once"),
    ("trainable", "with requires_grad"),
    ("non_embedding", "no embeddings, no head (Kaplan 2020)"),
    ("non_embedding_with_head", "head counted (Porian 2024)"),
    ("active", "what a token passes through"),
)

_BY_MODULE = "By module (step: forward and backward)"
_LISTS = ("ModuleList", "ModuleDict", "Sequential")


def print_count(name: str, inputs: str, counted: StepCount, opinions: Iterable[Any] = (), depth: int = 4) -> None:
    """Print a step's count for people; numbers for machines are in `--json`.

    Args:
        name: the model's.
        inputs: of the step, as text.
        counted: what was counted.
        opinions: other counters' (`isoflop.flops.other_counters`).
        depth: levels of the module tree.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 120))  # in a file whole names are worth more than a width

    def note(text: str, style: str = "yellow") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    console.print(Text.assemble((name, "bold"), f" · one training step on {inputs}"), soft_wrap=True)
    console.print(_parameter_table(counted))
    console.print(_flops_table(counted))
    if counted.modules is not None and depth:
        console.print(_module_table(counted.modules, depth, console.width))
    opinions = tuple(opinions)
    if opinions:
        console.print(_opinion_table(opinions))
        for opinion in opinions:
            for reason in opinion.reasons:
                console.print(Text(f"  {opinion.counter}: {reason}"), soft_wrap=True)
    note(f"Counted by: {counted.method}", "dim")
    if counted.reason:
        note(f"Not in a better way, because: {counted.reason}")
    if counted.six_nd is None and counted.tokens is None:
        note("6·N·D is unknown, for the inputs are no tokens: --seq says how many an input is", "dim")
    if counted.uncounted:
        names = ", ".join(counted.uncounted)
        note(f"Counted 0, for no formula is known: {names}. isoflop.register_flop_formula adds one")


def _table(title: str, *columns: str, right: int = 1) -> Any:
    from rich import box
    from rich.table import Table

    # at 80 columns the spare spaces of rich's own layout are needed
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if right <= i else "left", no_wrap=right <= i)
    return table


def _in_words(table: Any) -> None:
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False


def _parameter_table(counted: StepCount) -> Any:
    table = _table(f"Parameters N, counted {counted.parameters.method}", "convention", "N", "")
    _in_words(table)
    counts = counted.parameters.by_convention()
    for name, meaning in _N:
        table.add_row(name, _whole(counts[name]), meaning)
    return table


def _flops_table(counted: StepCount) -> Any:
    title = "FLOPs of the step, forward and backward (1 multiply-add = 2)"
    a_token = ("a token",) if counted.tokens else ()
    table = _table(title, "convention", "FLOPs", *a_token, "to model", "")
    _in_words(table)
    model, flops = counted.model_flops, counted.flops
    rows = [("model", model, "attention in full, nothing twice" if flops else "estimated")]
    if flops is not None:
        rows.append(("hardware", flops.hardware, "with recomputed activations"))
        rows.append(("causal", flops.causal, "attention counted half"))
    rows.append(("6·N·D", counted.six_nd, "N non-embedding, active"))
    for name, value, meaning in rows:
        each = (_flops(None if value is None else value / counted.tokens),) if counted.tokens else ()
        ratio = "–" if value is None or not model else f"{value / model:.1%}"
        table.add_row(name, _flops(value), *each, ratio, meaning)
    return table


def _module_table(root: ModuleCount, depth: int, width: int) -> Any:
    rows = list(_rows(root, depth))
    columns = {
        "parameters": [_whole(module.parameters) for *_, module in rows],
        "forward": [_flops(module.forward) for *_, module in rows],
        "step": [_flops(module.model) for *_, module in rows],
        "hardware": [_flops(module.hardware) for *_, module in rows],
        "share": [f"{module.model / root.model:.1%}" if root.model else "–" for *_, module in rows],
    }
    if root.hardware == root.model:
        del columns["hardware"]

    names, kinds = [name for name, *_ in rows], [kind for _, kind, _ in rows]
    widest = max(map(len, kinds))

    def left() -> int:  # for the kinds
        widths = [max(map(len, (title, *cells))) for title, cells in columns.items()]
        return width - sum(size + 2 for size in (max(map(len, names)), *widths)) - 3

    if left() < min(widest, 16):
        del columns["forward"]
    room = left()
    cells = list(zip(*columns.values(), strict=True))
    if room < min(widest, 8):
        table = _table(_BY_MODULE, "module", *columns)
    else:
        table = _table(_BY_MODULE, "module", "", *columns, right=2)
        table.columns[1].no_wrap = True
        cells = [
            (kind if len(kind) <= room else f"{kind[: room - 1]}…", *row)
            for kind, row in zip(kinds, cells, strict=True)
        ]
    table.columns[0].no_wrap = True
    for name, row in zip(names, cells, strict=True):
        table.add_row(name, *row)
    return table


def _rows(module: ModuleCount, depth: int, lead: str = "", branch: str = "") -> Iterator[tuple[str, str, ModuleCount]]:
    name, kind, module, parts = _chain(module)
    times = f"{module.count}× " if module.count > 1 else ""
    yield f"{lead}{branch}{name or '(model)'}", times + kind, module
    if depth == 0:
        return
    lead += {"": "", "├ ": "│ ", "└ ": "  "}[branch]
    for i, part in enumerate(parts):
        yield from _rows(part, depth - 1, lead, "└ " if i == len(parts) - 1 else "├ ")


def _chain(module: ModuleCount) -> tuple[str, str, ModuleCount, list[ModuleCount]]:
    """A module as one row with its only part, where one of the two is a mere list: `layers.0–31`."""
    name, kind = module.name, module.kind
    while True:
        # what neither computes nor holds anything (dropout, activations) would hide what does
        parts = [part for part in module.parts if part.parameters or part.model]
        alone = len(parts) == 1 and _sums(parts[0]) == _sums(module)
        if not name or not alone or not {module.kind, parts[0].kind} & {*_LISTS}:
            return name, kind, module, parts
        module = parts[0]
        name = f"{name}.{module.name}"
        kind = kind if module.kind in _LISTS else module.kind


def _sums(module: ModuleCount) -> tuple[int, ...]:
    return module.parameters, module.forward, module.model, module.hardware


def _opinion_table(opinions: tuple[Any, ...]) -> Any:
    table = _table("Other counters, each in its own scope", "counter", "scope", "theirs", "ours", "difference", right=2)
    for opinion in opinions:
        difference = "–" if opinion.difference is None else f"{opinion.difference:+.2%}"
        table.add_row(opinion.counter, opinion.convention, _flops(opinion.flops), _flops(opinion.ours), difference)
    return table


def _whole(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"


def _flops(value: float | None) -> str:
    return "–" if value is None else ("0" if value == 0 else f"{value:.4e}")
