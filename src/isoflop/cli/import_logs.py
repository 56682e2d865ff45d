"""`isoflop import PATH… -o runs/`: other tools' logs as isoflop's records.

What `isoflop import` did, as a table, and how each number was obtained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.common import AsJson, print_json, reported, tell
from isoflop.console import grid, screen
from isoflop.report.summary import count_cell, flops_cell

if TYPE_CHECKING:
    from isoflop.logs.convert import Imported, ImportResult
    from isoflop.logs.given import Given


def import_(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH…",
            help="Files, folders that are searched, "
            r"wandb:entity/project\[/run] or mlflow:<tracking URI>\[#experiment].",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the records.")],
    kind: Annotated[
        str | None,
        typer.Option("--from", metavar="KIND", help="huggingface, tensorboard, lightning, wandb, mlflow or table."),
    ] = None,
    params: Annotated[
        list[str] | None, typer.Option(metavar="[RUN=]N", help="Parameters, such as 124M or small=124M. Repeatable.")
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(metavar="[RUN=]FILE", help="A config.json of Hugging Face, that N is counted from. Repeatable."),
    ] = None,
    tokens_per_step: Annotated[
        list[str] | None,
        typer.Option(metavar="[RUN=]NUMBER", help="Tokens of an optimizer step, all devices together. Repeatable."),
    ] = None,
    flops_per_token: Annotated[
        list[str] | None, typer.Option(metavar="[RUN=]NUMBER", help="FLOPs of training, a token. Repeatable.")
    ] = None,
    seq: Annotated[
        list[str] | None, typer.Option(metavar="[RUN=]NUMBER", help="Tokens a sequence. Repeatable.")
    ] = None,
    devices: Annotated[
        list[str] | None, typer.Option(metavar="[RUN=]NUMBER", help="Devices that trained. Repeatable.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="A CSV of these by run: run,params,tokens_per_step,…", exists=True)
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(metavar="[LOSS=]COLUMN", help="The training loss's column, or eval/val=COLUMN. Repeatable."),
    ] = None,
    loss_unit: Annotated[
        list[str] | None,
        typer.Option(metavar="[LOSS=]UNIT", help="nats (default), bits, ppl or bpb (bits per byte). Repeatable."),
    ] = None,
    step: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of steps of a plain table.")] = None,
    as_json: AsJson = False,
) -> None:
    """Import finished runs from other tools' logs, for fit, plan, backtest, rank and report.

    What a log does not hold is asked for; a run without it is imported all the same, with its loss by step. The exit
    code is 1 if no run could be imported.
    """
    from isoflop.logs.convert import import_runs, write_run
    from isoflop.record.run import RecordError

    done: list[tuple[Imported, Path, str]] = []
    with reported("import", RecordError):
        given = given_of(params, config, tokens_per_step, flops_per_token, seq, devices, table, loss, loss_unit)
        result = import_runs(paths, given, kind=kind, step=step, leave_out=[] if table is None else [table])
    failures: list[str] = []
    for one in result.imported:
        try:
            done.append((one, *write_run(output, one.run)))
        except RecordError as error:
            failures.append(str(error))
    result = replace(result, problems=(*result.problems, *dict.fromkeys(failures)))
    for problem in result.problems:
        tell("import", problem)
    if as_json:
        print_json(as_object(result, done))
    else:
        print_imported(done)
    for question in result.questions:
        tell("import", question)
    if not done:
        tell("import", "no run was imported")
        raise typer.Exit(1)


def given_of(
    params: Sequence[str] | None,
    config: Sequence[str] | None,
    tokens_per_step: Sequence[str] | None,
    flops_per_token: Sequence[str] | None,
    seq: Sequence[str] | None,
    devices: Sequence[str] | None,
    table: Path | None,
    loss: Sequence[str] | None,
    loss_unit: Sequence[str] | None,
) -> Given:
    """The options as `Given`.

    Raises:
        ValueError: one is no number, or the table can't be read.
    """
    from isoflop.logs.given import EVERY, Given, read_answers

    return Given(
        params=_numbers("--params", params),
        tokens_per_step=_numbers("--tokens-per-step", tokens_per_step),
        flops_per_token=_numbers("--flops-per-token", flops_per_token),
        seq=_numbers("--seq", seq),
        devices=_numbers("--devices", devices),
        config=_by_name(config, EVERY),
        loss=_by_name(loss, "train"),
        loss_unit=_by_name(loss_unit, EVERY),
        table={} if table is None else read_answers(table),
    )


def _by_name(texts: Sequence[str] | None, otherwise: str) -> dict[str, str]:
    """NAME=VALUE by name; a bare VALUE under `otherwise`."""
    found = {}
    for text in texts or ():
        name, separator, value = text.rpartition("=")
        found[name.strip() if separator else otherwise] = value.strip()
    return found


def _numbers(option: str, texts: Sequence[str] | None) -> dict[str, float]:
    from isoflop.logs.given import EVERY, amount

    found = {}
    for name, text in _by_name(texts, EVERY).items():
        value = amount(text)
        if value is None:
            raise ValueError(f"{option}: expected a positive number, such as 124M, or RUN=124M; got {text!r}")
        found[name] = value
    return found


def as_object(result: ImportResult, done: Sequence[tuple[Imported, Path, str]]) -> dict[str, Any]:
    """The object that `--json` prints."""
    return {
        "runs": [
            {
                "run_id": one.run.run_id,
                "name": one.run.name,
                "kind": one.kind,
                "source": one.source,
                "record": str(path),
                "action": action,
                "status": one.run.status,
                "points": len(one.run.points),
                "parameters": dict(one.run.parameters),
                "step": one.run.points[-1].step,
                "tokens": one.run.points[-1].tokens,
                "flops": one.run.points[-1].flops,
                "losses": last_losses(one),
                "missing": list(one.missing),
                "notes": list(one.notes),
            }
            for one, path, action in done
        ],
        "problems": list(result.problems),
        "questions": list(result.questions),
    }


def last_losses(one: Imported) -> dict[str, float | None]:
    """The last value of each loss."""
    return {name: loss for point in one.run.points for name, loss in point.losses.items()}


ROWS = 40
"""Runs shown; the others are counted."""


def print_imported(done: Sequence[tuple[Imported, Path, str]]) -> None:
    """Print the runs and the notes on them, each note once.

    Args:
        done: runs, their records, and `written`, `updated` or `unchanged`.
    """
    from rich.markup import escape

    if not done:
        return
    console = screen(110)
    heads = ("run", "from", "N", "tokens", "FLOPs", "steps", "points", "loss", "record")
    table = grid(*heads, left=(0, 1, 8), folded=range(9))
    for one, _, action in done[:ROWS]:
        last, parameters = one.run.points[-1], one.run.parameters
        size = parameters.get("non_embedding") or parameters.get("total")
        steps = "–" if one.ends else f"{last.step:,}"
        cells = (one.run.name, one.kind, count_cell(size), count_cell(last.tokens), flops_cell(last.flops), steps)
        table.add_row(*map(escape, (*cells, f"{len(one.run.points):,}", _losses(one), action)))
    console.print(table)
    if len(done) > ROWS:
        console.print(f"… and {len(done) - ROWS} more runs")
    for note, runs in _notes(done):
        of = "" if runs == len(done) else f" ({runs} of {len(done)} runs)"
        console.print(f"  {note}{of}", markup=False, soft_wrap=True)
    folder = done[0][1].parent
    actions = [action for _, _, action in done]
    counted = ", ".join(f"{actions.count(name)} {name}" for name in dict.fromkeys(actions))
    console.print(f"{counted}: isoflop fit {folder}", markup=False, soft_wrap=True)


def _notes(done: Sequence[tuple[Imported, Path, str]]) -> list[tuple[str, int]]:
    found: dict[str, int] = {}
    for one, _, _ in done:
        for note in dict.fromkeys(one.notes):
            found[note] = found.get(note, 0) + 1
    return sorted(found.items(), key=lambda item: -item[1])[:30]


def _losses(one: Imported) -> str:
    last: dict[str, float | None] = {}
    for point in one.run.points:
        last.update(point.losses)
    shown = [
        f"{'' if name == 'train' else name + ' '}{'–' if loss is None else f'{loss:.4g}'}"
        for name, loss in last.items()
    ]
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")
