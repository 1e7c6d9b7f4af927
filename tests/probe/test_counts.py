"""Counts of tokens and the age against a count by hand at every row."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.probe.counts import count_features
from ehrctx.timelines.store import SUBJECT, Timelines

VOCABULARY = 30
YEAR = 365.25 * 24 * 60 * 60


def by_hand(store: Timelines, subjects, times, seen_tokens) -> np.ndarray:
    expected = np.zeros((len(subjects), VOCABULARY + 1))
    for row, (subject, time) in enumerate(zip(subjects, times, strict=True)):
        expected[row, :VOCABULARY] = np.bincount(seen_tokens(store, subject, time), minlength=VOCABULARY)
        microseconds = int((time - store.subjects["origin"][subject]).astype("timedelta64[us]").astype(np.int64))
        expected[row, VOCABULARY] = max(microseconds, 0) / 1e6 / YEAR
    return expected


@hypothesis_settings(max_examples=40)
@given(data=st.data(), seed=st.integers(0, 1000))
def test_every_row_counts_what_is_visible(random_timelines, seen_tokens, data, seed):
    store = random_timelines(data.draw(st.lists(st.integers(0, 25), min_size=1, max_size=5)), seed)
    # subjects together but in no order, and neither are their times
    chosen = data.draw(st.lists(st.integers(0, len(store) - 1), min_size=1, max_size=5, unique=True))
    subjects = np.repeat(chosen, data.draw(st.integers(1, 4)))
    since = data.draw(st.lists(st.integers(-3_000_000, 60_000_000), min_size=len(subjects), max_size=len(subjects)))
    times = store.subjects["origin"][subjects] + np.array(since).astype("timedelta64[us]")
    found = count_features(store, subjects, times)
    assert found.shape == (len(subjects), VOCABULARY + 1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.toarray(), by_hand(store, subjects, times, seen_tokens), rtol=1e-6)


def test_ages_are_years_since_birth(random_timelines):
    store = random_timelines([5])
    origin = store.subjects["origin"][0]
    times = origin + np.array([0, 365, 36_525, -10]).astype("timedelta64[D]")
    ages = count_features(store, np.zeros(4, dtype=np.int64), times).toarray()[:, VOCABULARY]
    assert ages == pytest.approx([0, 365 / 365.25, 100, 0])


def test_a_subject_without_timed_events_has_static_counts_alone(random_timelines):
    store = random_timelines([0, 4], seed=5)
    store.subjects["origin"][0] = np.datetime64("NaT")
    n_static = int(store.subjects["n_static"][0])
    row = count_features(store, np.array([0]), np.array(["2000-01-01"], dtype="datetime64[us]")).toarray()[0]
    assert row[:VOCABULARY].sum() == n_static
    assert row[VOCABULARY] == 0


def test_later_tokens_change_no_count(random_timelines):
    store = random_timelines([30, 30], seed=1)
    subjects, since = np.array([0, 0, 1, 1]), np.array([10, 30, 5, 49])
    times = store.subjects["origin"][subjects] + since.astype("timedelta64[s]")
    before = count_features(store, subjects, times).toarray()
    for row, (subject, after) in enumerate(zip(subjects, since, strict=True)):
        lo, hi = store.offsets[subject], store.offsets[subject + 1]
        tokens = store.tokens.copy()
        later = np.arange(lo, hi)[store.seconds[lo:hi] > after]
        tokens[later] = 7
        changed = count_features(dataclasses.replace(store, tokens=tokens), subjects, times).toarray()
        np.testing.assert_array_equal(changed[row], before[row])


events = st.lists(st.tuples(st.integers(0, 60), st.integers(7, VOCABULARY - 1)), max_size=20)


def store_of(static, timed) -> Timelines:
    """One subject: static tokens, then (second, token) in the order of seconds."""
    ordered = sorted(timed, key=lambda event: event[0])
    subjects = np.zeros(1, dtype=SUBJECT)
    subjects["origin"], subjects["n_static"] = np.datetime64("1970-01-01T00:00:00.25", "us"), len(static)
    return Timelines(
        path=Path("in memory"),
        tokens=np.array([*static, *(token for _, token in ordered)], dtype=np.uint16),
        seconds=np.array([0] * len(static) + [second for second, _ in ordered], dtype=np.uint32),
        event=np.arange(len(static) + len(ordered), dtype=np.uint32),
        offsets=np.array([0, len(static) + len(ordered)]),
        subjects=subjects,
        manifest={"facts": {"vocabulary_size": VOCABULARY}},
    )


@hypothesis_settings(max_examples=60)
@given(
    st.lists(st.integers(7, VOCABULARY - 1), max_size=2), events, events, st.integers(0, 60), st.integers(0, 999_999)
)
def test_another_future_gives_the_same_row(static, timed, others, second, microsecond):
    """After the prediction time, events may be added, changed or missing; later rows of the subject may differ."""
    past = [event for event in timed if event[0] <= second]
    altered = past + [event for event in others if event[0] > second]
    store, other = store_of(static, timed), store_of(static, altered)
    now = store.subjects["origin"][0] + np.timedelta64(second * 1_000_000 + microsecond, "us")
    times = now + np.array([0, 0, 40]).astype("timedelta64[s]")  # asked for twice, and again later
    first, changed = (count_features(s, np.zeros(3, dtype=np.int64), times).toarray() for s in (store, other))
    np.testing.assert_array_equal(first[:2], changed[:2])
    np.testing.assert_array_equal(first[0], first[1])
    assert first[0, :-1].sum() == len(static) + len(past)


@pytest.mark.parametrize("block", [1, 40, 500])
def test_a_subject_that_is_counted_in_parts(random_timelines, monkeypatch, block):
    """Subjects with many times and many tokens are counted a few rows at a time."""
    store = random_timelines([25, 0, 40], seed=3)
    subjects = np.repeat([2, 0, 1], [30, 11, 2])
    times = store.subjects["origin"][subjects] + np.random.default_rng(0).integers(-5, 60, 43).astype("timedelta64[s]")
    whole = count_features(store, subjects, times)
    monkeypatch.setattr("ehrctx.probe.counts.BLOCK", block)
    parts = count_features(store, subjects, times)
    assert whole.has_sorted_indices
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_no_rows():
    store = Timelines(
        path=None,  # type: ignore[arg-type]
        tokens=np.array([7]),
        seconds=np.array([0], dtype=np.uint32),
        event=np.array([0]),
        offsets=np.array([0, 1]),
        subjects=np.zeros(1, dtype=[("subject_id", "<i8"), ("origin", "<M8[us]"), ("n_static", "<u4")]),
        manifest={"facts": {"vocabulary_size": VOCABULARY}},
    )
    found = count_features(store, np.zeros(0, dtype=np.int64), np.zeros(0, dtype="datetime64[us]"))
    assert found.shape == (0, VOCABULARY + 1)
