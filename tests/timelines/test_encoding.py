"""What becomes of an event: values, texts, units, static events, and what the vocabulary has no token for."""

import math
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from said import names_of, outcomes, said, said_when

from ehrctx.timelines.store import Timelines

DAY = datetime(2020, 1, 1)
SPLITS = {1: "train", 2: "held_out"}


def numbers(code, *values, unit=None):
    return [(1, DAY, code, float(v), None, unit) for v in values]


def of_other(*events):
    """Events of the held-out subject, all at one time."""
    return [(2, DAY, *event) for event in events]


@pytest.fixture
def told(build, events_frame):
    """A function: what the held-out subject's events become, and what they and the train subject's met."""

    def encoded(train, other, spec=None, profile=None):
        store = build(events_frame(train + other), SPLITS, spec, profile)
        return said(store, 2), outcomes(store)

    return encoded


def test_bins_are_half_open(told):
    values = [-1e30, 0.99999, 1.0, float(np.nextafter(np.float32(2), np.float32(0))), 2.0, 3.4e38]
    found, met = told(numbers("A", 0, 1, 2), of_other(*(("A", v) for v in values)), {"bins": 3})
    low, middle, high = "A [-inf, 1.0)", "A [1.0, 2.0)", "A [2.0, inf)"
    assert found == [low, low, middle, middle, high, high]
    assert met == {"number": 9}


def test_zero_is_a_value(told):
    found, met = told(
        [*numbers("A", -1, 0), (1, DAY, "A")], of_other(("A", 0.0), ("A", -0.0), ("A", -1e-38), ("A",)), {"bins": 2}
    )
    assert found == ["A [0.0, inf)", "A [0.0, inf)", "A [-inf, 0.0)", "A"]
    assert met == {"number": 5, "code": 2}


def test_values_that_are_not_finite_are_none(told):
    train = [*numbers("A", 1), (1, DAY, "A"), (1, DAY, "A", None, "high")]
    found, met = told(
        train, of_other(*(("A", v, text) for v in (math.nan, math.inf, -math.inf) for text in (None, "high")))
    )
    assert found == ["A", "A=high"] * 3
    assert met == {"number": 1, "code": 4, "text": 4, "value is not finite": 6}


def test_values_that_are_not_finite_make_no_bins(build, events_frame):
    store = build(events_frame(numbers("A", 1, math.nan, math.inf, -math.inf)), SPLITS, {"bins": 2})
    assert sorted(names_of(store)[7:]) == ["A", "A [-inf, inf)"]
    assert Timelines.open(store).tokens.tolist().count(names_of(store).index("A")) == 3


def test_a_number_wins_over_a_text_and_an_empty_text_is_none(told):
    train = [*numbers("A", 1), (1, DAY, "A"), (1, DAY, "A", None, "high")]
    found, _ = told(train, of_other(("A", 1.0, "high"), ("A", None, "high"), ("A", None, ""), ("A", None, " ")))
    assert found == ["A [-inf, inf)", "A=high", "A", "A"]


def test_notes_are_no_texts(told):
    """200 bytes are a text, 201 are none; also where they are fewer characters."""
    just, over, wide, too_wide = "x" * 200, "x" * 201, "é" * 100, "é" * 100 + "x"
    train = [(1, DAY, "A", None, text) for text in (just, over, wide, too_wide)]
    found, met = told(train, of_other(*(("A", None, text) for text in (just, over, wide, too_wide))))
    assert found == [f"A={just}", "A", f"A={wide}", "A"]
    assert met == {"text": 4, "code": 4, "text is a note": 4}


def test_a_value_or_text_without_a_token_is_ignored(told):
    train = [*numbers("A", *range(10)), (1, DAY, "A", None, "known"), *[(1, DAY, "A")] * 20]
    found, met = told(train, of_other(("A", None, "new"), ("A", 3.0)), {"vocabulary_size": 8, "ranking": "count"})
    assert found == ["A", "A"]
    assert met == {"code": 20, "value ignored": 13}


def test_the_spec_ignores_values_and_texts(told):
    train = [*numbers("A", 1, 2, unit="mg"), (1, DAY, "A", None, "high")]
    found, met = told(train, of_other(("A", 1.0), ("A", None, "high"), ("A",)), {"bins": 0, "texts": False})
    assert found == ["A", "A", "A"]
    assert met == {"code": 1, "value ignored": 5}


