"""Statistics of parts merge to the same bits in any order, and a coarse quantile is as wrong as it says at most."""

import math
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from ehrctx.timelines import statistics
from ehrctx.timelines.counting_numba import tally
from ehrctx.timelines.spec import TokenizerSpec
from ehrctx.timelines.statistics import (
    ENTRIES,
    VALUES,
    Accumulator,
    Statistics,
    lower_bounds,
    measure_of,
)
from ehrctx.timelines.vocabulary import bins_of

CELLS = 8  # instead of MOST_CELLS
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
# many that differ in their last bits alone, so that a few bits less suffice
close = st.integers(0, 60).map(lambda n: float(np.float32(100) + np.float32(n) * np.float32(2**-17)))
extremes = [float(np.float32(v)) for v in (0.0, -0.0, 3.4028235e38, 1e-45, -1e-45)]
values = st.one_of(close, finite, st.sampled_from(extremes))
measurements = st.lists(
    st.tuples(st.sampled_from(["A", "B"]), st.sampled_from([None, "mg"]), values, st.integers(1, 2**36)), max_size=40
)


def ordered_bits(values):
    """uint32[n] of float32[n] as they are counted, which drops duplicates; so one by one."""
    found = []
    for value in np.asarray(values, dtype=np.float32).reshape(-1, 1):
        one = np.zeros(1, dtype=np.int32), value.view(np.uint32), np.array([True]), np.array([0, 1]), np.array([True])
        found.append(int(tally(*one, 1)[2][0]))
    return np.array(found, dtype=np.uint32)


def statistics_of(rows, n_subjects=1):
    """Of events (code, unit, value, weight), as one part knows them."""
    entries = pl.DataFrame(
        [("number", code, unit, None, weight, 1) for code, unit, _, weight in rows], schema=ENTRIES, orient="row"
    )
    cells = pl.DataFrame(
        {
            "measure": pl.Series([measure_of(code, unit) for code, unit, *_ in rows], dtype=pl.UInt64),
            "cell": pl.Series(ordered_bits([v for _, _, v, _ in rows]), dtype=pl.UInt32),
            "level": pl.Series([0] * len(rows), dtype=pl.UInt8),
            "weight": pl.Series([weight for *_, weight in rows], dtype=pl.Int64),
            "count": pl.Series([1] * len(rows), dtype=pl.Int64),
        },
        schema=VALUES,
    )
    return Statistics.merged([Statistics(entries, cells, n_subjects)])


def assert_same(a, b):
    a, b = a.in_order(), b.in_order()
    assert_frame_equal(a.entries, b.entries)
    assert_frame_equal(a.values, b.values)
    assert a.n_subjects == b.n_subjects


@pytest.fixture(autouse=True)
def few_cells(monkeypatch):
    monkeypatch.setattr(statistics, "MOST_CELLS", CELLS)


@settings(max_examples=80)
@given(measurements, measurements, measurements)
def test_merging_is_associative_and_commutative(x, y, z):
    a, b, c = (statistics_of(rows, n) for n, rows in enumerate((x, y, z), 1))
    together = statistics_of(x + y + z, 6)
    merged = Statistics.merged
    for one in (
        merged([a, b, c]),
        merged([c, a, b]),
        merged([merged([a, b]), c]),
        merged([a, merged([c, b])]),
        merged([merged([a]), merged([]), merged([merged([b, c])])]),
    ):
        assert_same(one, together)
    assert together.values.group_by("measure").len()["len"].max() is None or (
        together.values.group_by("measure").len()["len"].max() <= CELLS
    )


@settings(max_examples=40)
@given(st.lists(measurements, max_size=6), st.integers(1, 30))
def test_piece_by_piece_as_all_at_once(parts, rows):
    growing = Accumulator()
    growing.ROWS = rows
    for part in parts:
        growing.add(statistics_of(part))
    everything = [row for part in parts for row in part]
    assert_same(growing.result(), statistics_of(everything, len(parts)))


def test_written_and_read_again_it_is_the_same(tmp_path):
    made = statistics_of([("A", None, float(v), v + 1) for v in range(40)], 3).in_order()
    made.write(tmp_path)
    assert_same(Statistics.read(tmp_path, 3), made)


