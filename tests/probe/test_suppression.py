"""Suppressed counts against a reader who subtracts: what is hidden stays uncertain, what is shown is true."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.probe.suppression import (
    COUNTS,
    cells,
    is_hidden,
    lower_bound,
    mask,
    of_partition,
    of_sum,
    suppress,
)
from ehrctx.study import Privacy

TEN = Privacy(minimum_count=10)
counts = st.integers(0, 12) | st.integers(0, 300)


def bounds(cell: str) -> tuple[float, float]:
    """What a reader who knows the rules can take from one cell."""
    if cell.startswith("<"):
        return 1, int(cell[1:]) - 1
    return (int(cell[2:]), float("inf")) if cell.startswith(">=") else (int(cell), int(cell))


def is_true(count: int, cell: str) -> bool:
    low, high = bounds(cell)
    return low <= count <= high


def deduced(shown: list[str], total: int) -> list[tuple[float, float]]:
    """The same of each part, once the reader subtracts the others from the total."""
    each = [bounds(cell) for cell in shown]
    return [
        (
            max(low, total - sum(most for j, (_, most) in enumerate(each) if j != i)),
            min(high, total - sum(least for j, (least, _) in enumerate(each) if j != i)),
        )
        for i, (low, high) in enumerate(each)
    ]


def masked(numbers: list[int], minimum: int) -> list[str]:
    privacy = Privacy(minimum_count=minimum)
    return pl.DataFrame({"n": numbers}).select(mask(pl.col("n"), privacy)).to_series().to_list()


def test_small_counts_are_masked():
    assert masked(list(range(1, 10)), 10) == ["<10"] * 9
    assert masked([0, 10, 11, 1_234], 10) == ["0", "10", "11", "1234"]
    assert masked([0, 1, 2], 1) == ["0", "1", "2"]
    assert masked([4, 5], 5) == ["<5", "5"]


@pytest.mark.parametrize(
    ("n", "n_positive", "shown"),
    [
        (100, 50, "50"),
        (100, 9, "<10"),
        (100, 10, "10"),
        (100, 0, "0"),
        (100, 100, "100"),  # nobody is negative
        (100, 97, ">=91"),  # three negatives
        (100, 90, "90"),
        (15, 12, ">=10"),
        (9, 9, "<10"),
    ],
)
def test_a_count_that_leaves_few_others_is_hidden(n, n_positive, shown):
    assert cells({"n": n, "n_positive": n_positive}, TEN)["n_positive"] == shown


@given(n=st.integers(0, 400), share=st.floats(0, 1), minimum=st.integers(1, 20))
def test_neither_the_positives_nor_the_rest_are_known_when_they_are_few(n, share, minimum):
    positive = round(share * n)
    shown = cells({"n": n, "n_positive": positive}, Privacy(minimum_count=minimum))
    assert is_true(n, shown["n"])
    assert is_true(positive, shown["n_positive"])
    if 0 < n - positive < minimum and not is_hidden(shown["n"]):
        assert is_hidden(shown["n_positive"])
    if minimum == 1:
        assert shown == {"n": str(n), "n_positive": str(positive)}


def test_what_tables_hold_is_read_again():
    assert [is_hidden(cell) for cell in ("0", "25", "<10", ">=25")] == [False, False, True, True]
    assert [lower_bound(cell) for cell in ("0", "25", "<10", ">=25")] == [0, 25, 1, 25]


def test_a_sum_with_a_hidden_part_is_a_lower_bound():
    assert of_sum({"n": "36"}, [{"n": "30"}, {"n": "<10"}]) == {"n": ">=30"}
    assert of_sum({"n": "11"}, [{"n": "<10"}, {"n": "<10"}]) == {"n": ">=1"}
    assert of_sum({"n": "60"}, [{"n": "30"}, {"n": "30"}]) == {"n": "60"}
    assert of_sum({"n": "<10"}, [{"n": "<10"}, {"n": "<10"}]) == {"n": "<10"}


@given(st.lists(counts, min_size=4, max_size=4))
def test_quarters_of_a_known_total_stay_uncertain(quarters):
    exact = [{"n_positive": count} for count in quarters]
    shown = [part["n_positive"] for part in of_partition(exact, [cells(e, TEN) for e in exact], TEN)]
    assert all(is_true(count, cell) for count, cell in zip(quarters, shown, strict=True))
    if sum(0 < count < 10 for count in quarters) == 0:
        assert shown == [str(count) for count in quarters]
    total = sum(quarters)
    if total < 10 or all(count < 10 for count in quarters):
        return  # the total is hidden itself, or everything is and nothing is left to hide
    for cell, (low, high) in zip(shown, deduced(shown, total), strict=True):
        assert not cell.startswith("<") or low < high


def test_one_hidden_quarter_takes_the_largest_along():
    exact = [{"n": n} for n in (3, 20, 40, 30)]
    assert [part["n"] for part in of_partition(exact, [cells(e, TEN) for e in exact], TEN)] == [
        "<10",
        "20",
        ">=10",
        "30",
    ]


def test_two_hidden_quarters_that_the_total_tells_take_one_more_along():
    """Two hidden counts that add up to 2 are both 1."""
    exact = [{"n": n} for n in (1, 1, 40, 30)]
    assert [part["n"] for part in of_partition(exact, [cells(e, TEN) for e in exact], TEN)] == [
        "<10",
        "<10",
        ">=10",
        "30",
    ]


def test_counts_are_replaced_in_every_row_of_a_key_and_nothing_else_changes():
    frame = pl.DataFrame(
        {
            "task": ["a", "b"] * 2, "model": ["x", "x", "y", "y"], "n": [50, 7] * 2, "value": [0.1, 0.2, 0.3, 0.4],
            "n_positive": [20, 2] * 2, "n_subjects": [30, 5] * 2, "n_positive_subjects": [12, 1] * 2,
        }
    )  # fmt: skip
    found = suppress(frame, ["task"], TEN)
    assert found.columns == frame.columns
    assert found.drop(COUNTS).equals(frame.drop(COUNTS))
    assert found.select(COUNTS).rows() == [("50", "20", "30", "12"), ("<10",) * 4] * 2
    assert suppress(frame.clear(), ["task"], TEN).height == 0


@pytest.mark.parametrize("n", [0, 1, 9, 10, 12])
def test_nobody_among_few_is_nobody(n):
    """A bound would be false, and the total would then give another part away."""
    assert cells({"n": n, "n_positive": 0}, Privacy(minimum_count=10))["n_positive"] == "0"
