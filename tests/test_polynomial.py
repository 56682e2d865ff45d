"""Polynomials through points: exact, trusted where they were confirmed, never where another cost may go on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.flops.cost import KEPT, Equations, Law


def law(points: dict[tuple[int, ...], int], batch: bool = False) -> Law:
    found = Law(batch, values=1)
    for point, value in points.items():
        found.add(point, (value,))
    return found


def along(f: Callable[[int], int], *lengths: int) -> Law:
    return law({(s,): f(s) for s in lengths})


# -- equations ---------------------------------------------------------------------------------------------------------


def test_equations_are_solved_exactly():
    equations = Equations(values=2)
    assert equations.add((3, 10**30), (7, 1)) and equations.add((1, 1), (0, 0))
    assert equations.rank == 2
    x = Fraction(7, 3 - 10**30)
    assert equations.values((1, 0)) == [x, Fraction(1, 3 - 10**30)]
    assert equations.values((5, 2)) == [3 * x, Fraction(3, 3 - 10**30)]


def test_what_is_not_determined_is_unknown_and_contradictions_are_left_out():
    equations = Equations(values=1)
    assert equations.add((0, 2, 4), (6,))
    assert equations.add((0, 1, 2), (3,)) and equations.rank == 1  # nothing new
    assert not equations.add((0, 3, 6), (10,)) and equations.rank == 1
    assert equations.values((0, 5, 10)) == [15]
    assert equations.values((0, 5, 9)) is None and equations.values((1, 0, 0)) is None


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(*[st.integers(-9, 9)] * 3), min_size=1, max_size=8), st.tuples(*[st.integers(-99, 99)] * 3))
def test_planted_unknowns_are_found(rows: list[tuple[int, int, int]], planted: tuple[int, int, int]):
    equations = Equations(values=1)
    for row in rows:
        assert equations.add(row, (sum(a * x for a, x in zip(row, planted, strict=True)),))
    assert equations.rank <= 3
    for i, unit in enumerate(((1, 0, 0), (0, 1, 0), (0, 0, 1))):
        assert equations.values(unit) in ([planted[i]], None)
        assert equations.rank < 3 or equations.values(unit) is not None


# -- one length --------------------------------------------------------------------------------------------------------


def quadratic(s: int) -> int:
    return 5 + 7 * s + 3 * s * s


def test_five_lengths_confirm_a_law_and_four_do_not():
    lengths = [9, 30, 4, 17, 22]
    for order in itertools.permutations(lengths):
        assert along(quadratic, *order[:4]).predict((10,)) is None
    found = along(quadratic, *lengths)
    assert all(found.predict((s,)) == [quadratic(s)] for s in range(4, 31))
    assert found.predict((3,)) is None and found.predict((31,)) is None  # a window may begin there


def test_trusted_at_the_steps_of_the_measured_lengths_alone():
    found = along(lambda s: quadratic(s + -s % 64), 63, 127, 191, 319, 383)  # one chunk of 64 more each
    assert found.predict((255,)) == [quadratic(256)]
    assert all(found.predict((s,)) is None for s in range(63, 384) if s % 64 != 63)


def test_a_contradiction_beyond_the_range_leaves_the_law_where_it_was_confirmed():
    windowed = along(lambda s: s * min(s, 40), 9, 30, 4, 17, 22, 90, 29)
    assert windowed.predict((10,)) == [100]
    assert windowed.predict((35,)) is None and windowed.extrapolate((35,)) is None
    chunked = along(lambda s: s + -s % 16, 16, 32, 48, 80, 96, 50, 112, 128)
    assert chunked.predict((64,)) == [64]
    assert chunked.predict((65,)) is None and chunked.predict((112,)) is None


def test_a_contradiction_within_it_ends_the_law():
    found = along(quadratic, 4, 9, 17, 22, 30)
    found.add((10,), (1,))
    assert found.predict((11,)) is None and found.extrapolate((11,)) is None


def test_a_value_that_is_no_integer_is_not_predicted():
    found = law({(s,): s * s // 2 for s in (2, 4, 6, 8, 14, 16)})
    assert found.predict((10,)) == [50]
    found = law({(s,): s // 3 for s in (3, 6, 9, 15, 18)} | {(12,): 5})
    assert found.predict((9,)) is None
    assert law({(s,): s // 4 for s in (0, 4, 12, 16, 20)}).predict((8,)) == [2]


def test_extrapolation_wants_one_point_more_than_unknowns():
    assert along(quadratic, 4, 9, 17).extrapolate((40,)) is None
    assert along(quadratic, 4, 9, 17, 22).extrapolate((40,)) == [quadratic(40)]
    assert along(lambda s: 100 - s, 4, 9, 17, 22).extrapolate((200,)) is None  # less than no FLOPs


WINDOWS = [(w, lambda s, w=w: 7 + 3 * s + s * min(s, w)) for w in range(2, 9)]
CHUNKS = [(c, lambda s, c=c, q=q: -(-s // c) + q * (-(-s // c)) ** 2) for c in range(2, 6) for q in (0, 1)]


@pytest.mark.parametrize(("size", "f"), WINDOWS + CHUNKS)
def test_no_five_lengths_of_a_windowed_or_chunked_cost_are_mistaken(size: int, f: Callable[[int], int]):
    """Every choice of five lengths up to 9 there is."""
    for lengths in itertools.combinations(range(1, 10), 5):
        found = along(f, *lengths)
        for s in range(lengths[0], lengths[-1] + 1):
            assert found.predict((s,)) in (None, [f(s)])


# -- two lengths and a batch -------------------------------------------------------------------------------------------


def planted(s: int, t: int) -> int:
    return 2 + 3 * s + 5 * t + 7 * s * s + 11 * s * t + 13 * t * t


PAIRS = [(9, 4), (30, 11), (4, 7), (17, 2), (22, 13), (12, 9), (26, 3), (7, 12), (15, 6), (20, 10), (28, 8)]


def test_eleven_pairs_give_a_law_of_two_lengths():
    for n in range(len(PAIRS)):
        assert law({pair: planted(*pair) for pair in PAIRS[:n]}).predict((18, 5)) is None
    found = law({pair: planted(*pair) for pair in PAIRS})
    for pair in itertools.product(range(4, 31), range(2, 14)):
        assert found.predict(pair) == [planted(*pair)]
    assert found.predict((3, 5)) is None and found.predict((18, 14)) is None


def test_a_length_of_few_values_is_trusted_at_these():
    found = law({(s, t): planted(s, t) for s in (64, 128) for t in (3, 9, 5, 14, 6, 11)})
    assert found.predict((64, 10)) == [planted(64, 10)] and found.predict((128, 4)) == [planted(128, 4)]
    assert found.predict((96, 10)) is None  # what lies between two sizes they can't tell


def test_nothing_hangs_on_one_point():
    points = {(s, t): planted(s, t) for s in (1, 2) for t in range(1, 8)}
    assert law(points).predict((2, 3)) == [planted(2, 3)]
    points[3, 4] = planted(3, 4)  # gives s² with nothing to confirm it
    assert law(points).predict((3, 5)) is None


def test_proportion_to_the_batch_is_confirmed_not_assumed():
    lengths = (3, 5, 8, 13, 21)
    one_batch = law({(4, s): 4 * quadratic(s) for s in lengths}, batch=True)
    assert one_batch.predict((4, 10)) is None
    three = law({(4, s): 4 * quadratic(s) for s in lengths} | {(2, s): 2 * quadratic(s) for s in (4, 9, 12)}, True)
    assert three.predict((2, 10)) == [2 * quadratic(10)]
    assert three.predict((3, 10)) is None  # only 2 and 4 were seen
    along_a_line = law({(2 * s, s): 4 * s**3 for s in range(2, 20)}, batch=True)  # B·2s², or B²·s
    assert along_a_line.predict((6, 4)) is None


@pytest.mark.parametrize("rest", [lambda b, s: b * b, lambda b, s: b * b * s, lambda b, s: 1, lambda b, s: s * s])
def test_what_is_not_in_proportion_is_refused(rest: Callable[[int, int], int]):
    grid = itertools.product((2, 3, 5, 8), (3, 5, 8, 13, 21))
    found = law({(b, s): b * quadratic(s) + rest(b, s) for b, s in grid}, batch=True)
    assert all(found.predict(pair) is None for pair in itertools.product(range(1, 9), range(1, 22)))


def test_many_points_are_all_checked_and_few_are_kept():
    found = along(quadratic, *range(1, 5 * KEPT))
    assert len(found._points) == KEPT
    assert found.predict((4 * KEPT,)) == [quadratic(4 * KEPT)]
    found.add((6 * KEPT,), (1,))
    assert found.predict((4 * KEPT,)) == [quadratic(4 * KEPT)]
    found.add((5 * KEPT + 1,), (quadratic(5 * KEPT + 1),))  # after a contradiction it grows no more
    assert found.predict((5 * KEPT + 1,)) is None
