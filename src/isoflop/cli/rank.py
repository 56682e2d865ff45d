"""`isoflop rank RUNS…`: live runs in the order of their forecast final loss, and which of them can stop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.text import AsJson, CurveFiles, CurveLoss, print_json, reported, tell

if TYPE_CHECKING:
    from isoflop.cli.curves import Curves
    from isoflop.fit.forecast import FinishedRun, Forecast, Priors, Silence
    from isoflop.fit.forecast.ranking import Ranking
    from isoflop.record import Run


def rank(
    runs: CurveFiles,
    keep: Annotated[int, typer.Option(min=1, help="How many runs are wanted in the end.")] = 1,
    sure: Annotated[
        float, typer.Option(min=0.51, max=0.999, help="A run can stop when it is this sure not to be among them.")
    ] = 0.95,
    at: Annotated[
        float | None,
        typer.Option(metavar="FRACTION", help="As the runs stood at this part of their plans, to try it out."),
    ] = None,
    history: Annotated[
        list[Path] | None, typer.Option(help="Records of earlier, finished runs that the forecasts learn from.")
    ] = None,
    loss: CurveLoss = "train",
    as_json: AsJson = False,
) -> None:
    """Order runs by the loss they will end with, with the probability that each order is right.

    Runs are compared as they are: the same data, tokenizer and loss are taken for granted.
    """
    from isoflop.cli import curves
    from isoflop.fit.forecast import ranking
    from isoflop.fit.forecast.priors import DEFAULT_PRIORS
    from isoflop.fit.forecast.records import priors_from

    with reported("rank", KeyError):
        if at is not None and not 0 < at < 1:
            raise ValueError(f"--at: expected a fraction between 0 and 1, such as 0.25; got {at}")
        priors = DEFAULT_PRIORS
        if history:
            priors, problem = priors_from(history, DEFAULT_PRIORS, loss)
            if problem:
                tell("rank", f"--history: {problem}")
        found = Candidates(priors, at)
        read = curves.read(runs)
        found.take(read, loss)
        for problem in (*read.problems, *differences(read.records), *found.cut_short):
            tell("rank", problem)
        ranked = ranking.rank(found.forecasts, finished=found.finished, silent=found.silent, keep=keep, sure=sure)
    if as_json:
        print_json(as_object(ranked))
        return
    from isoflop.show.ranking import print_ranking

    print_ranking(ranked)


class Candidates:
    """The runs to be ranked: their forecasts by name, which have ended, and which have none and why.

    Args:
        priors: of the forecasts.
        at: the part of each run that is seen; None: all there is.
    """

    def __init__(self, priors: Priors, at: float | None) -> None:
        self.priors, self.at = priors, at
        self.forecasts: dict[str, Forecast] = {}
        self.finished: dict[str, bool] = {}
        self.silent: dict[str, str] = {}
        self.cut_short: list[str] = []
        """Of the ended runs those that did not come to their planned end."""

    def take(self, read: Curves, loss: str) -> None:
        """Forecast every run that was read."""
        from isoflop.fit.forecast.records import curve_of
        from isoflop.show.figures.words import unique_names

        published = [f"{run.dataset}/{run.name}" for run in read.published]
        names = unique_names([*published, *(run.name or run.run_id for run in read.records)])
        for name, run in zip(names, read.published, strict=False):
            self._put(name, run, ended=self.at is None)
        for name, record in zip(names[len(published) :], read.records, strict=True):
            ended = record.status == "completed" and self.at is None
            try:
                curve = curve_of(record, loss)
            except ValueError as reason:
                logged = self._as_logged(record)
                if logged is None:
                    self.silent[name] = str(reason)
                else:
                    self.forecasts[name] = logged
            else:
                self._put(name, curve, ended)

    def _put(self, name: str, run: FinishedRun, ended: bool) -> None:
        from isoflop.fit.forecast import Forecast

        if ended and run.stopped_early:
            self.cut_short.append(f"{name}: {run.stopped_early}; its loss there is shown")
        result = came(run) if ended else forecast_of_curve(run, self.priors, self.at)
        if isinstance(result, Forecast):
            self.forecasts[name] = result
            self.finished[name] = ended
        else:
            self.silent[name] = result.message

    def _as_logged(self, run: Run) -> Forecast | None:
        """What the run itself forecast last, where its record does not hold its plan."""
        from isoflop.fit.forecast.ranking import forecast_from

        if self.at is not None or not run.points:
            return None
        named = {f"isoflop/{name}": value for name, value in run.points[-1].extra.items()}
        return forecast_from(named, int(run.planned.get("steps") or 0))


def forecast_of_curve(run: FinishedRun, priors: Priors, at: float | None = None) -> Forecast | Silence:
    """The forecast of a curve's end from what is there, or from the part of it up to a fraction of the plan."""
    from isoflop.fit.forecast import OnlineForecaster

    until = math.inf if at is None else at * run.total_steps
    return OnlineForecaster.of(run, priors).feed(run, until).forecast(run.plan)


def came(run: FinishedRun) -> Forecast:
    """What a finished run ended with; its error is that of the mean that its final loss is."""
    from isoflop.fit.forecast.result import forecast_of

    sd = max(run.final_error, 5e-4 * run.final)
    return forecast_of(run.final, sd, level=0.8, step=run.total_steps, estimator="finished", basis=("what came",))


def differences(records: Sequence[Run]) -> list[str]:
    """What makes losses hard to compare."""
    tokenizers = {run.tokenizer for run in records if run.tokenizer}
    if len(tokenizers) > 1:
        return [f"the runs have different tokenizers ({', '.join(sorted(tokenizers))}): their losses do not compare"]
    return []


def as_object(ranked: Ranking) -> dict[str, Any]:
    """The object that `--json` prints."""
    return {
        "runs": [
            {
                "name": run.name,
                "forecast_loss": run.forecast.loss,
                "interval": [run.forecast.low, run.forecast.high],
                "level": run.forecast.level,
                "step": run.forecast.step,
                "finished": run.finished,
                "probability_before_next": run.before_next,
                "probability_among_best": run.among_best,
                "can_stop": run.can_stop,
            }
            for run in ranked.runs
        ],
        "probability_below": [[float(value) for value in row] for row in ranked.below],
        "can_stop": list(ranked.can_stop),
        "silent": dict(ranked.silent),
        "keep": ranked.keep,
        "sure": ranked.sure,
    }
