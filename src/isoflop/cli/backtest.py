"""`isoflop backtest RUNS…`: finished runs replayed, to see how far their forecasts could be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.text import AsJson, CurveFiles, CurveLoss, Level, finite, print_json, reported, tell

if TYPE_CHECKING:
    from isoflop.cli.curves import Curves
    from isoflop.fit.forecast import FinishedRun, Priors

LEAVE_OUT, SHIPPED = "leave-one-out", "default"


def backtest(
    runs: CurveFiles,
    baselines: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Scored on the same runs; `none`: only isoflop's own.")
    ] = None,
    priors: Annotated[
        str,
        typer.Option(
            help="leave-one-out: learnt from the other organisations' runs (of records: the other runs), as it would "
            "have been; default: those that ship."
        ),
    ] = LEAVE_OUT,
    at: Annotated[str, typer.Option(metavar="FRACTION,…", help="How much of each run is seen.")] = "0.25,0.5,0.75",
    loss: CurveLoss = "train",
    level: Level = 0.8,
    as_json: AsJson = False,
) -> None:
    """Replay finished runs: what would have been forecast at a part of each, and how wrong it was."""
    from rich.console import Console

    from isoflop.cli import curves
    from isoflop.fit.forecast import ESTIMATORS
    from isoflop.fit.forecast import backtest as replay_all

    with reported("backtest", KeyError):
        fractions = [_fraction(text) for text in at.split(",")]
        names = estimators(baselines, tuple(ESTIMATORS))
        if priors not in (LEAVE_OUT, SHIPPED):
            raise ValueError(f"--priors: expected {LEAVE_OUT} or {SHIPPED}, got {priors!r}")
        read = curves.read(runs)
        finished, chosen = material(read, priors, loss)
        for problem in read.problems:
            tell("backtest", f"left out: {problem}")
        if not finished:
            raise ValueError("none of the runs is finished and can be replayed")
        with Console(stderr=True).status(f"replaying {len(finished)} runs …"):
            table = replay_all(finished, names, fractions, chosen, level)
    if as_json:
        print_json(as_object(table))
        return
    from isoflop.show.backtest import print_backtest

    print_backtest(table, level, len(finished))


def material(read: Curves, priors: str, loss: str) -> tuple[list[FinishedRun], dict[str, Priors]]:
    """The runs to replay, and the priors for each organisation's."""
    from isoflop.fit.forecast import DEFAULT_PRIORS
    from isoflop.fit.forecast.records import finished_runs, priors_without
    from isoflop.fit.forecast.replay import priors_for

    published = [run for run in read.published if not run.stopped_early]
    read.problems.extend(f"{run.name}: {run.stopped_early}" for run in read.published if run.stopped_early)
    chosen = priors_for(published, "default" if priors == SHIPPED else "leave-one-organisation-out")
    own, problems = finished_runs(read.records, loss)
    read.problems.extend(problems)
    for organisation in {run.organisation for run in own}:
        # what ships knows nothing of a user's runs, so that it stays; only the run itself has to be left out
        chosen[organisation] = DEFAULT_PRIORS if priors == SHIPPED else priors_without(organisation, own)
    return [*published, *own], chosen


def estimators(baselines: str | None, known: Sequence[str]) -> list[str]:
    """Isoflop's own and the baselines; all of them unless they are named.

    Raises:
        ValueError: a name that is none.
    """
    if baselines is None:
        return list(known)
    wanted = [name.strip() for name in baselines.split(",") if name.strip() not in ("", "none", known[0])]
    for name in wanted:
        if name not in known:
            raise ValueError(f"--baselines: expected some of {', '.join(known[1:])}, or none; got {name!r}")
    return [known[0], *dict.fromkeys(wanted)]


def as_object(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The object that `--json` prints: estimator → dataset → fraction → figures; null where nothing was forecast."""
    return {
        estimator: {
            dataset: {
                fraction: {
                    "median": finite(score.median),
                    "p90": finite(score.p90),
                    "coverage": finite(score.coverage),
                    "spoke": score.spoke,
                    "n": score.n,
                }
                for fraction, score in scores.items()
            }
            for dataset, scores in datasets.items()
            if dataset != ALL
        }
        for estimator, datasets in table.items()
    }


ALL = "all"
"""The backtest's mean over datasets; not in the JSON, where a reader takes means of their own."""


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise ValueError(f"--at: expected fractions between 0 and 1, such as 0.25,0.5; got {text.strip()!r}")
    return value
