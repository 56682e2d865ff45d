"""`isoflop count`: parameters and FLOPs of one training step by convention and by module, beside other counters."""

from __future__ import annotations

import io
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import typer

from isoflop.cli.common import AsJson
from isoflop.console import cell, grid, picked, print_json, reported, screen, tell

if TYPE_CHECKING:
    from torch import nn

    from isoflop.flops.calls import Call
    from isoflop.flops.count import ModuleCount, Opinion, StepCount
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
            help="Input of the model beside or instead of tokens, such as "
            "pixel_values=8x3x224x224:float32; B and S stand for --batch and --seq. Repeatable.",
        ),
    ] = None,
    images: Annotated[
        int, typer.Option(min=0, help="Images before the --seq tokens of each sequence (vision-language models).")
    ] = 0,
    side: Annotated[
        int | None, typer.Option("--image-size", min=1, help="Pixels of an image's side (default: the model's).")
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
    limit: Annotated[float, typer.Option(min=1, metavar="SECONDS", help="Seconds after which to give up.")] = 600,
) -> None:
    """Count a model: parameters by convention, FLOPs of one training step (not multiply-adds) as a tree by module.

    Nothing is allocated or computed: a 70B configuration takes seconds on a laptop. A model whose code depends on
    values is run once with random inputs, if it is small; the output says so.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # a hub out of reach is said once, when it is given up

    def counted() -> _Done:
        # what a user's code prints is no part of the output
        with redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries' remarks while a model is built, which nobody asked for here
            from isoflop.flops.count import opinions
            from isoflop.flops.inputs import describe_call
            from isoflop.flops.open_model import CannotOpen, open_model

            offline = _hub_out_of_reach(model)
            if offline:
                os.environ["HF_HUB_OFFLINE"] = "1"  # its client would try for half a minute
            try:
                opened = open_model(model, module_class, trust)
            except CannotOpen:
                if not offline:
                    raise
                raise ValueError(
                    f"{model!r} is no file here, {offline} is out of reach, and nothing of that name was fetched "
                    "before: pass the model's config.json"
                ) from None
            if checkpointing:
                build = opened.build
                opened = replace(opened, model=_checkpointed(opened.model), build=lambda: _checkpointed(build()))
            notes = [opened.note] if opened.note else []
            call, step = _count(opened, notes, batch, seq, inputs or [], images, side)
            others = opinions(opened.model, call, step) if compare else ()
            return _Done(opened.name, describe_call(call), step, others, notes, printed.getvalue())

    with reported("count"):
        done = _apart(counted, limit)
    typer.echo(done.printed, err=True, nl=False)
    for note in done.notes:
        tell("count", note)
    if as_json:
        print_json(as_object(done.step, done.others if compare else None))
    else:
        print_count(done, depth)


HUB_SECONDS = 2.0
"""For one try to reach the hub."""


def _hub_out_of_reach(model: str) -> str:
    """The hub's address where a model has to be fetched from it and it does not answer; else ""."""
    if (
        os.environ.get("HF_HUB_OFFLINE")
        or ":" in model
        or Path(model).suffix in (".json", ".ckpt", ".py")
        or Path(model).exists()
    ):
        return ""
    address = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host, port = address.hostname or "", address.port or (80 if address.scheme == "http" else 443)
    if address.scheme in getproxies():
        return ""  # the proxy alone can tell
    reached = threading.Event()

    def connect() -> None:
        with suppress(OSError):
            socket.create_connection((host, port), HUB_SECONDS).close()
            reached.set()

    asked = threading.Thread(target=connect, daemon=True)
    asked.start()
    asked.join(HUB_SECONDS)  # a name that no server resolves has no time limit of its own
    return "" if reached.is_set() else host


@dataclass
class _Done:
    """What the process that counted sends back."""

    name: str
    inputs: str
    step: StepCount
    others: Sequence[Opinion]
    notes: list[str]
    printed: str  # by the user's code


def _apart(count: Callable[[], _Done], seconds: float) -> _Done:
    """Count in a process of its own, which a configuration of absurd size can't outlive.

    Raises:
        ValueError: the fault in it; or it took too long or too much memory.
    """
    from isoflop.flops.apart import CAN_FORK, run_apart
    from isoflop.flops.calls import Uncountable

    def attempted() -> tuple[_Done | None, str]:
        try:
            return count(), ""
        except MemoryError:
            return None, "the model takes more memory than this machine has"
        except RecursionError:
            return None, "the input is nested too deeply to be read"
        except (Uncountable, ValueError, OSError, ArithmeticError, RuntimeError) as fault:
            return None, str(fault)

    began = time.monotonic()
    try:
        done, why = run_apart(attempted, seconds, _limit_memory) if CAN_FORK else attempted()
    except Uncountable as reason:
        if time.monotonic() - began >= seconds:
            why = f"not counted within {seconds:,.0f} s: a smaller model or step, or --limit with more seconds"
        else:
            why = f"{reason}: the model may take too much memory"
        raise ValueError(why) from None
    if done is None:
        raise ValueError(why)
    return done


