"""Each evaluator on a situation made for it: what is said, word by word, and when nothing is."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.advice import (
    RULES,
    Advice,
    Adviser,
    Batch,
    Evaluated,
    Expected,
    Missing,
    Quantity,
    Reason,
    Severity,
    Situation,
    Thresholds,
    falls_on,
    scatter,
)
from isoflop.advice.run_state import Standing
from isoflop.forecast import Forecast, LrPlan, NoForecast, OnlineForecaster, Refusal
from isoflop.laws import optimal_allocation, published, waste_of
from isoflop.noise import Belief, combine
from isoflop.record import Task

planned, past_efficient, target = (RULES[name] for name in ("the frontier", "the stopping point", "the target"))
diverging, off_curve = (RULES[name] for name in ("divergence", "the curve"))
plateau, stuck = (RULES[name] for name in ("the plateau", "learning at all"))
schedule, hardware = (RULES[name] for name in ("the schedule", "the hardware"))
batch, epochs, overfitting = (RULES[name] for name in ("the batch", "the epochs", "overfitting"))
THRESHOLDS = Thresholds()
COSINE = LrPlan.cosine(10_000, 1e-3, 100)
ENDING = Forecast(2.5, 2.48, 2.52, 0.0135, 0.8, 10_000, "isoflop")
DECAYED = Forecast(2.6, 2.58, 2.62, 0.0135, 0.8, 4600, "isoflop")
WARMING_UP = NoForecast(Refusal.WARM_UP, {"needed": 200, "now": 9})
FALLING = [(100 * i, 3 - 0.01 * i) for i in range(1, 41)]
LOOK = "the data (order, duplicates, another mix), the precision and the gradient norm"
PRIOR = (
    "published scaling sweeps (about 20 tokens per parameter, ±57%), none of your own runs; "
    "exponents of Besiroglu et al. 2024"
)
SERVED = " If the small model is meant (cheap to serve), say so: inference_tokens= or intent='overtrain'."


def situation(**known: Any) -> Situation:
    """A healthy run of 1.3B parameters, half done."""
    healthy: dict[str, Any] = {
        "step": 5000,
        "total_steps": 10_000,
        "N": 1.3e9,
        "N_non_embedding": 1.2e9,
        "tokens": 13e9,
        "tokens_per_step": 2.6e6,
        "flops_per_token": 8.5e9,
        "seconds": 36_000.0,
        "rates": COSINE,
        "warmup_steps": 100,
    }
    if "N" in known:
        healthy["flops_per_token"] = 6 * (known["N"] or 0)
    return Situation(**{**healthy, **known})


def against(loss: Any, came: Any, *, sd: float = 0.004, made_at: int = 4000, then: float = 2.70) -> Expected:
    """Two blocks of losses against a fit that leaves 2.7 nats at step 4,000."""
    return Expected(made_at, then, loss, sd, came, (0.002, 0.002))


def batch_of(tokens: float, measured: float = 9e5, prior: float = 1.1e6) -> Batch:
    known = [Belief(measured, 0.5), Belief(prior, 0.5)]
    return Batch(tokens, combine(known), *known)


def evaluated(*losses: float, train: float = 2.7) -> dict[str, list[Evaluated]]:
    """On c4, every 1000 steps."""
    return {"c4": [Evaluated(1000 * (i + 1), loss, train) for i, loss in enumerate(losses)]}


SAID = [
    (
        target,
        {"target_loss": 2.4, "forecast": ENDING},
        Severity.WARNING,
        """The run will not reach the target of 2.400 nats per token: the forecast is 2.500 [2.480, 2.520] at step \
10,000.
  Do: stop and change the plan, or train longer, with the learning rate's end moved along; or lower the target. \
Saves: compute = 1.1e+20 FLOPs, time = 10 hours.
  Based on: this run's forecast. Probability: over 99%.
  Numbers: loss at the planned end = 2.500 nats per token [2.480, 2.520] (80% intervals).""",
    ),
    (
        past_efficient,
        {"step": 4000, "N": 1e8, "tokens": 4e10, "loss": 2.8, "forecast": ENDING, "decay_now": lambda: DECAYED},
        Severity.INFO,
        f"""Past the efficient stopping point: 100M parameters have seen 40B tokens; a model of about 305M parameters \
would have reached this loss with 53% less compute, and the rest buys 0.300 nats per token [0.280, 0.320].
  Do: start the learning-rate decay now, over the next 10 to 20% of the steps done, instead of going on.{SERVED} \
Saves: compute = 9.36e+18 FLOPs, time = 15 hours.
  Based on: {PRIOR}; this run's forecast. Probability: over 99%.
  Numbers: tokens per parameter = 400, done = 2.4e+19 FLOPs (6·N·D), loss at the planned end = 2.500 nats per token \
[2.480, 2.520], loss if the decay began now, at step 4,600 = 2.600 nats per token [2.580, 2.620] (80% intervals).""",
    ),
    (
        diverging,  # for 60 steps, each of them logged
        {"losses": [(4900 + i, 3.9 if i > 40 else 3 - 0.001 * i) for i in range(1, 101)]},
        Severity.CRITICAL,
        f"""The loss diverges: 3.900 nats per token, after 2.962 around step 4,936; a logged loss scatters by 0.003.
  Do: stop, go back to a checkpoint of step 4,936 or before, and lower the learning rate or skip the data; \
look at {LOOK} too.
  Based on: this run's loss.
  Numbers: loss = 3.900 nats per token, best = 2.962 nats per token, scatter = 0.003 nats per token.""",
    ),
    (
        target,
        {"target_loss": 2.4, "forecast": ENDING, "forecast_of": "eval/c4"},
        Severity.WARNING,
        """The run will not reach the target of 2.400 nats per token on eval/c4: the forecast is 2.500 \
