"""Properties of each prediction time against their definition, event by event; and that nothing later leaks in."""

from __future__ import annotations

import statistics
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.artifacts import read_manifest
from ehrctx.errors import InputError
from ehrctx.robustness.properties import (
    COUNTS,
    GAPS,
    PROPERTIES,
    RATES,
    compute_properties,
    read_properties,
    write_properties,
)
from ehrctx.tasks.label_sets import read_labels
from ehrctx.timelines.store import Timelines

ORIGIN = np.datetime64("1980-01-01T00:00:00", "us")


def at(seconds: float, origin: np.datetime64 = ORIGIN) -> np.datetime64:
    return origin + np.timedelta64(round(seconds * 1e6), "us")


def keys_of(rows: list[tuple[int, np.datetime64]]) -> pl.DataFrame:
    times = np.array([t for _, t in rows], dtype="datetime64[us]")
    return pl.DataFrame({"subject_id": pl.Series([s for s, _ in rows], dtype=pl.Int64), "prediction_time": times})


def gap_row(seconds: list[int]) -> list[float]:
    gaps = [b - a for a, b in pairwise(seconds)]
    if not gaps:
        return [np.nan] * 3
    lower, upper = np.quantile(gaps, [0.25, 0.75])
    return [statistics.fmean(gaps), statistics.pstdev(gaps), upper - lower]


def by_definition(timelines: Timelines, subject_id: int, time: np.datetime64) -> dict[str, float]:
    """One row from the definition, token by token."""
    position = timelines.subjects["subject_id"].tolist().index(subject_id)
    born, origin = timelines.subjects["born"][position], timelines.subjects["origin"][position]
    lo = int(timelines.offsets[position]) + int(timelines.subjects["n_static"][position])
    tokens, at_second = [], {}
    for i in range(lo, int(timelines.offsets[position + 1])):
        if origin + np.timedelta64(int(timelines.seconds[i]), "s") <= time:
            tokens.append(int(timelines.tokens[i]))
            at_second[int(timelines.event[i])] = int(timelines.seconds[i])
    rates = []
    for n in range(1, 5):
        counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        rates.append(sum(c > 1 for c in counts.values()) / len(counts) if counts else np.nan)
    seconds = list(at_second.values())
    after = [s for s in seconds if s > 0] if born else seconds
    with_birth = [0, *after] if born and origin <= time else after
    values = [*rates, statistics.geometric_mean(rates) if all(rates) else np.prod(rates)]
    return dict(zip(RATES, [*values, *gap_row(after), *gap_row(with_birth)], strict=True)) | {
        "n_tokens": len(tokens),
        "n_events": len(seconds),
    }


def assert_defined(timelines: Timelines, found: pl.DataFrame) -> None:
    for row in found.iter_rows(named=True):
        expected = by_definition(timelines, row["subject_id"], np.datetime64(row["prediction_time"], "us"))
        for name in (*RATES, *COUNTS):
            assert row[name] == pytest.approx(expected[name], rel=1e-9, abs=0, nan_ok=True), name


# (seconds since the event before, tokens): simultaneous events, events of several tokens
GAP = st.sampled_from([0, 0, 1, 2, 7]) | st.integers(0, 10**8)
EVENTS = st.lists(st.tuples(GAP, st.lists(st.integers(7, 9), min_size=1, max_size=3)), max_size=12)
SUBJECT = st.tuples(EVENTS, st.booleans(), st.lists(st.integers(7, 9), max_size=2))


def timed(events: list[tuple[int, list[int]]]) -> list[tuple[int, list[int]]]:
    seconds = np.cumsum([gap for gap, _ in events], dtype=np.int64).tolist()
    return list(zip(seconds, [tokens for _, tokens in events], strict=True))


