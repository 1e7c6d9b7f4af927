"""Stays, results and first diagnoses on hand-made timelines: every limit, spelled out.

Whole data sets are labelled in test_independent_labeler.py; intensive care and readmission have files of their own.
"""

import math
from datetime import datetime, timedelta
from decimal import Decimal

import polars as pl
import pytest
from hand_made import NO_CODES, PROFILE, events_of, label_shard, stay_of

from ehrctx.tasks.definition import Diagnosis, Laboratory, Stay
from ehrctx.tasks.labelers import LABEL_SCHEMA


def long_stay(days):
    return Stay(task="t", family="stay", question="?", at_least_days=days)


@pytest.mark.parametrize(
    ("days", "stay", "expected"),
    [
        (7, timedelta(days=7), True),
        (7, timedelta(days=7) - timedelta(seconds=1), False),
        (2.5, timedelta(days=2, hours=12), True),
        (2.5, timedelta(days=2, hours=11), False),
    ],
)
def test_length_of_stay_counts_to_the_second(days, stay, expected):
    admitted = datetime(2020, 1, 3, 15, 30)
    labels, left_out = label_shard(events_of(stay_of(admitted, admitted + stay)), PROFILE, NO_CODES, long_stay(days))
    assert labels.rows() == [(1, datetime(2020, 1, 3, 23, 59), expected, None)]
    assert not +left_out


def test_stay_that_ends_on_the_admission_day_is_left_out_and_counted():
    same_day = stay_of(datetime(2020, 1, 3, 0, 0), datetime(2020, 1, 3, 23, 59, 59))
    over_midnight = stay_of(datetime(2020, 1, 5, 23, 59), datetime(2020, 1, 6, 0, 0), visit=2)
    labels, left_out = label_shard(events_of(same_day + over_midnight), PROFILE, NO_CODES, long_stay(7))
    assert labels.rows() == [(1, datetime(2020, 1, 5, 23, 59), False, None)]
    assert left_out == {"discharged on the admission day": 1}


def laboratory(**changes):
    values = {
        "task": "t",
        "family": "laboratory",
        "question": "?",
        "result": {"LOINC": ("1",)},
        "unit": "mmol/L",
        "conversions": {"mmol/L": 1, "mg/dL": 0.1},
        "abnormal": "at_most",
        "thresholds": (135, 130, 125),
    }
    return Laboratory(**(values | changes))


def results_of(*results, code="LOINC/1"):
    """An early event, then one result an hour: dicts with value, unit, text."""
    rows = [{"time": datetime(2020, 1, 1), "code": "BIRTH"}]
    for i, result in enumerate(results):
        rows.append({"time": datetime(2020, 1, 2) + timedelta(hours=i), "code": code} | result)
    return events_of(rows)


def number(value, unit="mmol/L"):
    return {"numeric_value": value, "unit": unit}


@pytest.mark.parametrize(
    ("abnormal", "thresholds", "values", "grades"),
    [
        ("at_most", (135, 130, 125), (135.1, 135.0, 130.0, 129.9, 125.0, 124.9, 0.0), (0, 1, 1, 2, 2, 3, 3)),
        ("below", (120, 110, 70), (120.0, 119.9, 110.0, 109.9, 70.0, 69.9), (0, 1, 1, 2, 2, 3)),
        ("above", (5.5, 6, 7), (5.5, 5.6, 6.0, 6.1, 7.0, 7.1), (0, 1, 1, 2, 2, 3)),
        ("at_most", (3.9, 3.5, 3.0), (4.0, 3.9, 3.5, 3.4, 3.0, 2.9), (0, 1, 1, 2, 2, 3)),
    ],
)
def test_grades_at_their_thresholds(abnormal, thresholds, values, grades):
    task = laboratory(abnormal=abnormal, thresholds=thresholds)
    labels, _ = label_shard(results_of(*map(number, values)), PROFILE, NO_CODES, task)
    assert labels["integer_value"].to_list() == list(grades)
    assert labels["boolean_value"].to_list() == [g > 0 for g in grades]
    assert labels["prediction_time"].to_list() == [
        datetime(2020, 1, 2) + timedelta(hours=i) - timedelta(minutes=1) for i in range(len(values))
    ]


