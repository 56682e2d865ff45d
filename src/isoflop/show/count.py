"""What `isoflop count` prints: parameters and FLOPs by convention, the tree by module, other counters' opinions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.observe.count import ModuleCount, StepCount

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
        opinions: other counters' (`isoflop.observe.others`).
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
