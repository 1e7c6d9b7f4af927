"""Fitting the vocabulary: quantile edges and CLMBR's ranking against exact, slow definitions; the train split alone."""

import math
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.timelines.spec import TokenizerSpec
from ehrctx.timelines.vocabulary import count_entries, fit_vocabulary, merge_entries, quantile_edges

NO_DESCRIPTIONS = pl.DataFrame(schema={"code": pl.String, "description": pl.String})


def fit(events, spec, parts=1):
    """From events of train subjects, their rows cut into `parts` shards at subjects."""
    subjects = events["subject_id"].unique(maintain_order=True)
    cuts = np.array_split(subjects.to_numpy(), parts)
    entries = [count_entries(events.filter(pl.col("subject_id").is_in(list(c)))) for c in cuts if len(c)]
    return fit_vocabulary(merge_entries(entries), len(subjects), spec, NO_DESCRIPTIONS)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.integers(-20, 20), st.integers(1, 6)), min_size=1, max_size=40, unique_by=lambda v: v[0]),
    st.integers(1, 12),
    st.sampled_from([1, 3, 7, 49]),
)
def test_edges_against_exact_arithmetic(slow, weighted, bins, denominator):
    weighted = sorted(weighted)
    values = np.array([v for v, _ in weighted], dtype=np.float32)
    weights = np.array([w / denominator for _, w in weighted])
    expected = slow.edges([(v, Fraction(w, denominator)) for v, w in weighted], bins)
    assert quantile_edges(values, weights, bins).tolist() == expected


@pytest.mark.parametrize("n", [97, 1009, 10_007])  # primes: no quantile falls between two values
@pytest.mark.parametrize("bins", [2, 10, 16])
def test_edges_of_equal_weights_are_numpys_quantiles(n, bins):
    values = np.sort(np.random.default_rng(n).normal(size=n).astype(np.float32))
    values = np.unique(values)
    if len(values) != n:
        values = np.arange(n, dtype=np.float32)
    expected = np.quantile(values, np.arange(1, bins) / bins, method="inverted_cdf")
    np.testing.assert_array_equal(quantile_edges(values, np.full(n, 1 / n), bins), expected)


def test_equal_weights_fill_bins_equally():
    values = np.arange(1000, dtype=np.float32)
    edges = quantile_edges(values, np.full(1000, 0.1), 10)
    counts = np.histogram(values, [-np.inf, *edges, np.inf])[0]
    assert counts.tolist() == [100] * 10


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60, unique=True),
    st.integers(1, 12),
    st.integers(0, 1000),
)
def test_no_bin_is_empty(values, bins, seed):
    values = np.sort(np.array(values, dtype=np.float32))
    edges = quantile_edges(values, np.random.default_rng(seed).random(len(values)) + 0.01, bins)
    assert len(edges) < bins
    assert (np.diff(edges) > 0).all()
    which = np.searchsorted(edges, values, side="right")
    assert set(which.tolist()) == set(range(len(edges) + 1))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("bins", "size"), [(10, 1000), (4, 30), (1, 12)])
def test_vocabulary_against_the_published_rules(slow, random_events, seed, bins, size):
    events = random_events(seed, subjects=9, longest=60)
    ours = fit(events, TokenizerSpec(name="t", bins=bins, vocabulary_size=size))
    subjects = [part.to_dicts() for part in events.partition_by("subject_id")]
    expected = slow.vocabulary(subjects, bins, size)
    assert ours["token"].to_list() == list(range(len(expected) + 7))
    assert ours.head(7).select("kind", "code").rows() == [("special", name) for name in slow.specials]
    columns = ("kind", "code", "unit", "text", "lower", "upper", "count")
    assert ours.slice(7).select(columns).to_dicts() == [{c: e[c] for c in columns} for e in expected]
    np.testing.assert_allclose(ours["weight"][7:], [float(e["p"]) for e in expected], rtol=1e-12)
    assert len(expected) == size - 7 or size > 100


def test_entries_rank_by_entropy(random_events):
    ours = fit(random_events(1), TokenizerSpec(name="t"))
    p = ours["weight"][7:].to_numpy()
    entropy = -(p * np.log(p) + (1 - p) * np.log1p(-p))
    assert (np.diff(entropy) <= 1e-10).all()


