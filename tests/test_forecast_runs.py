"""What finished runs teach: priors, ladders, other futures; the baselines; replaying a folder of curves."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from curves import BATCH, Planted, fed, feed
from isoflop.forecast import (
    DEFAULT_PRIORS,
    ESTIMATORS,
    WEAK_PRIORS,
    Forecast,
    Line,
    LossCurve,
    LrPlan,
    NoForecast,
    OnlineForecaster,
    Refusal,
    backtest,
    fit_ladder,
    learn_priors,
    read_curves,
)

PEAK = 1e-3
COSINE = LrPlan.cosine(4000, PEAK, 200)
CONSTANT = LrPlan.constant(4000, PEAK, 200)


def spoken(result: Forecast | NoForecast) -> Forecast:
    assert isinstance(result, Forecast), result
    return result


def line_at(line: Line) -> tuple[float, float]:
    return line.at((3e8, BATCH, PEAK, 1.2e9))


def test_priors_learn_the_gain_of_own_runs_and_know_it_better() -> None:
    strange = Planted(C=0.34)  # 40% above what ships
    learnt = learn_priors([strange.run(COSINE, seed=seed) for seed in range(3)])
    before, after = line_at(DEFAULT_PRIORS.gain), line_at(learnt.gain)
    assert after[0] > before[0]
    assert after[0] == pytest.approx(math.log(0.34), abs=0.15)
    assert after[1] < 0.75 * before[1]
    assert learnt.own_runs == 3 and "updated with 3 finished runs" in learnt.source
    # and a run under way, before its rate falls, is forecast better and surer
    run = strange.run(LrPlan.wsd(4000, PEAK, 200, 800), seed=9)
    old, new = (spoken(fed(run, 0.7, priors=priors).forecast(run.plan)) for priors in (DEFAULT_PRIORS, learnt))
    assert abs(new.loss - run.final) < 0.5 * abs(old.loss - run.final)
    assert new.sd / 0.34 < old.sd / math.exp(before[0])  # of the drop still to come, which is larger
    assert new.low <= run.final <= new.high


def test_runs_at_a_constant_rate_teach_no_gain() -> None:
    learnt = learn_priors([Planted().run(CONSTANT, seed=seed) for seed in range(3)])
    assert learnt.gain == DEFAULT_PRIORS.gain
    assert line_at(learnt.alpha)[1] < line_at(DEFAULT_PRIORS.alpha)[1]


def test_runs_of_others_leave_room_for_another_organisation() -> None:
    runs = [Planted(C=0.34).run(COSINE, seed=seed) for seed in range(4)]
    own, others = (learn_priors(runs, WEAK_PRIORS, own=flag) for flag in (True, False))
    assert own.gain.between == 0 and others.gain.between > 0
    assert line_at(others.gain)[1] > line_at(own.gain)[1]
    assert others.own_runs == 0


def test_no_runs_or_too_short_ones_change_nothing() -> None:
    assert learn_priors([]) is DEFAULT_PRIORS
    assert learn_priors([Planted().run(COSINE, every=500)]) is DEFAULT_PRIORS


def test_a_run_that_decayed_before_its_plan_did_has_no_final_loss_of_it() -> None:
    run = Planted().run(COSINE)
    assert not run.not_of_plan
    early = dataclasses.replace(run, lr=np.where(run.steps > 0.8 * run.total_steps, 0.0, run.lr))
    assert early.not_of_plan.startswith("its learning rate left its plan at step 3,2")


def test_another_schedule_from_here_against_the_run_that_took_it() -> None:
    law = Planted()
    seen = fed(law.run(CONSTANT), 0.75)
    for new in (LrPlan.wsd(4000, PEAK, 200, 900), LrPlan.constant(12_000, PEAK, 200)):
        truth = float(law.loss(new, np.array([float(new.total_steps)]))[0])
        told = spoken(seen.what_if(CONSTANT, new))
        assert abs(told.loss - truth) < 3 * told.sd
        assert told.step == new.total_steps
    stays = spoken(seen.what_if(CONSTANT, CONSTANT))
    assert stays.loss == pytest.approx(spoken(seen.forecast(CONSTANT)).loss, abs=1e-6)


def test_leaving_a_cosine_for_a_plan_to_zero_keeps_its_past() -> None:
    law = Planted()
    new = LrPlan(np.array([0.0, 2000, 2800]), np.array([1.0, COSINE.at(2000) / PEAK, 0.0]) * PEAK)
    steps = COSINE.steps[COSINE.steps < 2000]
    really = LrPlan(np.append(steps, [2000, 2800]), np.append(COSINE.at(steps), [COSINE.at(2000), 0.0]))
    told = spoken(fed(law.run(COSINE), 0.5).what_if(COSINE, new))
    assert abs(told.loss - law.loss(really, np.array([2800.0]))[0]) < 3 * told.sd


def ladder_runs(sizes: tuple[float, ...], **changes: float) -> list[LossCurve]:
    """E = 1.7 + .8·(N/3e8)^−.3, all else as planted."""
    runs = []
    for size in sizes:
        law = Planted(E=1.7 + 0.8 * (size / 3e8) ** -0.3, **changes)
        runs += [law.run(plan, N=size, seed=int(size) % 97) for plan in (COSINE, LrPlan.cosine(9000, PEAK, 200))]
    return runs


def test_a_ladder_says_where_a_larger_run_ends_before_it_starts_and_under_way() -> None:
    ladder = fit_ladder(ladder_runs((5e7, 1e8, 2e8)))
    target = ladder_runs((8e8,))[0]
    before = spoken(ladder.forecast(target.plan, N=8e8, batch_tokens=BATCH))
    assert before.loss == pytest.approx(target.final, rel=0.03)
    assert before.low < target.final < before.high
    quarter, half = (
        spoken(ladder.forecast(target.plan, N=8e8, batch_tokens=BATCH, run=fed(target, part, priors=ladder.priors)))
        for part in (0.25, 0.5)
    )
    assert before.sd > quarter.sd > half.sd
    assert half.loss == pytest.approx(target.final, rel=6e-3)
    assert half.low <= target.final <= half.high
    assert "6 finished runs" in before.basis[0] and "up to step 2,000" in half.basis[1]


def test_a_ladder_is_no_surer_than_what_it_knows() -> None:
    """A run that can't say where it ends is no evidence beside finished ones; one that can, is no surer beside them."""
    ladder = fit_ladder(ladder_runs((5e7, 1e8)))
    target = ladder_runs((8e8,))[0]
    before = spoken(ladder.forecast(target.plan, N=8e8, batch_tokens=BATCH))
    for part in (0.03, 0.06, 0.1, 0.15, 0.25, 0.5):
        run = fed(target, part, priors=ladder.priors)
        own, beside = (
            run.forecast(target.plan),
            spoken(ladder.forecast(target.plan, N=8e8, batch_tokens=BATCH, run=run)),
        )
        if isinstance(own, Forecast):
            assert beside.sd >= own.sd * (1 - 1e-9)
        else:
            assert (beside.loss, beside.sd) == pytest.approx((before.loss, before.sd))