[2.480, 2.520] at step 10,000.
  Do: stop and change the plan, or train longer, with the learning rate's end moved along; or lower the target. \
Saves: compute = 1.1e+20 FLOPs, time = 10 hours.
  Based on: this run's forecast. Probability: over 99%.
  Numbers: loss on eval/c4 at the planned end = 2.500 nats per token [2.480, 2.520] (80% intervals).""",
    ),
    (
        past_efficient,  # what was repeated is not: the stock is larger
        {"step": 8000, "N": 1e8, "tokens": 4e10, "unique_tokens": 1e11, "forecast": ENDING, "forecast_of": "eval/c4"},
        Severity.INFO,
        f"""Past the efficient stopping point: 100M parameters have seen 40B tokens; a model of about 305M parameters \
would have reached this loss with 53% less compute.
  Do: let the decay that has begun finish, or stop; the next run should be larger.{SERVED} \
Saves: compute = 3.12e+18 FLOPs, time = 2.5 hours.
  Based on: {PRIOR}; this run's forecast. Probability: over 99%.
  Numbers: tokens per parameter = 400, done = 2.4e+19 FLOPs (6·N·D), loss on eval/c4 at the planned end = 2.500 nats \
per token [2.480, 2.520] (80% intervals).""",
    ),
    (
        past_efficient,
        {"step": 4000, "N": 1e8, "tokens": 4e10, "converged": lambda: Forecast(2.3, 2.27, 2.33, 0.02, 0.8, 10_000, "")},
        Severity.INFO,
        f"""Past the efficient stopping point: 100M parameters have seen 40B tokens; a model of about 305M parameters \
would have reached this loss with 53% less compute.
  Do: start the learning-rate decay now, over the next 10 to 20% of the steps done, instead of going on.{SERVED} \
Saves: compute = 9.36e+18 FLOPs, time = 15 hours.
  Based on: {PRIOR}. Probability: over 99%.
  Numbers: tokens per parameter = 400, done = 2.4e+19 FLOPs (6·N·D), loss at which Kaplan et al. 2020 would stop = \
2.533 nats per token [2.500, 2.566] (80% intervals).""",
    ),
    (
        past_efficient,
        {"step": 8000, "N": 1e8, "tokens": 4e10},
        Severity.INFO,
        f"""Past the efficient stopping point: 100M parameters have seen 40B tokens; a model of about 305M parameters \
would have reached this loss with 53% less compute.
  Do: let the decay that has begun finish, or stop; the next run should be larger.{SERVED} \