def _limit_memory(_: int) -> None:
    import resource

    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _count(
    opened: Opened, notes: list[str], batch: int, seq: int | None, inputs: list[str], images: int, side: int | None
) -> tuple[Call, StepCount]:
    from isoflop.flops.calls import Uncountable
    from isoflop.flops.count import count_measured, count_otherwise
    from isoflop.flops.inputs import DEFAULT_LENGTH, candidate_calls, context_of, describe_call, parse_input, unnamed

    model = opened.model
    context = context_of(model)
    length = seq or min(context or DEFAULT_LENGTH, DEFAULT_LENGTH)
    if context is not None and length > context:
        fewer = f"the model is made for {context:,} positions, fewer than --seq {length:,}"
        notes.append(f"{fewer}; counted as if it had them")
    given = dict(parse_input(text, batch, length) for text in inputs)
    calls = candidate_calls(model, batch, length, given, images, side)
    for name in unnamed(model, given):
        notes.append(f"{type(model).__name__}.forward names no input {name!r}: it may do nothing with it")
    tokens = batch * seq if seq is not None else None
    reasons: list[str] = []
    for call in calls:
        try:
            return call, count_measured(model, call, tokens)
        except Uncountable as reason:
            reasons.append(str(reason))
    failures: list[str] = []
    for call, why in zip(calls, reasons, strict=True):
        try:
            return call, count_otherwise(model, call, why, opened.build, tokens)
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


def as_object(counted: StepCount, opinions: Sequence[Opinion] | None = None) -> dict[str, Any]:
    """The object that `--json` prints: exact integers, null for what is unknown."""
    flops = picked(counted.flops, "hardware causal full")
    result: dict[str, Any] = {
        "parameters": counted.parameters.by_convention(),
        "flops": {"model": counted.model_flops, **flops, "6nd": counted.six_nd},
        "method": f"{counted.method} ({counted.reason})" if counted.reason else counted.method,
        **picked(counted, "uncounted notes"),
    }
    if opinions is not None:
        result["compare"] = [picked(each, "counter convention flops ours difference reasons") for each in opinions]
    return result


def peak(
    device: Annotated[
        str, typer.Option(help="As torch names it: cuda, cuda:1, cpu (default: a GPU if there is one).")
    ] = "",
    seconds: Annotated[float, typer.Option(min=0.05, help="Seconds for each dtype, about.")] = 1.0,
    store: Annotated[bool, typer.Option("--store", help='Keep the rates for peak_flops="measured".')] = False,
    as_json: AsJson = False,
) -> None:
    """Measure the FLOP/s that dense matrix products reach on this device, in each dtype that it multiplies.

    For devices without a datasheet. It is what is reached, less than the peak that a vendor prints: an MFU against it
    is higher, and the record says so.
    """
    with reported("peak"):
        import torch

        from isoflop.flops.device import device_name, lookup_peak, measure_rates, store_measured
        from isoflop.live.sinks import rate_text

        try:
            where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
            torch.ones((), device=where)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"--device {device}: {str(error).splitlines()[0]}") from None
        name, rates = device_name(where), measure_rates(where, seconds)
        path = store_measured(where, rates) if store else None
        found = {dtype: lookup_peak(name, dtype) for dtype in rates}
        sheets = {dtype: None if sheet is None else sheet.flops_per_second for dtype, sheet in found.items()}
    if as_json:
        print_json({"device": name, "measured": rates, "datasheet": sheets, "stored": path and str(path)})
        return
    typer.echo(f"{name}: dense matrix products")
    table = grid("dtype", "measured", "datasheet", "reached")
    for dtype, rate in rates.items():
        printed = sheets[dtype]
        of_it = ("–", "–") if printed is None else (rate_text(printed / 1e12), f"{rate / printed:.0%}")
        table.add_row(dtype, rate_text(rate / 1e12), *of_it)
    screen().print(table)
    tell("peak", f'{f"Kept in {path}," if path else "Not kept; --store keeps them"} for peak_flops="measured"')


# -- for people --------------------------------------------------------------------------------------------------------

_CONVENTIONS = {
    "total": "every parameter once",
    "trainable": "with requires_grad",
    "non_embedding": "no embeddings, no head (Kaplan 2020)",
    "non_embedding_with_head": "head counted (Porian 2024)",
    "active": "what a token passes through",
}


def print_count(done: _Done, depth: int) -> None:
    """Print the count of a step, with `depth` levels of the model's modules."""
    from rich.text import Text

    console, counted = screen(120), done.step  # in a file whole names are worth more than a width

    def note(text: str, style: str = "yellow") -> None:
        console.print(Text(text, style=style), soft_wrap=True)

    console.print(Text.assemble((done.name, "bold"), f" · one training step on {done.inputs}"), soft_wrap=True)
    console.print(_parameter_table(counted))
    console.print(_flops_table(counted))
    if counted.modules is not None and depth:
        console.print(_module_table(counted.modules, depth, console.width))
    if done.others:
        table = _table("Other counters, each in its own scope", "counter", "scope", "theirs", "ours", "difference")
        for each in done.others:
            difference = cell(each.difference, "+.2%")
            table.add_row(each.counter, each.convention, _flops(each.flops), _flops(each.ours), difference)
        console.print(table)
    for each in done.others:
        for reason in each.reasons:
            note(f"  {each.counter}: {reason}", "")
    note(f"Counted by: {counted.method}", "dim")
    if counted.reason:
        note(f"No better method was possible: {counted.reason}")
    for text in counted.notes:
        note(text[0].upper() + text[1:])
    if counted.six_nd is None and counted.tokens is None:
        note("6·N·D is unknown, for the inputs are no tokens: --seq says how many an input is", "dim")
    if counted.uncounted:
        names = ", ".join(counted.uncounted)
        note(f"Counted 0, for no formula is known: {names}. isoflop.register_flop_formula adds one")


