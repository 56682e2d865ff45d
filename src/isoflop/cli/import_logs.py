"""`isoflop import PATH… -o runs/`: other tools' logs as isoflop's records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.common import AsJson
from isoflop.console import by_reason, cell, grid, listed, picked, print_json, reported, screen, tell

if TYPE_CHECKING:
    from isoflop.logs import Imported, ImportResult

NONE = "no run was imported"
ROWS = 40
"""Runs shown; the others are counted."""


Several = list[str] | None


@dataclass(frozen=True)
class Done:
    """A run that was imported, its record, and `written`, `updated`, `unchanged` or, of a dry run, `not written`."""

    one: Imported
    path: Path | None
    action: str

    @property
    def losses(self) -> dict[str, float | None]:
        """The last value of each loss."""
        return {name: loss for point in self.one.run.points for name, loss in point.losses.items()}


def _several(metavar: str, text: str) -> Any:
    """An option that may be given for each run, loss or column."""
    return typer.Option(metavar=metavar, help=f"{text} Repeatable.")


def import_(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH",
            help="Files, folders that are searched, wandb:entity/project[/run] or mlflow:<tracking URI>[#experiment].",
        ),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the records.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="KIND",
            help="huggingface, tensorboard, lightning, wandb, mlflow, trackio, table or lines.",
        ),
    ] = None,
    params: Annotated[Several, _several("[RUN=]N", "Parameters, such as 124M or small=124M.")] = None,
    config: Annotated[Several, _several("[RUN=]FILE", "config.json of Hugging Face, to count N from.")] = None,
    tokens_per_step: Annotated[
        Several, _several("[RUN=]NUMBER", "Tokens an optimizer step, all devices together.")
    ] = None,
    flops_per_token: Annotated[Several, _several("[RUN=]NUMBER", "Training FLOPs a token.")] = None,
    seq: Annotated[Several, _several("[RUN=]NUMBER", "Tokens a sequence.")] = None,
    devices: Annotated[Several, _several("[RUN=]NUMBER", "Devices that trained.")] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="CSV with these by run: run,params,tokens_per_step,… Its other columns become groups.", exists=True
        ),
    ] = None,
    loss: Annotated[
        Several, _several("[LOSS=]COLUMN", "Column of the training loss; eval/val=COLUMN,… of another.")
    ] = None,
    loss_unit: Annotated[
        Several,
        _several("[LOSS=]UNIT", "nats (default), bits, ppl, bpb (bits per byte); train=mean: of all steps so far."),
    ] = None,
    tokens: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of tokens since the run began.")] = None,
    step: Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of optimizer steps.")] = None,
    run: Annotated[Several, _several("COLUMN", "Column that separates the runs of one file.")] = None,
    group: Annotated[
        Several, _several("COLUMN", "Column or hyperparameter to keep of each run, for fit --group.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("-n", "--dry-run", help="Show what would be imported, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Import finished runs from other tools' logs, for fit, plan, backtest, rank and report.

    The command asks for what a log does not hold; until it is given, the run is imported with its loss by step alone.
    The exit code is 1 if no run was imported, or most were refused.
    """
    from isoflop.logs import EVERY, Given, import_runs, read_answers, write_run
    from isoflop.record import RecordError

    if output is None and not dry_run:
        raise typer.BadParameter("expected a folder for the records, -o runs/; or -n, to look without writing")
    with reported("import", RecordError):
        given = Given(
            params=_numbers("--params", params),
            tokens_per_step=_numbers("--tokens-per-step", tokens_per_step),
            flops_per_token=_numbers("--flops-per-token", flops_per_token),
            seq=_numbers("--seq", seq),
            devices=_numbers("--devices", devices),
            config=_by_name("--config", config, EVERY),
            loss=_by_name("--loss", loss, "train"),
            loss_unit=_by_name("--loss-unit", loss_unit, EVERY),
            step=step,
            tokens=tokens,
            run=run or (),
            group=group or (),
            table={} if table is None else read_answers(table),
        )
        result = import_runs(paths, given, kind=kind, leave_out=[] if table is None else [table])
    done, failures = [], []
    for one in result.imported:
        try:
            written = write_run(output, one.run) if output and not dry_run else (None, "not written")
            done.append(Done(one, *written))
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
    if not done or result.refused > len(done):
        tell("import", f"{result.refused} of {result.refused + len(done)} runs were refused" if done else NONE)
        raise typer.Exit(1)