Saves: compute = 3.12e+18 FLOPs, time = 2.5 hours.
  Based on: {PRIOR}. Probability: over 99%.
  Numbers: tokens per parameter = 400, done = 2.4e+19 FLOPs (6·N·D).""",
    ),
    (
        diverging,
        {"nonfinite": 3, "losses": FALLING},
        Severity.CRITICAL,
        f"""The training loss has been NaN or infinite for 3 log steps in a row, since step 4,000.
  Do: stop, go back to a checkpoint of step 4,000 or before, and lower the learning rate; look at {LOOK} too.
  Based on: this run's loss.""",
    ),
    (
        diverging,
        {"losses": [*FALLING, (4100, 3.5), (4200, 3.6), (4300, 3.9)]},
        Severity.CRITICAL,
        f"""The loss diverges: 3.600 nats per token, after 2.620 around step 3,600; a logged loss scatters by 0.0026.
  Do: stop, go back to a checkpoint of step 3,600 or before, and lower the learning rate or skip the data; \
look at {LOOK} too.
  Based on: this run's loss.
  Numbers: loss = 3.600 nats per token, best = 2.620 nats per token, scatter = 0.0026 nats per token.""",
    ),
    (
        off_curve,
        {"expected": [against((2.56, 2.55), (2.69, 2.69), made_at=3900), against((2.55, 2.54), (2.69, 2.69), sd=0.02)]},
        Severity.WARNING,
        f"""The loss has left its curve: 2.690 nats per token, where 2.550 was expected, \
29 standard deviations off.
  Do: look at the learning rate, {LOOK}; compare with a checkpoint of step 3,900.
  Based on: this run's curve up to step 3,900.
  Numbers: loss = 2.690 nats per token, expected = 2.550 nats per token [2.541, 2.559] (95% intervals).""",
    ),
    (
        off_curve,
        {"by_ladder": against((2.5, 2.5), (2.7, 2.7), sd=0.03, made_at=0)},
        Severity.WARNING,
        f"""The loss has left its curve: 2.700 nats per token, where 2.500 was expected, \
7 standard deviations off.
  Do: look at the learning rate, {LOOK}; compare with them.
  Based on: your earlier sizes (history=).
  Numbers: loss = 2.700 nats per token, expected = 2.500 nats per token [2.440, 2.560] (95% intervals).""",
    ),
    (
        plateau,
        {"expected": [against((2.68, 2.67), (2.70, 2.698))]},
        Severity.WARNING,
        f"""The loss has stopped falling: it fell by 0.002 nats per token since step 4,000, where a \
fall of 0.030 was to be expected.
  Do: a model that learns falls on: look at the learning rate, {LOOK}; if the loss is as low as this data allows, stop.
  Based on: this run's curve up to step 4,000.
  Numbers: fall = 0.002 nats per token [-0.002, 0.006], expected = 0.03 nats per token [0.022, 0.038] \
(95% intervals).""",
    ),
    (
        stuck,
        {"losses": [(100 * i, 2.7) for i in range(1, 51)], "loss": 2.7},
        Severity.WARNING,
        f"""The loss has stopped falling: it fell by 0.000 nats per token over the last doubling of steps, where a \
fall of 0.120 was to be expected.
  Do: a model that learns falls on: look at the learning rate, {LOOK}; if the loss is as low as this data allows, stop.
  Based on: B and β of besiroglu2024.
  Numbers: fall = 0 nats per token [0, 0], expected = 0.120 nats per token [0.06, 0.180] (95% intervals).""",
    ),
    (
        batch,
        {"batch": batch_of(8e6)},
        Severity.WARNING,
        """The batch is 5.5 [3.5, 8.6] times the critical size expected at the planned end: 85% of the compute there, \
and more before, goes into gradients that agree already.
  Do: with about 1.46M tokens a step the same loss takes fewer tokens and more steps; tune the learning rate again \
with the batch. \
Saves: compute of the rest = 69.1% [55.3%, 79.2%] (80% intervals).
  Based on: this run's gradient noise scale; published fits of B_crit over D. Probability: over 99%.
  Numbers: batch = 8M tokens, critical batch now = 995k tokens [632k, 1.57M], measured = 900k tokens, published fits = \
1.1M tokens, critical batch at the planned end = 1.46M tokens [930k, 2.3M] (80% intervals).""",
    ),
    (
        batch,
        {"batch": batch_of(1e5)},
        Severity.INFO,
        """The batch is 0.1 times the critical size: it could be larger at little cost in tokens.
  Do: if steps take as long on a batch of 200k tokens (more devices), double it: 45% fewer steps for 9% more tokens; \
tune the learning rate again with the batch.
  Based on: this run's gradient noise scale; published fits of B_crit over D. Probability: over 99%.
  Numbers: batch = 100k tokens, critical batch now = 995k tokens [632k, 1.57M], measured = 900k tokens, published fits \
= 1.1M tokens (80% intervals).""",
    ),
    (
        epochs,
        {"unique_tokens": 5e8},
        Severity.INFO,
        """52 epochs over 500M unique tokens are planned: at the end a repeated token is worth 4% of a new one.
  Do: bring more data, or stop after about 22 epochs.
  Based on: Muennighoff et al. 2023: R_D* = 15.4; their runs leave it open between 6.6 and 95 or more.
  Numbers: epochs = 52, worth of the last token = 3.64% [0.0441%, 58.5%] (90% intervals).""",
    ),
    (
        overfitting,
        {
            "unique_tokens": 1e9,
            "loss": 2.2,
            "evaluations": evaluated(3.0, 2.8, 2.82, 2.9, 3.0),
        },
        Severity.WARNING,
        """The loss on c4 has risen from 2.800 to 3.000 nats per token since step 2,000, while the training loss fell: \
the model overfits. 1.2B parameters (non-embedding) want 26.2B unique tokens or more (Kaplan et al. 2020, eq. 4.4); \
there are 1B.
  Do: stop and keep the checkpoint of step 2,000; the next run wants more data, fewer epochs, a smaller model or more \
regularisation.
  Based on: this run's losses.
  Numbers: best evaluation loss = 2.800 nats per token, now = 3.000 nats per token, training loss = 2.200 nats per \
token, training loss then = 2.700 nats per token, unique tokens = 1B tokens.""",
    ),
    (
        schedule,
        {"rates": LrPlan.cosine(20_000, 1e-3, 100)},
        Severity.WARNING,
        """The learning-rate decay is cut off: at the planned end, step 10,000, the rate is still 55% of its peak and \
falling; the decay is about 2.0 times as long as the run.
  Do: unless it is meant to end there, set the schedule's length to 10,000 steps: a decay more than 25% too long \
costs loss.
  Based on: the trainer's schedule; Hoffmann et al. 2022, appendix B.
  Numbers: learning rate at the end over its peak = 55.4%.""",
    ),
    (
        schedule,
        {"rates": LrPlan.linear(6000, 1e-3, 100)},
        Severity.WARNING,
        """The learning rate is below a thousandth of its peak from step 5,975 on; the 4,025 steps after it buy \
nothing.
  Do: set the schedule's length to 10,000 steps, or end the run there.
  Based on: the trainer's schedule; Hoffmann et al. 2022, appendix B.
  Numbers: learning rate at the end over its peak = 0%.""",
    ),
    (
        schedule,
        {"rates": LrPlan(np.array([0, 100, 5000, 10_000.0]), np.array([0, 1e-3, 0, 1e-3]))},
        Severity.WARNING,
        """The learning rate comes down to 0% of its peak at step 5,000 and rises again to 100% before the run ends at \
step 10,000.
  Do: set the schedule's length to the planned steps; if restarts are meant, end the run at the end of one.
  Based on: the trainer's schedule; Hoffmann et al. 2022, appendix B.
  Numbers: learning rate at the end over its peak = 100%.""",
    ),
    (
        schedule,
        {"rates": LrPlan(np.array([0, 20_000.0]), np.array([0, 1e-3]))},
        Severity.WARNING,
        """The learning rate still rises at the planned end, step 10,000: the warm-up is longer than the run.
  Do: end the warm-up in the first tenth of the run and the decay with it; nothing, if rates are tried out.
  Based on: the trainer's schedule; Hoffmann et al. 2022, appendix B.
  Numbers: learning rate at the end over its peak = 100%.""",
    ),
    (
        hardware,
        {"speeds": [1e5] * 8 + [6e4, 5e4, 6e4, 6e4, 5e4], "best_speed": 1e5},
        Severity.WARNING,
        """Training runs at 60% of the speed that this run has reached: 60k tokens/s per device now, 100k before. \
Goodput does not show it: the steps themselves take longer.
  Do: look at the data loader, a slow or throttled device, another job on the machine, longer sequences or padding. \
Saves: time lost at this speed = 6.67 hours.
  Based on: this run's throughput.
  Numbers: now = 60k tokens/s per device, best = 100k tokens/s per device.""",
    ),
    (
        planned,
        {"tokens": 2.6e5, "tokens_per_step": 2.6e5, "step": 1, "seconds": None},
        Severity.WARNING,
        f"""The model is too large for its data: 2 tokens per parameter. The same loss would cost 37% [18%, 56%] less \
compute, at least 21% (85% sure).
  Do: train about 327M parameters on 6.53B tokens instead, or this model on more tokens. \
Saves: compute = 7.48e+18 FLOPs [3.62e+18, 1.14e+19] (80% intervals).
  Based on: {PRIOR}. Probability: over 99%.
  Numbers: N = 1.3B parameters, D = 2.6B tokens, C = 6·N·D = 2.03e+19 FLOPs, N of least compute = 327M parameters \
[180M, 558M], D of least compute = 6.53B tokens [4.97B, 8.19B], its D/N = 20 tokens per parameter [8.91, 45.4] \
(80% intervals).""",
    ),
    (
        planned,
        {},
        Severity.NOTE,
        f"""20 tokens per parameter: N = 1.3B with the head, D = 26B tokens, C = 6·N·D = 2.03e+20 FLOPs. The same loss \
would cost under 1% [under 1%, 5%] less compute at 1.3B [939M, 1.73B] parameters and 26B [18.9B, 34.8B] tokens. \
Based on: {PRIOR}.""",
    ),
]