def cut_offs(timelines: Timelines, rng: np.random.Generator, n: int) -> pl.DataFrame:
    """Times before the origin, at the very second of an event, fractions of a second around it, after the end."""
    rows = []
    for _ in range(n):
        position = int(rng.integers(len(timelines)))
        lo, hi = timelines.offsets[position], timelines.offsets[position + 1]
        around = rng.choice(np.append(timelines.seconds[lo:hi], 0)) + rng.choice([-1, -0.5, 0, 0, 0.5, 1, 10**9])
        subject = timelines.subjects[position]
        rows.append((int(subject["subject_id"]), at(float(around), subject["origin"])))
    return keys_of(rows)


@hypothesis_settings(max_examples=150)
@given(subjects=st.lists(SUBJECT, min_size=1, max_size=3), seed=st.integers(0, 1_000))
def test_every_row_is_its_definition(store_of, subjects, seed):
    store = store_of(
        [
            {"subject_id": 30 - 7 * i, "events": timed(events), "born": born, "static": static}
            for i, (events, born, static) in enumerate(subjects)
        ]
    )
    keys = cut_offs(store, np.random.default_rng(seed), 8)
    found = compute_properties(store, keys)
    assert dict(found.schema) == PROPERTIES
    assert found.select("subject_id", "prediction_time").rows() == sorted(set(keys.rows()))
    assert_defined(store, found)


@hypothesis_settings(max_examples=100)
@given(
    before=SUBJECT, others=st.lists(EVENTS, min_size=2, max_size=2), cut=st.integers(0, 3), wait=st.integers(1, 10**6)
)
def test_nothing_after_the_prediction_time_leaks(store_of, before, others, cut, wait):
    """Other events after the cut-off, other tokens, more and fewer: the same properties up to it."""
    events, born, static = before
    known = timed(events)[: 3 * cut]
    last = known[-1][0] if known else 0
    stores = []
    for later in others:
        after = [(second + last + wait, tokens) for second, tokens in timed(later)]
        stores.append(store_of([{"subject_id": 1, "events": known + after, "born": born, "static": static}]))
    early = [last + wait - 1, last + wait - 1e-6, last, last - 1, last / 2, 0, -1]
    keys = keys_of([(1, at(s)) for s in early])
    first, second = (compute_properties(store, keys) for store in stores)
    assert first.equals(second)
    # the later rows of the same call do not matter either
    with_later = pl.concat([keys, keys_of([(1, at(last + wait + s)) for s in (0, 10**9)])])
    together = compute_properties(stores[0], with_later).join(keys.unique(), on=keys.columns, how="semi")
    assert together.equals(first)


def test_every_visible_event_matters(store_of):
    """The opposite of leakage: without any one of the events, another row."""
    events = [(5, [7]), (9, [8]), (30, [7]), (31, [9, 7]), (90, [8])]
    whole, keys = store_of([{"subject_id": 1, "events": events}]), keys_of([(1, at(90))])
    row = compute_properties(whole, keys)
    for i in range(len(events)):
        without = store_of([{"subject_id": 1, "events": events[:i] + events[i + 1 :]}])
        assert not compute_properties(without, keys).equals(row)


def test_birth_and_what_is_stamped_with_it(store_of):
    """Second 0 of a subject that was born is its birth, once; without a birth it is the first event."""
    events = [(0, [7]), (0, [8]), (100, [7]), (130, [9])]
    found = compute_properties(
        store_of([{"subject_id": i, "events": events, "born": i == 1} for i in (1, 2)]),
        keys_of([(1, at(200)), (2, at(200)), (1, at(110)), (2, at(110)), (1, at(50)), (2, at(-1))]),
    )
    rows = {(r["subject_id"], r["n_events"]): r for r in found.iter_rows(named=True)}
    born, unborn = rows[1, 4], rows[2, 4]
    assert [born[g] for g in GAPS] == [30, 0, 0]
    assert [born[f"{g}_with_birth"] for g in GAPS] == pytest.approx(gap_row([0, 100, 130]))
    assert [unborn[g] for g in GAPS] == pytest.approx(gap_row([0, 0, 100, 130]))
    assert [unborn[f"{g}_with_birth"] for g in GAPS] == [unborn[g] for g in GAPS]
    assert np.isnan(rows[1, 3]["gap_sd"]), "one event after birth has no gap"
    assert rows[1, 3]["gap_mean_with_birth"] == 100
    assert np.isnan([rows[1, 2][g] for g in RATES[5:]]).all(), "nothing after birth"
    assert rows[2, 0]["n_tokens"] == 0
    assert np.isnan([rows[2, 0][r] for r in RATES]).all()


