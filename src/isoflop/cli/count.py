"""`isoflop count MODEL`: parameters by convention and FLOPs of one training step by module, allocating nothing."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import redirect_stdout
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.text import AsJson, print_json, tell

if TYPE_CHECKING:
    from torch import nn

    from isoflop.cli.models import Opened
    from isoflop.observe.calls import Call
    from isoflop.observe.count import StepCount


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
        from isoflop.cli.models import open_model
        from isoflop.named import CannotOpen
        from isoflop.observe.calls import Uncountable

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
            from isoflop.observe.others import opinions as others

            opinions = others(opened.model, call, counted)
    if as_json:
        print_json(as_object(counted, opinions if compare else None))
        return
    from isoflop.cli.inputs import describe_call
    from isoflop.show.count import print_count

    print_count(opened.name, describe_call(call), counted, opinions, depth)


def _count(opened: Opened, batch: int, seq: int | None, inputs: list[str]) -> tuple[Call, StepCount]:
    from isoflop.cli.inputs import DEFAULT_LENGTH, candidate_calls, context_of, describe_call, parse_input, unnamed
    from isoflop.observe.calls import Uncountable
    from isoflop.observe.count import count_measured, count_otherwise

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
