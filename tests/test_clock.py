"""Wall time, training time, goodput: by a clock that moves when told to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.flops import Clock


class Time:
    """A clock by hand; `compiled` is what torch.compile has spent so far."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.compiled = 50.0  # before the run: none of its business
        self.clock = Clock(lambda: self.now, lambda: self.compiled)

    def pass_(self, seconds: float, compiling: float = 0.0) -> None:
        self.now += seconds
        self.compiled += compiling

    @property
    def times(self) -> tuple[float, float]:
        return self.clock.times()


@pytest.fixture
def time() -> Time:
    return Time()


def test_nothing_before_the_start(time: Time):
    time.pass_(5)
    assert time.times == (0.0, 0.0)
    time.clock.start()
    time.pass_(7)
    assert time.times == (7.0, 7.0)


def test_evaluation_checkpoints_and_measuring_are_no_training(time: Time):
    time.clock.start()
    for phase in ("evaluation", "checkpoint", "measuring"):
        time.pass_(10)
        with time.clock.phase(phase):
            time.pass_(2)
    assert time.times == (36.0, 30.0)
    assert time.times[1] / time.times[0] == pytest.approx(30 / 36)  # goodput


def test_what_was_measured_since_the_last_reading_is_no_training(time: Time):
    time.clock.measured()  # not begun
    time.clock.start()
    time.pass_(10)
    assert time.times == (10.0, 10.0)
    time.pass_(2)
    time.clock.measured()
    time.pass_(3)
    assert time.times == (15.0, 13.0)


def test_inside_a_phase_training_stands_still(time: Time):
    time.clock.start()
    time.pass_(10)
    time.clock.enter("evaluation")
    time.pass_(3)
    assert time.times == (13.0, 10.0)


def test_compilation_is_no_training_and_counts_once(time: Time):
    time.clock.start()
    time.pass_(10, compiling=4)
    assert time.times == (10.0, 6.0)
    with time.clock.phase("evaluation"):
        time.pass_(5, compiling=3)
        assert time.times == (15.0, 6.0)
    assert time.times == (15.0, 6.0)


def test_nested_phases_are_charged_once(time: Time):
    time.clock.start()
    with time.clock.phase("evaluation"):
        time.pass_(1)
        with time.clock.phase("checkpoint"):
            time.pass_(2)
        time.pass_(4)
    time.pass_(8)
    assert time.times == (15.0, 8.0)


def test_a_phase_that_was_never_left_ends_with_the_one_around_it(time: Time):
    time.clock.start()
    time.clock.enter("evaluation")
    time.clock.enter("checkpoint")
    time.pass_(3)
    time.clock.leave("evaluation")
    time.pass_(1)
    time.clock.leave("checkpoint")  # nothing to leave
    time.clock.leave("measuring")
    assert time.times == (4.0, 1.0)


def test_leaving_after_an_exception(time: Time):
    time.clock.start()
    with pytest.raises(KeyError), time.clock.phase("evaluation"):
        time.pass_(2)
        raise KeyError
    time.pass_(1)
    assert time.times == (3.0, 1.0)


def test_a_resumed_run_goes_on_and_the_gap_counts_as_neither(time: Time):
    time.clock.start()
    time.pass_(10)
    with time.clock.phase("checkpoint"):
        time.pass_(5)
        state = time.clock.state_dict()
    assert (state["wall"], state["away"]) == (15.0, 5.0)
    later = Time()
    later.clock.load_state_dict(state)
    later.pass_(10_000)
    assert later.times == (15.0, 10.0)
    later.clock.start()
    later.pass_(3, compiling=1)
    assert later.times == (18.0, 12.0)
    assert later.clock.state_dict().items() >= {"wall": 18.0, "away": 6.0}.items()


def test_torch_may_forget_what_it_has_compiled(time: Time):
    time.clock.start()
    time.pass_(10, compiling=-50)  # torch._dynamo.reset()
    assert time.times == (10.0, 10.0)


@given(
    st.lists(st.tuples(st.integers(0, 100), st.sampled_from(["train", "evaluation", "checkpoint", "measuring"]))),
)
def test_the_sum_of_the_parts_is_the_whole(parts: list[tuple[int, str]]):
    time = Time()
    time.clock.start()
    for seconds, kind in parts:
        if kind == "train":
            time.pass_(seconds)
        else:
            with time.clock.phase(kind):
                time.pass_(seconds)
    trained = sum(seconds for seconds, kind in parts if kind == "train")
    assert time.times == pytest.approx((sum(seconds for seconds, _ in parts), trained))


def test_seconds_of_torch_compile():
    import torch

    torch._dynamo.reset()
    clock = Clock()
    clock.start()
    torch.compile(lambda x: x + 1, backend="eager")(torch.zeros(2))
    wall, training = clock.times()
    assert 0 < training < wall
