"""Whatever happens after a cut-off changes nothing that is seen at the cut-off, from files to windows."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from ehrctx.timelines.store import Timelines
from ehrctx.timelines.windows import Windows

START = datetime(2020, 1, 1)
DATE_ONLY = "DX//"
ORIGINAL, ALTERED = 101, 102  # two held-out subjects who share their past


@st.composite
def event(draw):
    """A timed event as (time, code, value, text), within three days, often at midnight or at the cut-off's second."""
    second = draw(st.one_of(st.integers(0, 3 * 86_400), st.sampled_from([0, 86_400, 2 * 86_400, 100_000, 100_001])))
    time = START + timedelta(seconds=second, microseconds=draw(st.sampled_from([0, 0, 1, 500_000, 999_999])))
    code = draw(st.sampled_from(["A", "B", "DX//1", "DX//2", "NEVER SEEN"]))
    value = draw(st.sampled_from([None, 0.0, 1.0, 2.5, 7.0]))
    return time, code, value, draw(st.sampled_from([None, None, "low"]))


cut_offs = st.one_of(
    st.integers(-10, 3 * 86_400 + 10), st.sampled_from([86_400, 86_400 + 86_340, 100_000, 100_001])
).flatmap(
    lambda s: st.sampled_from([0, 1, 500_000, 999_999]).map(lambda m: START + timedelta(seconds=s, microseconds=m))
)


def known(item):
    """When an event is known: a bare date only at the end of its day."""
    time, code, *_ = item
    if code.startswith(DATE_ONLY) and time == datetime(time.year, time.month, time.day):
        return time + timedelta(hours=23, minutes=59)
    return time


def rows_of(subject, static, born, events):
    rows = [(subject, None, code, None, None, None) for code in static]
    rows += [(subject, datetime(1980, 1, 1), "MEDS_BIRTH", None, None, None)] * born
    ordered = sorted(events, key=lambda e: e[0])
    return rows + [(subject, time, code, value, text, None) for time, code, value, text in ordered]


def train_subjects():
    """They fix the vocabulary: every code but one, with and without values."""
    rows = []
    for subject in (1, 2, 3):
        rows += [
            (subject, None, "SEX//F", None, None, None),
            (subject, datetime(1980, 1, 1), "MEDS_BIRTH", None, None, None),
        ]
        for i, code in enumerate(["A", "B", "DX//1", "DX//2"]):
            for j, value in enumerate([None, 0.0, 1.0, 2.0, 5.0]):
                text = "low" if value is None and subject == 1 else None
                rows.append((subject, START + timedelta(hours=i, minutes=j), code, value, text, None))
    return rows


@settings(max_examples=60)
@given(
    st.lists(event(), max_size=14),
    st.lists(event(), max_size=10),
    st.booleans(),
    st.sampled_from([[], ["SEX//F"], ["SEX//F", "RACE//X"]]),
    cut_offs,
    st.sampled_from([6, 9, 40]),
)
def test_changing_the_future_changes_nothing_that_is_seen(
    build, events_frame, events, others, born, static, cut, context
):
    past = [e for e in events if known(e) <= cut]
    future = [e for e in others if known(e) > cut]
    original = rows_of(ORIGINAL, static, born, events)
    altered = rows_of(ALTERED, static, born, past + future)
    if not original or not altered:
        return
    raw = events_frame(train_subjects() + original + altered)
    splits = {1: "train", 2: "train", 3: "train", ORIGINAL: "held_out", ALTERED: "held_out"}
    store = build(raw, splits, {"bins": 3, "unknown": "unk"}, {"date_only": [f"{DATE_ONLY}*"]})
    timelines = Timelines.open(store)
    windows = Windows(timelines, context)
    moment = np.array([cut], dtype="datetime64[us]")
    seen = []
    for position in timelines.positions_of(np.array([ORIGINAL, ALTERED])):
        count = int(timelines.visible(int(position), moment)[0])
        first = timelines.offsets[position]
        own = slice(first, first + count)
        seen.append(
            {
                "tokens": timelines.tokens[own].tolist(),
                "seconds": timelines.seconds[own].tolist(),
                "event": timelines.event[own].tolist(),
                "window": windows.history(int(position), count).tolist(),
            }
        )
    assert seen[0] == seen[1]
    # and what is seen is the past, save perhaps what happened within the cut-off's last second
    n_fixed = len(static) + born
    whole = cut.replace(microsecond=0)
    assert n_fixed + sum(known(e) <= whole for e in past) <= len(seen[0]["tokens"]) <= n_fixed + len(past)


def test_a_later_event_at_the_same_date_cannot_be_seen_before_the_days_end(build, events_frame):
    """The pair that the property is about, spelled out: a diagnosis of the day, asked for at noon and at the end."""
    rows = [*train_subjects(), (ORIGINAL, START, "DX//1"), (ORIGINAL, START + timedelta(hours=8), "A")]
    store = build(
        events_frame(rows),
        {1: "train", 2: "train", 3: "train", ORIGINAL: "held_out"},
        profile={"date_only": [f"{DATE_ONLY}*"]},
    )
    timelines = Timelines.open(store)
    position = int(timelines.positions_of(np.array([ORIGINAL]))[0])
    codes = dict(pl.read_parquet(store / "vocabulary.parquet").select("token", "code").iter_rows())
    moments = np.array([START + timedelta(hours=h) for h in (7, 12, 24)], dtype="datetime64[us]")
    first = timelines.offsets[position]
    seen = [
        [codes[t] for t in timelines.tokens[first : first + n].tolist()] for n in timelines.visible(position, moments)
    ]
    assert seen == [[], ["A"], ["A", "DX//1"]]
