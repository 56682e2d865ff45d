"""A question of the checklist, and how what runs say becomes its answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from isoflop.show.figures.words import counted

State = Literal["answered", "partly", "open"]


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        part: of the checklist.
        question: what must be reported.
        answer: what the records and this fit tell; of what they don't, what to state.
        state: "answered", "partly" (something is left to state), "open" (the records do not tell).
    """

    part: str
    question: str
    answer: str
    state: State


def told(part: str, question: str, answer: str, state: State = "answered") -> Item:
    """An answer that is known."""
    return Item(part, question, answer, state)


def unanswered(part: str, question: str, what: str) -> Item:
    """What records do not tell; `what` is to be stated."""
    return Item(part, question, f"Not recorded. Please state {what}.", "open")


def from_records(part: str, question: str, values: Iterable[str | None], what: str, always: str = "") -> Item:
    """An answer from what the records say, one text each; `what` is to be stated where they don't."""
    values = [value or "" for value in values]
    said = [value for value in values if value]
    stated = ". ".join(text for text in (always, summed(said, len(values)) if said else "") if text)
    if said and len(said) == len(values):
        return Item(part, question, stated, "answered")
    if not stated:
        return unanswered(part, question, what)
    missing = (
        f"Not recorded{f' for {len(values) - len(said)} of {len(values)} runs' if said else ''}: please state {what}."
    )
    return Item(part, question, f"{stated}. {missing}", "partly")


def summed(values: Sequence[str], of: int, most: int = 4) -> str:
    """What several runs say: the text where it is one, else the commonest with their numbers."""
    counts: dict[str, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    if len(counts) == 1:
        return next(iter(counts)) + (f" ({len(values)} of {of} runs)" if len(values) < of else "")
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    more = f"; and {len(ranked) - most} more" if len(ranked) > most else ""
    return "; ".join(f"{value} ({counted(n, 'run', 'runs')})" for value, n in ranked[:most]) + more
