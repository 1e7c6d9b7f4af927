"""Encoding: event by event against a slow encoder, on random data and on the real demo; nothing vanishes uncounted."""

import json
import math
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
import yaml

from ehrctx.timelines.build import build_timelines
from ehrctx.timelines.spec import UNK, TokenizerSpec
from ehrctx.timelines.store import Timelines
from ehrctx.timelines.tokenizer import Encoder
from ehrctx.timelines.vocabulary import SCHEMA

DAY = datetime(2020, 1, 1)


def vocabulary(*rows):
    """Seven special tokens and rows of (kind, code, unit, lower, upper, text)."""
    entries = [
        {"kind": "special", "code": name} for name in ["[BOS]", "[EOS]", "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]"]
    ]
    entries += [dict(zip(("kind", "code", "unit", "lower", "upper", "text"), row, strict=False)) for row in rows]
    return pl.DataFrame([{"token": i} | e for i, e in enumerate(entries)], schema=SCHEMA)


def tokens(events, table, **spec):
    encoded, counts = Encoder.of(table, TokenizerSpec(name="t", **spec)).encode(events)
    return encoded["token"].to_list(), {k: v for k, v in counts.items() if v}


def known_time(time, code, date_only):
    at_midnight = time is not None and (time.hour, time.minute, time.second, time.microsecond) == (0, 0, 0, 0)
    return time + timedelta(hours=23, minutes=59) if at_midnight and code.startswith(date_only) else time


def expected_timeline(slow, raw, rows_of_code, spec, date_only):
    """One subject's tokens, seconds, event indices, n_static, origin and outcomes, from its raw rows."""
    events = [dict(r, time=known_time(r["time"], r["code"], date_only)) for r in raw]
    order = sorted(range(len(events)), key=lambda i: (events[i]["time"] is not None, events[i]["time"] or DAY, i))
    events = [events[i] for i in order]
    births = [e["time"] for e in events if e["code"] == "MEDS_BIRTH" and e["time"] is not None]
    timed = [e["time"] for e in events if e["time"] is not None]
    origin = min(births) if births else min(timed, default=None)
    found = {"tokens": [], "seconds": [], "event": [], "n_static": 0, "origin": origin, "outcomes": []}
    for i, event in enumerate(events):
        ((token, outcome),) = slow.encode([event], rows_of_code.get(event["code"], []), *spec)
        found["outcomes"].append(outcome)
        if token is None:
            continue
        found["tokens"].append(token)
        found["event"].append(i)
        if event["time"] is None:
            found["n_static"] += 1
            found["seconds"].append(0)
        else:
            since = (event["time"] - origin) // timedelta(microseconds=1)
            found["seconds"].append(max(0, math.ceil(since / 1_000_000)))
    return found


def compare(slow, store, raw, spec, date_only=()):
    """Checks every subject's timeline; returns the outcomes of all their events."""
    timelines = Timelines.open(store)
    rows_of_code = {}
    for row in pl.read_parquet(store / "vocabulary.parquet").to_dicts():
        rows_of_code.setdefault(row["code"], []).append(row)
    outcomes = []
    for part in raw.partition_by("subject_id", maintain_order=True):
        expected = expected_timeline(slow, part.to_dicts(), rows_of_code, spec, date_only)
        outcomes += expected["outcomes"]
        (position,) = timelines.positions_of(np.array([part["subject_id"][0]]))
        if not expected["tokens"]:
            assert position == -1
            continue
        own = slice(timelines.offsets[position], timelines.offsets[position + 1])
        assert timelines.tokens[own].tolist() == expected["tokens"]
        assert timelines.seconds[own].tolist() == expected["seconds"]
        assert timelines.event[own].tolist() == expected["event"]
        subject = timelines.subjects[position]
        assert subject["n_static"] == expected["n_static"]
        assert subject["born"] == any(part["code"] == "MEDS_BIRTH")
        if expected["origin"] is None:
            assert np.isnat(subject["origin"])
        else:
            # the origin may be kept to the second
            assert abs(subject["origin"].item() - expected["origin"]) < timedelta(seconds=1)
    return outcomes


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("unknown", ["drop", "unk"])
@pytest.mark.parametrize("static_prefix", [True, False])
def test_random_data_event_by_event(slow, random_events, build, seed, unknown, static_prefix):
    raw = random_events(seed, subjects=15)
    spec = {"vocabulary_size": 30, "bins": 4, "unknown": unknown, "static_prefix": static_prefix}
    store = build(raw, spec=spec, profile={"date_only": ["C4*"]})
    outcomes = compare(slow, store, raw, (unknown, static_prefix), ("C4",))
    facts = json.loads((store / "manifest.json").read_text())["facts"]
    counted = facts["events_by_outcome"]
    not_finite = counted.pop("value is not finite")
    assert counted == {name: outcomes.count(name) for name in counted}
    assert set(outcomes) <= set(counted)
    assert sum(counted.values()) == facts["events"] == raw.height
    assert not_finite == sum(v is not None and not math.isfinite(v) for v in raw["numeric_value"])
    n_tokens = sum(token != "out of vocabulary" and token != "static" for token in outcomes)
    assert facts["tokens"] == n_tokens
    assert facts["coverage"] == pytest.approx(n_tokens / raw.height)
    assert (counted["static"] > 0) == (not static_prefix)
    assert (counted["unknown token"] > 0) == (unknown == "unk")
    assert (counted["out of vocabulary"] > 0) == (unknown == "drop")