@pytest.mark.parametrize("off", [-0.9, 1.5])
def test_sizes_that_are_wrong_about_now_say_nothing_of_the_end(off: float) -> None:
    ladder = fit_ladder(ladder_runs((5e7, 1e8)))
    target = ladder_runs((8e8,))[0]
    asked = {
        "N": 8e8,
        "batch_tokens": BATCH,
        "run": fed(dataclasses.replace(target, loss=target.loss + off), 0.1, priors=ladder.priors),
    }
    assert isinstance(asked["run"].forecast(target.plan), NoForecast)
    found = ladder.forecast(target.plan, **asked)
    assert (
        isinstance(found, NoForecast)
        and found.reason is Refusal.UNLIKE_SIZES
        and "other sizes put it at" in found.message
    )


def test_a_ladder_forecasts_no_loss_above_that_of_the_run_under_way() -> None:
    """A far larger model in its warm-up lay at 3.1, and was forecast to end at 6.0 ± .6."""
    ladder = fit_ladder(ladder_runs((5e7, 1e8, 2e8)))
    target = ladder_runs((8e8,))[0]
    told = {}
    for change in (1.0, 0.7):  # as the ladder expects it, and far below
        run = OnlineForecaster(N=8e8, batch_tokens=BATCH, priors=ladder.priors)
        for step in range(10, 110, 10):  # of a warm-up of 200 steps
            run.add(step, step * BATCH, float(target.plan.at(step)), change * (target.final + 3 / step), 10)
        told[change] = ladder.forecast(target.plan, N=8e8, batch_tokens=BATCH, run=run)
    assert spoken(told[1.0]).low < target.final
    assert isinstance(told[0.7], NoForecast) and told[0.7].reason.temporary


