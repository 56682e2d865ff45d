"""A scheduler's future, asked: the same rates as when it is really stepped, and nothing of it is touched."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as S

from isoflop.forecast import LrPlan
from isoflop.live import UnknownFuture, by_batch, by_epoch, future_learning_rates

PEAK = 1e-3


def adamw(lr: Any = PEAK) -> torch.optim.Optimizer:
    two = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": two[:1]}, {"params": two[1:], "lr": 5 * float(lr)}]
    return torch.optim.AdamW(groups, lr=lr)


def wsd(step: int) -> float:
    return min(1.0, (step + 1) / 20) * min(1.0, (300 - step) / 60)


MAKE: dict[str, Callable[[Any], Any]] = {
    "lambda": lambda o: S.LambdaLR(o, [wsd, lambda step: 1.0]),
    "multiplicative": lambda o: S.MultiplicativeLR(o, lambda step: 0.99 + 0.01 * (step % 2)),
    "step": lambda o: S.StepLR(o, 70, gamma=0.3),
    "multistep": lambda o: S.MultiStepLR(o, [50, 120, 120, 299], gamma=0.5),
    "constant": lambda o: S.ConstantLR(o, 0.25, 33),
    "linear": lambda o: S.LinearLR(o, 0.01, 1.0, 40),
    "linear to zero": lambda o: S.LinearLR(o, 1.0, 0.0, 300),
    "linear, no steps": lambda o: S.LinearLR(o, 0.5, 1.0, 0),
    "polynomial, no steps": lambda o: S.PolynomialLR(o, 0),
    "exponential": lambda o: S.ExponentialLR(o, 0.99),
    "polynomial": lambda o: S.PolynomialLR(o, 250, power=2.0),
    "cosine": lambda o: S.CosineAnnealingLR(o, 300, eta_min=1e-5),
    "cosine, up again": lambda o: S.CosineAnnealingLR(o, 90),
    "warm restarts": lambda o: S.CosineAnnealingWarmRestarts(o, 70, eta_min=1e-5),
    "longer restarts": lambda o: S.CosineAnnealingWarmRestarts(o, 30, T_mult=2),
    "one cycle": lambda o: S.OneCycleLR(o, 0.01, total_steps=300),
    "one cycle, three phases": lambda o: S.OneCycleLR(
        o, 0.01, total_steps=310, three_phase=True, anneal_strategy="linear", pct_start=0.2
    ),
    "cyclic": lambda o: S.CyclicLR(o, 1e-4, 1e-3, step_size_up=25, step_size_down=60, mode="triangular2"),
    "cyclic, decaying": lambda o: S.CyclicLR(o, 1e-4, 1e-3, step_size_up=40, mode="exp_range", gamma=0.995),
    "sequential": lambda o: S.SequentialLR(
        o,
        [S.LinearLR(o, 0.01, 1.0, 20), S.ConstantLR(o, 1.0), S.CosineAnnealingLR(o, 100, 1e-5)],
        milestones=[20, 200],
    ),
    "sequential, exponential": lambda o: S.SequentialLR(
        o, [S.ConstantLR(o, 0.1, 1000), S.ExponentialLR(o, 0.98)], milestones=[50]
    ),
    "sequential, restarts": lambda o: S.SequentialLR(
        o, [S.LinearLR(o, 0.1, 1.0, 30), S.CosineAnnealingWarmRestarts(o, 50, 2)], milestones=[30]
    ),
    "chained": lambda o: S.ChainedScheduler([S.LinearLR(o, 0.1, 1.0, 40), S.ExponentialLR(o, 0.99)]),
    "chained, cosine": lambda o: S.ChainedScheduler([S.ConstantLR(o, 0.1, 40), S.CosineAnnealingLR(o, 300)]),
    "chained, no closed form": lambda o: S.ChainedScheduler(
        [S.LinearLR(o, 0.1, 1.0, 40), S.CosineAnnealingLR(o, 100, 1e-5), S.LambdaLR(o, lambda s: 1 - s / 600)]
    ),
}
HUGGING_FACE = {
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2.0},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 60},
}


def hugging_face(name: str) -> Callable[[Any], Any]:
    def make(optimizer: Any) -> Any:
        from transformers import get_scheduler

        return get_scheduler(name, optimizer, 20, 300, scheduler_specific_kwargs=HUGGING_FACE[name])

    return make


ALL = {**MAKE, **{f"hf {name}": hugging_face(name) for name in HUGGING_FACE}}


def stepped(optimizer: Any, scheduler: Any, first: int, last: int) -> list[float]:
    """The rates that steps `first` to `last` use, by taking them."""
    rates = []
    for _ in range(first, last + 1):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def plain(value: Any) -> Any:
    """What a scheduler or optimizer holds, to be compared."""
    if hasattr(value, "__dict__") and not callable(value):
        return {key: plain(item) for key, item in vars(value).items() if key != "optimizer"}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if callable(value) else copy.copy(value)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("now", [0, 37, 205])
def test_the_rates_are_those_of_really_stepping(name: str, now: int) -> None:
    optimizer = adamw()
    scheduler = ALL[name](optimizer)
    stepped(optimizer, scheduler, 1, now)
    before = plain(scheduler), copy.deepcopy(optimizer.state_dict())
    found = future_learning_rates(scheduler, 300, step=now, optimizer=optimizer)
    assert (plain(scheduler), optimizer.state_dict()) == before
    assert isinstance(found, LrPlan), found
    assert found.steps.tolist() == list(range(now + 1, 301))
    np.testing.assert_allclose(found.lr, stepped(optimizer, scheduler, now + 1, 300), rtol=1e-9, atol=1e-12)


def test_each_scheduler_of_torch_is_known_but_the_one_that_looks_at_losses() -> None:
    kinds = {kind for kind in vars(S).values() if isinstance(kind, type) and issubclass(kind, S.LRScheduler)}
    made = {type(make(adamw())) for make in MAKE.values()}
    assert kinds - made == {S.LRScheduler, S._LRScheduler, S.ReduceLROnPlateau}


def test_of_a_long_run_every_step_is_within_a_thousandth_of_the_peak() -> None:
    total = 12_000
    for name, make in {
        "wsd": lambda o: S.LambdaLR(o, lambda k: min(1.0, (k + 1) / 700) * min(1.0, (total - k) / 2_500)),
        "cosine": lambda o: S.SequentialLR(
            o, [S.LinearLR(o, 0.01, 1.0, 500), S.CosineAnnealingLR(o, total - 500, 1e-5)], [500]
        ),
        "steps": lambda o: S.MultiStepLR(o, [7_001, 7_003, 11_210], 0.3),
    }.items():
        optimizer = adamw()
        scheduler = make(optimizer)
        found = future_learning_rates(scheduler, total, optimizer=optimizer)
        assert isinstance(found, LrPlan) and len(found.steps) < 1500, name
        true = np.array(stepped(optimizer, scheduler, 1, total))
        assert np.abs(np.interp(np.arange(1, total + 1), found.steps, found.lr) - true).max() < 1.01e-3 * PEAK, name


@given(jumps=st.lists(st.integers(2, 99_998), max_size=5, unique=True), now=st.integers(0, 50_000))
@settings(max_examples=30)
def test_jumps_are_found_wherever_they_are(jumps: list[int], now: int) -> None:
    found = future_learning_rates(lambda k: 0.5 ** sum(k > jump for jump in jumps), 100_000, step=now)
    assert isinstance(found, LrPlan)
    for jump in jumps:
        for k in (jump, jump + 1):
            if k > now:
                assert np.interp(k, found.steps, found.lr) == 0.5 ** sum(k > other for other in jumps)


def test_a_scheduler_that_is_stepped_by_epoch() -> None:
    optimizer = adamw()
    scheduler = S.StepLR(optimizer, 2, 0.5)
    true, batches = [], 7
    for step in range(1, 71):
        true.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step % batches == 0:
            scheduler.step()
        if step == 30:
            found = future_learning_rates(scheduler, 70, step=30, optimizer=optimizer, calls=by_epoch(batches))
    assert isinstance(found, LrPlan)
    np.testing.assert_allclose(found.lr, true[30:])


@given(batches=st.integers(1, 12), accumulate=st.integers(1, 4), every=st.integers(1, 5), steps=st.integers(0, 60))
def test_lightnings_frequency_counts_batches_of_the_epoch(
    batches: int, accumulate: int, every: int, steps: int
) -> None:
    """Against its loop: after an optimizer step, if the batch index is divided by the frequency."""
    done = calls = index = 0
    while done < steps:
        index += 1
        if index % accumulate == 0 or index == batches:
            done += 1
            # with a frequency of 1 each step counts
            calls += index % every == 0
        index %= batches
    assert by_batch(batches, accumulate, every)(np.array([float(steps)]))[0] == calls


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda o: S.ReduceLROnPlateau(o),
            "ReduceLROnPlateau sets the learning rate by losses still to come",
        ),
        (
            lambda o: type("Mine", (S.CosineAnnealingLR,), {"get_lr": lambda self: [1e-4, 1e-4]})(o, 10),
            "Mine is no scheduler of torch, so its future rates can't be read without stepping it",
        ),
        (
            lambda o: S.LambdaLR(o, lambda step: 1.0 if step == 0 else {}[step]),
            "asking LambdaLR failed (KeyError: 1)",
        ),
        (
            lambda o: S.LambdaLR(o, lambda step: math.nan if step > 50 else 1.0),
            "LambdaLR gives a rate that is negative or not finite",
        ),
        (
            lambda o: S.OneCycleLR(o, 0.01, total_steps=50),
            "OneCycleLR was planned for 50 steps and would raise after these",
        ),
        (
            lambda o: SimpleNamespace(step=None),
            "SimpleNamespace is no scheduler of torch, so its future rates can't be read without stepping it",
        ),
    ],
)
def test_what_can_not_be_told_is_unknown_with_the_reason(make: Any, reason: str) -> None:
    optimizer = adamw()
    assert future_learning_rates(make(optimizer), 100, optimizer=optimizer) == UnknownFuture(reason)


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_hugging_faces_that_look_at_losses_are_unknown(name: str) -> None:
    from transformers import get_scheduler

    optimizer = adamw()
    found = future_learning_rates(get_scheduler(name, optimizer), 100, optimizer=optimizer)
    assert isinstance(found, UnknownFuture) and found.reason.endswith("sets the learning rate by losses still to come")


def test_all_of_hugging_faces_names_are_tried() -> None:
    from transformers.trainer_utils import SchedulerType

    assert {kind.value for kind in SchedulerType} == {*HUGGING_FACE, "reduce_lr_on_plateau", "greedy"}


def test_a_rate_that_another_hand_has_set() -> None:
    optimizer = adamw()
    scheduler = S.CosineAnnealingLR(optimizer, 100)
    optimizer.param_groups[0]["lr"] = 5e-4
    assert future_learning_rates(scheduler, 100, optimizer=optimizer) == UnknownFuture(
        "the optimizer's learning rate is 0.0005 where CosineAnnealingLR would set 0.001: something else sets it"
    )


def test_without_a_scheduler_the_rate_stays_unless_one_is_hidden() -> None:
    optimizer = adamw(torch.tensor(PEAK))
    found = future_learning_rates(None, 5, step=2, optimizer=optimizer)
    assert isinstance(found, LrPlan)
    np.testing.assert_allclose(found.lr, [PEAK] * 3, rtol=1e-6)
    S.StepLR(optimizer, 1)
    assert future_learning_rates(None, 5, optimizer=optimizer) == UnknownFuture(
        "the optimizer has a scheduler that was not passed to isoflop"
    )
    assert future_learning_rates(None, 5) == UnknownFuture("neither a scheduler nor an optimizer is known")
    two = [torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1) for _ in range(2)]
    assert future_learning_rates(None, 5, optimizer=two) == UnknownFuture(
        "no scheduler is known, and there are several optimizers"
    )
    assert future_learning_rates(None, 5, step=5) == UnknownFuture("no step is left of the planned 5")


def test_a_scheduler_of_unknown_cadence() -> None:
    optimizer = adamw()
    scheduler = S.StepLR(optimizer, 2)
    stepped(optimizer, scheduler, 1, 3)
    assert future_learning_rates(scheduler, 900, step=500, optimizer=optimizer) == UnknownFuture(
        "StepLR has been stepped 3 times in 500 optimizer steps, so when it will be is unknown"
    )
    wrapped = SimpleNamespace(scheduler=scheduler, step=scheduler.step)  # Accelerate's
    assert isinstance(future_learning_rates(wrapped, 900, step=3, optimizer=optimizer), LrPlan)


def test_too_long_to_be_tried_out_and_too_quick_to_be_followed() -> None:
    optimizer = adamw()
    chain = S.ChainedScheduler([S.LinearLR(optimizer, 0.1), S.CosineAnnealingLR(optimizer, 10, 1e-5)])
    assert future_learning_rates(chain, 10**6, optimizer=optimizer) == UnknownFuture(
        "LinearLR, CosineAnnealingLR, chained, have no closed form, and 999,999 steps are too many to try out"
    )
    optimizer = adamw()
    quick = S.CyclicLR(optimizer, 1e-4, 1e-3, step_size_up=3)
    assert future_learning_rates(quick, 10**6, optimizer=optimizer) == UnknownFuture(
        "the learning rate changes too often to be followed"
    )
