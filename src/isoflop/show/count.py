"""What `isoflop count` prints: parameters and FLOPs by convention, the tree by module, other counters' opinions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.observe.count import ModuleCount, StepCount

_N = (
    ("total", "every parameter once"),
    ("trainable", "with requires_grad"),
    ("non_embedding", "without token and position tables and output head (Kaplan et al. 2020)"),
    ("non_embedding_with_head", "the head's matrix counted, tied or not (Porian et al. 2024)"),
    ("active", "what one token passes through, of experts the chosen"),
)


def print_count(name: str, inputs: str, counted: StepCount, opinions: Iterable[Any] = (), depth: int = 4) -> None:
    """Print a step's count for people; numbers for machines are in `--json`.

    Args:
        name: the model's.
        inputs: of the step, as text.
        counted: what was counted.
        opinions: other counters' (`isoflop.observe.others`).
        depth: levels of the module tree.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 120))  # in a file whole numbers are worth more than a width
    console.print(Text.assemble((name, "bold"), f" · one training step on {inputs}"))
    console.print(_parameter_table(counted))
    console.print(_flops_table(counted))
    if counted.modules is not None and depth:
        console.print(_module_table(counted.modules, depth))
    opinions = tuple(opinions)
    if opinions:
        console.print(_opinion_table(opinions))
        for opinion in opinions:
            for reason in opinion.reasons:
                console.print(Text(f"  {opinion.counter}: {reason}"), soft_wrap=True)
    console.print(Text(f"Counted by: {counted.method}", style="dim"))
    if counted.reason:
        console.print(Text(f"Not in a better way, because: {counted.reason}", style="yellow"), soft_wrap=True)
    if counted.uncounted:
        names = ", ".join(counted.uncounted)
        text = f"Counted 0, for no formula is known: {names}. isoflop.register_flop_formula adds one"
        console.print(Text(text, style="yellow"), soft_wrap=True)


def _table(title: str, *columns: str, right: int = 1) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i, column in enumerate(columns):
        number = right <= i
        table.add_column(column, justify="right" if number else "left", no_wrap=number)
    return table


def _parameter_table(counted: StepCount) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title="Parameters N", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("convention")
    table.add_column("N", justify="right", no_wrap=True)
    table.add_column(f"counted {counted.parameters.method}")
    counts = counted.parameters.by_convention()
    for name, meaning in _N:
        table.add_row(name, _whole(counts[name]), meaning)
    return table


def _flops_table(counted: StepCount) -> Any:
    table = _table("FLOPs of the step, forward and backward (1 multiply-add = 2)", "", "FLOPs", "a token", "to model")
    model, flops = counted.model_flops, counted.flops
    rows = [("model: recomputation left out, attention in full" if flops else "model, estimated", model)]
    if flops is not None:
        rows.append(("hardware: with what activation checkpointing computes again", flops.hardware))
        rows.append(("causal: attention counted half, as kernels do that skip what is masked", flops.causal))
    rows.append(("6·N·D, N non-embedding, of experts the active", counted.six_nd))
    for meaning, value in rows:
        a_token = None if value is None or not counted.tokens else value / counted.tokens
        ratio = "–" if value is None or not model else f"{value / model:.1%}"
        table.add_row(meaning, _flops(value), _flops(a_token), ratio)
    return table


def _module_table(root: ModuleCount, depth: int) -> Any:
    # hardware FLOPs are shown where they are something else
    again = root.hardware != root.model
    columns = ("parameters", "forward", "step", *(("hardware",) if again else ()), "share")
    table = _table("By module (step: forward and backward)", "module", "", *columns, right=2)
    for name, kind, module in _rows(root, depth):
        share = f"{module.model / root.model:.1%}" if root.model else "–"
        hardware = (_flops(module.hardware),) if again else ()
        table.add_row(
            name, kind, _whole(module.parameters), _flops(module.forward), _flops(module.model), *hardware, share
        )
    return table


def _rows(module: ModuleCount, depth: int, lead: str = "", branch: str = "") -> Iterator[tuple[str, str, ModuleCount]]:
    kind = module.kind if module.count == 1 else f"{module.kind} ×{module.count}"
    yield f"{lead}{branch}{module.name or '(model)'}", kind, module
    if depth == 0:
        return
    # what neither computes nor holds anything (dropout, activations) would hide what does
    parts = [part for part in module.parts if part.parameters or part.model]
    lead += {"": "", "├ ": "│ ", "└ ": "  "}[branch]
    for i, part in enumerate(parts):
        yield from _rows(part, depth - 1, lead, "└ " if i == len(parts) - 1 else "├ ")


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
