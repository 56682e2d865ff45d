"""Advice in simulated worlds, where the truth is known: right where it speaks, and silent where nothing is wrong.

The draw is `worlds.world`: D/N of the optimum log-uniform in 10–60, N in 1e7–1e10, the size 1/8 to 8 times the best,
the batch .05–20 times critical; 40 worlds by default, 500 with the slow marker.
"""

from __future__ import annotations

import numpy as np
import pytest

from isoflop.advice import Reason, Situation, Thresholds, planned
from worlds import live_through, right, world

RESIZE = {Reason.TOO_LARGE, Reason.TOO_SMALL}


@pytest.mark.parametrize("worlds", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_advice_agrees_with_the_truth(worlds: int) -> None:
    rng = np.random.default_rng(0)
    verdicts, clear, spoke = [], 0, 0
    for _ in range(worlds):
        w = world(rng)
        said = live_through(w, rng)
        verdicts += [verdict for advice in said if (verdict := right(w, advice)) is not None]
        clear += w.waste > 0.2
        spoke += w.waste > 0.2 and bool(RESIZE & {advice.reason for advice in said})
    assert len(verdicts) > worlds / 2 and np.mean(verdicts) >= 0.95
    assert spoke >= 0.6 * clear


@pytest.mark.parametrize("worlds", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_at_the_optimum_nothing_is_said(worlds: int) -> None:
    rng = np.random.default_rng(1)
    silent = [
        all(advice.reason is Reason.FRONTIER for advice in live_through(world(rng, at_optimum=True), rng))
        for _ in range(worlds)
    ]
    assert np.mean(silent) >= 0.97


def test_sizes_alone_in_many_worlds() -> None:
    rng = np.random.default_rng(2)
    right_when_said, clear, at_optimum = [], [], []
    for _ in range(600):
        for best in (False, True):
            w = world(rng, at_optimum=best)
            step = w.D / w.steps
            advice = planned(
                Situation(step=1, total_steps=w.steps, N=w.N, tokens=step, tokens_per_step=step), Thresholds()
            )
            said = advice.reason in RESIZE  # type: ignore[union-attr]
            if best:
                at_optimum.append(not said)
                continue
            if said:
                right_when_said.append(right(w, advice))  # type: ignore[arg-type]
            if w.waste > 0.2:
                clear.append(said)
    assert np.mean(right_when_said) >= 0.99
    assert np.mean(clear) >= 0.6
    assert np.mean(at_optimum) >= 0.97