@pytest.mark.parametrize("factor", ["0.1", "10", "0.01", "1000"])
def test_conversion_does_not_cross_a_threshold_by_rounding(factor):
    """A converted value that equals the threshold on paper is at most the threshold."""
    written = [Decimal(n) / 10 for n in range(1, 200, 7)]
    for value in written:
        threshold = value * Decimal(factor)
        task = laboratory(conversions={"u": float(factor)}, thresholds=(float(threshold), -1, -2))
        labels, _ = label_shard(results_of(number(float(value), "u")), PROFILE, NO_CODES, task)
        assert labels["integer_value"].to_list() == [1], (value, factor)


def test_two_words_count_as_normal_and_the_rest_is_left_out_with_its_reason():
    events = results_of(
        {"text_value": "adequate"},
        {"text_value": " Normal"},
        {"text_value": "low"},
        {"text_value": "<20", "unit": "mmol/L"},
        {"text_value": ""},
        {},
        number(100.0, "furlong"),
        number(100.0, None),
        number(math.nan),
        {"numeric_value": -math.inf, "unit": "mmol/L", "text_value": "see comment"},
        {"numeric_value": 100.0, "unit": "mmol/L", "text_value": "low"},
    )
    first = events_of([{"subject_id": 2, "time": datetime(2020, 1, 1), "code": "LOINC/1"} | number(100.0)])
    labels, left_out = label_shard(pl.concat([events, first]), PROFILE, NO_CODES, laboratory())
    assert labels["integer_value"].to_list() == [0, 0, 3]
    assert left_out == {
        "at the subject's first event time": 1,
        "without a value": 3,
        "in words that say no grade": 3,
        "in an unknown unit": 2,
    }


@pytest.mark.parametrize(
    ("text", "unit", "grade"),
    [("100", "mmol/L", 3), (" 2e2 ", "mmol/L", 0), ("100", None, None), ("inf", "mmol/L", None)],
)
def test_a_number_that_is_written_as_text_is_read(text, unit, grade):
    labels, _ = label_shard(results_of({"text_value": text, "unit": unit}), PROFILE, NO_CODES, laboratory())
    assert labels["integer_value"].to_list() == ([] if grade is None else [grade])


def test_other_codes_and_static_results_give_no_label():
    static = events_of([{"time": None, "code": "LOINC/1"} | number(100.0)])
    other = results_of(number(100.0), code="LOINC/10")
    labels, left_out = label_shard(pl.concat([static, other]), PROFILE, NO_CODES, laboratory())
    assert labels.is_empty()
    assert dict(labels.schema) == LABEL_SCHEMA
    assert not +left_out


DISEASE = Diagnosis(task="t", family="diagnosis", question="?", diagnosis={"ICD10CM": ("I21",)}, within_days=(1, 365))
NOW = datetime(2020, 1, 5, 23, 59)


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (timedelta(0), False),
        (timedelta(days=1), False),
        (timedelta(days=1, microseconds=1), True),
        (timedelta(days=365), True),
        (timedelta(days=365, microseconds=1), False),
        (None, False),
        (-timedelta(microseconds=1), None),
    ],
)
def test_first_diagnosis_in_its_window(wait, expected):
    rows = stay_of(datetime(2020, 1, 3), datetime(2020, 1, 5, 11))
    if wait is not None:
        rows += [{"time": NOW + wait + timedelta(days=d), "code": "ICD10CM/I21.4"} for d in (0, 30)]
    labels, left_out = label_shard(events_of(rows).sort("time"), PROFILE, NO_CODES, DISEASE)
    assert labels.rows() == ([] if expected is None else [(1, NOW, expected, None)])
    assert left_out["after the first diagnosis"] == (expected is None)


