"""guo_readmission on hand-made timelines: the window, each reason to leave out, their order, follow-up, overlaps."""

from datetime import date, datetime, timedelta

import pytest
from hand_made import BY_ORDER, NO_CODES, PROFILE, event, events_of, label_shard, labelled, stay_of

from ehrctx.tasks.definition import load_definition

TASK = load_definition("guo_readmission")
ADMITTED, DISCHARGED = datetime(2020, 1, 3, 8), datetime(2020, 1, 5, 11)
MIDNIGHT = datetime(2020, 1, 5)
NOW = datetime(2020, 1, 5, 23, 59)
HORIZON = NOW + timedelta(days=30)
TICK = timedelta(microseconds=1)
DIED, SAME_DAY, OPEN, CENSORED = (
    "discharged by death",
    "readmitted on the discharge day",
    "discharged while another stay was open",
    "followed for less than 30 days",
)
STAY = stay_of(ADMITTED, DISCHARGED)


def follow_up(end, profile=PROFILE):
    """The profile with another `follow_up_end`, validated as if read from a file."""
    return type(profile).model_validate(profile.model_dump() | {"follow_up_end": end})


def first(result):
    """The label of the stay of January 3 (None: left out) and the reasons."""
    return result[0].get(NOW), result[1]


# --- the window ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wait", "expected"),
    [
        (timedelta(minutes=1), True),  # the first moment of the next day
        (timedelta(days=12), True),
        (timedelta(days=30), True),
        (timedelta(days=30) + TICK, False),
    ],
)
@pytest.mark.parametrize("profile", [PROFILE, BY_ORDER])
@pytest.mark.parametrize("closed", [True, False])
def test_next_admission_in_its_window(wait, expected, profile, closed):
    """Whether or not the second stay was ever closed."""
    again = stay_of(NOW + wait, NOW + wait + timedelta(days=2), visit=2)
    assert first(labelled(STAY + again[: 2 if closed else 1], TASK, profile)) == (expected, {})


def test_window_is_the_definitions():
    task = TASK.model_copy(update={"at_least_minutes": 60, "at_most_days": 2})
    shortest, longest = timedelta(hours=1), timedelta(days=2)
    for wait, expected in ((shortest - TICK, False), (shortest, True), (longest, True), (longest + TICK, False)):
        assert labelled([*STAY, event(NOW + wait, "IN", 2)], task) == ({NOW: expected}, {})


def test_only_the_next_admission_counts():
    """One that comes too early is no readmission, and neither is what follows it."""
    task = TASK.model_copy(update={"at_least_minutes": 60})
    again = [event(NOW + timedelta(minutes=59), "IN", 2), event(NOW + timedelta(days=9), "IN", 3)]
    assert labelled(STAY + again, task) == ({NOW: False}, {})


def test_every_stay_is_asked_for_its_own_next_admission():
    second = stay_of(datetime(2020, 1, 20), datetime(2020, 1, 22, 7), visit=2)
    third = stay_of(datetime(2020, 6, 1), datetime(2020, 6, 2, 7), visit=3)
    assert labelled(STAY + second + third, TASK) == (
        {NOW: True, datetime(2020, 1, 22, 23, 59): False, datetime(2020, 6, 2, 23, 59): False},
        {},
    )


def test_what_is_no_readmission():
    after = NOW + timedelta(days=3)
    moves = [event(after, "IN", 1)]  # a later admission event of the same visit
    strangers = [event(after, "IN", 2, subject=2), event(None, "IN", 3), event(after, "ICU", 4)]
    assert labelled(STAY + moves + strangers, TASK) == ({NOW: False}, {})


def test_admission_without_a_visit_is_a_readmission():
    assert labelled([*STAY, event(NOW + timedelta(days=3), "IN")], TASK) == ({NOW: True}, {})


# --- discharges by death ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "death", [DISCHARGED, DISCHARGED - timedelta(days=9), MIDNIGHT, DISCHARGED + TICK, datetime(2020, 1, 6) - TICK]
)
def test_death_by_the_discharge_day_is_left_out(death):
    assert labelled([*STAY, event(death, "DEATH")], TASK) == ({}, {DIED: 1})


def test_the_first_of_two_deaths_counts():
    """Hospital and registry may both report one, with different times."""
    rows = [*STAY, event(DISCHARGED, "DEATH"), event(DISCHARGED + timedelta(days=9), "DEATH")]
    assert labelled(rows, TASK) == ({}, {DIED: 1})


def test_discharge_code_that_says_death_is_left_out():
    assert labelled(stay_of(ADMITTED, DISCHARGED, out="OUT DEAD"), TASK) == ({}, {DIED: 1})
    assert labelled(stay_of(ADMITTED, DISCHARGED, out="OUT DEAD"), TASK, BY_ORDER) == ({}, {DIED: 1})
    two_codes = [*STAY, event(DISCHARGED - timedelta(hours=1), "OUT DEAD", 1)]
    assert labelled(two_codes, TASK) == ({}, {DIED: 1})


