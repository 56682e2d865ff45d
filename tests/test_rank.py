"""Ranking by forecast final loss: probabilities by hand, who can stop; Optuna's pruner and Ray Tune's stopper."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from isoflop.forecast import Forecast, NoForecast, Refusal, forecast_from, forecast_of, rank, scalars_of


def at(loss: float, sd: float = 0.01, nu: float = 1e6) -> Forecast:
    return forecast_of(loss, sd, level=0.8, step=1000, estimator="isoflop", nu=nu)


def test_probabilities_by_hand() -> None:
    found = rank({"b": at(3.01), "a": at(3.0), "c": at(3.1)})
    assert [run.name for run in found.runs] == ["a", "b", "c"]
    sure = norm.cdf(0.01 / (0.01 * (2 - 2 * 0.75) ** 0.5))  # their errors are alike
    assert found["a"].before_next == pytest.approx(sure, abs=1e-4)
    assert found["a"].among_best == pytest.approx(sure, abs=0.015)
    assert found["b"].among_best == pytest.approx(1 - sure, abs=0.015)
    ended = rank({"b": at(3.01), "a": at(3.0)}, finished={"a": True})
    assert ended["a"].before_next == pytest.approx(norm.cdf(0.01 / (0.01 * 2**0.5)), abs=1e-4)
    assert found["c"].before_next is None and found["c"].among_best == 0
    assert found.can_stop == ("c",)
    np.testing.assert_allclose(found.below + found.below.T, 1)


def test_who_can_stop_depends_on_how_many_are_wanted_and_how_sure() -> None:
    forecasts = {"a": at(3.0), "b": at(3.011), "c": at(3.1)}
    assert rank(forecasts, sure=0.9).can_stop == ("b", "c")
    assert rank(forecasts, sure=0.99).can_stop == ("c",)
    assert rank(forecasts, keep=2).can_stop == ("c",)
    assert rank(forecasts, keep=3).can_stop == ()
    assert rank(forecasts, finished={"c": True}).can_stop == ()
    assert rank({"a": at(3.0)}).can_stop == () and rank({}).runs == ()


@pytest.mark.parametrize("bad", [{"keep": 0}, {"sure": 0.5}, {"sure": 1.0}])
def test_what_can_not_be_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"at least 1; got 0|between 0\.5 and 1; got"):
        rank({}, **bad)


@given(st.lists(st.tuples(st.floats(1, 5), st.floats(1e-4, 0.5)), min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=40)
def test_laws_that_hold_for_all_forecasts(losses: list[tuple[float, float]], keep: int) -> None:
    forecasts = {str(i): at(loss, sd, nu=5) for i, (loss, sd) in enumerate(losses)}
    found = rank(forecasts, keep=keep)
    order = [run.forecast.loss for run in found.runs]
    assert order == sorted(order)
    assert all(run.before_next is None or run.before_next >= 0.5 - 1e-9 for run in found.runs)
    assert sum(run.among_best for run in found.runs) == pytest.approx(min(keep, len(losses)))
    assert not {run.name for run in found.runs[:1]} & set(found.can_stop)
    again = rank(dict(reversed(forecasts.items())), keep=keep)
    assert [(r.name, r.among_best) for r in again.runs] == [(r.name, r.among_best) for r in found.runs]


def test_said_probabilities_come_true() -> None:
    """Truths drawn from the forecasts themselves, whose errors are alike."""
    generator = np.random.default_rng(1)
    said, right = [], []
    for _ in range(400):
        truth = 3 + 0.02 * generator.standard_normal(2)
        seen = truth + 0.02 * generator.standard_normal(2)
        # prior and measurement of one width: the posterior's mean lies half-way, its variance is half; what errs
        # alike is three times that, and moves both
        both = 0.02 * 1.5**0.5 * generator.standard_normal()
        found = rank({str(i): at(3 + (seen[i] - 3) / 2 + both, 0.02 * 2**0.5) for i in range(2)})
        said.append(found.runs[0].before_next)
        right.append(truth[int(found.runs[0].name)] < truth[int(found.runs[1].name)])
    assert np.mean(right) == pytest.approx(np.mean(said), abs=0.05)


def test_a_forecast_survives_as_scalars() -> None:
    forecast = at(2.5, 0.02, nu=5)
    back = forecast_from(json.loads(json.dumps(scalars_of(forecast))), 1000)
    assert back is not None and back.step == 1000
    assert (back.loss, back.sd, back.nu) == (forecast.loss, pytest.approx(forecast.sd), 5)
    assert forecast_from({}) is None
    assert forecast_from({**scalars_of(forecast), "isoflop/forecast_low": float("nan")}) is None


# -- Optuna and Ray ----------------------------------------------------------------------------------------------------


def watched(forecast: Any) -> Any:
    return SimpleNamespace(forecast=forecast)


def test_optuna_prunes_by_forecast_and_not_by_the_loss_so_far() -> None:
    optuna = pytest.importorskip("optuna")
    from isoflop.optuna import ForecastPruner, report

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(pruner=ForecastPruner())
    ends = [3.0, 3.2, 2.9, 3.01]

    def objective(trial: Any) -> float:
        report(trial, SimpleNamespace(monitor=None))  # a callback before training
        assert not trial.should_prune()
        report(trial, watched(NoForecast(Refusal.WARM_UP, {"needed": 20, "now": 1})))
        assert not trial.should_prune()
        trial.report(9.0, 1)  # a loss so far that is bad says nothing
        report(trial, SimpleNamespace(monitor=watched(at(ends[trial.number]))))
        if trial.should_prune():
            raise optuna.TrialPruned
        return ends[trial.number]

    study.optimize(objective, n_trials=4)
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "PRUNED", "COMPLETE", "PRUNED"]
    with pytest.raises(TypeError, match="expects a Monitor, IsoFLOPMonitor or IsoFLOPCallback, got str"):
        report(study.ask(), "monitor")
    with pytest.raises(ValueError, match="keep is the number of runs"):
        ForecastPruner(keep=0)


def test_optuna_forgets_trials_that_failed() -> None:
    optuna = pytest.importorskip("optuna")
    from isoflop.optuna import ForecastPruner, report

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(pruner=ForecastPruner())
    lost, running = study.ask(), study.ask()
    report(lost, watched(at(2.0)))
    report(running, watched(at(3.0)))
    assert running.should_prune()
    study.tell(lost, state=optuna.trial.TrialState.FAIL)
    assert not running.should_prune()


def test_rays_stopper() -> None:
    pytest.importorskip("ray.tune")
    from ray.tune.stopper import Stopper

    from isoflop.ray import ForecastStopper

    stopper = ForecastStopper(keep=1, sure=0.95)
    assert isinstance(stopper, Stopper) and not stopper.stop_all()
    assert not stopper("a", {"isoflop/loss": 4.0})  # no forecast yet
    assert not stopper("a", {**scalars_of(at(3.0)), "training_iteration": 1})
    assert not stopper("b", scalars_of(at(3.01)))
    assert stopper("c", scalars_of(at(3.5)))
    assert not stopper("d", scalars_of(at(2.0)))
    assert stopper("a", scalars_of(at(2.99)))  # what was best is no longer