def test_a_birth_that_became_no_token_counts_all_the_same(store_of):
    store = store_of([{"subject_id": 1, "events": [(100, [7]), (130, [9])]}])
    found = compute_properties(store, keys_of([(1, at(500))])).row(0, named=True)
    assert [found[f"{g}_with_birth"] for g in GAPS] == pytest.approx(gap_row([0, 100, 130]))
    assert found["n_events"] == 2


def test_static_tokens_and_tokens_of_one_event(store_of):
    store = store_of([{"subject_id": 1, "events": [(10, [7, 7, 8]), (10, [8]), (20, [9])], "static": [7, 9]}])
    found = compute_properties(store, keys_of([(1, at(20))])).row(0, named=True)
    assert (found["n_tokens"], found["n_events"]) == (5, 3)
    assert found["rr_1"] == pytest.approx(2 / 3), "7 and 8 repeat, 9 would only with the static one"
    assert found["gap_mean"] == 5, "the events are 0 and 10 s apart, the tokens of one event are one"


def test_a_subject_without_any_timed_event(store_of):
    store = store_of([{"subject_id": 1, "events": [], "static": [7, 8], "origin": "NaT", "born": False}])
    found = compute_properties(store, keys_of([(1, at(0))]))
    assert found.select(COUNTS).row(0) == (0, 0)
    assert found.select(pl.all_horizontal(pl.col(RATES).is_nan())).item()


def test_subjects_without_timeline_and_no_keys(store_of):
    store = store_of([{"subject_id": 5, "events": [(1, [7])]}])
    found = compute_properties(store, keys_of([(4, at(5)), (5, at(5)), (6, at(5)), (5, at(5))]))
    assert found["subject_id"].to_list() == [5]
    assert dict(compute_properties(store, keys_of([])).schema) == PROPERTIES


def test_properties_of_the_cohort(cohort, write_label_folder, tmp_path):
    labels = read_labels(cohort.labels)
    first = next(iter(labels))
    stranger = labels[first].head(1).with_columns(subject_id=pl.lit(10**9, pl.Int64))
    folder = write_label_folder(tmp_path / "labels", {**labels, first: pl.concat([labels[first], stranger])})
    facts = write_properties(cohort.timelines, folder, tmp_path / "properties")
    found = read_properties(tmp_path / "properties")
    rows = {row for frame in labels.values() for row in frame.select("subject_id", "prediction_time").rows()}
    assert found.select("subject_id", "prediction_time").rows() == sorted(rows)
    assert facts["without_timeline"] == 1
    assert facts["rows"] == len(rows)
    assert facts["zero_or_undefined"]["rr_4"] == sum(not v > 0 for v in found["rr_4"])
    assert_defined(Timelines.open(cohort.timelines), found.gather_every(max(1, found.height // 40)))
    manifest = read_manifest(tmp_path / "properties", "properties")
    assert manifest["facts"] == facts
    assert set(manifest["inputs"]) == {"timelines", "labels"}
    with pytest.raises(InputError, match="properties"):
        read_properties(Path(cohort.labels))


def test_row_order_and_shards_of_the_store_do_not_matter(store_of):
    records = [{"subject_id": i, "events": timed([(i, [7 + i % 2]), (3, [8]), (0, [7])])} for i in range(6)]
    keys = keys_of([(i, at(s)) for i in range(6) for s in (0, 4, 9)])
    one = compute_properties(store_of(records), keys)
    other = compute_properties(store_of(records[::-1]), keys.sample(fraction=1, shuffle=True, seed=0))
    assert one.equals(other)