@given(st.lists(finite, min_size=1, max_size=40))
def test_bits_are_in_the_order_of_the_values(found):
    numbers = np.array(sorted(found), dtype=np.float32)
    bits = ordered_bits(numbers)
    assert bits.dtype == np.uint32
    for (x, y), (p, q) in zip(pairwise(numbers.tolist()), pairwise(bits.tolist()), strict=True):
        assert (x < y) == (p < q)
        assert (x == y) == (p == q)
    cells = pl.DataFrame({"cell": bits, "level": pl.Series([0] * len(bits), dtype=pl.UInt8)})
    assert (lower_bounds(cells) == numbers).all()


def test_both_zeros_are_one():
    assert len(set(ordered_bits(np.array([0.0, -0.0], dtype=np.float32)).tolist())) == 1
    cell = pl.DataFrame(
        {"cell": ordered_bits(np.array([-0.0], dtype=np.float32)), "level": pl.Series([0], dtype=pl.UInt8)}
    )
    assert math.copysign(1, lower_bounds(cell)[0]) == 1


@given(finite, st.integers(0, 20))
def test_a_coarse_cell_begins_at_or_below_its_values(value, level):
    number = np.array([value], dtype=np.float32)
    cell = ordered_bits(number) >> np.uint32(level)
    cells = pl.DataFrame({"cell": cell, "level": pl.Series([level], dtype=pl.UInt8)})
    below = lower_bounds(cells)
    assert not below[0] > number[0]
    assert (ordered_bits(below) >> np.uint32(level) == cell).all() or not np.isfinite(below[0])


def test_cells_fall_together_only_where_they_are_too_many():
    rows = [("A", None, float(v), 1) for v in range(CELLS)] + [("B", None, 1 + v * 2**-20, 1) for v in range(CELLS + 1)]
    levels = statistics_of(rows).values.group_by("measure").agg(pl.col("level").unique(), pl.len())
    found = {measure: (level, n) for measure, level, n in levels.iter_rows()}
    assert found[measure_of("A", None)] == ([0], CELLS)
    (level,), n = found[measure_of("B", None)]
    assert level > 0
    assert CELLS / 2 <= n <= CELLS


@pytest.mark.parametrize("weights", ["subject", "event"])
@settings(max_examples=100)
@given(st.lists(st.tuples(values, st.integers(1, 1000)), min_size=1, max_size=60), st.integers(2, 12))
def test_edges_are_off_by_the_reported_error_at_most(weights, measured, bins):
    """By weight: the share below an edge i is i / bins, but for what weighs the value there, and the error."""
    made = statistics_of([("A", None, value, weight) for value, weight in measured])
    table, error = bins_of(made, TokenizerSpec(name="t", bins=bins, weights=weights))
    weighed = [(value + 0.0, weight if weights == "subject" else 1) for value, weight in measured]
    whole = sum(weight for _, weight in weighed)
    assert 0 <= error <= 1
    if len({value for value, _ in weighed}) <= CELLS:
        assert error == 0
    lowest = min(value for value, _ in weighed)
    edges = table["lower"].to_list()[1:]
    assert edges == sorted(set(edges))
    exact = []
    for i in range(1, bins):
        so_far = 0
        for value in sorted({value for value, _ in weighed}):
            so_far += sum(weight for v, weight in weighed if v == value)
            if so_far * bins > whole * i:
                exact.append(value)
                break
    if error == 0:
        assert edges == sorted({edge for edge in exact if edge > lowest})
    for edge in edges:
        # of the weight between an edge and the exact one that it stands for, there is no more than the error
        between = [
            sum(weight for value, weight in weighed if min(edge, right) <= value < max(edge, right)) for right in exact
        ]
        assert min(between) <= error * whole + 1e-6 * whole
    assert int(table["count"].sum()) == len(measured)
    assert (table["count"] > 0).all()


def test_without_values_there_are_no_bins():
    made = statistics_of([])
    for spec in (TokenizerSpec(name="t"), TokenizerSpec(name="t", bins=0)):
        table, error = bins_of(made, spec)
        assert (table.height, error) == (0, 0.0)