@pytest.mark.parametrize("values", ["joined", "separate"])
def test_an_unseen_unit_is_told_apart(told, values):
    train = numbers("A", 1, 2, unit="mg") + numbers("B", 1, unit="g")
    other = of_other(("A", 1.0, None, "g"), ("A", 1.0), ("A", 1.0, None, "MG"), ("A", 2.0, None, "mg"))
    found, met = told(train, other, {"bins": 2, "values": values})
    assert found[:3] == ["A", "A", "A"]
    assert found[3:] == (["A mg [2.0, inf)"] if values == "joined" else ["A", "[Q2]"])
    assert met == {"number": 4, "unseen unit": 3}


def test_units_may_lie_in_the_code(told):
    train = numbers("LAB//1//mg", 1) + numbers("LAB//2//UNK", 1) + numbers("LAB//3", 1) + numbers("OTHER//x//g", 1)
    found, _ = told(
        train, of_other(("LAB//1//mg", 1.0, None, "g"), ("LAB//1//mg", 1.0)), None, {"unit_in_code": ["LAB//*"]}
    )
    assert found == ["LAB//1//mg", "LAB//1//mg mg [-inf, inf)"]


def test_an_empty_unit_is_no_unit(events_frame, build):
    """One event never becomes two tokens: units '' and null of one code are the same."""
    rows = [(s, DAY, "A", float(v), None, unit) for s in range(1, 6) for v in range(4) for unit in (None, "")]
    store = build(events_frame(rows), spec={"bins": 2})
    assert np.diff(Timelines.open(store).offsets).tolist() == [8] * 5
    assert names_of(store)[7:] == ["A [-inf, 2.0)", "A [2.0, inf)", "A"]


def test_a_value_may_be_a_token_of_its_own(told):
    train = [*numbers("A", 1, 2, unit="mg"), *numbers("B", 5, unit="g"), (1, DAY, "C", None, "x")]
    other = of_other(("A", 0.5, None, "mg"), ("A", 2.0, None, "mg"), ("B", -1.0, None, "g"), ("A",), ("C", None, "x"))
    found, met = told(train, other, {"bins": 2, "values": "separate"})
    assert found == ["A", "[Q1]", "A", "[Q2]", "B", "[Q1]", "A", "C=x"]
    assert met == {"number": 6, "code": 1, "text": 2}


@pytest.mark.parametrize(
    ("unknown", "expected", "outcome"),
    [("drop", ["A"], "out of vocabulary"), ("unk", ["[UNK]", "A", "[UNK]", "[UNK]"], "unknown token")],
)
@pytest.mark.parametrize("values", ["joined", "separate"])
def test_events_outside_the_vocabulary_are_counted(told, unknown, expected, outcome, values):
    other = of_other(("B",), ("A",), ("B", 3.0, None, "mg"), ("B", None, "text"))
    found, met = told([(1, DAY, "A")], other, {"unknown": unknown, "values": values})
    assert found == expected
    assert met == {"code": 2, outcome: 3}


@pytest.mark.parametrize("unknown", ["drop", "unk"])
def test_static_events_open_the_timeline_or_are_dropped_and_counted(build, events_frame, unknown):
    rows = [(1, None, "SEX"), (1, None, "AGE", 3.0), (1, DAY, "A"), (2, None, "NEW"), (2, None, "SEX"), (2, DAY, "A")]
    store = build(events_frame(rows), SPLITS, {"unknown": unknown, "bins": 2})
    unk = [("[UNK]", 0, 0)] if unknown == "unk" else []
    assert said_when(store, 1) == [("SEX", 0, 0), ("AGE [-inf, inf)", 0, 1), ("A", 0, 2)]
    assert said_when(store, 2) == [*unk, ("SEX", 0, 1), ("A", 0, 2)]
    assert Timelines.open(store).subjects["n_static"].tolist() == [2, 1 + len(unk)]
    without = build(events_frame(rows), SPLITS, {"unknown": unknown, "static_prefix": False})
    # positions still count them
    assert said_when(without, 1) == said_when(without, 2) == [("A", 0, 2)]
    assert Timelines.open(without).subjects["n_static"].tolist() == [0, 0]
    assert outcomes(without) == {"static": 4, "code": 2}