def test_a_ladder_needs_sizes_and_what_they_are() -> None:
    with pytest.raises(ValueError, match="at least two sizes"):
        fit_ladder(ladder_runs((1e8,)))
    with pytest.raises(ValueError, match="needs N and batch_tokens"):
        fit_ladder([dataclasses.replace(ladder_runs((1e8,))[0], N=None)])


@pytest.mark.parametrize("name", [*ESTIMATORS][1:])
def test_baselines_recover_their_own_law(name: str) -> None:
    steps = np.arange(20.0, 4001, 20)
    s_min = steps / (1 + 2.1e8 / 3.0 ** (1 / 0.21) / BATCH)
    law = {
        "last-value": 3.0 + 0 * steps,
        "power-law": 2.0 + 20 * steps**-0.4,
        "kaplan": 3.0 + 1e-3 * (s_min / s_min[-1]) ** -0.76,
        "hoffmann": 2.0 + 8 * steps**-0.2849083,
    }[name]
    estimator = ESTIMATORS[name](N=3e8, batch_tokens=BATCH)
    for step, loss in zip(steps.tolist(), law.tolist(), strict=True):
        if step <= 2000:
            estimator.add(step, step * BATCH, PEAK, loss, 20)
    forecast = spoken(estimator.forecast(CONSTANT))
    assert forecast.estimator == name
    assert forecast.loss == pytest.approx(law[-1], rel=2e-3)
    assert isinstance(ESTIMATORS[name]().forecast(CONSTANT), NoForecast)
    assert isinstance(estimator.forecast(None), NoForecast)


def test_the_peers_of_the_benchmark_recover_a_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    monkeypatch.setattr(sys.modules[backtest.__module__], "ESTIMATORS", dict(ESTIMATORS))
    monkeypatch.delitem(sys.modules, "_peers", raising=False)
    peers = importlib.import_module("_peers")
    plan = LrPlan.wsd(4000, PEAK, 200, 2000)
    steps = np.arange(0, 4001.0)
    shape = plan.at(steps) / PEAK
    falls, momentum = np.zeros(4001), 0.0
    for step in range(201, 4001):  # eq. 3 of the paper, step by step: each fall fades in with 1 − .995^lag
        momentum = 0.995 * momentum + (shape[step - 1] - shape[step])
        falls[step] = falls[step - 1] + 0.005 * momentum
    loss = 2.0 + 20 * np.maximum(np.cumsum(shape), 1) ** -0.4 - 0.3 * falls
    errors = {}
    for kind in (peers.MomentumLaw, ESTIMATORS["power-law"]):
        estimator = kind(N=3e8, batch_tokens=BATCH)
        for step in range(20, 3200, 20):
            estimator.add(step, step * BATCH, float(plan.at(step)), float(loss[step]), 20)
        errors[kind.name] = abs(spoken(estimator.forecast(plan)).loss / loss[-1] - 1)
    assert errors["momentum-law"] < 3e-3
    assert errors["power-law"] > 3 * errors["momentum-law"]
    run = Planted(noise=0.002).run(COSINE, every=100)
    estimator = peers.MultiPowerLaw(N=3e8, batch_tokens=BATCH)
    feed(estimator, run, 0.75)
    assert spoken(estimator.forecast(COSINE)).loss == pytest.approx(run.final, rel=6e-3)


