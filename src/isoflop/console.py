"""What commands print: tables, lines, errors, JSON, and a progress bar for what takes more than a second."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any


def grid(*columns: str, left: Collection[int] = (0,), folded: Collection[int] = (0,), title: str | None = None) -> Any:
    """An empty `rich.table.Table` in the style of every command.

    Args:
        columns: heads; numbers stand to the right, and are never broken.
        left: which columns stand to the left.
        folded: which may be broken between words, and their words be cut in the middle, where the window is narrow.
        title: above it.
    """
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    class Word:
        """One that is cut in the middle where there is no room for it: names often differ at their ends."""

        def __init__(self, text: str) -> None:
            self.text = text

        def __rich_measure__(self, console: Any, options: Any) -> Measurement:
            return Measurement(min(len(self.text), LEAST), len(self.text))

        def __rich_console__(self, console: Any, options: Any) -> Iterator[Text]:
            yield Text(cut(self.text, options.max_width))

    class Plain(Table):
        """Its cells are shown as they are, but for what steers a terminal."""

        def add_row(self, *cells: Any, **options: Any) -> None:
            shown = map(harmless, cells)
            kind = (Word if i in folded and " " not in cell else Text for i, cell in enumerate(cells))
            super().add_row(*(of(cell) for of, cell in zip(kind, shown, strict=True)), **options)

    table = Plain(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="left" if i in left else "right", no_wrap=i not in folded, overflow="fold")
    return table


def cell(value: float | None, write: str | Callable[[float], str]) -> str:
    """A number for a table, by a format specification or a function; a dash for None."""
    if value is None:
        return "–"
    return format(value, write) if isinstance(write, str) else write(value)


def screen(least: int = 0) -> Any:
    """A `rich.console.Console` on stdout, in a file at least so wide."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal or not least else Console(width=max(console.width, least), highlight=False)


LEAST = 16
"""Characters of a word that a table does not cut."""


def cut(text: str, longest: int) -> str:
    """A text, cut in the middle where it is longer.

    >>> cut("gpt-124m-seed-1", 11)
    'gpt-1…eed-1'
    """
    half = (longest - 1) // 2
    return text if len(text) <= longest else f"{text[:half]}…{text[len(text) - half :]}"


def told_apart(names: Sequence[str]) -> tuple[list[str], str]:
    """What tells names apart, and what all of them share; the names themselves, and "", where that is nothing.

    >>> told_apart(["rw/base/kaplan/val", "rw/tuned/const/val"])
    (['base/kaplan', 'tuned/const'], 'rw/…/val')
    >>> told_apart(["adamw", "muon"]), told_apart(["a/b", "a/b/c"])
    ((['adamw', 'muon'], ''), (['a/b', 'a/b/c'], ''))
    """
    words = [re.split(r"([/\\\s=:_.-]+)", name) for name in names]
    shared = min(map(len, words), default=0)
    first = next((i for i in range(0, shared, 2) if len({each[i] for each in words}) > 1), shared)
    last = next((i for i in range(0, shared, 2) if len({each[-1 - i] for each in words}) > 1), shared)
    if len(words) < 2 or not first + last or first + last >= shared:
        return list(names), ""
    shown = ["".join(each[first : len(each) - last]) for each in words]
    return shown, f"{''.join(words[0][:first])}…{''.join(words[0][len(words[0]) - last :])}"


STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """A text of somebody else, without what moves a terminal's cursor, turns its writing or sets its title.

    >>> harmless(f"run{chr(27)}[2J")
    'run?[2J'
    """
    return STEERS.sub("?", text)


def listed(names: Sequence[str], most: int = 4) -> str:
    """A few names in a sentence, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def by_reason(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """The names of each reason, of names with their reasons.

    >>> by_reason([("a", "not finished"), ("b", "no loss"), ("c", "not finished")])
    {'not finished': ['a', 'c'], 'no loss': ['b']}
    """
    found: dict[str, list[str]] = {}
    for name, why in pairs:
        found.setdefault(why, []).append(name)
    return found


MOST_SAID = 1500
"""Characters of a message on stderr."""


def tell(command: str, text: object) -> None:
    """Print a line on stderr in a command's name."""
    message = harmless(str(text))
    if len(message) > MOST_SAID:  # a message may quote a file
        message = f"{message[: MOST_SAID * 2 // 3]} … {message[-MOST_SAID // 3 :]}"
    print(f"isoflop {command}: {message}", file=sys.stderr)


@contextmanager
def reported(command: str, *more: type[Exception], code: int = 1) -> Iterator[None]:
    """End the command with one line on stderr where the block raises ValueError, OSError or one of `more`."""
    faults: tuple[type[Exception], ...] = (ValueError, OSError, *more)
    try:
        yield
    except RecursionError:
        tell(command, "the input is nested too deeply to be read")
        raise SystemExit(code) from None
    except faults as error:
        tell(command, error)
        raise SystemExit(code) from None


def print_json(values: Mapping[str, Any]) -> None:
    """Print the one JSON object of `--json`."""
    print(json.dumps(values, allow_nan=False), flush=True)


def finite(value: float) -> float | None:
    """For JSON, which has no infinity."""
    return float(value) if math.isfinite(value) else None


def picked(thing: object, names: str, **others: str) -> dict[str, Any]:
    """Attributes of an object for JSON, which has no infinity; null for all of them where there is no object.

    `names`, between blanks, stay; `others` are attributes by another name that they get.
    """
    wanted = {name: name for name in names.split()} | others
    return {name: None if thing is None else _plain(getattr(thing, attribute)) for name, attribute in wanted.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    return finite(value) if isinstance(value, float) else value


def say(text: str, indent: int = 4) -> None:
    """Print a line, broken between words at the terminal's width; what follows the first is indented."""
    width = max(shutil.get_terminal_size().columns, 40)
    rest = " " * indent
    print(
        textwrap.fill(harmless(text), width, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False),
        flush=True,
    )


PATIENCE = 1.0
"""Seconds without a bar."""


@contextmanager
def progress_bar(text: str, wanted: bool = True) -> Iterator[Callable[[float], None]]:
    """Yield a function that takes the share done, 0 to 1; the bar is removed at the end."""
    from rich.console import Console

    console, began, bars = Console(stderr=True), time.monotonic(), list[Any]()
    if not (wanted and console.is_terminal):
        yield lambda share: None
        return

    def tell(share: float) -> None:
        if not bars and time.monotonic() - began > PATIENCE:
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
            bars.append(Progress(*columns, console=console, transient=True))
            bars[0].add_task(text, total=1.0)
            bars[0].start()
        for bar in bars:
            bar.update(bar.task_ids[0], completed=share)

    try:
        yield tell
    finally:
        for bar in bars:
            bar.stop()


class Shown:
    """A result that a notebook shows as its text, columns in line."""

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/plain": str(self)}  # of IPython, where HTML is not shown: before a data class's own repr


def html_table(title: str, rows: Mapping[str, str], notes: Sequence[str] = ()) -> str:
    """A table of two columns for notebooks, every text escaped."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items()
    )
    below = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return f"<b>{escape(title)}</b><table>{cells}</table>{below}"
