"""Gap statistics of all prefixes at once against exact arithmetic and numpy on each prefix."""

from __future__ import annotations

import math
import statistics
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.robustness.irregularity import gap_statistics, quantiles_of_prefixes, smallest_of_prefixes

LAST = 2**32 - 1


def by_definition(seconds: list[int], ddof: int) -> list[float]:
    gaps = [Fraction(b - a) for a, b in pairwise(seconds)]
    if not gaps:
        return [np.nan] * 3
    mean = sum(gaps) / len(gaps)
    squares = sum((g - mean) ** 2 for g in gaps)
    sd = math.sqrt(squares / (len(gaps) - ddof)) if len(gaps) > ddof else np.nan
    lower, upper = np.quantile([float(g) for g in gaps], [0.25, 0.75])
    return [float(mean), sd, upper - lower]


# many simultaneous events, short gaps, gaps of decades, and the largest times a store can hold
GAPS = st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 10**6), st.integers(0, 10**9))


@hypothesis_settings(max_examples=300)
@given(first=st.integers(0, LAST), gaps=st.lists(GAPS, max_size=25), ddof=st.integers(0, 2), seed=st.integers(0, 100))
@example(first=0, gaps=[LAST], ddof=0, seed=0)
@example(first=0, gaps=[0, LAST, 0, 0], ddof=1, seed=0)
@example(first=LAST, gaps=[0, 0, 0], ddof=0, seed=0)
@example(first=0, gaps=[10**9, 10**9, 10**9 + 1, 10**9], ddof=0, seed=0)
def test_every_prefix_is_measured_as_if_it_were_alone(first, gaps, ddof, seed):
    seconds = [s for s in np.cumsum([first, *gaps], dtype=np.int64).tolist() if s <= LAST]
    counts = np.random.default_rng(seed).integers(0, len(seconds) + 1, size=8)
    found = gap_statistics(np.array(seconds, dtype=np.uint32), counts, ddof)
    expected = [by_definition(seconds[:n], ddof) for n in counts]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=0)


def test_hardly_different_long_gaps_keep_their_digits():
    """Of a deviation of 0.5 s in gaps of 80,000 s, sums of squares in float64 keep about six digits."""
    gaps = 80_000 + np.random.default_rng(0).integers(0, 2, size=50_000)
    seconds = np.append(0, np.cumsum(gaps))
    found = gap_statistics(seconds, np.array([len(seconds), 2_000, 3]))
    for row, n in zip(found, (len(seconds), 2_000, 3), strict=True):
        assert row[1] == pytest.approx(statistics.pstdev(gaps[: n - 1].tolist()), rel=1e-12)
    naive = np.sqrt(np.mean(gaps.astype(np.float64) ** 2) - np.mean(gaps) ** 2)
    assert naive != pytest.approx(found[0, 1], rel=1e-9)


def test_sample_deviation_needs_two_gaps():
    seconds = np.array([5, 8, 20])
    np.testing.assert_allclose(gap_statistics(seconds, np.array([2, 3]), ddof=1)[:, 1], [np.nan, np.sqrt(40.5)])
    np.testing.assert_allclose(gap_statistics(seconds, np.array([2, 3]), ddof=0)[:, 1], [0, 4.5])


def test_no_events_and_no_cut_offs():
    nothing = np.zeros(0, dtype=np.uint32)
    assert np.isnan(gap_statistics(nothing, np.array([0, 0]))).all()
    assert gap_statistics(nothing, np.zeros(0, dtype=np.int64)).shape == (0, 3)
    assert gap_statistics(np.array([3, 4]), np.zeros(0, dtype=np.int64)).shape == (0, 3)


def test_a_span_beyond_the_store_is_refused():
    with pytest.raises(ValueError, match="at most"):
        gap_statistics(np.array([0, 2**32]), np.array([2]))


@hypothesis_settings(max_examples=200)
@given(data=st.data(), values=st.lists(st.integers(-5, 5) | st.integers(-(10**12), 10**12), min_size=1, max_size=40))
def test_selection_and_quantiles_of_prefixes(data, values):
    lengths = np.array(data.draw(st.lists(st.integers(1, len(values)), min_size=1, max_size=8)))
    k = np.array([data.draw(st.integers(0, n - 1)) for n in lengths])
    kept = lengths.copy(), k.copy()
    found = smallest_of_prefixes(np.array(values), lengths, k)
    assert found.tolist() == [sorted(values[:n])[i] for n, i in zip(lengths, k, strict=True)]
    np.testing.assert_array_equal(np.stack([lengths, k]), np.stack(kept), err_msg="arguments are not changed")
    q = data.draw(st.lists(st.floats(0, 1), min_size=1, max_size=3))
    expected = np.transpose([np.quantile(values[:n], q) for n in lengths])
    np.testing.assert_allclose(quantiles_of_prefixes(np.array(values), lengths, q), expected, rtol=1e-9, atol=1e-3)
