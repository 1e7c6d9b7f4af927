"""Fitting the vocabulary: quantile edges, ranking and room, spelled out; the train split alone."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_tokenizer import bins_of
from said import entries, names_of

from ehrctx.errors import InputError
from ehrctx.timelines.vocabulary import quantile_cuts

ALL_TRAIN = dict.fromkeys(range(1, 30), "train")
weighted_values = st.lists(st.integers(1, 2**40), min_size=1, max_size=30)


@settings(max_examples=300)
@given(st.lists(weighted_values, min_size=1, max_size=5), st.integers(2, 12))
def test_cuts_against_the_definition(measures, bins):
    """Of several measures at once; the weights of values 0, 1, 2, …"""
    starts = np.cumsum([0, *map(len, measures[:-1])])
    expected = []
    for start, weights in zip(starts.tolist(), measures, strict=True):
        found = bins_of({float(v): [w, 1] for v, w in enumerate(weights)}, bins)
        expected += [start + int(b.lower) for b in found[1:]]
    assert quantile_cuts(np.concatenate(measures), starts, bins).tolist() == expected


@pytest.mark.parametrize("n", [97, 1009, 10_007])  # primes: no quantile falls between two values
@pytest.mark.parametrize("bins", [2, 10, 16])
def test_edges_of_equal_weights_are_numpys_quantiles(n, bins):
    values = np.sort(np.random.default_rng(n).permutation(5 * n)[:n])
    expected = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
    cuts = quantile_cuts(np.full(n, 2**30), np.array([0]), bins)
    np.testing.assert_array_equal(values[cuts], expected)


def test_weights_of_a_large_cohort_do_not_overflow():
    """2^27 subjects weigh 2^63 together."""
    weights = np.full(1000, 2**53 - 1)
    assert quantile_cuts(weights, np.array([0]), 10).tolist() == list(range(100, 1000, 100))


def bins(store):
    rows = pl.read_parquet(store / "bins.parquet").filter(code="A").sort("unit", "lower", nulls_last=True)
    return rows.select("unit", "lower", "upper", "count").rows()


def of_values(values, unit="u"):
    return [(1, None, "A", float(value), None, unit) for value in values]


@pytest.mark.parametrize(
    ("values", "n", "expected"),
    [
        # at or below 2 lies half, and that is not more than half
        ([1, 2, 3, 4], 2, [(-math.inf, 3.0, 2), (3.0, math.inf, 2)]),
        ([1, 2, 3], 2, [(-math.inf, 2.0, 1), (2.0, math.inf, 2)]),
        # more than half is 1, and a first bin below the smallest value would be empty
        ([1, 1, 1, 2], 2, [(-math.inf, math.inf, 4)]),
        # edges that coincide
        ([0, 5, 5, 5, 5, 5, 9], 10, [(-math.inf, 5.0, 1), (5.0, 9.0, 5), (9.0, math.inf, 1)]),
        ([0, 5, 5, 5, 5, 5, 5, 5, 9], 4, [(-math.inf, 5.0, 1), (5.0, math.inf, 8)]),
        # both zeros are one value
        ([-1, 0.0, -0.0, 1], 2, [(-math.inf, 0.0, 1), (0.0, math.inf, 3)]),
        ([7], 10, [(-math.inf, math.inf, 1)]),
    ],
)
def test_edges(build, events_frame, values, n, expected):
    store = build(events_frame(of_values(values)), ALL_TRAIN, {"bins": n})
    assert [row[1:] for row in bins(store)] == expected


def test_units_are_never_mixed(build, events_frame):
    rows = of_values([70, 100], "mg/dL") + of_values([4, 6], "mmol/L") + of_values([1, 2], None) + of_values([3], "")
    store = build(events_frame(rows), ALL_TRAIN, {"bins": 2})
    assert bins(store) == [
        ("mg/dL", -math.inf, 100.0, 1),
        ("mg/dL", 100.0, math.inf, 1),
        ("mmol/L", -math.inf, 6.0, 1),
        ("mmol/L", 6.0, math.inf, 1),
        (None, -math.inf, 2.0, 1),  # "" is no unit either
        (None, 2.0, math.inf, 2),
    ]


def test_a_subject_counts_the_same_however_long(build, events_frame):
    rows = [(1, None, "A")] * 1000 + [(2, None, "B")]
    assert {name: weight for name, weight, _ in entries(build(events_frame(rows), ALL_TRAIN))} == pytest.approx(
        {"A": 0.5, "B": 0.5}
    )
    by_event = build(events_frame(rows), ALL_TRAIN, {"weights": "event"})
    assert {name: weight for name, weight, _ in entries(by_event)} == pytest.approx({"A": 1000 / 1001, "B": 1 / 1001})


def test_whose_values_make_the_bins(build, events_frame):
    """A subject with many high values moves the edge where every event counts the same."""
    rows = [(1, None, "A", float(v)) for v in range(100, 120)] + [(s, None, "A", float(s)) for s in (2, 3, 4, 5)]
    assert bins(build(events_frame(rows), ALL_TRAIN, {"bins": 2}))[1][1] == 4.0
    assert bins(build(events_frame(rows), ALL_TRAIN, {"bins": 2, "weights": "event"}))[1][1] == 108.0


def test_entries_rank_by_entropy_or_by_count(build, events_frame):
    rows = [(1, None, "MANY")] * 8 + [(s, None, code) for s in (2, 3, 4) for code in ("HALF", f"OWN//{s}")]
    # p: MANY 1/4, HALF 3/8, each OWN 1/8; of those that tie the first by name
    ours = [name for name, _, _ in entries(build(events_frame(rows), ALL_TRAIN))]
    assert ours == ["HALF", "MANY", "OWN//2", "OWN//3", "OWN//4"]
    ours = [name for name, _, _ in entries(build(events_frame(rows), ALL_TRAIN, {"ranking": "count"}))]
    assert ours == ["MANY", "HALF", "OWN//2", "OWN//3", "OWN//4"]


def test_an_entry_of_every_subject_is_told_last(build, events_frame):
    """p = 1 says nothing."""
    ours = entries(build(events_frame([(1, None, "A"), (2, None, "A")]), ALL_TRAIN))
    assert ours == [("A", 1.0, 2)]


def test_an_entry_brings_its_codes_plain_token_with_it(build, events_frame):
    rows = [(1, None, "A", 1.0), (1, None, "A", 1.0), (1, None, "A", 2.0), (1, None, "B"), (1, None, "C", None, "x")]
    frame, ranked = events_frame(rows), {"bins": 2, "ranking": "count"}
    everything = [("A [-inf, inf)", 0.6, 3), ("B", 0.2, 1), ("C=x", 0.2, 1), ("A", 0.0, 0), ("C", 0.0, 0)]
    for room, expected in ((5, 5), (6, 5)):
        store = build(frame, ALL_TRAIN, ranked | {"vocabulary_size": 7 + room})
        assert entries(store) == [(n, pytest.approx(w), c) for n, w, c in everything[:expected]]
    # C=x needs two places; where there is one, it and all after it are left out
    for room in (3, 4):
        store = build(frame, ALL_TRAIN, ranked | {"vocabulary_size": 7 + room})
        assert [name for name, _, _ in entries(store)] == ["A [-inf, inf)", "B", "A"]
    store = build(frame, ALL_TRAIN, ranked | {"vocabulary_size": 9})
    assert [name for name, _, _ in entries(store)] == ["A [-inf, inf)", "A"]
    store = build(frame, ALL_TRAIN, ranked | {"vocabulary_size": 8})
    assert entries(store) == []


def test_tokens_that_the_spec_has_in_any_case_come_first(build, events_frame):
    spec = {
        "visit_tokens": True,
        "time_tokens": {"weeks_from": 3, "months_from": 28, "long_term_from": 70},
        "age_bands": [18, 65],
        "values": "separate",
        "bins": 2,
    }
    names = names_of(build(events_frame([(1, None, "A")]), ALL_TRAIN, spec))
    assert names == [
        "[BOS]", "[EOS]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "[VISIT START]", "[VISIT END]",
        "[DAY 1]", "[DAY 2]", "[WEEK 1]", "[WEEK 2]", "[WEEK 3]", "[MONTH 1]", "[MONTH 2]", "[LONG TERM]",
        "[AGE 0-17]", "[AGE 18-64]", "[AGE 65+]", "[Q1]", "[Q2]", "A",
    ]  # fmt: skip


def test_descriptions_are_attached(events_frame, build):
    codes = pl.DataFrame({"code": ["A", "B", "A"], "description": ["alpha", "beta", "again"]})
    store = build(events_frame([(s, None, "A", float(s)) for s in range(1, 6)]), codes=codes)
    vocabulary = pl.read_parquet(store / "vocabulary.parquet").slice(7)
    assert set(vocabulary.select("code", "description").rows()) == {("A", "alpha")}


def test_fitted_on_train_only(random_events, build):
    events = random_events(5, subjects=20)
    splits = {s: ("train", "tuning", "held_out", "train")[s % 4] for s in range(1, 21)}
    train = pl.col("subject_id").is_in([s for s, split in splits.items() if split == "train"])
    changed = events.with_columns(
        code=pl.when(train).then("code").otherwise(pl.lit("OTHER")),
        numeric_value=pl.when(train).then("numeric_value").otherwise(pl.lit(99.0, pl.Float32)),
    )
    kept = changed.filter(train | (pl.int_range(pl.len()) % 3 == 0))
    for spec in ({}, {"values": "separate"}, {"weights": "event", "ranking": "count"}, {"roll_up": {"fewer_than": 4}}):
        a, b = build(events, splits, spec), build(kept, splits, spec)
        for file in ("vocabulary.parquet", "bins.parquet"):
            assert (a / file).read_bytes() == (b / file).read_bytes()
        assert (a / "tokens.npy").read_bytes() != (b / "tokens.npy").read_bytes()
    other = events.with_columns(code=pl.when(train).then(pl.lit("OTHER")).otherwise("code"))
    assert (build(other, splits) / "vocabulary.parquet").read_bytes() != (a / "vocabulary.parquet").read_bytes()


def test_no_train_events_is_an_input_error(events_frame, build):
    with pytest.raises(InputError, match="the train split holds no event"):
        build(events_frame([(1, None, "A"), (2, None, "A")]), {1: "tuning", 2: "held_out"})
