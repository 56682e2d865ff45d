"""What the rules on curves say of public training curves: of healthy ones nothing, of planted faults soon.

    python benchmarks/advice.py CURVES [--every 4]

CURVES: index.csv and <dataset>/<run>.csv, as `isoflop.forecast.read_curves` reads. Each curve is replayed with its
learning rates to come known and hidden (the logged ones are seen in both); then with a fault planted half-way. Prints
how many healthy curves anything was said of, and the share of the faults that were reported within 5% of the run,
within 10% and at all.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from isoflop.advice import Adviser, Reason, Severity, Situation
from isoflop.forecast import LossCurve, OnlineForecaster, read_curves

CURVE = {Reason.DIVERGING, Reason.OFF_CURVE, Reason.BELOW_CURVE, Reason.PLATEAU}
"""The reasons of the rules on curves."""
SOON, AT = 0.05, 0.5
Fault = Callable[[np.ndarray, np.ndarray], np.ndarray]
FAULTS: dict[str, Fault] = {
    "jump": lambda u, loss: np.where(u > 0, 1.3 * loss, loss),
    "drift": lambda u, loss: loss * (1 + 2 * np.clip(u, 0, None)),
    "plateau": lambda u, loss: np.where(u > 0, np.interp(0, u, loss) + (loss - smooth(loss)), loss),
    "repeats": lambda u, loss: loss * (1 - 0.5 * (1 - np.exp(-np.clip(u, 0, None) / 0.2))),
    "restart": lambda u, loss: loss * (1 + np.where(u > 0, 0.08 * np.exp(-np.clip(u, 0, None) / 0.1), 0.0)),
}
"""(progress since the fault as a share of the run, loss) → loss. A restart with a wrong rate recovers over a tenth;
rows that come again are learnt by heart over a fifth."""


def smooth(loss: np.ndarray) -> np.ndarray:
    """Running mean of nine points."""
    padded = np.pad(loss, 4, mode="edge")
    return np.convolve(padded, np.ones(9) / 9, mode="valid")


def replay(curve: LossCurve, loss: np.ndarray, known: bool) -> list[tuple[float, Reason]]:
    """What the rules on curves say: (share of the run, reason)."""
    plan, total = curve.plan, curve.plan.total_steps
    adviser, said = Adviser(), []
    forecaster = OnlineForecaster(N=curve.N, batch_tokens=curve.batch_tokens, optimizer=curve.optimizer)
    base = Situation(
        step=1, total_steps=total, N=curve.N, rates=plan if known else None, warmup_steps=plan.warmup_steps
    )
    for step, tokens, lr, value, count in zip(curve.steps, curve.tokens, curve.lr, loss, curve.count, strict=True):
        forecaster.add(int(step), float(tokens), float(lr), float(value), int(count))
        run = replace(
            base, step=int(step), tokens=float(tokens), tokens_per_step=float(tokens / step), loss=float(value)
        )
        said += adviser.log(run, forecaster)
    return [(a.step / total, a.reason) for a in said if a.reason in CURVE and a.severity >= Severity.INFO]


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("curves")
    parser.add_argument("--every", type=int, default=1, help="take every so many curves")
    parser.add_argument("--faults", type=int, default=4, help="… and for faults every so many of these")
    given = parser.parse_args()
    curves = read_curves(given.curves)
    curves = (curves[0] if isinstance(curves, tuple) else curves)[:: given.every]
    for known in (True, False):
        rates = "known" if known else "hidden"
        spoken = [(c.dataset, c.name, said) for c in curves if (said := replay(c, c.loss, known))]
        print(f"healthy, rates {rates}: {len(spoken)} of {len(curves)} curves heard something", flush=True)
        for dataset, name, said in spoken:
            print(f"  {dataset}/{name}: {', '.join(f'{reason.value} at {at:.0%}' for at, reason in said)}")
        for name, fault in FAULTS.items():
            found = []
            for curve in curves[:: given.faults]:
                u = curve.steps / curve.plan.total_steps - AT
                if (u < 0).sum() < 20 or (u > 0).sum() < 20:
                    continue
                said = [at - AT for at, _ in replay(curve, fault(u, curve.loss), known) if at > AT]
                found.append(min(said, default=np.inf))
            if found:
                soon, later, ever = (np.mean(np.array(found) <= limit) for limit in (SOON, 2 * SOON, 1.0))
                print(
                    f"{name}, rates {rates}: {soon:.0%} within {SOON:.0%}, {later:.0%} within {2 * SOON:.0%}, "
                    f"{ever:.0%} at all, of {len(found)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