def numbers_of(found: Advice) -> list[str]:
    """The line of a warning's numbers, which go to the record and TensorBoard."""
    if found.severity is Severity.NOTE or not found.numbers:
        return []
    intervals = f" ({found.level:.0%} intervals)" if any(each.low is not None for each in found.numbers) else ""
    return [f"  Numbers: {', '.join(map(str, found.numbers))}{intervals}."]


@pytest.mark.parametrize(("evaluate", "known", "severity", "text"), SAID)
def test_what_is_said(evaluate: Any, known: dict[str, Any], severity: Severity, text: str) -> None:
    found = evaluate(situation(**known), THRESHOLDS)
    assert "\n".join([str(found), *numbers_of(found)]) == text
    assert found.severity is severity and str(found).count("\n") <= 2
    assert all(
        f"| {each.name} | {each.value_text} | {each.interval_text or '–'} |" in found.markdown()
        for each in found.numbers
    )
    assert found.what in found.markdown() and found.as_dict()["what"] == found.what


SILENT = [
    (target, {"target_loss": 2.49, "forecast": ENDING}),  # it may be reached
    (target, {"forecast": ENDING}),
    (past_efficient, {"step": 9500, "N": 1e8, "tokens": 4e10}),  # nothing left to save
    (past_efficient, {"N": 1e8, "tokens": 4e10, "intent": "overtrain"}),
    (past_efficient, {"N": 1e8, "tokens": 4e10, "nonfinite": 1}),  # no loss has been reached
    (past_efficient, {"N": 1e8, "tokens": 4e10, "inference_tokens": 1e13}),
    (past_efficient, {}),
    (diverging, {"losses": FALLING}),
    (diverging, {"losses": [*FALLING, (4100, 3.5)]}),  # one spike
    # a spike of 30 steps, each of them logged
    (diverging, {"losses": [(4900 + i, 3.9 if i > 70 else 3 - 0.001 * i) for i in range(1, 101)]}),
    (diverging, {"nonfinite": 2}),
    (diverging, {"losses": FALLING[::-1], "step": 50}),  # warm-up
    (off_curve, {"expected": [against((2.56, 2.55), (2.56, 2.69))]}),  # one block: a spike
    (off_curve, {"by_ladder": against((2.5, 2.5), (2.7, 2.7), sd=0.05, made_at=0)}),  # the ladder is not so sure
    (off_curve, {"by_ladder": against((2.5, 2.5), (2.7, 2.7), sd=0.03, made_at=0), "step": 150}),  # warm-up
    (off_curve, {"expected": [against((2.61, 2.61), (2.64, 2.64))]}),
    (off_curve, {"expected": [against((2.61, 2.61), (2.50, 2.50))]}),  # better than expected
    (plateau, {"expected": [against((2.68, 2.67), (2.70, 2.70), sd=0.02)]}),  # the fit was not sure
    (plateau, {"expected": [against((2.68, 2.67), (2.685, 2.68))]}),  # it falls, if by less
    (plateau, {"expected": [against((2.68, 2.67), (2.70, 2.70))], "rate_stepped": True}),
    # no plateau: it has risen since the later fit
    (plateau, {"expected": [against((2.62, 2.61), (2.70, 2.70)), against((2.65, 2.64), (2.70, 2.70), then=2.66)]}),
    # it jumped, and falls again; it is above where it was
    (stuck, {"losses": [*FALLING[:26], *((2600 + 100 * i, 3.8 - 0.03 * i) for i in range(1, 26))], "loss": 3.1}),
    # the model has seen more tokens than are optimal
    (stuck, {"losses": [(100 * i, 2.7) for i in range(1, 51)], "loss": 2.7, "tokens": 40e9}),
    (stuck, {"losses": FALLING, "loss": 2.7}),
    (batch, {"batch": batch_of(1e6)}),
    (batch, {"batch": batch_of(2.5e5)}),  # the zone of least loss
    (batch, {"batch": batch_of(8e6), "step": 150}),  # warm-up
    (
        batch,
        {"batch": batch_of(4e6), "step": 500, "tokens": 1.3e9},
    ),  # the critical size grows fivefold to the end
    (batch, {"batch": batch_of(8e6), "total_steps": None}),  # … by how much is not known
    (epochs, {"unique_tokens": 2.6e9}),
    (epochs, {}),
    (overfitting, {"evaluations": evaluated(3.0, 2.8, 2.82), "loss": 2.2}),
    (
        overfitting,
        {
            "unique_tokens": 1e12,  # first epoch: not learnt by heart
            "loss": 2.2,
            "evaluations": evaluated(3.0, 2.8, 2.82, 2.9, 3.0),
        },
    ),
    (overfitting, {"evaluations": evaluated(2.9, 2.8, 2.801, 2.803, 2.806), "loss": 2.2}),  # it scatters
    (overfitting, {"evaluations": evaluated(3.0, 2.8, 2.82, 2.9, 3.0, train=2.1), "loss": 2.2}),  # both rise
    (past_efficient, {"N": 1e8, "tokens": 4e10, "unique_tokens": 1e10}),  # repeated: not the law's tokens
    (schedule, {}),
    (schedule, {"rates": LrPlan.cosine(11_000, 1e-3, 100)}),
    (schedule, {"rates": LrPlan.constant(10_000, 1e-3, 100)}),  # a decay may come in a run of its own
    (schedule, {"rates": LrPlan.wsd(10_000, 1e-3, 100, 2000)}),
    (schedule, {"rates": LrPlan.linear(10_000, 1e-3, 100)}),
    (schedule, {"rates": LrPlan(np.arange(10_001.0), 1e-3 * (1 - np.arange(10_001.0) / 1e4) ** 2)}),
    (schedule, {"rates": LrPlan(np.array([0, 5000, 10_000.0]), np.array([1e-3, 1e-5, 0]))}),  # 1% is not 0
    (schedule, {"rates": None}),
    *[  # torch's linear decay of a smoke test: its last step has 1/n of the peak
        (
            schedule,
            {"total_steps": n, "rates": LrPlan(np.arange(n + 1.0), 1e-3 * (1 - np.arange(-1.0, n) / n).clip(0, 1))},
        )
        for n in (4, 6, 9)
    ],
    (hardware, {"speeds": [1e5] * 8 + [6e4, 5e4, 9e4, 6e4, 5e4], "best_speed": 1e5}),
    (hardware, {"speeds": [6e4] * 8, "best_speed": 1e5, "seconds": 60.0}),  # a minute at stake
    (hardware, {"speeds": [1e5, 1e4, 1e4, 1e4]}),
]