@pytest.mark.parametrize("seed", range(3))
def test_seconds_round_up(slow, random_events, build, seed):
    """Births are at whole seconds here, other events are not."""
    raw = random_events(seed, microseconds=True)
    first = raw.filter(pl.col("time").is_not_null()).group_by("subject_id").agg(pl.col("time").min())
    whole = raw.join(first, on="subject_id", suffix="_first", maintain_order="left").with_columns(
        time=pl.when(pl.col("time") == pl.col("time_first")).then(pl.col("time").dt.truncate("1s")).otherwise("time")
    )
    raw = whole.drop("time_first").sort("subject_id", "time", nulls_last=False, maintain_order=True)
    assert len(compare(slow, build(raw), raw, ("drop", True))) == raw.height  # and every token's second within


@pytest.fixture(scope="module")
def demo_store(mimic_demo, repository, tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "timelines"
    splits = mimic_demo / "metadata" / "subject_splits.parquet"
    profile, spec = repository / "pipelines/datasets/mimic_iv.yaml", repository / "tokenizers/clmbr.yaml"
    build_timelines(mimic_demo, str(profile), splits, str(spec), out)
    return out


@pytest.mark.parametrize("shard", ["held_out/0", "tuning/0"])
def test_real_demo_event_by_event(slow, mimic_demo, repository, demo_store, shard):
    profile = yaml.safe_load((repository / "pipelines/datasets/mimic_iv.yaml").read_text())
    date_only = tuple(p.rstrip("*") for p in profile["date_only"])
    raw = pl.read_parquet(mimic_demo / "data" / f"{shard}.parquet")

    def unit(row):
        parts = row["code"].split("//")
        suffix = parts[-1] if parts[0] == "LAB" and len(parts) > 2 and parts[-1] != "UNK" else None
        return row["unit"] if row["unit"] is not None else suffix

    columns = raw.select("subject_id", "time", "code", "numeric_value", "text_value", "unit")
    raw = columns.with_columns(unit=pl.Series([unit(r) for r in columns.iter_rows(named=True)], dtype=pl.String))
    outcomes = compare(slow, demo_store, raw, ("drop", True), date_only)
    assert len(outcomes) == raw.height
    assert len(set(outcomes)) >= 4


def test_real_demo_counts_every_event(demo_store):
    facts = json.loads((demo_store / "manifest.json").read_text())["facts"]
    counted = dict(facts["events_by_outcome"])
    counted.pop("value is not finite")
    assert sum(counted.values()) == facts["events"] == 916_166
    assert facts["subjects"] == 100
    assert facts["subjects_without_token"] == 0
    assert facts["tokens"] == facts["events"] - counted["out of vocabulary"]


def test_bins_are_half_open(events_frame):
    table = vocabulary(
        ("number", "A", "u", -math.inf, 1.0), ("number", "A", "u", 1.0, 2.5), ("number", "A", "u", 2.5, math.inf)
    )
    values = [-1e30, 0.99999, 1.0, np.nextafter(np.float32(2.5), np.float32(0)), 2.5, 1e30]
    events = events_frame([(1, DAY, "A", float(v), None, "u") for v in values])
    assert tokens(events, table) == ([7, 7, 8, 8, 9, 9], {"number": 6})


def test_zero_is_a_value(events_frame):
    table = vocabulary(("number", "A", None, -math.inf, 0.0), ("number", "A", None, 0.0, math.inf), ("code", "A"))
    events = events_frame([(1, DAY, "A", 0.0), (1, DAY, "A", -0.0), (1, DAY, "A", -0.1), (1, DAY, "A")])
    assert tokens(events, table) == ([8, 8, 7, 9], {"number": 3, "code": 1})


def test_values_that_are_not_finite_read_as_none(events_frame):
    table = vocabulary(
        ("number", "A", None, -math.inf, math.inf), ("code", "A"), ("text", "A", None, None, None, "high")
    )
    rows = [(1, DAY, "A", v, text) for v in (math.nan, math.inf, -math.inf) for text in (None, "high")]
    expected = {"code": 3, "text": 3, "value is not finite": 6}
    assert tokens(events_frame(rows), table) == ([8, 9] * 3, expected)


def test_a_number_wins_over_a_text_and_an_empty_text_is_none(events_frame):
    table = vocabulary(
        ("number", "A", None, -math.inf, math.inf), ("code", "A"), ("text", "A", None, None, None, "high")
    )
    rows = [(1, DAY, "A", 1.0, "high"), (1, DAY, "A", None, "high"), (1, DAY, "A", None, "")]
    assert tokens(events_frame(rows), table)[0] == [7, 9, 8]


def test_value_without_entry_falls_back_to_its_code(events_frame):
    table = vocabulary(("code", "A"), ("number", "A", "mg", 1.0, 2.0), ("number", "A", "mg", 5.0, math.inf))
    values = [0.5, 1.0, 2.0, 3.0, 5.0]
    events = events_frame([(1, DAY, "A", v, None, "mg") for v in values] + [(1, DAY, "A", 1.0, None, "mmol")])
    expected = {"value ignored": 4, "number": 2}
    assert tokens(events, table) == ([7, 8, 7, 7, 9, 7], expected)
    text = events_frame([(1, DAY, "A", None, "never seen")])
    assert tokens(text, table) == ([7], {"value ignored": 1})


@pytest.mark.parametrize(
    ("unknown", "expected"),
    [
        ("drop", ([], {"out of vocabulary": 3})),
        ("unk", ([UNK] * 3, {"unknown token": 3})),
    ],
)
def test_events_outside_the_vocabulary_are_counted(events_frame, unknown, expected):
    table = vocabulary(("number", "A", "mg", 1.0, 2.0))
    events = events_frame([(1, DAY, "B"), (1, DAY, "A", 3.0, None, "mg"), (1, DAY, "A", None, "text")])
    assert tokens(events, table, unknown=unknown) == expected


def test_vocabulary_without_numbers(events_frame):
    events = events_frame([(1, DAY, "A", 3.0), (1, DAY, "A")])
    assert tokens(events, vocabulary(("code", "A"))) == ([7, 7], {"value ignored": 1, "code": 1})


def test_static_events_open_the_timeline_or_are_dropped_and_counted(events_frame):
    table = vocabulary(("code", "SEX"), ("code", "A"))
    events = events_frame([(1, None, "SEX"), (1, None, "RACE"), (1, DAY, "A")])
    assert tokens(events, table) == ([7, 8], {"code": 2, "out of vocabulary": 1})
    assert tokens(events, table, static_prefix=False) == ([8], {"static": 2, "code": 1})
    assert tokens(events, table, static_prefix=False, unknown="unk") == ([8], {"static": 2, "code": 1})


def test_an_empty_unit_is_no_unit(events_frame, build):
    """One event never becomes two tokens: units '' and null of one code are the same."""
    rows = [(s, DAY, "A", float(v), None, unit) for s in range(1, 6) for v in range(4) for unit in (None, "")]
    store = build(events_frame(rows), spec={"bins": 2})
    timelines = Timelines.open(store)
    assert np.diff(timelines.offsets).tolist() == [8] * 5
    assert pl.read_parquet(store / "vocabulary.parquet").height == 7 + 2
