"""Tokens between events, spelled out: the days that passed, and where visits start and end."""

from datetime import datetime, timedelta

import pytest
from said import said, said_when

DAY = datetime(2020, 1, 1)
SPLITS = {1: "train", 2: "held_out"}
PAPER = {"weeks_from": 7, "months_from": 28, "long_term_from": 365}
CODE = {"weeks_from": 7, "months_from": 30, "long_term_from": 360}
VISITS = {"admission": ["ADM//*", "STAY"], "discharge": ["DIS//*", "STAY"]}


def after(**gap):
    return DAY + timedelta(**gap)


@pytest.mark.parametrize(
    ("gap", "paper", "code"),
    [
        (timedelta(0), None, None),
        (timedelta(hours=23, minutes=59, seconds=59), None, None),
        (timedelta(hours=24), "[DAY 1]", "[DAY 1]"),
        (timedelta(hours=47, minutes=59, seconds=59), "[DAY 1]", "[DAY 1]"),
        (timedelta(days=6, hours=23), "[DAY 6]", "[DAY 6]"),
        (timedelta(days=7), "[WEEK 1]", "[WEEK 1]"),
        (timedelta(days=13), "[WEEK 1]", "[WEEK 1]"),
        (timedelta(days=14), "[WEEK 2]", "[WEEK 2]"),
        (timedelta(days=27), "[WEEK 3]", "[WEEK 3]"),
        (timedelta(days=28), "[MONTH 1]", "[WEEK 4]"),
        (timedelta(days=30), "[MONTH 1]", "[MONTH 1]"),
        (timedelta(days=59), "[MONTH 1]", "[MONTH 1]"),
        (timedelta(days=60), "[MONTH 2]", "[MONTH 2]"),
        (timedelta(days=359), "[MONTH 11]", "[MONTH 11]"),
        (timedelta(days=360), "[MONTH 12]", "[LONG TERM]"),
        (timedelta(days=364, hours=23), "[MONTH 12]", "[LONG TERM]"),
        (timedelta(days=365), "[LONG TERM]", "[LONG TERM]"),
        (timedelta(days=30_000), "[LONG TERM]", "[LONG TERM]"),
    ],
)
def test_gaps(build, events_frame, gap, paper, code):
    frame = events_frame([(1, DAY, "A"), (1, DAY + gap, "B")])
    for thresholds, name in ((PAPER, paper), (CODE, code)):
        store = build(frame, SPLITS, {"time_tokens": thresholds})
        second = int(gap.total_seconds())
        expected = [("A", 0, 0), *([(name, second, 1)] if name else []), ("B", second, 1)]
        assert said_when(store, 1) == expected


def test_one_threshold_for_all(build, events_frame):
    """Nothing but [LONG TERM] where every gap of a day is a long one."""
    once = {"weeks_from": 1, "months_from": 1, "long_term_from": 1}
    frame = events_frame([(1, DAY, "A"), (1, after(hours=23), "A"), (1, after(hours=47), "A")])
    assert said(build(frame, SPLITS, {"time_tokens": once}), 1) == ["A", "A", "[LONG TERM]", "A"]


def test_gaps_are_between_events_that_have_a_token(build, events_frame):
    rows = [(1, DAY, "A"), (2, DAY, "A"), (2, after(days=1), "NEW"), (2, after(days=3), "A")]
    assert said(build(events_frame(rows), SPLITS, {"time_tokens": PAPER}), 2) == ["A", "[DAY 3]", "A"]
    unk = build(events_frame(rows), SPLITS, {"time_tokens": PAPER, "unknown": "unk"})
    assert said(unk, 2) == ["A", "[DAY 1]", "[UNK]", "[DAY 2]", "A"]


def test_static_events_and_the_first_have_no_gap(build, events_frame):
    rows = [(1, None, "SEX"), (1, None, "SEX"), (1, datetime(1950, 1, 1), "MEDS_BIRTH"), (1, DAY, "A")]
    store = build(events_frame(rows), SPLITS, {"time_tokens": PAPER})
    assert said(store, 1) == ["SEX", "SEX", "MEDS_BIRTH", "[LONG TERM]", "A"]
    without = build(events_frame(rows), SPLITS, {"time_tokens": PAPER, "static_prefix": False})
    assert said(without, 1) == ["MEDS_BIRTH", "[LONG TERM]", "A"]


def test_gaps_are_those_of_the_stores_seconds(build, events_frame):
    """Rounded up, and 0 before birth: who reads the store finds the same gaps."""
    birth = datetime(2020, 1, 20)
    rows = [(1, DAY, "A"), (1, after(days=3), "A"), (1, birth, "MEDS_BIRTH"), (1, birth + timedelta(days=2), "A")]
    rows += [(2, DAY, "A"), (2, after(seconds=86_399, microseconds=1), "A")]
    store = build(events_frame(rows), SPLITS, {"time_tokens": PAPER})
    assert said(store, 1) == ["A", "A", "MEDS_BIRTH", "[DAY 2]", "A"]
    assert said(store, 2) == ["A", "[DAY 1]", "A"]


def test_gaps_stand_before_all_tokens_of_an_event(build, events_frame):
    rows = [(1, DAY, "A", 1.0), (1, after(days=2), "ADM//ER", 3.0)]
    spec = {"time_tokens": PAPER, "visit_tokens": True, "values": "separate", "bins": 2}
    store = build(events_frame(rows), SPLITS, spec, VISITS)
    second = 2 * 86_400
    names = ["[DAY 2]", "[VISIT START]", "ADM//ER", "[Q1]"]
    assert said_when(store, 1) == [("A", 0, 0), ("[Q1]", 0, 0), *((name, second, 1) for name in names)]


def test_visits(build, events_frame):
    rows = [
        (1, None, "ADM//static"),  # no visit
        (1, DAY, "ADM//ER"),
        (1, after(hours=1), "A"),
        (1, after(hours=9), "DIS//HOME"),
        (1, after(hours=10), "STAY"),  # admission and discharge at once
        (1, after(hours=12), "ADM//ER"),  # open: no end
        (1, after(hours=13), "A"),
    ]
    store = build(events_frame(rows), SPLITS, {"visit_tokens": True}, VISITS)
    start, end = "[VISIT START]", "[VISIT END]"
    expected = ["ADM//static", start, "ADM//ER", "A", "DIS//HOME", end, start, "STAY", end, start, "ADM//ER", "A"]
    assert said(store, 1) == expected
    hours = [0, 0, 0, 1, 9, 9, 10, 10, 10, 12, 12, 13]
    assert [second // 3600 for _, second, _ in said_when(store, 1)] == hours


def test_a_visit_is_told_where_its_code_has_no_token(build, events_frame):
    rows = [(1, DAY, "A"), (2, DAY, "A"), (2, after(days=1), "ADM//NEW"), (2, after(days=3), "DIS//NEW")]
    for unknown, own in (("drop", []), ("unk", ["[UNK]"])):
        spec = {"visit_tokens": True, "time_tokens": PAPER, "unknown": unknown}
        store = build(events_frame(rows), SPLITS, spec, VISITS)
        expected = ["A", "[DAY 1]", "[VISIT START]", *own, "[DAY 2]", *own, "[VISIT END]"]
        assert said(store, 2) == expected


def test_without_admissions_in_the_profile_there_are_no_visits(build, events_frame):
    rows = [(1, DAY, "ADM//ER"), (1, after(hours=1), "DIS//HOME")]
    assert said(build(events_frame(rows), SPLITS, {"visit_tokens": True}), 1) == ["ADM//ER", "DIS//HOME"]