@pytest.mark.parametrize(("evaluate", "known"), SILENT)
def test_silence(evaluate: Any, known: dict[str, Any]) -> None:
    assert evaluate(situation(**known), THRESHOLDS) is None


@pytest.mark.parametrize(
    ("evaluate", "known", "why"),
    [
        (
            target,
            {"target_loss": 2.4, "forecast": NoForecast(Refusal.WARM_UP, {"needed": 200, "now": 9})},
            "A forecast needs 200 steps, twice the warm-up; 9 are done.",
        ),
        (target, {"target_loss": 2.4}, "there is no forecast yet"),
        (planned, {"N": None}, "the model's parameters are unknown (num_params=)"),
        (planned, {"total_steps": None}, "the planned tokens are unknown (total_steps=, or max_steps of a Trainer)"),
        (past_efficient, {"tokens": None}, "parameters or tokens are unknown"),
        (batch, {}, "the run's tokens are not known"),
        (
            batch,
            {"batch": batch_of(1e6)._replace(measured=None, measurements=7)},
            "the gradient noise scale was measured at too few steps",
        ),
        (
            batch,
            {"batch": batch_of(1e6)._replace(measured=None)},
            "the gradient noise scale was not measured, see docs/noise-scale.md",
        ),
        (
            batch,
            {"batch": batch_of(8e6, measured=1e5)},
            "the measured critical batch (100k tokens, times or over 1.6) and published fits (1.1M tokens, times or "
            "over 1.6) are too far apart",
        ),
    ],
)
def test_what_is_missing(evaluate: Any, known: dict[str, Any], why: str) -> None:
    found = evaluate(situation(**known), THRESHOLDS)
    assert isinstance(found, Missing) and found.why == why


@pytest.mark.parametrize(
    ("evaluate", "known", "quiet"),
    [
        (target, {"target_loss": 2.4}, True),
        (
            target,
            {"target_loss": 2.4, "forecast": WARMING_UP},
            True,
        ),
        (target, {"target_loss": 2.4, "forecast": NoForecast(Refusal.LR_RISES)}, False),
        (batch, {"batch": batch_of(1e6)._replace(measured=None, measuring=True)}, True),
        (batch, {"batch": batch_of(1e6)._replace(measured=None, measurements=7)}, False),
        (batch, {"batch": batch_of(1e6)._replace(measured=None)}, True),  # the noise scale says why itself
        (batch, {}, True),  # the line on the batch's layout says it
    ],
)
def test_what_time_may_mend_is_no_line_of_its_own(evaluate: Any, known: dict[str, Any], quiet: bool) -> None:
    found = evaluate(situation(**known), THRESHOLDS)
    assert isinstance(found, Missing) and found.quiet is quiet


@pytest.mark.parametrize(("N", "larger"), [(1e7, True), (1.3e9, False)])
def test_a_larger_model_is_advised_only_where_the_unique_tokens_support_one(N: float, larger: bool) -> None:
    """Muennighoff et al. 2023: 500M unique tokens support some 25M parameters, and R_N* is 5.3."""
    found = epochs(situation(N=N, unique_tokens=5e8), THRESHOLDS)
    assert isinstance(found, Advice) and ("larger model" in found.do) == larger


def test_who_switches_the_noise_scale_off_hears_nothing_of_it() -> None:
    assert batch(situation(batch_wanted=False), THRESHOLDS) is None


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"N": 1e8, "tokens_per_step": 2e7, "tokens": 1e11}, Reason.TOO_SMALL),
        ({"N": 1e8, "tokens_per_step": 2e7, "tokens": 1e11, "intent": "overtrain"}, Reason.FRONTIER),
        ({"N": 1e8, "tokens_per_step": 2e7, "tokens": 1e11, "inference_tokens": 1e13}, Reason.FRONTIER),
        # so many tokens to serve want it smaller still
        ({"N": 1e9, "tokens_per_step": 2e6, "tokens": 1e10, "inference_tokens": 1e14}, Reason.TOO_LARGE),
        ({"tokens_per_step": 2.6e5, "tokens": 1.3e9, "intent": "overtrain"}, Reason.TOO_LARGE),
        ({"tokens_per_step": 2.6e5, "tokens": 1.3e9, "unique_tokens": 1e9}, Reason.FRONTIER),
    ],
)
def test_what_a_size_is_judged_against(known: dict[str, Any], reason: Reason) -> None:
    found = planned(situation(**known), THRESHOLDS)
    assert isinstance(found, Advice) and found.reason is reason


def test_no_size_is_named_that_is_far_smaller_than_any_of_a_published_sweep() -> None:
    """42k parameters on 5T tokens heard "train about 289k parameters on 5.78M tokens": 1e13 FLOPs, over 99% sure."""
    tiny = {"N": 4.2e4, "tokens": 2.5e12, "tokens_per_step": 5e8, "flops_per_token": 2.5e5}
    assert isinstance(found := planned(situation(**tiny), THRESHOLDS), Missing) and "three of your own" in found.why
    assert past_efficient(situation(**tiny, rates=None, warmup_steps=0), THRESHOLDS) is None
    small = {"N": 1e7, "tokens": 1e10, "tokens_per_step": 2e6, "flops_per_token": 6e7}
    assert isinstance(found := planned(situation(**small), THRESHOLDS), Advice) and found.reason is Reason.TOO_SMALL