def test_only_the_first_diagnosis_counts():
    """Later codes of a known disease are no new diagnosis."""
    rows = stay_of(datetime(2020, 1, 3), datetime(2020, 1, 5, 11))
    rows += [
        {"time": datetime(2019, 1, 1), "code": "ICD10CM/I214"},
        {"time": NOW + timedelta(days=9), "code": "ICD10CM/I21"},
    ]
    labels, left_out = label_shard(events_of(rows).sort("time"), PROFILE, NO_CODES, DISEASE)
    assert labels.is_empty()
    assert left_out == {"after the first diagnosis": 1}


def test_the_label_knows_nothing_of_other_subjects():
    rows = stay_of(datetime(2020, 1, 3), datetime(2020, 1, 5, 11))
    rows += [{"subject_id": 2, "time": NOW + timedelta(days=9), "code": "ICD10CM/I21"}]
    labels, _ = label_shard(events_of(rows), PROFILE, NO_CODES, DISEASE)
    assert labels.rows() == [(1, NOW, False, None)]


# --- first diagnoses whose year outlasts the follow-up ------------------------------------------------------------

LEFT_OUT = DISEASE.model_copy(update={"censored": "left_out"})
YEAR = NOW + timedelta(days=365)
TICK = timedelta(microseconds=1)
DISEASED = {"code": "ICD10CM/I21"}
IN_TIME = {"time": NOW + timedelta(days=9)} | DISEASED


def first_year(rows, end, task=LEFT_OUT):
    """The label of the discharge (None: left out), and how often its year outlasts the follow-up."""
    profile = type(PROFILE).model_validate(PROFILE.model_dump() | {"follow_up_end": end})
    rows = stay_of(datetime(2020, 1, 3), datetime(2020, 1, 5, 11)) + rows
    labels, left_out = label_shard(events_of(rows), profile, NO_CODES, task)
    return (labels["boolean_value"].to_list() or [None])[0], left_out["followed for less than 365 days"]


@pytest.mark.parametrize(
    ("end", "last", "kept"),
    [
        ("record_end", YEAR, True),
        ("record_end", YEAR - TICK, False),
        ("2021-01-04", NOW + timedelta(days=30), True),  # the year ends at 23:59 of that day
        ("2021-01-03", YEAR + timedelta(days=99), False),
        ("death", NOW + timedelta(days=30), True),
    ],
)
@pytest.mark.parametrize("seen", [False, True])
def test_a_year_must_be_followed_whatever_was_seen(end, last, kept, seen):
    rows = [{"time": last, "code": "LAB"}, *([IN_TIME] if seen else [])]
    assert first_year(rows, end) == ((seen, 0) if kept else (None, 1))
    assert first_year(rows, end, DISEASE) == (seen, 0)  # published: judged by what was seen


@pytest.mark.parametrize(
    "death", [{"time": YEAR, "code": "DEATH"}, {"time": datetime(2020, 1, 5, 11), "code": "DEATH"}]
)
@pytest.mark.parametrize("seen", [False, True])
def test_death_within_the_year_ends_the_follow_up_as_it_should(death, seen):
    assert first_year([death, *([IN_TIME] if seen else [])], "2020-06-30") == (seen, 0)
    assert first_year([death | {"time": YEAR + TICK}, *([IN_TIME] if seen else [])], "2020-06-30") == (None, 1)


def test_what_is_known_at_the_discharge_is_the_first_reason():
    rows = [*stay_of(datetime(2020, 1, 3), datetime(2020, 1, 5, 11)), {"time": datetime(2020, 1, 1)} | DISEASED]
    profile = PROFILE.model_copy(update={"follow_up_end": "2020-01-31"})
    _, left_out = label_shard(events_of(rows), profile, NO_CODES, LEFT_OUT)
    assert dict(+left_out) == {"after the first diagnosis": 1}
