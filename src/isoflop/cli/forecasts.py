"""`isoflop backtest RUNS…` replays finished runs; `isoflop rank RUNS…` orders runs by their forecast final loss."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.common import AsJson, CurveFiles, CurveLoss, Level, read
from isoflop.console import by_reason, grid, listed, picked, print_json, reported, screen, tell

if TYPE_CHECKING:
    from isoflop.cli.common import Curves
    from isoflop.forecast import Forecast, LossCurve, Priors, Ranking, Score
    from isoflop.record.run import Run


LEAVE_OUT, SHIPPED = "leave-one-out", "default"


def backtest(
    runs: CurveFiles,
    baselines: Annotated[
        str | None, typer.Option(metavar="NAME,…", help="Baselines to score too (default: all; `none`).")
    ] = None,
    priors: Annotated[
        str,
        typer.Option(
            help="leave-one-out: learn them from the other organisations' runs (of records: the other runs); default: "
            "use those that ship."
        ),
    ] = LEAVE_OUT,
    at: Annotated[str, typer.Option(metavar="FRACTION,…", help="Parts of a run to forecast from.")] = "0.25,0.5,0.75",
    loss: CurveLoss = "train",
    level: Level = 0.8,
    as_json: AsJson = False,
) -> None:
    """Replay finished runs, forecast each from a part of it, and score the forecasts."""
    from rich.console import Console

    from isoflop import forecast
    from isoflop.fit.sources import joined

    with reported("backtest", KeyError):
        fractions = [_fraction(text) for text in at.split(",")]
        names = estimators(baselines, tuple(forecast.ESTIMATORS))
        if priors not in (LEAVE_OUT, SHIPPED):
            raise ValueError(f"--priors: expected {LEAVE_OUT} or {SHIPPED}, got {priors!r}")
        found = read(runs)
        found.records, loss = joined(found.records, loss)
        finished, chosen = _material(found, priors, loss)
        for problem in found.problems:
            tell("backtest", f"left out: {problem}")
        if not finished:
            raise ValueError("none of the runs is finished and can be replayed")
        with Console(stderr=True).status(f"replaying {len(finished)} runs …"):
            table = forecast.backtest(finished, names, fractions, chosen, level)
    if as_json:
        print_json(_backtest_object(table))
    else:
        _print_backtest(table, level, len(finished))


def _material(found: Curves, priors: str, loss: str) -> tuple[list[LossCurve], dict[str, Priors]]:
    """The runs to replay, and the priors for each organisation's; others are added to the problems."""
    from isoflop.forecast import finished_runs, priors_for, priors_without

    published = [run for run in found.published if not run.not_of_plan]
    found.problems.extend(f"{run.name}: {run.not_of_plan}" for run in found.published if run.not_of_plan)
    own, problems = finished_runs(found.records, loss)
    found.problems.extend(problems)
    if priors == SHIPPED:
        return [*published, *own], priors_for([*published, *own], "default")
    # the shipped priors were not learnt from a user's runs: only the run itself has to be left out
    chosen = {run.organisation: priors_without(run.organisation, own) for run in own}
    return [*published, *own], priors_for(published, "leave-one-organisation-out") | chosen


def estimators(baselines: str | None, known: Sequence[str]) -> list[str]:
    """Isoflop's own and the baselines; all of them unless they are named. ValueError: a name that is none."""
    if baselines is None:
        return list(known)
    wanted = [name.strip() for name in baselines.split(",") if name.strip() not in ("", "none", known[0])]
    for name in wanted:
        if name not in known:
            raise ValueError(f"--baselines: expected some of {', '.join(known[1:])}, or none; got {name!r}")
    return [known[0], *dict.fromkeys(wanted)]


Scores = Mapping[str, Mapping[str, Mapping[str, "Score"]]]
"""Estimator → dataset → fraction → score."""
ALL = "all"
"""The backtest's mean over datasets; not in the JSON, where a reader takes means of their own."""


def _backtest_object(table: Scores) -> dict[str, Any]:
    """The object that `--json` prints; null where there was no forecast."""
    return {
        estimator: {
            dataset: {at: picked(score, " ".join(vars(score))) for at, score in scores.items()}
            for dataset, scores in datasets.items()
            if dataset != ALL
        }
        for estimator, datasets in table.items()
    }


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise ValueError(f"--at: expected fractions between 0 and 1, such as 0.25,0.5; got {text.strip()!r}")
    return value


