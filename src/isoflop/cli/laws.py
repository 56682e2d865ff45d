"""`isoflop laws`: published laws and constants, with their source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.text import AsJson, print_json, reported, say

if TYPE_CHECKING:
    from isoflop.fit.papers.publication import Published


def laws(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """Published scaling laws: constants, source, convention of N, range of validity."""
    from isoflop.fit.papers.published import published, published_names

    with reported("laws"):
        chosen = [published(each) for each in (published_names() if name is None else (name,))]
    if as_json:
        print_json({entry.name: as_object(entry) for entry in chosen})
    elif name is not None:
        for line in str(chosen[0]).split("\n"):
            say(line)
        if commands := _commands(chosen[0]):
            say(f"  --law of isoflop {' and '.join(commands)}")
    else:
        _print_all(chosen)


def as_object(entry: Published) -> dict[str, Any]:
    """What `--json` prints of one."""
    return {
        "paper": entry.paper,
        "where": entry.where,
        "n_convention": entry.n_convention,
        "tokenizer": entry.tokenizer,
        "valid": entry.valid,
        "law": None if entry.law is None else entry.law.form.name,
        "parameters": None if entry.law is None else {key: float(v) for key, v in entry.law.constants.items()},
        "allocation": None if entry.allocation is None else str(entry.allocation),
        "batch": None if entry.batch_law is None else str(entry.batch_law),
        "learning_rate": None if entry.learning_rate_law is None else str(entry.learning_rate_law),
        "note": entry.note,
    }


def _commands(entry: Published) -> list[str]:
    """Whose --law it can be."""
    has_loss = entry.law is not None and set(entry.law.form.variables) in ({"N", "D"}, {"N", "D", "U"})
    return [*(["plan"] if has_loss or entry.allocates else []), *(["compare"] if has_loss else [])]


def _print_all(entries: list[Published]) -> None:
    """Two lines each or a few more, since formulas do not fit beside their names."""
    typer.echo(f"{'name':34}{'--law of':15}paper")
    for entry in entries:
        states = [] if entry.law is None else [entry.law.form.text]
        states += [
            f"{what}{law}"
            for what, law in (("", entry.allocation), ("batch ", entry.batch_law), ("rate ", entry.learning_rate_law))
            if law is not None
        ]
        say(f"{entry.name:34}{', '.join(_commands(entry)):15}{entry.paper.split(' (')[0]}", indent=49)
        counts = "" if entry.n_convention == "unknown" else f"  (N {entry.n_convention.replace('_', ' ')})"
        say(f"    {'; '.join(states)}{counts}", indent=6)
    typer.echo("\nisoflop laws NAME shows constants, validity and notes.")