@given(log_k=st.floats(-2, 2), C=st.floats(18, 25))
def test_waste_is_what_the_closed_form_says(log_k: float, C: float) -> None:
    law = published("besiroglu2024").law
    assert law is not None
    best = optimal_allocation(law, 10**C)
    k = math.exp(log_k)
    waste = waste_of(law, k * best.N, best.D / k)
    alpha, beta = law.constants["alpha"], law.constants["beta"]
    ratio = (beta * k**-alpha + alpha * k**beta) / (alpha + beta)
    assert waste.extra[0] == pytest.approx(ratio ** ((alpha + beta) / (alpha * beta)) - 1, abs=2e-4, rel=2e-3)
    assert waste.N[0] * waste.D[0] * 6 * (1 + waste.extra[0]) == pytest.approx(10**C, rel=1e-9)


def test_hours_of_training_are_no_measure_of_serving() -> None:
    served = planned(situation(N=1e9, tokens_per_step=2e6, tokens=1e10, inference_tokens=1e14), THRESHOLDS)
    assert isinstance(served, Advice) and "The same loss, serving included, would cost" in served.what
    assert [each.name for each in served.saves] == ["compute to train and serve"]
    alone = planned(situation(tokens_per_step=2.6e5, tokens=1.3e9), THRESHOLDS)
    assert isinstance(alone, Advice) and [each.name for each in alone.saves] == ["compute", "time"]


def test_serving_makes_the_best_size_smaller() -> None:
    law = published("besiroglu2024").law
    assert law is not None
    best = optimal_allocation(law, 1e21)
    alone, served = (waste_of(law, best.N, best.D, tokens) for tokens in (0.0, 1e12))
    assert alone.extra[0] < 1e-3 < served.extra[0]
    assert served.N[0] < 0.8 * best.N and served.D[0] > best.D


# --- what is said once -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("losses", "falls"),
    [
        ([3 - 0.01 * i for i in range(1, 51)], True),
        (
            [2.7 + 0.1 * (-1) ** i for i in range(1, 51)],
            False,
        ),  # too noisy for advice on a plateau, and no proof of none
        ([2.7] * 50, False),
    ],
)
def test_no_plateau_is_stated_only_of_a_loss_that_surely_falls(losses: list[float], falls: bool) -> None:
    run = situation(losses=[(100 * i, loss) for i, loss in enumerate(losses, 1)], loss=losses[-1])
    assert falls_on(run) is falls


def found_at(step: int, **known: Any) -> Situation:
    return situation(step=step, forecast=ENDING, target_loss=2.4, **known)


def test_a_finding_is_said_when_it_has_stood_three_log_steps_and_once() -> None:
    adviser = Adviser()
    said = [adviser.judge(found_at(step)) for step in range(3000, 4000, 100)]
    assert [len(each) for each in said] == [0, 0, 1, *[0] * 7]
    assert [advice.reason for advice in adviser.current] == [Reason.TARGET]
    assert adviser.current[0].step == 3200  # since when


def test_a_finding_that_goes_is_taken_back_and_said_again_later_only() -> None:
    adviser = Adviser()
    for step in (3000, 3100, 3200):
        adviser.judge(found_at(step))
    for step in (3300, 3400, 3500):
        adviser.judge(situation(step=step))
    assert adviser.current == ()
    early = [adviser.judge(found_at(step)) for step in (3600, 3700, 3800)]
    assert not any(early) and adviser.current  # it stands, but was said 600 of 10,000 steps ago
    for step in (4500, 4600, 4700):
        adviser.judge(situation(step=step))
    assert any(adviser.judge(found_at(step)) for step in (4800, 4900, 5000))


def test_a_resumed_run_does_not_repeat_it() -> None:
    adviser, resumed = Adviser(), Adviser()
    for step in (3000, 3100, 3200):
        adviser.judge(found_at(step))
    resumed.load_state_dict(adviser.state_dict())
    assert not any(resumed.judge(found_at(step)) for step in (3300, 3400, 3500, 3600))
    assert resumed.current


def test_a_resumed_run_says_what_has_become_worse() -> None:
    adviser, resumed = Adviser(), Adviser()
    adviser.start(situation())
    assert [each.severity for each in adviser.current] == [Severity.NOTE]
    resumed.load_state_dict(adviser.state_dict())
    (said,) = resumed.start(situation(tokens_per_step=2.6e5, tokens=1.3e9))
    assert said.reason is Reason.TOO_LARGE


def test_a_rate_that_falls_with_the_inverse_root_of_the_steps_is_not_cut_off() -> None:
    steps = np.arange(0, 10_001, 50.0)
    rates = 1e-3 * np.minimum(steps / 4000, np.sqrt(4000 / np.maximum(steps, 1)))
    assert schedule(situation(step=300, rates=LrPlan(steps, rates)), Thresholds()) is None


def test_the_schedule_is_judged_when_it_becomes_known() -> None:
    adviser, cut_off = Adviser(), LrPlan.cosine(20_000, 1e-3, 100)
    adviser.start(situation(step=1, rates=None))
    assert not adviser.judge(situation(step=100, rates=None))
    assert [each.reason for each in adviser.judge(situation(step=300, rates=cut_off))] == [Reason.SCHEDULE]
    assert not adviser.judge(situation(step=400, rates=cut_off))


def test_what_was_found_stands_when_too_little_of_the_run_is_left_to_act_on_it() -> None:
    """It is given no more; but the run does not become fine by coming to its end."""
    cut_off, adviser, late = LrPlan.cosine(20_000, 1e-3, 100), Adviser(), Adviser()
    assert [each.reason for each in adviser.judge(situation(step=300, rates=cut_off))] == [Reason.SCHEDULE]
    for step in (9200, 9500, 9900, 10_000):
        assert not adviser.judge(situation(step=step, rates=cut_off))
        assert not late.judge(situation(step=step, rates=cut_off))  # a plan that nobody knew before
    assert [each.step for each in adviser.current] == [300] and not adviser.gone
    assert [each.reason for each in late.current] == [Reason.SCHEDULE] and not late.gone