def test_code_of_another_stay_or_death_of_another_subject_changes_nothing():
    second = stay_of(datetime(2020, 1, 20), datetime(2020, 1, 22), visit=2, out="OUT DEAD")
    rows = [*STAY, *second, event(DISCHARGED, "DEATH", subject=2), event(None, "DEATH")]
    assert labelled(rows, TASK) == ({NOW: True}, {DIED: 1})


@pytest.mark.parametrize("end", ["death", "record_end", "2019-12-31"])
def test_death_after_the_discharge_day_is_followed_to_its_end(end):
    """A negative, unless a readmission came first, under each kind of follow-up."""
    for death in (datetime(2020, 1, 6), HORIZON):
        assert labelled([*STAY, event(death, "DEATH")], TASK, follow_up(end)) == ({NOW: False}, {})
    second = stay_of(datetime(2020, 1, 20), datetime(2020, 1, 22), visit=2)
    rows = [*STAY, *second, event(datetime(2020, 1, 22), "DEATH")]
    assert labelled(rows, TASK, follow_up(end)) == ({NOW: True}, {DIED: 1})


@pytest.mark.parametrize("end", ["death", "record_end", "2019-12-31"])
def test_admission_after_the_death_is_no_readmission(end):
    """An organ donor's record, or a registry's wrong date: without a readmission before the death, a negative."""
    rows = [*STAY, event(datetime(2020, 1, 8), "DEATH"), event(datetime(2020, 1, 9), "IN", 2)]
    assert labelled(rows, TASK, follow_up(end)) == ({NOW: False}, {})


# --- readmissions on the discharge day ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "again", [DISCHARGED, DISCHARGED + TICK, NOW, NOW + timedelta(seconds=30), datetime(2020, 1, 6) - TICK]
)
@pytest.mark.parametrize("profile", [PROFILE, BY_ORDER])
def test_readmission_on_the_discharge_day_is_left_out(again, profile):
    second = stay_of(again, datetime(2020, 3, 1, 11), visit=2)
    assert labelled(STAY + second, TASK, profile) == ({datetime(2020, 3, 1, 23, 59): False}, {SAME_DAY: 1})


def test_readmission_at_midnight_is_on_the_next_day_and_counts():
    assert labelled([*STAY, event(datetime(2020, 1, 6), "IN", 2)], TASK) == ({NOW: True}, {})


@pytest.mark.parametrize("admitted", [MIDNIGHT, DISCHARGED])
def test_a_stays_own_admission_is_no_readmission(admitted):
    assert labelled(stay_of(admitted, DISCHARGED), TASK) == ({NOW: False}, {})


def test_earlier_stay_of_the_discharge_day_is_no_readmission():
    morning = stay_of(MIDNIGHT, datetime(2020, 1, 5, 6), visit=1)
    noon = stay_of(datetime(2020, 1, 5, 8), DISCHARGED, visit=2)
    assert labelled(morning + noon, TASK) == ({NOW: False}, {SAME_DAY: 1})


# --- stays that overlap -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("admitted", "discharged"),
    [
        (datetime(2020, 1, 1), datetime(2020, 1, 9)),  # around it
        (datetime(2020, 1, 4), datetime(2020, 1, 9)),  # past its end
        (ADMITTED, datetime(2020, 1, 9)),
        (DISCHARGED - TICK, datetime(2020, 1, 9)),
    ],
)
def test_discharge_into_another_open_stay_is_left_out(admitted, discharged):
    """The patient is still in hospital; the last discharge is labelled, by what follows it."""
    other = stay_of(admitted, discharged, visit=2)
    later = event(datetime(2020, 2, 1), "IN", 3)
    end = datetime(2020, 1, 9, 23, 59)
    assert labelled(STAY + other, TASK) == ({end: False}, {OPEN: 1})
    assert labelled([*STAY, *other, later], TASK) == ({end: True}, {OPEN: 1})


def test_stay_of_no_length_inside_another():
    rows = stay_of(DISCHARGED, DISCHARGED) + stay_of(DISCHARGED, datetime(2020, 1, 9), visit=2)
    assert labelled(rows, TASK) == ({datetime(2020, 1, 9, 23, 59): False}, {OPEN: 1})


def test_overlap_that_ends_on_the_same_day_gives_one_label():
    other = stay_of(datetime(2020, 1, 4), DISCHARGED + timedelta(hours=3), visit=2)
    assert labelled(STAY + other, TASK) == ({NOW: False}, {OPEN: 1})


