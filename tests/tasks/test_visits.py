"""Hospital stays: which discharge belongs to which admission."""

import warnings
from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.events.profile import DatasetProfile
from ehrctx.tasks.visits import admissions, hospital_stays

BY_COLUMN = DatasetProfile(name="p", admission=("IN//*", "TRANSFER"), discharge=("OUT",), visit_column="visit")
BY_ORDER = DatasetProfile(name="p", admission=("IN//*", "TRANSFER"), discharge=("OUT",))


def at(hour):
    return datetime(2020, 1, 1) + timedelta(hours=hour)


def events_of(rows):
    """Rows of (subject, hour or None, code[, visit]) as `read_shard` gives them."""
    filled = [(s, None if h is None else at(h), code, *(more or [None])) for s, h, code, *more in rows]
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "visit": pl.Int64}
    return pl.DataFrame(filled, schema=schema, orient="row")


def stays_of(rows, profile):
    """(subject, hour of admission, hour of discharge), in order."""
    stays = hospital_stays(events_of(rows), profile)
    return [(s, (a - at(0)) / timedelta(hours=1), (d - at(0)) / timedelta(hours=1)) for s, _, a, d, _ in stays.rows()]


def test_visit_column_ties_a_discharge_to_its_admission():
    rows = [
        (1, 0, "IN//EMERGENCY", 7),
        (1, 2, "TRANSFER", 7),  # the first admission of a visit opens it
        (1, 3, "IN//ELECTIVE", 8),
        (1, 5, "OUT", 8),  # interleaved
        (1, 6, "OUT", 7),
        (1, 7, "OUT", 7),  # the last discharge closes it
        (1, 8, "IN//ELECTIVE", 9),  # never closed
        (1, 9, "OUT", 10),  # never opened
        (1, 10, "IN//ELECTIVE"),  # no visit
        (1, 11, "OUT"),
        (2, 1, "IN//ELECTIVE", 7),  # another subject's visit of the same name
        (2, 4, "OUT", 7),
        (3, 9, "IN//ELECTIVE", 1),  # closed before it opened
    ]
    rows.insert(12, (3, 8, "OUT", 1))
    assert stays_of(rows, BY_COLUMN) == [(1, 0, 7), (1, 3, 5), (2, 1, 4)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, "IN//A"), (5, "OUT"), (9, "IN//A"), (12, "OUT")], [(0, 5), (9, 12)]),
        ([(0, "IN//A"), (3, "IN//A"), (5, "OUT")], [(3, 5)]),  # an admission that was never closed
        ([(0, "OUT"), (3, "IN//A"), (5, "OUT"), (6, "OUT")], [(3, 5)]),  # discharges that were never opened
        ([(3, "IN//A")], []),
        ([], []),
        ([(3, "IN//A"), (3, "OUT")], [(3, 3)]),
    ],
)
def test_without_a_visit_column_the_order_decides(rows, expected):
    assert stays_of([(1, *row) for row in rows], BY_ORDER) == [(1, *e) for e in expected]


def test_discharge_and_next_admission_at_the_same_minute():
    """Midnight transfers between hospitals: the first stay ends where the second begins."""
    rows = [(1, 0, "IN//A"), (1, 24, "OUT"), (1, 24, "IN//A"), (1, 48, "OUT")]
    assert stays_of(rows, BY_ORDER) == [(1, 0, 24), (1, 24, 48)]


def test_pairing_by_order_does_not_warn():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert stays_of([(1, 0, "IN//A"), (2, 1, "IN//A"), (2, 3, "OUT")], BY_ORDER) == [(2, 1, 3)]
    assert [str(w.message) for w in caught] == []


def test_any_event_may_close_a_visit():
    """`discharge: ["*"]`: the last event of a visit is its end, where a data set has no other."""
    rows = [(1, 0, "IN//A", 7), (1, 2, "LAB", 7), (1, 3, "IN//A", 8), (1, 4, "LAB", None), (1, 5, "LAB", 7)]
    rows += [(1, 6, "LAB", 9), (1, 7, "LAB", 8)]  # 9 was never opened
    assert stays_of(rows, BY_COLUMN.model_copy(update={"discharge": ("*",)})) == [(1, 0, 5), (1, 3, 7)]


def test_static_rows_open_and_close_nothing():
    rows = [(1, None, "IN//A", 5), (1, None, "OUT", 5), (1, 2, "IN//A", 5), (1, 3, "OUT", 5)]
    assert stays_of(rows, BY_COLUMN) == stays_of(rows, BY_ORDER) == [(1, 2, 3)]


@given(
    st.dictionaries(
        st.integers(1, 3),
        st.lists(st.tuples(st.integers(0, 40), st.sampled_from(["IN//A", "OUT", "LAB"])), unique_by=lambda r: r[0]),
    )
)
def test_pairing_by_order_against_a_walk(timelines):
    """At distinct times: a discharge closes the latest admission since the last discharge, if there is one."""
    rows, expected = [], []
    for subject, timeline in sorted(timelines.items()):
        opened = None
        for hour, code in sorted(timeline):
            rows.append((subject, hour, code))
            if code == "IN//A":
                opened = hour
            elif code == "OUT" and opened is not None:
                expected.append((subject, hour, opened))
                opened = None
    found = [(s, d, a) for s, a, d in stays_of(rows, BY_ORDER)]
    assert sorted(found) == sorted(expected)


def test_both_ways_agree_on_the_simulated_cohort(cohort):
    profile = {"name": "p", "admission": ("HOSPITAL_ADMISSION//*",), "discharge": ("HOSPITAL_DISCHARGE//*",)}
    events = pl.read_parquet(cohort.events / "data" / "00000.parquet").rename({"visit_id": "visit"})
    by_column = hospital_stays(events, DatasetProfile(**profile, visit_column="visit_id"))
    by_order = hospital_stays(events, DatasetProfile(**profile))
    assert by_column.height == (events["code"].str.starts_with("HOSPITAL_DISCHARGE")).sum() > 500
    assert by_column.drop("visit").equals(by_order.drop("visit"))
    assert by_order["visit"].to_list() == by_column["visit"].to_list()


def test_admissions_count_once_a_visit_and_need_no_discharge():
    rows = [(1, 0, "IN//A", 7), (1, 2, "TRANSFER", 7), (1, 3, "OUT", 7), (1, 5, "IN//A", 8)]
    rows += [(1, 6, "IN//A"), (1, 6, "IN//B"), (1, None, "IN//A", 9), (2, 1, "TRANSFER", 7), (2, 2, "LAB", 8)]
    found = admissions(events_of(rows), BY_COLUMN).sort("subject_id", "admitted").rows()
    assert found == [(1, 7, at(0)), (1, 8, at(5)), (1, None, at(6)), (1, None, at(6)), (2, 7, at(1))]


@pytest.mark.parametrize("profile", [BY_COLUMN, BY_ORDER])
def test_stay_ended_by_death(profile):
    """The code of its own discharge says so."""
    profile = profile.model_copy(update={"discharge": ("OUT*",), "discharged_dead": ("OUT//DIED",)})
    rows = [(1, 0, "IN//A", 1), (1, 2, "OUT//HOME", 1), (1, 3, "IN//A", 2), (1, 5, "OUT//DIED", 2)]
    assert hospital_stays(events_of(rows), profile)["died"].to_list() == [False, True]
