"""Thinned curves: what is kept, how far what is left out lies, and that spikes stay."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.figures.text import LEAST, MOST, TOTAL, points_each, thin

value = st.floats(-1e6, 1e6, allow_nan=False)


@st.composite
def curve(draw: st.DrawFn, gaps: bool = False) -> tuple[np.ndarray, np.ndarray]:
    n = draw(st.integers(1, 400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    x = np.cumsum(rng.exponential(size=n) ** draw(st.sampled_from([0.1, 1, 4]))) + 1e-3
    if draw(st.booleans()):
        x = np.floor(x) + 1  # several points at one x
    y = rng.choice(draw(st.lists(value, min_size=2, max_size=9)), size=n) + draw(st.sampled_from([0, 1])) * x
    if gaps:
        y[rng.random(n) < draw(st.sampled_from([0.05, 0.5, 1.0]))] = np.nan
    return x, y


@settings(max_examples=120, deadline=None)
@given(curve(), st.integers(8, 100))
def test_it_keeps_ends_extremes_and_order_within_the_limit(given_curve, most):
    x, y = given_curve
    kept = thin(x, y, most)
    assert len(kept) <= max(most, 8)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0 and kept[-1] == len(x) - 1
    assert y[kept].min() == y.min() and y[kept].max() == y.max()


@settings(max_examples=120, deadline=None)
@given(curve(gaps=True), st.integers(8, 100))
def test_thinning_again_changes_nothing(given_curve, most):
    x, y = given_curve
    kept = thin(x, y, most)
    again = thin(x[kept], y[kept], most)
    assert (again == np.arange(len(kept))).all()


@settings(max_examples=120, deadline=None)
@given(curve(), st.integers(8, 100))
def test_what_is_left_out_lies_between_points_of_its_column(given_curve, most):
    """So the line's top and bottom edges are those of all points, column by column of the screen."""
    x, y = given_curve
    kept = thin(x, y, most)
    at = np.log(x)
    width = (at[-1] - at[0]) / max(most // 4, 2)
    column = np.zeros(len(x)) if width <= 0 else np.minimum((at - at[0]) // width, max(most // 4, 2) - 1)
    for one in range(len(x)):
        near = kept[np.abs(column[kept] - column[one]) <= 1]  # a division may round to the next column
        assert y[near].min() <= y[one] <= y[near].max()


@settings(max_examples=60, deadline=None)
@given(curve(gaps=True), st.integers(8, 40))
def test_a_gap_stays_a_gap(given_curve, most):
    x, y = given_curve
    kept = thin(x, y, most)
    fine = kept[np.isfinite(y[kept])]
    for first, last in pairwise(fine):
        inside = kept[(kept > first) & (kept < last)]
        assert len(inside) == (not np.isfinite(y[first : last + 1]).all())


def test_a_smooth_curve_of_a_hundred_thousand_points_is_drawn_within_a_thousandth():
    x = np.arange(1.0, 100_001.0)
    y = 1.8 + 400 / (5e5 * x) ** 0.3
    kept = thin(x, y)
    assert len(kept) <= MOST
    back = np.interp(np.log(x), np.log(x[kept]), y[kept])
    assert np.abs(back / y - 1).max() < 1e-3


def test_a_spike_of_one_point_stays():
    x, y = np.arange(1.0, 100_001.0), np.full(100_000, 2.0)
    y[77_777] = 9.0
    assert 77_777 in thin(x, y)


def test_what_a_logarithmic_axis_does_not_have_is_left_out():
    kept = thin(np.array([0.0, 1.0, 2.0]), np.array([5.0, 4.0, 3.0]))
    assert kept.tolist() == [1, 2]
    assert thin(np.array([]), np.array([])).tolist() == []


@pytest.mark.parametrize("curves", [1, 40, 100, 10_000])
def test_a_figure_holds_so_many_points_whatever_the_runs(curves):
    assert LEAST <= points_each(curves) <= MOST
    assert points_each(curves) * curves <= max(TOTAL, LEAST * curves)
