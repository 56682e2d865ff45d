"""A progress bar on stderr for what takes more than a second; none where stderr is no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PATIENCE = 1.0
"""Seconds without a bar."""


@contextmanager
def progress_bar(text: str, wanted: bool = True) -> Iterator[Callable[[float], None]]:
    """Gives what is to be told the share that is done, 0 to 1; the bar goes when the work is over.

    Args:
        text: beside the bar.
        wanted: False: never a bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (wanted and console.is_terminal):
        yield lambda share: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar, began = Progress(*columns, console=console, transient=True), time.monotonic()
    task = bar.add_task(text, total=1.0)

    def tell(share: float) -> None:
        if not bar.live.is_started and time.monotonic() - began > PATIENCE:
            bar.start()
        bar.update(task, completed=share)

    try:
        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()
