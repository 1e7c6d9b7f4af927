"""The store: what it refuses, how it finds subjects, what is visible when, and that sharding leaves no trace."""

import json
import math
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrctx.artifacts import new_artifact
from ehrctx.errors import InputError
from ehrctx.timelines.store import Timelines

ARRAYS = ("tokens", "seconds", "event", "offsets", "subjects")


def arrays(store):
    return {name: (store / f"{name}.npy").read_bytes() for name in ARRAYS}


def test_layout(random_events, build):
    timelines = Timelines.open(build(random_events(3, subjects=25)))
    assert timelines.tokens.dtype == np.uint16
    assert (timelines.seconds.dtype, timelines.event.dtype) == (np.uint32, np.uint32)
    assert timelines.offsets.dtype == np.int64
    assert isinstance(timelines.tokens.base, np.memmap)
    assert len(timelines) == len(timelines.offsets) - 1
    assert timelines.offsets[0] == 0
    assert timelines.offsets[-1] == len(timelines.tokens) == len(timelines.seconds) == len(timelines.event)
    assert (np.diff(timelines.offsets) > 0).all()
    assert (np.diff(timelines.subjects["subject_id"]) > 0).all()
    assert timelines.tokens.max() < timelines.vocabulary_size
    assert timelines.tokens.min() >= 7
    for lo, hi, subject in zip(timelines.offsets[:-1], timelines.offsets[1:], timelines.subjects, strict=True):
        assert (np.diff(timelines.seconds[lo:hi].astype(np.int64)) >= 0).all()
        assert (np.diff(timelines.event[lo:hi].astype(np.int64)) > 0).all()
        assert (timelines.seconds[lo : lo + subject["n_static"]] == 0).all()


def test_refuses_what_is_not_a_store(tmp_path):
    with pytest.raises(InputError, match="not a finished timelines folder"):
        Timelines.open(tmp_path)
    with pytest.raises(InputError, match="not a finished timelines folder"):
        Timelines.open(tmp_path / "absent")
    with new_artifact(tmp_path / "labels", "labels", {}, {}):
        pass
    with pytest.raises(InputError, match="holds 'labels' where 'timelines' is expected"):
        Timelines.open(tmp_path / "labels")


def test_positions_of(build, events_frame):
    day = datetime(2020, 1, 1)
    rows = [(s, day, "A") for s in (5, 40, 900, 12, 7)] + [(33, day, "ONLY//33")]
    splits = {5: "train", 40: "train", 900: "tuning", 12: "held_out", 7: "train", 33: "held_out"}
    timelines = Timelines.open(build(events_frame(rows), splits))
    asked = np.array([900, 33, 5, 6, 7, 901, -1, 12, 40, 5])
    expected = [4, -1, 0, -1, 1, -1, -1, 2, 3, 0]  # 33 has no token, so no timeline
    assert timelines.positions_of(asked).tolist() == expected
    assert timelines.positions_of(np.array([], dtype=np.int64)).tolist() == []
    facts = json.loads((timelines.path / "manifest.json").read_text())["facts"]
    assert (facts["subjects"], facts["subjects_without_token"]) == (5, 1)


def test_in_split(build, events_frame):
    rows = [(s, datetime(2020, 1, 1), "A") for s in range(1, 6)]
    splits = {1: "train", 2: "tuning", 3: "train", 4: "held_out", 5: "train"}
    timelines = Timelines.open(build(events_frame(rows), splits))
    assert timelines.in_split("train").tolist() == [0, 2, 4]
    assert timelines.in_split("tuning").tolist() == [1]
    two = Timelines.open(build(events_frame(rows), dict.fromkeys(range(1, 6), "train")))
    with pytest.raises(InputError, match="the split 'held_out' holds no subject"):
        two.in_split("held_out")


def floor_second(time):
    return time.replace(microsecond=0)


def ceil_second(time):
    return time if time.microsecond == 0 else time.replace(microsecond=0) + timedelta(seconds=1)


