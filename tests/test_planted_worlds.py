"""Advice in simulated worlds, where the truth is known: right where it speaks, and silent where nothing is wrong.

The draw is `worlds.world`: D/N of the optimum log-uniform in 10–60, N in 1e7–1e10, the size 1/8 to 8 times the best,
the batch .05–20 times critical; `worlds.KINDS` names what else is drawn. 16 worlds by default, 500 of each kind with
the slow marker.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from isoflop.advice import Advice, Missing, Reason, Situation, Thresholds, planned
from isoflop.advice.run_state import LEAST_FLOPS
from isoflop.record import Task
from worlds import KINDS, World, live_through, right, world, world_of

RESIZE = {Reason.TOO_LARGE, Reason.TOO_SMALL}


def told(w: World, advice: Advice | Missing | None) -> bool | None:
    """Whether the size was said to be off; None: the run is below the scale of published sweeps."""
    return advice.reason in RESIZE if isinstance(advice, Advice) else None


def clear(w: World) -> list[set[Reason]]:
    """What is clearly wrong with a world, each as the reasons of which one is due."""
    large = 6 * w.N * w.D >= LEAST_FLOPS and w.epochs == 1  # as published sweeps, which are of single epochs
    worthless = math.exp(-(w.epochs - 1) / w.worth_lasts) < 0.05  # the last token, seen again
    return [RESIZE] * int(large and w.waste > 0.2) + [{Reason.EPOCHS}] * int(worthless)


MANY = [("plain", 16), *(pytest.param(kind, 500, marks=pytest.mark.slow) for kind in KINDS)]


@pytest.mark.parametrize(("kind", "worlds"), MANY)
def test_advice_agrees_with_the_truth(kind: str, worlds: int) -> None:
    rng = np.random.default_rng(0)
    verdicts: list[bool] = []
    spoke: list[bool] = []
    for _ in range(worlds):
        w = world_of(kind, rng)
        said = live_through(w, rng)
        verdicts += [verdict for advice in said if (verdict := right(w, advice)) is not None]
        spoke += [bool(due & {advice.reason for advice in said}) for due in clear(w)]
    assert len(verdicts) > worlds / 2 and np.mean(verdicts) >= 0.95
    assert len(spoke) > worlds / 10 and np.mean(spoke) >= 0.6


@pytest.mark.parametrize(("kind", "worlds"), MANY)
def test_at_the_optimum_nothing_is_said(kind: str, worlds: int) -> None:
    rng = np.random.default_rng(1)
    silent = [
        all(advice.reason is Reason.FRONTIER for advice in live_through(world_of(kind, rng, at_optimum=True), rng))
        for _ in range(worlds)
    ]
    assert np.mean(silent) >= 0.97


@pytest.mark.parametrize(("optimizer", "ratios"), [("adam", (10, 60)), ("muon", (7, 15))])
def test_sizes_alone_in_many_worlds(optimizer: str, ratios: tuple[float, float]) -> None:
    rng = np.random.default_rng(2)
    right_when_said, clearly, at_optimum = [], [], []
    for _ in range(600):
        for best in (False, True):
            w = world(rng, at_optimum=best, ratios=ratios)
            step = w.D / w.steps
            plan = {"step": 1, "total_steps": w.steps, "N": w.N, "tokens": step, "tokens_per_step": step}
            advice = planned(Situation(**plan, task=Task(optimizer=optimizer)), Thresholds())  # type: ignore[arg-type]
            said = told(w, advice)
            if said is None:
                continue
            if best:
                at_optimum.append(not said)
                continue
            if said:
                right_when_said.append(right(w, advice))  # type: ignore[arg-type]
            if w.waste > 0.2:
                clearly.append(said)
    assert np.mean(right_when_said) >= 0.99
    assert np.mean(clearly) >= 0.6
    assert np.mean(at_optimum) >= 0.97