@pytest.mark.parametrize(
    ("admitted", "discharged"),
    [
        (datetime(2020, 1, 4), datetime(2020, 1, 4, 9)),  # nested: over before
        (datetime(2019, 12, 1), datetime(2019, 12, 9)),
    ],
)
def test_stays_that_are_over_leave_the_discharge_in(admitted, discharged):
    labels, left_out = labelled(STAY + stay_of(admitted, discharged, visit=2), TASK)
    assert labels[NOW] is False
    assert left_out == ({OPEN: 1} if admitted > ADMITTED else {})


def test_another_subjects_open_stay_does_not_count():
    other = [e | {"subject_id": 2} for e in stay_of(datetime(2020, 1, 1), datetime(2020, 1, 9))]
    assert labelled(STAY + other, TASK) == ({NOW: False}, {})


# --- follow-up ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "last", "kept"),
    [
        ("record_end", HORIZON, True),
        ("record_end", HORIZON - TICK, False),
        ("record_end", DISCHARGED, False),
        ("death", DISCHARGED, True),
        ("2020-02-04", DISCHARGED, True),  # the horizon is at 23:59 of that day
        (date(2020, 2, 4), DISCHARGED, True),
        ("2020-02-03", HORIZON + timedelta(days=99), False),
        (date(2020, 2, 3), DISCHARGED, False),
    ],
)
@pytest.mark.parametrize("readmitted", [False, True])
def test_thirty_days_must_be_followed_whatever_was_seen(end, last, kept, readmitted):
    rows = [*STAY, event(last, "LAB")]
    if readmitted:  # an open stay, so that there is no second discharge
        rows.append(event(min(last, NOW + timedelta(days=4)) if last > NOW else NOW + timedelta(days=4), "IN", 2))
    labels, left_out = labelled(rows, TASK, follow_up(end))
    assert (labels, left_out) == (({NOW: readmitted}, {}) if kept else ({}, {CENSORED: 1}))


@pytest.mark.parametrize("end", ["record_end", "2020-02-03"])
def test_death_after_the_horizon_does_not_complete_the_follow_up(end):
    rows = [*STAY, event(HORIZON + TICK, "DEATH")]
    kept = end == "record_end"  # death is an event: the record ends with it, beyond the horizon
    assert labelled(rows, TASK, follow_up(end)) == (({NOW: False}, {}) if kept else ({}, {CENSORED: 1}))


@pytest.mark.parametrize("end", ["record_end", "2020-01-10", "death", None])
@pytest.mark.parametrize("readmitted", [False, True])
def test_censored_as_negative_judges_by_what_was_seen(end, readmitted):
    """Whatever the end of the follow-up: it need not even be known."""
    rows = [*STAY, *([event(NOW + timedelta(days=4), "IN", 2)] if readmitted else [])]
    task = TASK.model_copy(update={"censored": "negative"})
    labels, left_out = label_shard(events_of(rows), follow_up(end), NO_CODES, task)
    assert labels["boolean_value"].to_list() == [readmitted]
    assert list(left_out) == [DIED, SAME_DAY, OPEN]  # that reason is not there to count


def test_discharge_that_says_death_completes_the_follow_up():
    """Where a data set has no other event of death: the stay before it was followed to its end."""
    second = stay_of(datetime(2020, 1, 20), datetime(2020, 1, 22), visit=2, out="OUT DEAD")
    assert labelled(STAY + second, TASK, follow_up("record_end")) == ({NOW: True}, {DIED: 1})
    late = stay_of(NOW + timedelta(days=20), HORIZON + TICK, visit=2, out="OUT DEAD")
    assert labelled(STAY + late, TASK, follow_up("2020-01-22")) == ({}, {CENSORED: 1, DIED: 1})


def test_another_subjects_record_does_not_prolong_the_follow_up():
    rows = [*STAY, event(HORIZON, "LAB", subject=2), event(None, "LAB")]
    assert labelled(rows, TASK, follow_up("record_end")) == ({}, {CENSORED: 1})


# --- the first reason that applies counts -------------------------------------------------------------------------


def test_order_of_the_reasons():
    censored = follow_up("2020-01-01")
    around = stay_of(datetime(2020, 1, 1), datetime(2020, 1, 9), visit=2)
    again = event(DISCHARGED + timedelta(hours=1), "IN", 3)
    death = event(MIDNIGHT, "DEATH")
    only_first = {  # the outer stay, whose 30 days are not followed either, is left out for that
        DIED: [*STAY, *around, again, death],
        SAME_DAY: [*STAY, *around, again],
        OPEN: [*STAY, *around],
    }
    for reason, rows in only_first.items():
        outer = {DIED: 1} if reason == DIED else {CENSORED: 1}
        labels, left_out = labelled(rows, TASK, censored)
        assert labels == {}
        assert left_out == ({DIED: 2} if reason == DIED else {reason: 1} | outer)
    assert labelled(STAY, TASK, censored) == ({}, {CENSORED: 1})