def test_what_was_given_and_holds_no_more_is_kept_through_a_resume() -> None:
    adviser, resumed = Adviser(), Adviser()
    for step in (3000, 3100, 3200):
        adviser.judge(found_at(step))
    resumed.load_state_dict(adviser.state_dict())
    assert [(each.reason, each.step, each.numbers) for each in resumed.current] == [
        (each.reason, each.step, each.numbers) for each in adviser.current
    ]
    for step in (3300, 3400, 3500):
        resumed.judge(situation(step=step))
    assert resumed.current == () and [(each.reason, each.step) for each in resumed.gone] == [(Reason.TARGET, 3200)]


def test_nan_is_said_at_once() -> None:
    assert [a.reason for a in Adviser().judge(situation(nonfinite=3))] == [Reason.DIVERGING]


def test_thresholds_are_the_users() -> None:
    adviser = Adviser(Thresholds(in_a_row=1, target=0.6))
    assert adviser.judge(situation(forecast=ENDING, target_loss=2.49))


@pytest.mark.parametrize("name", RULES)
def test_a_failing_evaluator_takes_no_other_along(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(run: Situation, thresholds: Thresholds) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setitem(RULES, name, dataclasses.replace(RULES[name], judge=broken))
    failed: list[str] = []
    adviser = Adviser(failed=lambda which, error: failed.append(f"{which}: {error}"))
    for step in (3000, 3100, 3200):
        adviser.start(found_at(step))
        adviser.judge(found_at(step))
    assert failed == [f"{name}: broken on purpose"]
    reasons = {advice.reason for advice in adviser.current}
    assert reasons == {Reason.FRONTIER, Reason.TARGET} - (
        {Reason.FRONTIER} if name == "the frontier" else {Reason.TARGET} if name == "the target" else set()
    )


@pytest.mark.parametrize("shape", ["cosine", "constant"])
def test_the_converged_loss_of_a_planted_curve(shape: str) -> None:
    """2 nats; from a tenth of the curve it can't be told."""
    plan = getattr(LrPlan, shape)(100_000, 1e-3, 100)
    forecaster, rng = OnlineForecaster(N=1e8, batch_tokens=5e5), np.random.default_rng(0)
    early = None
    for step in range(100, 60_000, 300):
        loss = 2 + 30 * step**-0.45 + 0.005 * float(rng.normal())
        forecaster.add(step, step * 5e5, float(plan.at(step)), loss, 300)
        if early is None and step > 3000:
            early = forecaster.converged(plan)
    assert isinstance(early, NoForecast)
    found = forecaster.converged(plan)
    assert isinstance(found, Forecast) and abs(found.loss - 2) < 2.5 * found.sd < 0.06
    assert isinstance(forecaster.converged(None), NoForecast)


# --- what is kept of the past --------------------------------------------------------------------------------------
def test_the_past_has_a_fixed_size_and_comes_back_from_a_checkpoint() -> None:
    adviser, rng, forecaster = Adviser(), np.random.default_rng(0), OnlineForecaster(N=1e8, batch_tokens=5e5)
    track = adviser.track
    for step in range(25, 20_001, 25):
        loss = 2 + 10 * step**-0.3 + 0.01 * float(rng.normal())
        forecaster.add(step, 5e5 * step, 1e-3, loss)
        assert not adviser.log(Situation(step=step, loss=loss), forecaster, speed=1000.0)
    assert len(track.losses) <= 96 and len(str(track.state_dict())) < 16_000
    again = Adviser().track
    again.load_state_dict(track.state_dict())
    assert again.state_dict() == track.state_dict()
    assert track.expected and all(abs(each.came[1] - each.loss[1]) < 0.03 for each in track.expected)


@pytest.mark.parametrize(
    ("fault", "reasons"),
    [
        (lambda step: 0.0, set()),
        (lambda step: 2.8 * step / 5000, {Reason.DIVERGING, Reason.OFF_CURVE}),  # drifts
        (lambda step: 10 * 5000**-0.3 - 10 * (5000 + step) ** -0.3, {Reason.PLATEAU}),  # stays where it is
        (lambda step: 0.12 * math.exp(-step / 1000), {Reason.DIVERGING, Reason.OFF_CURVE}),  # a restart, a wrong rate
        (lambda step: 3.0 if step < 40 else 0.0, set()),  # a spike that comes back
    ],
)
def test_faults_on_a_curve_are_told_from_its_fit(fault: Any, reasons: set[Reason]) -> None:
    """Half-way, with the coming learning rate unknown: within a tenth of the run, one line for the cause."""
    adviser, rng, forecaster = Adviser(), np.random.default_rng(1), OnlineForecaster(N=1e8, batch_tokens=5e5)
    said: list[Advice] = []
    for step in range(20, 6001, 20):
        loss = 2 + 10 * step**-0.3 + (fault(step - 5000) if step > 5000 else 0.0) + 0.01 * float(rng.normal())
        forecaster.add(step, 5e5 * step, 1e-3, loss, 20)
        said += adviser.log(Situation(step=step, total_steps=10_000, loss=loss), forecaster)
    warned = [advice.reason for advice in said if advice.severity < Severity.CRITICAL]
    assert len(warned) == bool(reasons) and set(warned) <= reasons
    assert all(advice.step > 5000 for advice in said)


def test_a_run_is_judged_once_in_half_a_block_and_at_once_where_something_changes() -> None:
    adviser = Adviser()
    due = [step for step in range(10, 20_001, 10) if adviser.feed(step, 3.0 - step * 1e-5)]
    assert due[:4] == [10, 50, 90, 130] and [step for step in due if step > 19_700] == [19_760, 19_860, 19_960]
    assert adviser.feed(20_010, 2.8, None, "another plan") and not adviser.feed(20_020, 2.8, None, "another plan")
    assert [adviser.feed(20_020 + step, 52.0, None, "another plan") for step in (10, 20, 30)] == [False, False, True]
    assert adviser.feed(20_060, math.nan, None, "another plan")


@given(sd=st.floats(1e-4, 1.0), slope=st.floats(-0.1, 0.1), seed=st.integers(0, 99))
def test_noise_is_told_from_a_trend(sd: float, slope: float, seed: int) -> None:
    losses = 3 + slope * np.arange(200) + sd * np.random.default_rng(seed).normal(size=200)
    assert 0.6 * sd < scatter(losses) < 1.6 * sd


def test_a_quantity_shows_its_unit_and_interval() -> None:
    assert str(Quantity("N", 2.9e9, "parameters", 1.6e9, math.inf)) == "N = 2.9B parameters [1.6B, without bound]"


def test_a_spike_on_its_way_back_and_a_loss_about_zero_are_no_divergence() -> None:
    back = [*FALLING, (4100, 3.6), (4200, 3.1), (4300, 2.9)]
    assert diverging(situation(losses=back), THRESHOLDS) is None
    about_zero = [(10 * i, 0.02 * math.cos(i / 10)) for i in range(1, 200)]
    policy, told = [(step, 0.1 + loss) for step, loss in about_zero], Task(objective="reinforcement")
    for end in range(20, 200):
        assert diverging(situation(losses=about_zero[:end], step=10 * end), THRESHOLDS) is None
        assert diverging(situation(losses=policy[:end], step=10 * end, task=told), THRESHOLDS) is None
    assert diverging(situation(nonfinite=3, task=told), THRESHOLDS) is not None


def test_a_jump_that_falls_again_is_no_reason_to_stop() -> None:
    """New data; a divergence settles: in five log steps it is one."""
    jump = [(4000 + 10 * i, 2.6 + 0.4 + 1.2 * i**-0.5) for i in range(1, 40)]
    for end in range(3, 40):
        found = diverging(situation(losses=FALLING + jump[:end], step=4000 + 10 * end), THRESHOLDS)
        assert found is None or (found.severity is Severity.WARNING and not found.stops and "falls again" in found.what)
    settles = [*FALLING, *((4000 + 50 * i, level) for i, level in enumerate((9.0, 7.2, 7.1, 7.0, 7.0, 6.9), 1))]
    assert diverging(situation(losses=settles, step=4300), THRESHOLDS).stops


def test_a_rise_as_two_before_that_came_back_is_none() -> None:
    """Data that comes in blocks of 300 steps; a third block that stays three times as long is a divergence."""
    losses = [(10 * i, 3 - 1e-5 * i + 0.4 * (i // 30 % 2)) for i in range(1, 300)]
    harder = [(step, loss) for step, loss in losses if step < 2100]
    assert diverging(situation(losses=losses[:50], step=500), THRESHOLDS) is not None  # nothing is known yet
    assert diverging(situation(losses=harder, step=2090), THRESHOLDS) is None
    stays = harder + [(step, 3.4) for step in range(2100, 2700, 10)]
    assert diverging(situation(losses=stays, step=2690), THRESHOLDS) is not None


@pytest.mark.parametrize(
    ("loss", "most"),
    [
        (lambda s, noise: -0.02 + 5 * noise, 0),  # of a policy
        (lambda s, noise: -300 * (1 - math.exp(-s / 900)) + noise, 0),  # a likelihood
        (lambda s, noise: 2.5 + 12 * s**-0.5 + noise + (1.5 * math.exp(-(s % 500) / 8) if s > 500 else 0), 0),  # spikes
        (lambda s, noise: 2.5 + 12 * s**-0.5 + noise + (0.5 + 1.56 * (s - 1499) ** -0.5 if s >= 1500 else 0), 2),
        (lambda s, noise: (2.5 + 12 * s**-0.5) * (1 + 0.04 * math.sin(2 * math.pi * s / 300)) + noise, 4),  # unshuffled
    ],
)
def test_odd_losses_of_strangers_are_left_alone_or_told_once(loss: Any, most: int) -> None:
    adviser, rng, forecaster = Adviser(), np.random.default_rng(2), OnlineForecaster(N=1e8, batch_tokens=5e5)
    told: list[Advice] = []
    known = {"total_steps": 4000, "N": 1e8, "flops_per_token": 6e8}
    for step in range(10, 4001, 10):
        now = float(np.mean([loss(s, 0.01 * rng.normal()) for s in range(step - 9, step + 1)]))
        forecaster.add(step, 5e5 * step, 1e-3, now, 10)
        told += adviser.log(Situation(step=step, tokens=5e5 * step, loss=now, **known), forecaster)
    assert len(told) <= most, [str(each) for each in told]
    assert most > 2 or not any(each.stops for each in told)


def test_a_rate_that_fell_in_a_step_leaves_no_curve_to_be_off() -> None:
    look = [against((2.55, 2.55), (2.69, 2.69))]
    assert off_curve(situation(expected=look), THRESHOLDS) is not None
    assert off_curve(situation(expected=look, rate_stepped=True), THRESHOLDS) is None


def test_a_plateau_less_sure_is_one_when_it_lasts() -> None:
    look = [against((2.68, 2.67), (2.70, 2.70), sd=0.0055)]
    assert plateau(situation(expected=look, looks=[look]), THRESHOLDS) is None
    found = plateau(situation(expected=look, looks=[look] * 2), THRESHOLDS)
    assert isinstance(found, Advice) and found.reason is Reason.PLATEAU
    fell = [against((2.68, 2.67), (2.685, 2.68))]
    assert plateau(situation(expected=fell, looks=[look] * 2), THRESHOLDS) is None
    assert plateau(situation(expected=look, looks=[fell, look]), THRESHOLDS) is None


def test_a_batch_that_stays_as_it_was_is_given_once() -> None:
    """What is known of its critical size comes and goes while that is measured; another batch is news."""
    standing, found = Standing(), []
    batches = {64: 4e4, 220: 4e4, 240: 8e4}
    for step in range(60, 250, 2):
        tokens = next((value for at, value in batches.items() if at - 4 <= step <= at), None)
        numbers = (Quantity("batch", tokens or 0.0, "tokens"),)
        advice = None if tokens is None else Advice(Reason.BATCH_LARGE, "", numbers=numbers)
        if standing.found(advice, 3, Situation(step=step, total_steps=260), late=False):
            found.append(step)
        assert (standing.advice is not None) is any(at <= step <= at + 4 for at in batches)
    assert found == [64, 240]