def test_subjects_without_a_token_are_left_out_and_counted(build, events_frame):
    rows = [(1, None, "SEX"), (1, DAY, "A"), (2, DAY, "NEW"), (3, None, "SEX"), (4, None, "NEW"), (5, DAY, "A")]
    splits = {1: "train", 2: "held_out", 3: "tuning", 4: "tuning", 5: "held_out", 6: "held_out"}
    store = build(events_frame(rows), splits)
    timelines = Timelines.open(store)
    assert timelines.subjects["subject_id"].tolist() == [1, 3, 5]
    facts = timelines.manifest["facts"]
    assert (facts["subjects"], facts["subjects_without_token"], facts["tokens"]) == (3, 2, 4)
    assert np.isnat(timelines.subjects["origin"]).tolist() == [False, True, False]
    without = Timelines.open(build(events_frame(rows), splits, {"static_prefix": False}))
    assert without.subjects["subject_id"].tolist() == [1, 5]
    assert without.manifest["facts"]["subjects_without_token"] == 3


def test_dates_are_known_at_the_days_end_and_sorted_there(build, events_frame):
    """And `event` is the position in that order."""
    rows = [
        (1, DAY, "DX"),
        (1, DAY, "A"),
        (1, DAY + timedelta(hours=8), "DX"),  # has a time of day
        (1, DAY + timedelta(hours=23, minutes=59), "B"),
        (1, DAY + timedelta(days=1), "C"),
    ]
    store = build(events_frame(rows), SPLITS, {}, {"date_only": ["DX"]})
    minute = 23 * 3600 + 59 * 60
    assert said_when(store, 1) == [
        ("A", 0, 0),
        ("DX", 8 * 3600, 1),
        ("DX", minute, 2),
        ("B", minute, 3),
        ("C", 86_400, 4),
    ]


def test_seconds_are_rounded_up_since_birth_or_the_first_event(build, events_frame):
    half, birth = timedelta(microseconds=500_000), datetime(1990, 5, 5)
    rows = [
        (1, birth - timedelta(days=1), "EARLY"),
        (1, birth + half, "MEDS_BIRTH"),
        (1, birth + timedelta(seconds=10), "A"),
        (1, birth + timedelta(seconds=10) + half, "A"),
        (1, birth + timedelta(days=1), "MEDS_BIRTH"),
        (2, None, "A"),
        (2, DAY + half, "A"),
        (2, DAY + 2 * half, "A"),
        (2, DAY + timedelta(seconds=1, microseconds=1), "A"),
    ]
    store = build(events_frame(rows), SPLITS)
    assert [second for _, second, _ in said_when(store, 1)] == [0, 1, 10, 11, 86_400]
    assert [second for _, second, _ in said_when(store, 2)] == [0, 1, 1, 2]
    timelines = Timelines.open(store)
    assert timelines.subjects["origin"].tolist() == [birth, DAY]  # without the part of a second
    assert timelines.manifest["facts"]["events_before_origin"] == 1


def test_coverage_tells_codes_and_systems(build, events_frame):
    train = [(1, DAY, "LAB//1", 1.0), (1, DAY, "LAB/2"), (1, DAY, "PLAIN")]
    rows = train + of_other(("LAB//9",), ("PLAIN", math.nan))
    store = build(events_frame(rows), SPLITS, {"least_coverage": 0.9})
    coverage = pl.read_parquet(store / "coverage.parquet").rows()
    assert sorted(coverage) == [
        ("LAB//1", "number", 1),
        ("LAB//9", "out of vocabulary", 1),
        ("LAB/2", "code", 1),
        ("PLAIN", "code", 2),
        ("PLAIN", "value is not finite", 1),
    ]
    facts = Timelines.open(store).manifest["facts"]
    assert facts["events_by_system"] == {
        "(no system)": {"code": 2, "value is not finite": 1},
        "LAB": {"code": 1, "number": 1, "out of vocabulary": 1},
    }
    assert facts["events"] == 5
    assert facts["coverage"] == pytest.approx(4 / 5)


def test_more_tokens_than_16_bits_can_name(build, events_frame):
    n = 2**16 - 6  # with the seven special ones, one too many
    codes = [f"C{number:05d}" for number in range(n)]
    store = build(events_frame([(1, DAY, code) for code in reversed(codes)]), SPLITS, {"vocabulary_size": 100_000})
    timelines = Timelines.open(store)
    assert timelines.tokens.dtype == np.uint32
    assert timelines.vocabulary_size == 2**16 + 1
    assert said(store, 1) == codes[::-1]
    fewer = build(events_frame([(1, DAY, code) for code in codes[2:]]), SPLITS, {"vocabulary_size": 100_000})
    assert Timelines.open(fewer).tokens.dtype == np.uint16
    assert said(fewer, 1) == codes[2:]
