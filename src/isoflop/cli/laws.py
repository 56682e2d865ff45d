"""`isoflop laws`: published laws and constants, with their source."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from isoflop.fit.publication import Published


def laws(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them, in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Published scaling laws: constants, source, convention of N, range of validity."""
    from isoflop.fit.published import published, published_names

    try:
        chosen = [published(each) for each in (published_names() if name is None else (name,))]
    except ValueError as error:
        typer.echo(f"isoflop laws: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps({entry.name: as_object(entry) for entry in chosen}))
    elif name is not None:
        typer.echo(str(chosen[0]))
    else:
        _print_table(chosen)


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
        "note": entry.note,
    }


def _print_table(entries: list[Published]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("name", no_wrap=True)
    for column in ("states", "N", "paper"):
        table.add_column(column)
    for entry in entries:
        states = [] if entry.law is None else [entry.law.form.text]
        states += [
            f"{what} {law}"
            for what, law in (("", entry.allocation), ("batch", entry.batch_law), ("rate", entry.learning_rate_law))
            if law is not None
        ]
        table.add_row(
            entry.name, "; ".join(states).strip(), entry.n_convention.replace("_", " "), entry.paper.split(" (")[0]
        )
    Console().print(table)
    typer.echo("isoflop laws NAME shows constants, validity and notes.")
