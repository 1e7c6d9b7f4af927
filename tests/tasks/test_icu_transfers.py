"""guo_icu on hand-made stays: what is a later transfer, what is left out, whose ICU admission it is."""

from datetime import datetime, timedelta

import pytest
from hand_made import BY_ORDER, PROFILE, event, labelled, stay_of

from ehrctx.tasks.definition import load_definition

TASK = load_definition("guo_icu")
ADMITTED, DISCHARGED = datetime(2020, 1, 3, 8), datetime(2020, 1, 6, 11)
NOW = datetime(2020, 1, 3, 23, 59)
EARLY = {"in intensive care by the admission day": 1}
TICK = timedelta(microseconds=1)


def labels_of(*icu, visit=1, profile=PROFILE):
    """The label of one stay with ICU admissions at these times."""
    rows = stay_of(ADMITTED, DISCHARGED, 1 if profile.visit_column else None)
    return labelled(rows + [event(time, "ICU", visit) for time in icu], TASK, profile)


@pytest.mark.parametrize(
    ("entered", "expected"),
    [
        (datetime(2020, 1, 4), True),  # the first moment after the admission day
        (datetime(2020, 1, 5, 12), True),
        (DISCHARGED, True),
        (DISCHARGED + TICK, False),
        (None, False),  # an ICU admission without a time
    ],
)
@pytest.mark.parametrize("profile", [PROFILE, BY_ORDER])
def test_transfer_between_the_admission_day_and_the_discharge(entered, expected, profile):
    assert labels_of(entered, visit=1 if profile.visit_column else None, profile=profile) == ({NOW: expected}, {})


def test_no_transfer():
    assert labels_of() == ({NOW: False}, {})


@pytest.mark.parametrize(
    "entered", [datetime(2020, 1, 3), ADMITTED, NOW, NOW + TICK, datetime(2020, 1, 4) - TICK, datetime(2020, 1, 1)]
)
def test_transfer_on_the_admission_day_or_before_is_left_out(entered):
    assert labels_of(entered) == ({}, EARLY)


def test_second_transfer_does_not_bring_the_stay_back():
    assert labels_of(ADMITTED, datetime(2020, 1, 5)) == ({}, EARLY)


def test_stay_that_ends_on_the_admission_day_is_left_out_first():
    rows = [*stay_of(ADMITTED, datetime(2020, 1, 3, 23, 59, 59)), event(ADMITTED, "ICU", 1)]
    assert labelled(rows, TASK) == ({}, {"discharged on the admission day": 1})


def test_the_visit_decides_where_there_is_one():
    """An ICU admission of another visit is not this stay's, whenever it was."""
    assert labels_of(datetime(2020, 1, 5), visit=2) == ({NOW: False}, {})
    assert labels_of(ADMITTED, visit=2) == ({NOW: False}, {})


@pytest.mark.parametrize(
    ("entered", "expected"),
    [
        (ADMITTED, None),
        (ADMITTED - TICK, False),  # without a visit, what lies before the admission is not the stay's
        (datetime(2020, 1, 5), True),
        (DISCHARGED, True),
        (DISCHARGED + TICK, False),
    ],
)
def test_time_decides_where_the_icu_admission_has_no_visit(entered, expected):
    assert labels_of(entered, visit=None) == (({}, EARLY) if expected is None else ({NOW: expected}, {}))


def test_other_subjects_and_other_stays_do_not_count():
    second = stay_of(datetime(2020, 2, 3, 8), datetime(2020, 2, 9), visit=2)
    rows = [*stay_of(ADMITTED, DISCHARGED), *second, event(datetime(2020, 2, 5), "ICU", 2)]
    rows += [event(datetime(2020, 1, 5), "ICU", 1, subject=2), event(datetime(2020, 1, 5), "ICU 2", 1)]
    assert labelled(rows, TASK) == ({NOW: False, datetime(2020, 2, 3, 23, 59): True}, {})