def _by_name(option: str, texts: Sequence[str] | None, otherwise: str) -> dict[str, str]:
    """NAME=VALUE by name; a bare VALUE under `otherwise`. ValueError: two values of one."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, separator, value = text.rpartition("=")
        name, value = name.strip() if separator else otherwise, value.strip()
        if found.setdefault(name, value) != value:
            whose = f" for {name}" if name else ""
            raise ValueError(f"{option}: expected one answer{whose}, got {found[name]} and {value}")
    return found


def _numbers(option: str, texts: Sequence[str] | None) -> dict[str, float]:
    from isoflop.logs import EVERY, amount

    found = {}
    for name, text in _by_name(option, texts, EVERY).items():
        value = amount(text)
        if value is None:
            raise ValueError(f"{option}: expected a positive number, such as 124M, or RUN=124M; got {text!r}")
        found[name] = value
    return found


def as_object(result: ImportResult, done: Sequence[Done]) -> dict[str, Any]:
    """The object that `--json` prints."""
    return {
        "runs": [
            picked(each.one.run, "run_id name status parameters")
            | picked(each.one, "kind source missing notes")
            | picked(each.one.run.points[-1], "step tokens flops")
            | picked(each, "action losses")
            | {"record": None if each.path is None else str(each.path), "points": len(each.one.run.points)}
            for each in done
        ],
        **picked(result, "problems questions"),
    }


def print_imported(done: Sequence[Done]) -> None:
    """Print the runs and the notes on them, each note once."""
    from isoflop.laws import short

    if not done:
        return
    console = screen(110)
    heads = ("run", "from", "N", "tokens", "FLOPs", "steps", "loss", "record")
    table = grid(*heads, left=(0, 1, 7), folded=(0, 6))
    for each in done[:ROWS]:
        run, last = each.one.run, each.one.run.points[-1]
        size = run.parameters.get("non_embedding") or run.parameters.get("total")
        steps = "–" if each.one.ends else f"{last.step:,}"
        steps += f" of {run.planned['steps']:,}" if run.stopped and "steps" in run.planned else ""
        cells = (run.name, each.one.kind, cell(size, short), cell(last.tokens, short), cell(last.flops, ".2e"), steps)
        table.add_row(*cells, _losses_cell(each.losses), each.action)
    console.print(table)
    if len(done) > ROWS:
        console.print(f"… and {len(done) - ROWS} more runs")
    notes = Counter(note for each in done for note in dict.fromkeys(each.one.notes))
    for note, runs in notes.most_common(30):
        of = "" if runs == len(done) else f" ({runs} of {len(done)} runs)"
        console.print(f"  {note}{of}", markup=False, soft_wrap=True)
    for why, names in by_reason((each.one.run.name, each.one.run.rose) for each in done if each.one.run.rose).items():
        console.print(f"  {listed(names)}: {why}", markup=False, soft_wrap=True)
    counted = ", ".join(f"{many} {action}" for action, many in Counter(each.action for each in done).items())
    fits = any(each.one.run.parameters and each.one.run.points[-1].tokens for each in done)
    command = "fit" if fits else "report"  # which needs neither N nor tokens
    then = "" if done[0].path is None else f" Next: isoflop {command} {done[0].path.parent}"
    console.print(f"Runs: {counted}.{then}", markup=False, soft_wrap=True)


def _losses_cell(losses: Mapping[str, float | None]) -> str:
    shown = [f"{'' if name == 'train' else name + ' '}{cell(loss, '.4g')}" for name, loss in losses.items()]
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")