def write_curves(folder: Path, runs: list[LossCurve], schedules: list[dict[str, object]]) -> None:
    names = "dataset,organisation,run,N,N_non_embedding,batch_tokens,total_steps,schedule,peak_lr,final_loss,note"
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names.split(","))
        for run, schedule in zip(runs, schedules, strict=True):
            writer.writerow([
                run.dataset, run.organisation, run.name, 4e8, run.N, BATCH, run.total_steps, json.dumps(schedule),
                run.plan.peak, run.final, "optimizer=Muon; what it was" if run.optimizer == "Muon" else "",
            ])  # fmt: skip
    for run in runs:
        (folder / run.dataset).mkdir(exist_ok=True)
        with (folder / run.dataset / f"{run.name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "tokens", "lr", "loss", "n"])
            assert run.count is not None
            writer.writerows(zip(run.steps, run.tokens, run.lr, run.loss, run.count, strict=True))


def test_a_folder_of_curves_is_read_and_replayed(tmp_path: Path) -> None:
    runs = [
        dataclasses.replace(
            Planted(C=c).run(plan, seed=i), organisation=f"lab{i % 2}", dataset=f"set{i % 2}", name=f"run{i}",
            optimizer="Muon" if i == 3 else "adamw",
        )
        for i, (c, plan) in enumerate(zip((0.22, 0.25, 0.22, 0.25), (COSINE, CONSTANT, CONSTANT, COSINE), strict=True))
    ]  # fmt: skip
    cosine, constant = {"kind": "cosine", "warmup": 200, "end": 0.1}, {"kind": "constant", "warmup": 200}
    # the third says something that its rates contradict, the fourth nothing: then the rates count
    write_curves(tmp_path, runs, [cosine, constant, cosine, {}])
    read = read_curves(tmp_path)
    assert [run.name for run in read] == ["run0", "run1", "run2", "run3"]
    for run, written in zip(read, runs, strict=True):
        assert run.N == written.N and run.optimizer == written.optimizer and run.organisation == written.organisation
        assert run.plan.at(written.steps) == pytest.approx(written.lr, abs=0.01 * PEAK)
        assert run.final == pytest.approx(written.final)
    table = backtest(read, ["isoflop", "last-value"], fractions=(0.5, 0.75))
    assert set(table) == {"isoflop", "last-value"} and set(table["isoflop"]) == {"set0", "set1", "all"}
    ours, last = (table[name]["all"]["0.5"] for name in ("isoflop", "last-value"))
    assert ours.spoke == 1 and ours.n == 4 and 0 <= ours.coverage <= 1
    assert ours.median < 1 < 3 * ours.median + last.median
    assert last.median > 3 * ours.median
    default = backtest(read, ["isoflop"], fractions=(0.5,), priors="default")
    assert default["isoflop"]["all"]["0.5"].median < 1


def test_what_cannot_be_replayed_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Expected a file index\.csv"):
        read_curves(tmp_path)
    with pytest.raises(ValueError, match="Unknown estimator 'magic'; there are isoflop, last-value"):
        backtest([], ["magic"])
    with pytest.raises(ValueError, match="between 0 and 1"):
        backtest([], fractions=(25,))
    with pytest.raises(ValueError, match='"leave-one-organisation-out" or "default"'):
        backtest([Planted().run(COSINE)], priors="none")  # type: ignore[arg-type]