def rank(
    runs: CurveFiles,
    keep: Annotated[int, typer.Option(min=1, help="Number of best runs to find.")] = 1,
    sure: Annotated[
        float, typer.Option(min=0.51, max=0.999, help="Probability of not being among them at which a run can stop.")
    ] = 0.95,
    at: Annotated[
        float | None,
        typer.Option(metavar="FRACTION", help="Rank the runs as they were at this part of their plans."),
    ] = None,
    history: Annotated[list[Path] | None, typer.Option(help="Finished runs that the forecasts learn from.")] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            help="Loss of records: `train`, eval/<name>, or names joined: eval/val=eval/valid,…; by default an "
            "evaluation's where no run is under way and all have it, else the training loss."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Order runs by their forecast final loss, with probabilities, and name those that can stop.

    The runs must share data, tokenizer and loss.
    """
    from isoflop.figures.text import unique_names
    from isoflop.fit.runs import unfinished
    from isoflop.fit.sources import common_loss, describe_alike, joined, loss_names
    from isoflop.forecast import DEFAULT_PRIORS, LossCurve, history_of, learn_priors
    from isoflop.forecast import rank as rank_forecasts

    with reported("rank", KeyError):
        if at is not None and not 0 < at < 1:
            raise ValueError(f"--at: expected a fraction between 0 and 1, such as 0.25; got {at}")
        given = read(runs)
        if loss is None:
            over = at is None and not given.published and all(run.status != "running" for run in given.records)
            loss = common_loss(given.records) if over else "train"
            if over and (alike := describe_alike(map(loss_names, given.records), loss)):
                tell("rank", alike)
        given.records, of_all = joined(given.records, loss)
        loss = of_all or "train"
        priors = DEFAULT_PRIORS
        if history:
            own, problem = history_of(history, loss)
            priors = learn_priors(own)
            if problem:
                tell("rank", f"--history: {problem}")
        published = [f"{run.dataset}/{run.name}" for run in given.published]
        names = unique_names(
            [*published, *(run.name or run.run_id for run in given.records)],
            [*(None for _ in published), *(run.path for run in given.records)],
        )
        tokenizers = sorted({run.tokenizer for run in given.records if run.tokenizer})
        if len(tokenizers) > 1:
            text = f"the runs have different tokenizers ({', '.join(tokenizers)}): their losses do not compare"
            given.problems.append(text)
        for problem in given.problems:
            tell("rank", problem)
        found: dict[str, Forecast] = {}
        ended: dict[str, LossCurve] = {}
        finished: dict[str, bool] = {}
        stopped: dict[str, str] = {}
        silent: dict[str, str] = {}
        every: list[LossCurve | Run] = [*given.published, *given.records]
        for name, run in zip(names, every, strict=True):
            early = run.stopped_early if isinstance(run, LossCurve) else run.stopped and run.not_ended
            stopped |= {name: early} if early and at is None else {}
            finished[name] = at is None and not (early if isinstance(run, LossCurve) else unfinished(run, loss))
            ending = _ending(run, finished[name], priors, at, loss)
            if isinstance(ending, str):
                silent[name] = stopped.get(name, ending)
            elif isinstance(ending, LossCurve):
                ended[name] = ending
            else:
                found[name] = ending
        found |= _final_losses(ended)
        ranked = rank_forecasts(found, finished=finished, stopped=stopped, silent=silent, keep=keep, sure=sure)
        if other := _otherwise(ranked, dict(zip(names[len(published) :], given.records, strict=True)), loss):
            tell("rank", other)
    if as_json:
        print_json({"loss": loss} | _ranking_object(ranked))
    else:
        _print_ranking(ranked, {name for name in silent if name not in stopped}, loss)


def _otherwise(ranked: Ranking, records: Mapping[str, Run], loss: str) -> str:
    """That by the last values of an evaluation another run is the best than by the training loss; "": it is not."""
    from isoflop.fit.sources import known_losses, loss_names

    mine = {run.name: records[run.name] for run in ranked.runs if run.name in records}
    if loss != "train" or len(mine) < max(len(ranked.runs), 2):
        return ""
    for name in loss_names(next(iter(mine.values()))):
        ends = {
            run: [values[name] for point in record.points if name in (values := known_losses(point))][-1:]
            for run, record in mine.items()
        }
        if (
            name != loss
            and all(ends.values())
            and (best := min(ends, key=lambda run: ends[run])) != ranked.runs[0].name
        ):
            return f"ordered by the training loss; by {name} so far {best} is the best: --loss {name} orders by that"
    return ""


def _ending(
    run: LossCurve | Run, finished: bool, priors: Priors, at: float | None, loss: str
) -> LossCurve | Forecast | str:
    """A finished run's curve, else its forecast; or why there is none."""
    import numpy as np

    from isoflop.fit.runs import curve_of_run, not_a_number
    from isoflop.forecast import LossCurve, LrPlan, NoForecast, OnlineForecaster, curve_of, forecast_from

    if not isinstance(run, LossCurve):
        until = math.inf if at is None else at * float(run.planned.get("steps") or math.inf)
        if why := not_a_number([point for point in run.points if point.step <= until], loss):
            return why
    try:
        curve = run if isinstance(run, LossCurve) else curve_of(run, loss)
    except ValueError as reason:  # its plan is not in the record: its own last forecast, or its losses
        assert not isinstance(run, LossCurve)
        if not finished:
            logged = run.points[-1].extra if run.points and at is None else {}
            named = {f"isoflop/{name}": value for name, value in logged.items()}
            return forecast_from(named, int(run.planned.get("steps") or 0)) or str(reason)
        columns = curve_of_run(run)
        values = columns.losses.get(loss, np.full(len(columns.step), np.nan))
        known = np.isfinite(values) & (columns.step > 0)
        if not known.any():
            return str(reason)
        rates = np.full(known.sum(), np.nan)  # no plan of them is known, so that none has left it
        table = (columns.step[known], columns.tokens[known], rates, values[known])
        curve = LossCurve(*table, LrPlan.constant(int(columns.step[-1]), 1.0), loss_name=loss)
    if not finished:
        until = math.inf if at is None else at * curve.total_steps
        result = OnlineForecaster.of(curve, priors).feed(curve, until).forecast(curve.plan, curve.final_step)
        return result.message if isinstance(result, NoForecast) else result
    return curve


UNKNOWN_NOISE = 0.01
"""Of the loss: an evaluation's noise where too few tell it. A judgement: 8,000 bytes drawn anew each time had .019."""


def _final_losses(ended: Mapping[str, LossCurve]) -> dict[str, Forecast]:
    """The final losses of finished runs with their standard errors.

    Of a run whose own losses are too few to tell it, the error is that of all these runs' losses together.
    """
    from isoflop.forecast import forecast_of
    from isoflop.forecast.curve import FEWEST_TELLING

    scatters = [curve.scatter for curve in ended.values()]
    telling = sum(count for _, count in scatters)
    together = (sum(variance * count for variance, count in scatters) / max(telling, 1)) ** 0.5
    found, guessed = {}, []
    for name, curve in ended.items():
        sd = curve.final_error
        if sd is None:
            sd = together if telling >= FEWEST_TELLING else UNKNOWN_NOISE * curve.final
            guessed += [name] if telling < FEWEST_TELLING else []
        if curve.not_of_plan:
            last = "mean training loss over the last 5% of steps" if curve.loss_name == "train" else "last loss"
            shown = last if curve.final_loss is None else "stated final loss"
            tell("rank", f"{name}: {curve.not_of_plan}; shown is its {shown}, up to step {curve.steps[-1]:,.0f}")
        sd = max(sd, 5e-4 * curve.final)
        found[name] = forecast_of(
            curve.final, sd, level=0.8, step=curve.total_steps, estimator="finished", basis=("its final loss",)
        )
    if guessed:
        tell("rank", f"too few losses to know their noise, taken as ±{UNKNOWN_NOISE:.0%}: {', '.join(guessed)}")
    return found


def _ranking_object(ranked: Ranking) -> dict[str, Any]:
    """The object that `--json` prints."""
    return {
        "runs": [
            picked(run.forecast, "level step", forecast_loss="loss")
            | {"interval": [run.forecast.low, run.forecast.high]}
            | picked(
                run,
                "name finished stopped can_stop",
                probability_before_next="before_next",
                probability_among_best="among_best",
            )
            for run in ranked.runs
        ],
        "probability_below": ranked.below.tolist(),
        **picked(ranked, "can_stop silent keep sure"),
    }


def _print_backtest(table: Scores, level: float, runs: int) -> None:
    """Print errors and coverage of so many replayed runs, the estimators under one another for each dataset."""
    fractions = list(next(iter(next(iter(table.values())).values())))
    heads = [head for fraction in fractions for head in (f"at {float(fraction):.0%}", "held", "forecast")]
    title = f"Error of the final loss, %: median / 9 of 10 within · held: by the {level:.0%} interval"
    rows = grid("dataset", "estimator", *heads, left=(0, 1), folded=(0, 1), title=title)
    sets = [name for name in next(iter(table.values())) if name != ALL]
    for dataset in [*sets, *([ALL] if len(sets) > 1 else [])]:
        for place, (estimator, scores) in enumerate(table.items()):
            cells = [part for fraction in fractions for part in _cells(scores[dataset][fraction])]
            style = "bold" if place == 0 else None
            rows.add_row("" if place else dataset, estimator, *cells, style=style, end_section=place == len(table) - 1)
    rows.caption = (
        f"{runs} runs, each replayed as it was logged · forecast: share of the runs with one; baselines are "
        "scored on the runs that isoflop forecasts"
    )
    screen(40 + 30 * len(fractions)).print(rows)


def _cells(score: Score) -> tuple[str, str, str]:
    if not score.n or math.isnan(score.median):
        return "–", "–", f"{score.spoke:.0%}"
    off = (f"{x:.2f}" if x < 10 else f"{x:.0f}" if x < 1000 else ">999" for x in (score.median, score.p90))
    return " / ".join(off), f"{score.coverage:.0%}", f"{score.spoke:.0%}"


def _print_ranking(ranking: Ranking, open_end: Collection[str], loss: str) -> None:
    """Print the order of runs by a loss, and which of them can stop; `open_end`: silent ones that may go on."""
    console = screen(110)
    best = "best" if ranking.keep == 1 else f"best {ranking.keep}"
    heads = (
        "run",
        f"final\n{'training loss' if loss == 'train' else loss}",
        "80% interval",
        "below\nthe next",
        f"among\nthe {best}",
        "",
    )
    table = grid(*heads, left=(0, 5), folded=(0, 5))
    for run in ranking.runs:
        forecast = run.forecast
        table.add_row(
            run.name,
            f"{forecast.loss:.4f}",
            f"{forecast.low:.4f} to {forecast.high:.4f}",
            "–" if run.before_next is None else _probability(run.before_next),
            _probability(run.among_best),
            "finished" if run.finished else run.stopped or ("can stop" if run.can_stop else ""),
        )
    for reason, without in by_reason(ranking.silent.items()).items():
        table.add_row(listed(without), "–", "–", "–", "–", reason)
    console.print(table)
    if open_end and ranking.runs:
        console.print(
            f"Orders and probabilities are among the {len(ranking.runs)} runs above that have a loss; "
            f"{len(open_end)} without a forecast may end lower."
        )
    if any(run.stopped for run in ranking.runs):
        console.print("The loss of a run that ended before its plan is what it was forecast to reach there.")
    if ranking.can_stop:
        names, each = ", ".join(ranking.can_stop), "it does" if len(ranking.can_stop) == 1 else "each of them does"
        console.print(f"Can stop: {names}. With {ranking.sure:.0%} or more {each} not end among the {best}.")
    elif all(run.finished or run.stopped for run in ranking.runs):
        stopped = bool(ranking.silent) or any(run.stopped for run in ranking.runs)
        text = "None of them is under way." if stopped else "All of them are finished."
        if not (ranking.runs and open_end):
            console.print(text if ranking.runs else "No run has a forecast.")
    else:
        console.print(f"None can stop: none is {ranking.sure:.0%} sure not to end among the {best}.")


def _probability(value: float) -> str:
    return ">99%" if value > 0.99 else "<1%" if value < 0.01 else f"{value:.0%}"