def n_visible(events, times_of_prediction):
    """How many of a subject's events may be seen at each time, by comparing date-times one by one."""
    timed = [e["time"] for e in events if e["time"] is not None]
    births = [e["time"] for e in events if e["code"] == "MEDS_BIRTH"]
    origin = min(births or timed, default=datetime.max)
    found = []
    for moment in times_of_prediction:
        now = floor_second(moment)
        seen = sum(ceil_second(t) <= now for t in timed) if floor_second(origin) <= now else 0
        found.append(len(events) - len(timed) + seen)
    return found


def check_visible(build, raw, seed):
    """Against brute force at random moments, and at every event's time and its neighbourhood."""
    timelines = Timelines.open(build(raw, dict.fromkeys(raw["subject_id"].unique().to_list(), "train")))
    rng = np.random.default_rng(seed)
    for part in raw.partition_by("subject_id"):
        events = part.to_dicts()
        times = [e["time"] for e in events if e["time"] is not None] or [datetime(2000, 1, 5)]
        near = [timedelta(microseconds=m) for m in (-1_000_000, -500_000, -1, 0, 1, 400_000, 999_999, 1_000_000)]
        moments = [t + d for t in times for d in near]
        moments += [datetime(2000, 1, 1) + timedelta(seconds=s) for s in rng.uniform(-86_400, 50 * 86_400, 20)]
        position = int(timelines.positions_of(part["subject_id"].to_numpy()[:1])[0])
        asked = np.array(moments, dtype="datetime64[us]")
        ours = timelines.visible(position, asked)
        assert ours.tolist() == n_visible(events, moments)
        latest = [max((t for t in times if t <= m), default=None) for m in moments]
        # whatever is visible has happened
        n_timed = sum(e["time"] is not None for e in events)
        n_static = len(events) - n_timed
        ordered = sorted(e["time"] for e in events if e["time"] is not None)
        for count, moment, last in zip(ours, moments, latest, strict=True):
            if count > n_static:
                assert ordered[count - n_static - 1] <= moment
                assert last is not None


@pytest.mark.parametrize("seed", range(3))
def test_visible_against_brute_force(random_events, build, seed):
    check_visible(build, random_events(seed, subjects=8, longest=25), seed)


@pytest.mark.parametrize("seed", range(3))
def test_visible_against_brute_force_below_a_second(random_events, build, seed):
    """Also where the first event, and with it the origin, lies between two seconds."""
    check_visible(build, random_events(seed, subjects=8, longest=25, microseconds=True), seed)


def visible_of(build, events_frame, rows, moments):
    timelines = Timelines.open(build(events_frame(rows), {1: "train"}))
    return timelines.visible(0, np.array(moments, dtype="datetime64[us]")).tolist()


def test_an_event_within_a_second_is_visible_from_the_next(build, events_frame):
    birth, event = datetime(1990, 1, 1), datetime(2020, 1, 1, 10, 0, 0, 500_000)
    rows = [(1, None, "SEX"), (1, birth, "MEDS_BIRTH"), (1, event, "A")]
    moments = [
        birth - timedelta(microseconds=1),
        birth,
        event.replace(microsecond=0),
        event,
        event.replace(microsecond=900_000),
        event.replace(second=1, microsecond=0),
    ]
    assert visible_of(build, events_frame, rows, moments) == [1, 2, 2, 2, 2, 3]


def test_the_same_holds_where_that_event_is_the_first(build, events_frame):
    event = datetime(2020, 1, 1, 10, 0, 0, 500_000)
    moments = [event.replace(microsecond=0), event.replace(microsecond=900_000), event.replace(second=1, microsecond=0)]
    assert visible_of(build, events_frame, [(1, event, "A")], moments) == [0, 0, 1]


def test_before_the_origin_only_static_is_visible(build, events_frame):
    day = datetime(2020, 1, 1)
    rows = [(1, None, "SEX"), (1, None, "RACE"), (1, day, "A"), (1, day + timedelta(days=2), "B")]
    moments = [day - timedelta(days=5000), day - timedelta(seconds=1), day, day + timedelta(days=2)]
    assert visible_of(build, events_frame, rows, moments) == [2, 2, 3, 4]


def test_only_static_events(build, events_frame):
    assert visible_of(build, events_frame, [(1, None, "SEX")], [datetime(1800, 1, 1), datetime(2200, 1, 1)]) == [1, 1]


