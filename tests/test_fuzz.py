"""A hundred cases or so of each fuzz target; `make torture` runs up to 10⁵. A number that fails is run by itself."""

from __future__ import annotations

import logging
from pathlib import Path
from random import Random

import pytest

from torture.fuzz import Lost, run_case, run_cases
from torture.mutations import spoil_text
from torture.records import whole
from torture.targets import TARGETS

CASES = {
    "the commands that fit": 30,
    "a Monitor's losses, tokens, steps, clocks": 25,
    "fit, forecast and advice of spoilt records": 80,
}


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_documented_errors_comes_out(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    cases = CASES.get(name, 150)
    assert run_cases(TARGETS[name], cases, tmp_path) == cases


def test_files_are_spoilt_in_many_ways_and_the_same_each_time() -> None:
    spoilt = [spoil_text(whole(), Random(i)) for i in range(200)]
    assert spoilt == [spoil_text(whole(), Random(i)) for i in range(200)]
    assert len(set(spoilt)) > 180


def test_a_case_that_fails_says_which_it_is(tmp_path: Path) -> None:
    def fails(random: Random, folder: Path) -> None:
        assert random.random() < 0.5

    with pytest.raises(Lost, match=r"^fails, case \d+: AssertionError") as first:
        run_cases(fails, 100, tmp_path)
    with pytest.raises(Lost, match=f"case {first.value.number}:"):
        run_case(fails, first.value.number, tmp_path)


def test_a_case_that_was_lost_once_is_not_lost_again(tmp_path: Path) -> None:
    # the priors of a model of 1,000 parameters hold exponents of thousands for possible
    run_case(TARGETS["a Monitor's losses, tokens, steps, clocks"], 296, tmp_path)
