"""Tables and the console of every command."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


def grid(*columns: str, left: Collection[int] = (0,), folded: Collection[int] = (0,), title: str | None = None) -> Any:
    """An empty `rich.table.Table` in the style of every command.

    Args:
        columns: heads; numbers stand to the right, and are never broken.
        left: which columns stand to the left.
        folded: which may be broken into lines where the window is narrow.
        title: above it.
    """
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i in left else "right", no_wrap=i not in folded, overflow="fold")
    return table


def screen(least: int = 0) -> Any:
    """A `rich.console.Console` on stdout, in a file at least so wide."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal or not least else Console(width=max(console.width, least), highlight=False)
