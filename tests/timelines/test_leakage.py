"""Whatever happens after a cut-off changes nothing that is seen at the cut-off, from files to windows."""

import random
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from random_records import PROFILE, SCHEMA, codes_frame, random_records

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


@settings(max_examples=40)
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


# --------------------------------------------------------------------------------- every shipped tokenizer

SHIPPED = sorted(Path(__file__).resolve().parents[2].joinpath("tokenizers").glob("*.yaml"))
SPECS = {file.stem: yaml.safe_load(file.read_text()) for file in SHIPPED}
SPECS["roll_up"] |= {"roll_up": {"fewer_than": 6}}
SPECS["all at once"] = {
    "values": "separate",
    "visit_tokens": True,
    "time_tokens": {"weeks_from": 3, "months_from": 9, "long_term_from": 70},
    "roll_up": {"fewer_than": 6},
    "age_bands": [18, 60],
    "unknown": "unk",
}
PAIRS, TRAIN = 150, 20


def known_at(row):
    """As the profile of random records has it."""
    _, time, code, *_ = row
    if time is not None and code.startswith(("PROC//", "DAY")) and time == datetime(time.year, time.month, time.day):
        return time + timedelta(hours=23, minutes=59)
    return time


def changed_later(draw, rows, cut, other):
    """The rows of a subject in which what is known after `cut` is left out, changed, or more."""
    past = [row for row in rows if row[1] is None or known_at(row) <= cut]
    future = [row for row in rows if row not in past]
    kept = [row for row in future if draw.random() < 0.5] if draw.random() < 0.7 else []
    changed = [(s, t, c, draw.choice([None, 1.0, v]), draw.choice([None, "low", x]), u) for s, t, c, v, x, u in kept]
    added = []
    for row in draw.sample(other, min(len(other), draw.randint(0, 10))):
        # an event of somebody else, at once or much later
        time = cut + timedelta(microseconds=draw.choice([1, 10**6, 3600 * 10**6, 10**12, 10**14]))
        added.append((rows[0][0], time, *row[2:]))
    # the first birth is the origin of the clock
    later = [row for row in [*changed, *added] if row[2] != "MEDS_BIRTH" and known_at(row) > cut]
    return past, sorted(past + later, key=lambda row: (row[1] is not None, row[1] or datetime.min))


@pytest.fixture(scope="module")
def pairs():
    """Raw rows: train subjects, and pairs of held-out ones with the same past; and of each pair how long that is."""
    draw = random.Random(0)
    train = random_records(100, subjects=TRAIN).rows()
    people = [part.rows() for part in random_records(101, subjects=PAIRS, longest=25).partition_by("subject_id")]
    rows, lengths = list(train), {}
    for number, own in enumerate(people):
        timed = [known_at(row) for row in own if row[1] is not None]
        if not timed:
            continue
        shift = timedelta(microseconds=draw.choice([0, 0, 0, -1, 1, 10**9]))
        cut = draw.choice(timed) + shift
        born = [row[1] for row in own if row[2] == "MEDS_BIRTH"]
        if born and min(born) > cut:
            continue
        one, two = 1000 + 2 * number, 1001 + 2 * number
        past, altered = changed_later(draw, own, cut, draw.choice(people))
        lengths[one] = len(past)
        rows += [(one, *row[1:]) for row in own] + [(two, *row[1:]) for row in altered]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row"), lengths


def timeline(timelines, subject, n_events):
    """(token, second, event) of a subject's first events."""
    (position,) = timelines.positions_of(np.array([subject]))
    if position < 0:
        return []
    own = slice(timelines.offsets[position], timelines.offsets[position + 1])
    columns = (timelines.tokens[own].tolist(), timelines.seconds[own].tolist(), timelines.event[own].tolist())
    return [row for row in zip(*columns, strict=True) if row[2] < n_events]


@pytest.mark.parametrize("name", SPECS)
def test_no_token_depends_on_what_comes_later(build, pairs, name):
    raw, lengths = pairs
    splits = {s: "train" if s <= TRAIN else "held_out" for s in raw["subject_id"].unique().to_list()}
    timelines = Timelines.open(build(raw, splits, SPECS[name], PROFILE, codes_frame()))
    n_tokens = n_changed = 0
    for subject, n_events in lengths.items():
        seen = timeline(timelines, subject, n_events)
        assert seen == timeline(timelines, subject + 1, n_events)
        n_tokens += len(seen)
        n_changed += timeline(timelines, subject, 10**6) != timeline(timelines, subject + 1, 10**6)
    assert n_tokens > 500
    assert n_changed > 80


@pytest.mark.parametrize("name", SPECS)
def test_other_splits_change_no_vocabulary(build, name):
    """The same train subjects among quite other subjects: the same vocabulary and bins, to the byte."""
    train = random_records(100, subjects=TRAIN)
    files = []
    for seed, split in ((1, "held_out"), (2, "tuning")):
        others = random_records(seed, subjects=15).with_columns(pl.col("subject_id") + 1000 * seed)
        both = pl.concat([others, train])
        splits = {s: "train" if s <= TRAIN else split for s in both["subject_id"].unique().to_list()}
        store = build(both, splits, SPECS[name], PROFILE, codes_frame())
        files.append([(store / file).read_bytes() for file in ("vocabulary.parquet", "bins.parquet")])
    assert files[0] == files[1]