def test_all_weights_sum_to_one_when_no_value_ties(events_frame):
    rows = [(s, None, f"C{i}", float(i + 10 * s), None, "u") for s in (1, 2) for i in range(3) for _ in range(1)]
    rows += [(1, None, "X"), (2, None, "Y", None, "text")]
    ours = fit(events_frame(rows).sort("subject_id"), TokenizerSpec(name="t", bins=2))
    assert ours["weight"][7:].sum() == pytest.approx(1.0)


def test_a_subject_counts_the_same_however_long(events_frame):
    rows = [(1, None, "A")] * 1000 + [(2, None, "B")]
    ours = fit(events_frame(rows), TokenizerSpec(name="t"))
    assert dict(ours.slice(7).select("code", "weight").rows()) == pytest.approx({"A": 0.5, "B": 0.5})


def test_units_are_never_mixed(events_frame):
    rows = [(1, None, "GLUCOSE", v, None, "mg/dL") for v in (70.0, 100.0)]
    rows += [(1, None, "GLUCOSE", v, None, "mmol/L") for v in (4.0, 6.0)]
    ours = fit(events_frame(rows), TokenizerSpec(name="t", bins=2)).slice(7)
    assert sorted(ours.select("unit", "lower", "upper", "count").rows()) == [
        ("mg/dL", -math.inf, 100.0, 1),
        ("mg/dL", 100.0, math.inf, 1),
        ("mmol/L", -math.inf, 6.0, 1),
        ("mmol/L", 6.0, math.inf, 1),
    ]


def test_zeros_of_both_signs_are_one_value(events_frame):
    ours = fit(events_frame([(1, None, "A", 0.0), (1, None, "A", -0.0), (1, None, "A", 1.0)]), TokenizerSpec(name="t"))
    assert ours.slice(7)["lower"].to_list() == [-math.inf, 1.0]
    assert ours.slice(7)["count"].to_list() == [2, 1]


@pytest.mark.parametrize("seed", range(3))
def test_sums_over_shards_merge_in_any_order(random_events, seed):
    events = random_events(seed, subjects=10)
    spec = TokenizerSpec(name="t", vocabulary_size=60)
    whole, cut = fit(events, spec), fit(events, spec, parts=4)
    assert whole.drop("weight").equals(cut.drop("weight"))
    np.testing.assert_allclose(whole["weight"][7:], cut["weight"][7:], rtol=1e-12)


def test_descriptions_are_attached(events_frame, build):
    codes = pl.DataFrame({"code": ["A", "B"], "description": ["alpha", "beta"]})
    store = build(events_frame([(s, None, "A") for s in range(1, 6)]), codes=codes)
    vocabulary = pl.read_parquet(store / "vocabulary.parquet")
    assert vocabulary.slice(7).select("code", "description").rows() == [("A", "alpha")]


def test_fitted_on_train_only(random_events, build):
    events = random_events(5, subjects=20)
    splits = {s: ("train", "tuning", "held_out", "train")[s % 4] for s in range(1, 21)}
    train = pl.col("subject_id").is_in([s for s, split in splits.items() if split == "train"])
    changed = events.with_columns(
        code=pl.when(train).then("code").otherwise(pl.lit("OTHER")),
        numeric_value=pl.when(train).then("numeric_value").otherwise(pl.lit(99.0, pl.Float32)),
    )
    kept = changed.filter(train | (pl.int_range(pl.len()) % 3 == 0))
    a, b = build(events, splits), build(kept, splits)
    assert (a / "vocabulary.parquet").read_bytes() == (b / "vocabulary.parquet").read_bytes()
    assert (a / "tokens.npy").read_bytes() != (b / "tokens.npy").read_bytes()
    other = events.with_columns(code=pl.when(train).then(pl.lit("OTHER")).otherwise("code"))
    assert (build(other, splits) / "vocabulary.parquet").read_bytes() != (a / "vocabulary.parquet").read_bytes()


def test_no_train_events_is_an_input_error(events_frame, build):
    with pytest.raises(InputError, match="the train split holds no event"):
        build(events_frame([(1, None, "A"), (2, None, "A")]), {1: "tuning", 2: "held_out"})