def test_events_before_birth_are_known_from_birth_on_and_counted(build, events_frame):
    birth = datetime(2020, 1, 10)
    rows = [(1, birth - timedelta(days=2), "A"), (1, birth - timedelta(days=1), "B"), (1, birth, "MEDS_BIRTH")]
    store = build(events_frame(rows), {1: "train"})
    timelines = Timelines.open(store)
    assert timelines.seconds.tolist() == [0, 0, 0]
    moments = np.array([birth - timedelta(hours=1), birth], dtype="datetime64[us]")
    assert timelines.visible(0, moments).tolist() == [0, 3]
    assert timelines.manifest["facts"]["events_before_origin"] == 2


def test_coarser_prediction_times_are_understood(build, events_frame):
    timelines = Timelines.open(build(events_frame([(1, datetime(2020, 1, 1), "A")]), {1: "train"}))
    for unit in ("D", "s", "ms", "ns"):
        moments = np.array(["2019-12-31", "2020-01-01"], dtype=f"datetime64[{unit}]")
        assert timelines.visible(0, moments).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(3))
def test_sharding_leaves_no_trace(random_events, build, seed):
    raw = random_events(seed, subjects=18)
    parts = raw.partition_by("subject_id", maintain_order=True)
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, len(parts))
    shuffled = {
        f"{'cba'[i]}/part": pl.concat([parts[j] for j in rng.permutation(len(parts)) if which[j] == i], rechunk=True)
        for i in range(3)
    }
    spec = {"vocabulary_size": 60, "bins": 5}
    one, three = build(raw, spec=spec), build(shuffled | {"empty": raw.clear()}, spec=spec)
    assert arrays(one) == arrays(three)
    a, b = (pl.read_parquet(s / "vocabulary.parquet") for s in (one, three))
    assert a.drop("weight").equals(b.drop("weight"))
    facts = [json.loads((s / "manifest.json").read_text())["facts"] for s in (one, three)]
    assert facts[0] == facts[1]


def test_built_twice_is_the_same_to_the_byte(random_events, build):
    raw = random_events(7, subjects=30, longest=80)
    first, second = build(raw), build(raw)
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in second.iterdir()}


def test_origin_and_split_are_kept(random_events, build):
    raw = random_events(2, subjects=20)
    timelines = Timelines.open(build(raw))
    for part in raw.partition_by("subject_id"):
        (position,) = timelines.positions_of(part["subject_id"].to_numpy()[:1])
        if position < 0:
            continue
        subject = timelines.subjects[position]
        births = part.filter(code="MEDS_BIRTH")["time"]
        assert subject["born"] == (len(births) > 0)
        assert subject["origin"].item() == (births.min() if len(births) else part["time"].min())
        split = ("train", "train", "train", "tuning", "held_out")[(part["subject_id"][0] - 1) % 5]
        assert subject["split"] == split


def test_broken_data_are_refused_without_naming_a_subject(build, events_frame):
    secret, day = 987654321, datetime(2020, 1, 2)
    unsorted = events_frame([(secret, day, "A"), (secret, datetime(2020, 1, 1), "A")])
    with pytest.raises(InputError, match=r"data/0\.parquet, row 2: time goes back") as caught:
        build(unsorted, {secret: "train"})
    assert str(secret) not in str(caught.value)
    one = events_frame([(secret, day, "A")])
    with pytest.raises(InputError, match="in an earlier file too") as caught:
        build({"a": one, "b": one}, {secret: "train"})
    assert str(secret) not in str(caught.value)
    with pytest.raises(InputError, match="<10 subjects have no split") as caught:
        build(one, {1: "train"})
    assert str(secret) not in str(caught.value)
    late = events_frame([(secret, datetime(1800, 1, 1), "B"), (secret, datetime(2000, 1, 1), "A")])
    with pytest.raises(InputError, match="136 years") as caught:
        build(late, {secret: "train"})
    assert str(secret) not in str(caught.value)


def test_seconds_reach_136_years(build, events_frame):
    span = 2**32 - 1
    rows = [(1, datetime(1880, 1, 1), "A"), (1, datetime(1880, 1, 1) + timedelta(seconds=span), "B")]
    assert Timelines.open(build(events_frame(rows), {1: "train"})).seconds.tolist() == [0, span]
    assert math.floor(span / 86_400 / 365.25) == 136
