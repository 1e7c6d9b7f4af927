"""Until when a label looks: what happens after its last moment changes neither the label nor whether it is there.

That moment is the result for laboratory tasks, the discharge for stays and transfers, and the end of the horizon for
readmissions and diagnoses. Stays that are open then keep their end: whether a patient was at home is known by it. A
follow-up until `record_end` is left out here, as it looks at the last event by definition.
"""

from datetime import datetime, timedelta

import polars as pl
import pytest
from hand_made import BY_ORDER, NO_CODES, PROFILE, events_of
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.tasks.definition import Diagnosis, Laboratory, load_definition
from ehrctx.tasks.labelers import judge

START = datetime(2020, 1, 1)
HORIZON = 30  # days, of readmissions and, here, of diagnoses
UNTIL_A_DATE = type(PROFILE).model_validate(PROFILE.model_dump() | {"follow_up_end": "2021-01-15"})
TASKS = {
    "stay": load_definition("guo_los"),
    "icu": load_definition("guo_icu"),
    "readmission": load_definition("guo_readmission"),
    "diagnosis": Diagnosis(
        task="t", family="diagnosis", question="?", diagnosis={"ICD10CM": ("I21",)}, within_days=(1, HORIZON)
    ),
    "laboratory": Laboratory(
        task="t", family="laboratory", question="?", result={"LOINC": ("1",)}, unit="mmol/L",
        conversions={"mmol/L": 1}, abnormal="below", thresholds=(135, 130, 125),
    ),
}  # fmt: skip


def last_moment(family, candidate):
    """What a candidate (a row of the judgement) may rest on lies at this moment or before it."""
    if family == "laboratory":
        return candidate["time"]
    if family in ("stay", "icu"):
        return candidate["discharged"]
    return candidate["prediction_time"] + timedelta(days=HORIZON)


hours = st.integers(0, 24 * 500).map(lambda h: START + timedelta(hours=h))
# many of them close together, where a stay, a transfer and a result meet
close = st.integers(0, 24 * 40).map(lambda h: START + timedelta(hours=h))
times = st.one_of(close, hours)


@st.composite
def stays(draw, first_visit):
    rows = []
    for visit in range(first_visit, first_visit + draw(st.integers(0, 4))):
        admitted = draw(times)
        rows.append({"time": admitted, "code": "IN", "visit": visit})
        if draw(st.booleans()) or draw(st.booleans()):
            discharged = admitted + timedelta(hours=draw(st.integers(0, 24 * 14)))
            code = draw(st.sampled_from(["OUT", "OUT", "OUT", "OUT DEAD"]))
            rows.append({"time": discharged, "code": code, "visit": visit})
        if draw(st.booleans()):
            moved = admitted + timedelta(hours=draw(st.integers(0, 24 * 5)))
            rows.append({"time": moved, "code": "ICU", "visit": draw(st.sampled_from([visit, None]))})
    return rows


@st.composite
def other_events(draw):
    kind = draw(st.sampled_from(["LOINC/1", "LOINC/1", "ICD10CM/I21", "DEATH", "ICU"]))
    row = {"time": draw(times), "code": kind, "visit": None}
    if kind == "LOINC/1":
        row |= {"numeric_value": draw(st.sampled_from([120.0, 128.0, 133.0, 140.0])), "unit": "mmol/L"}
    return row


def records(first_visit):
    return st.tuples(stays(first_visit), st.lists(other_events(), max_size=5)).map(lambda parts: parts[0] + parts[1])


def judged(rows, family, profile):
    return judge(events_of(rows), profile, NO_CODES, TASKS[family])


def found(frame, candidate):
    """What was judged of the stay or the result of a candidate, several results of one minute in their order."""
    same = [pl.col("prediction_time") == candidate["prediction_time"]]
    same += [pl.col(c) == candidate[c] for c in ("admitted", "discharged", "time") if c in candidate]
    return frame.filter(same).select(pl.col("left_out").cast(pl.String), "boolean_value", "integer_value").rows()


@pytest.mark.parametrize(
    ("family", "profile"),
    [
        *((family, profile) for family in TASKS for profile in (PROFILE, UNTIL_A_DATE)),
        *((family, BY_ORDER) for family in ("stay", "icu", "diagnosis", "laboratory")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.follow_up_end} {value.visit_column}",
)
def test_what_comes_after_its_last_moment_changes_no_label(family, profile):
    seen = []

    @hypothesis_settings(max_examples=400)
    @given(records(1), records(100))
    def unchanged(rows, others):
        before = judged(rows, family, profile)
        for candidate in before.iter_rows(named=True):
            last = last_moment(family, candidate)
            begun = {row["visit"] for row in (*rows, *others) if row["code"] == "IN" and row["time"] <= last}
            kept = [
                row
                for row in rows
                if row["time"] <= last or (family == "readmission" and row["code"] != "ICU" and row["visit"] in begun)
            ]
            later = [row for row in others if row["time"] > last and row["visit"] not in begun]
            after = judged(kept + later, family, profile)
            assert found(after, candidate) == found(before, candidate)
            if len(kept) < len(rows) or later:
                seen.append(candidate["boolean_value"])

    unchanged()
    assert {True, False} <= set(seen), "the future of both labels must have been changed"


@pytest.mark.parametrize("family", TASKS)
def test_a_label_does_look_until_its_last_moment(family):
    """Each bound is tight: the same event a moment too late, and just in time."""
    admitted, discharged = START + timedelta(hours=8), START + timedelta(days=3)
    stay = [{"time": admitted, "code": "IN", "visit": 1}, {"time": discharged, "code": "OUT", "visit": 1}]
    first = {"time": START, "code": "X", "visit": None}
    horizon = HORIZON if family in ("readmission", "diagnosis") else 0
    last = discharged.replace(hour=23, minute=59) + timedelta(days=horizon) if horizon else discharged
    decisive = {
        "icu": {"code": "ICU", "visit": None},
        "readmission": {"code": "IN", "visit": 2},
        "diagnosis": {"code": "ICD10CM/I21", "visit": None},
    }
    if family in decisive:
        rows = [first, *stay]
        late, in_time = (
            judged([*rows, {"time": last + wait} | decisive[family]], family, PROFILE)["boolean_value"].to_list()
            for wait in (timedelta(seconds=1), timedelta(0))
        )
        assert (late, in_time) == ([False], [True])
    elif family == "stay":
        lengths = [timedelta(days=7) - timedelta(seconds=1), timedelta(days=7)]
        found = [
            judged([first, stay[0], stay[1] | {"time": admitted + length}], family, PROFILE)["boolean_value"].to_list()
            for length in lengths
        ]
        assert found == [[False], [True]]
    else:
        result = {"time": last, "code": "LOINC/1", "unit": "mmol/L", "visit": None}
        found = [
            judged([first, result | {"numeric_value": value}], family, PROFILE)["boolean_value"].to_list()
            for value in (140.0, 133.0)
        ]
        assert found == [[False], [True]]
