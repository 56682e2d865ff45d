"""Records as the forecast's material: a run's curve, its plan and what it was; finished ones for priors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from isoflop.fit.runs import unfinished
from isoflop.forecast.curve import FinishedRun
from isoflop.forecast.lr_plan import LrPlan
from isoflop.forecast.priors import DEFAULT_PRIORS, Priors, learn_priors
from isoflop.forecast.sizes import Ladder, fit_ladder
from isoflop.record.reader import read_runs
from isoflop.record.run import Run

FEWEST_POINTS = 12


def curve_of(run: Run, loss: str = "train") -> FinishedRun:
    """A recorded run, finished or under way, with its plan to the planned end.

    Args:
        run: as read from its record.
        loss: `train` or eval/<name>.

    Raises:
        ValueError: what is missing.
    """
    points = [p for p in run.points if p.losses.get(loss) is not None and p.data_tokens is not None and p.step > 0]
    if len(points) < 2:
        raise ValueError(f"{len(points)} of its points have a loss {loss!r} and tokens; at least 2 are needed")
    steps = np.array([float(p.step) for p in points])
    sizes = [float(p.batch_tokens) for p in points if p.batch_tokens]
    return FinishedRun(
        steps=steps,
        tokens=np.array([float(p.data_tokens or 0) for p in points]),
        lr=np.array([np.nan if p.lr is None else p.lr for p in points]),
        loss=np.array([float(p.losses[loss] or 0) for p in points]),
        plan=plan_of_record(run),
        N=size_of(run.parameters),
        batch_tokens=float(np.median(sizes)) if sizes else None,
        optimizer=_text((run.optimizer or {}).get("class")),
        # a branch knows what its parent knows: they are left out together
        organisation=_text((run.parent or {}).get("run_id")) or run.run_id,
        name=run.name or run.run_id,
        dataset="records",
        count=np.array([float(max(p.interval_steps, 1)) if loss == "train" else 1.0 for p in points]),
        domain=domain_of(run.parameters, run.model),
        loss_name=loss,
    )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def plan_of_record(run: Run) -> LrPlan:
    """The learning rates of a recorded run, past and to come.

    Raises:
        ValueError: it is still running and its record does not say what the rates to come are.
    """
    given = run.planned.get("learning_rates")
    if isinstance(given, Mapping):
        try:  # a record may be a stranger's
            return LrPlan(*(np.asarray(given.get(name), dtype=float) for name in ("steps", "lr")))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"its record holds no plan of learning rates that can be read: {error}") from None
    seen = {p.step: p.lr for p in run.points if p.lr is not None and p.step > 0}
    if run.status != "completed":
        raise ValueError("it is not finished, and its record does not hold the learning rates to come")
    if len(seen) < 2:
        raise ValueError("its record holds no learning rates")
    return LrPlan(np.array(list(seen), dtype=float), np.array(list(seen.values()), dtype=float))


def size_of(parameters: Mapping[str, int | None]) -> int | None:
    """N non-embedding; of experts what a token passes through."""
    body, total, active = (parameters.get(name) for name in ("non_embedding", "total", "active"))
    if body is None:
        return None
    return body - (total - active if total and active else 0)


def domain_of(parameters: Mapping[str, int | None], model: Mapping[str, Any]) -> dict[str, bool]:
    """What kind of training it is, as far as sizes and configuration tell: `moe`, `finetuning`."""
    total, active, trainable = (parameters.get(name) for name in ("total", "active", "trainable"))
    config = model.get("config")
    loaded = bool(config.get("_name_or_path")) if isinstance(config, Mapping) else False
    return {
        "moe": bool(total and active and active < total),
        "finetuning": loaded or bool(total and trainable is not None and trainable < total),
    }


def finished_runs(runs: Iterable[Run], loss: str = "train") -> tuple[list[FinishedRun], list[str]]:
    """Those of the runs that were completed and can be learnt from; and of the others, why not."""
    found, problems = [], []
    for run in runs:
        name = run.name or run.run_id
        try:
            if why := unfinished(run, run.points[-1].step if run.points else 0):
                raise ValueError(why)
            curve = curve_of(run, loss)
            if len(curve.steps) < FEWEST_POINTS:
                raise ValueError(f"{len(curve.steps)} points with a loss {loss!r}; at least {FEWEST_POINTS} are needed")
            if curve.stopped_early:
                raise ValueError(curve.stopped_early)
        except ValueError as reason:
            problems.append(f"{name}: {reason}")
        else:
            found.append(curve)
    return found, problems


def priors_from(
    paths: Iterable[str | os.PathLike[str]], base: Priors, loss: str = "train"
) -> tuple[Priors, str | None]:
    """`base` updated with a user's own finished runs, and what `history_of` has to say."""
    own, problem = history_of(paths, loss)
    return (priors_of(own, base) if own else base), problem


def history_of(paths: Iterable[str | os.PathLike[str]], loss: str = "train") -> tuple[list[FinishedRun], str | None]:
    """A user's finished runs, as one organisation's.

    Args:
        paths: records, or folders with some.
        loss: which loss of theirs.

    Returns:
        The runs, and what the user should know: that none could be used, and why; else None.
    """
    unread: list[str] = []
    runs = read_runs(*paths, on_problem=unread.append)
    found, problems = finished_runs(runs, loss)
    if not found:
        reasons = "; ".join([*unread, *problems][:3]) or "there is no record"
        return [], f"no finished run to learn from ({reasons})"
    return [_as_one(run) for run in found], None  # the same data, tokenizer and recipe


def priors_of(own: Sequence[FinishedRun], base: Priors) -> Priors:
    """`base` updated with runs of one user."""
    said = f"{base.source}, updated with {len(own)} finished run{'s' if len(own) > 1 else ''} of your own"
    return learn_priors(own, base, own=True, source=said)


def ladder_of(own: Sequence[FinishedRun], base: Priors) -> Ladder | None:
    """The joint fit of runs of one user; None where they are of one size, or too short."""
    sized = [run for run in own if run.N and run.batch_tokens]
    try:
        return fit_ladder(sized, base)
    except ValueError:
        return None


def _as_one(run: FinishedRun) -> FinishedRun:
    return replace(run, organisation="own")


def priors_without(organisation: str, runs: Sequence[FinishedRun], base: Priors = DEFAULT_PRIORS) -> Priors:
    """The priors that a user's run would have had: `base` and all their other finished runs."""
    others = [_as_one(run) for run in runs if run.organisation != organisation]
    return learn_priors(others, base, own=True) if others else base