def _table(title: str, *columns: str) -> Any:
    """A table whose columns of words ("" is a remark's) may be broken but for the first."""
    words = [i for i, name in enumerate(columns) if name in ("", "scope")]
    table = grid(*columns, left=[0, *words], folded=words, title=title)
    table.title_justify, table.padding = "left", (0, 1, 0, 0)  # at 80 columns the spare spaces are needed
    return table


def _parameter_table(counted: StepCount) -> Any:
    table = _table(f"Parameters N, counted {counted.parameters.method}", "convention", "N", "")
    for name, count in counted.parameters.by_convention().items():
        table.add_row(name, cell(count, ","), _CONVENTIONS[name])
    return table


def _flops_table(counted: StepCount) -> Any:
    title = "FLOPs of the step, forward and backward (1 multiply-add = 2)"
    table = _table(title, "convention", "FLOPs", *(["a token"] if counted.tokens else []), "to model", "")
    model, flops = counted.model_flops, counted.flops
    rows = [("model", model, "windows, documents; nothing twice" if flops else "estimated")]
    if flops is not None:
        rows.append(("hardware", flops.hardware, "with recomputed activations"))
        rows.append(("causal", flops.causal, "attention counted half"))
        if flops.left_out:
            rows.append(("full", flops.full, "attention in full"))
    rows.append(("6·N·D", counted.six_nd, "N non-embedding, active"))
    for name, value, meaning in rows:
        each = [_flops(None if value is None else value / counted.tokens)] if counted.tokens else []
        ratio = "–" if value is None or not model else f"{value / model:.1%}"
        table.add_row(name, _flops(value), *each, ratio, meaning)
    return table


def _module_table(root: ModuleCount, depth: int, width: int) -> Any:
    """The tree; where `width` is short, first without forward FLOPs, then without the modules' kinds."""
    names, kinds, modules = zip(*_rows(root, depth), strict=True)
    columns = {
        "parameters": [f"{module.parameters:,}" for module in modules],
        "forward": [_flops(module.forward) for module in modules],
        "step": [_flops(module.model) for module in modules],
        "hardware": [_flops(module.hardware) for module in modules],
        "share": [f"{module.model / root.model:.1%}" if root.model else "–" for module in modules],
    }
    if root.hardware == root.model:
        del columns["hardware"]

    def room() -> int:  # for the kinds
        widths = [max(map(len, (title, *cells))) for title, cells in columns.items()]
        return width - sum(size + 2 for size in (max(map(len, names)), *widths)) - 3

    widest = max(map(len, kinds))
    if room() < min(widest, 16):
        del columns["forward"]
    with_kinds = room() >= min(widest, 8)
    table = _table("By module (step: forward and backward)", "module", *([""] if with_kinds else []), *columns)
    if with_kinds:
        table.columns[1].no_wrap, table.columns[1].max_width, table.columns[1].overflow = True, room(), "ellipsis"
    for name, kind, *cells in zip(names, kinds, *columns.values(), strict=True):
        table.add_row(name, *([kind] if with_kinds else []), *cells)
    return table


def _rows(module: ModuleCount, depth: int, lead: str = "", branch: str = "") -> Iterator[tuple[str, str, ModuleCount]]:
    """Name with its branches of the tree, kind, and module, a row each; a list and its layers are one row."""
    name, kind = module.name, module.kind
    while True:
        # what neither computes nor holds anything (dropout, activations) would hide what does
        parts = [part for part in module.parts if part.parameters or part.model]
        if not name or len(parts) != 1 or _sums(parts[0]) != _sums(module):
            break
        (part,) = parts
        lists = ("ModuleList", "ModuleDict", "Sequential")
        if module.kind not in lists and part.kind not in lists:
            break
        name, kind, module = f"{name}.{part.name}", kind if part.kind in lists else part.kind, part
    times = f"{module.count}× " if module.count > 1 else ""
    yield f"{lead}{branch}{name or '(model)'}", times + kind, module
    if depth == 0:
        return
    lead += {"": "", "├ ": "│ ", "└ ": "  "}[branch]
    for i, part in enumerate(parts):
        yield from _rows(part, depth - 1, lead, "└ " if i == len(parts) - 1 else "├ ")


def _sums(module: ModuleCount) -> tuple[int, ...]:
    return module.parameters, module.forward, module.model, module.hardware


def _flops(value: float | None) -> str:
    return "0" if value == 0 else cell(value, ".4e")
