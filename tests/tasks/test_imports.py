"""Which labels of others can be used: each one that cannot is left out for a reason, and counted once."""

import json
from collections import Counter
from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.artifacts import MANIFEST
from ehrctx.errors import InputError
from ehrctx.events.meds import open_dataset
from ehrctx.study import Labels
from ehrctx.tasks.imports import first_events, usable
from ehrctx.tasks.label_sets import read_labels, write_labels
from ehrctx.tasks.labelers import LABEL_SCHEMA

START = datetime(2020, 1, 1)
UNKNOWN = "of subjects that the data set does not have"
EARLY = "before the subject's first event"
TWICE, CONTRADICTED = "given twice", "given twice with different values"
# subject -> hour of the first event; None: static events alone
FIRST = {1: 0, 2: 3, 3: None, 4: 6}


def hour(h):
    return None if h is None else START + timedelta(hours=h)


def labels_of(rows):
    """Labels of (subject, hour, boolean, grade)."""
    return pl.DataFrame([(s, hour(h), b, g) for s, h, b, g in rows], schema=LABEL_SCHEMA, orient="row")


def first_table():
    return pl.DataFrame(
        {"subject_id": list(FIRST), "first": [hour(h) for h in FIRST.values()]},
        schema={"subject_id": pl.Int64, "first": pl.Datetime("us")},
    )


def by_hand(rows, several_at_a_time):
    """Row by row, from the words."""
    kept, reasons = [], Counter()
    seen = set()
    for subject, h, value, grade in rows:
        said = {(v, g) for s, t, v, g in rows if (s, t) == (subject, h)}
        if subject not in FIRST:
            reasons[UNKNOWN] += 1
        elif FIRST[subject] is None or h < FIRST[subject]:
            reasons[EARLY] += 1
        elif len(said) > 1 and not several_at_a_time:
            reasons[CONTRADICTED] += 1
        elif (subject, h) in seen and not several_at_a_time:
            reasons[TWICE] += 1
        else:
            seen.add((subject, h))
            kept.append((subject, hour(h), value, grade))
    return sorted(kept, key=lambda row: row[:2]), reasons


rows = st.lists(
    st.tuples(st.integers(1, 6), st.integers(0, 7), st.booleans(), st.sampled_from([None, 0, 1, 2])), max_size=30
)


@given(rows, st.booleans())
def test_every_label_is_kept_or_left_out_for_one_reason(rows, several_at_a_time):
    kept, left_out = usable(labels_of(rows), first_table(), several_at_a_time)
    expected, reasons = by_hand(rows, several_at_a_time)
    assert dict(kept.schema) == LABEL_SCHEMA
    assert kept.rows() == expected
    assert +left_out == reasons
    assert kept.height + left_out.total() == len(rows)


def test_a_label_at_the_very_first_event_is_kept():
    kept, _ = usable(labels_of([(2, 3, True, None)]), first_table(), False)
    assert kept.height == 1


def test_reasons_that_do_not_apply_are_zero():
    _, left_out = usable(labels_of([]), first_table(), False)
    assert left_out == {UNKNOWN: 0, EARLY: 0, CONTRADICTED: 0, TWICE: 0}
    assert set(left_out) == {UNKNOWN, EARLY, CONTRADICTED, TWICE}


EVENTS = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}


def shard(*events):
    return pl.DataFrame([(s, hour(h), "A") for s, h in events], schema=EVENTS, orient="row")


def test_first_events_of_all_shards(write_meds, tmp_path):
    shards = {"train/0": shard((1, None), (1, 0), (1, 5), (3, None)), "held_out/0": shard((4, 6), (2, 3), (2, 3))}
    found = first_events(open_dataset(write_meds(tmp_path / "meds", shards)))
    assert dict(found.iter_rows()) == {subject: hour(h) for subject, h in FIRST.items()}


def test_events_that_are_no_meds_are_refused(write_meds, tmp_path):
    with pytest.raises(InputError, match=r"time goes back within a subject .* `ehrctx check .*` lists all violations"):
        first_events(open_dataset(write_meds(tmp_path / "meds", {"0": shard((1, 5), (1, 0))})))


@pytest.fixture(scope="module")
def data(write_meds, tmp_path_factory):
    shards = {"0": shard((1, 0), (2, 3), (3, None), (4, 6))}
    return write_meds(tmp_path_factory.mktemp("imports") / "meds", shards, dict.fromkeys(FIRST, "train"))


@pytest.fixture(scope="module")
def profile_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("profile") / "bare.yaml"
    file.write_text("name: bare\n")
    return str(file)


def test_the_manifest_counts_the_reasons_and_no_file_holds_the_labels(data, profile_file, tmp_path):
    given_rows = [
        (1, 1, True, None), (1, 1, True, None), (1, 1, True, None),  # twice more
        (2, 4, True, None), (2, 4, False, None),  # nothing tells which
        (2, 2, True, None), (3, 7, False, None),  # before any event
        (9, 7, True, None),
        (4, 6, False, None),
    ]  # fmt: skip
    labels_of(given_rows).write_parquet(tmp_path / "sepsis.parquet")
    facts = write_labels(data, profile_file, [str(tmp_path / "sepsis.parquet")], Labels(), tmp_path / "labels")
    assert read_labels(tmp_path / "labels")["sepsis"].select("subject_id", "boolean_value").rows() == [
        (1, True),
        (4, False),
    ]
    expected = {UNKNOWN: 1, EARLY: 2, CONTRADICTED: 2, TWICE: 2}
    assert facts["sepsis"]["left_out"] == expected
    assert (facts["sepsis"]["labels"], facts["sepsis"]["positive"]) == (2, 1)
    assert json.loads((tmp_path / "labels" / MANIFEST).read_text())["facts"] == facts


def test_a_task_may_end_without_a_label(data, profile_file, tmp_path):
    labels_of([(9, 7, True, None)]).write_parquet(tmp_path / "sepsis.parquet")
    facts = write_labels(data, profile_file, [str(tmp_path / "sepsis.parquet")], Labels(), tmp_path / "labels")
    assert (facts["sepsis"]["labels"], facts["sepsis"]["positive"], facts["sepsis"]["left_out"][UNKNOWN]) == (0, 0, 1)
    assert dict(read_labels(tmp_path / "labels")["sepsis"].schema) == LABEL_SCHEMA


def test_made_labels_that_are_given_back_stay_as_they_are(cohort, repository, tmp_path):
    """Laboratory tasks can have several results in one minute, and EHRSHOT's published counts have them, too."""
    profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
    tasks = ["guo_los", "lab_hyponatremia", "new_acutemi"]
    once = write_labels(cohort.events, profile, tasks, Labels(), tmp_path / "once")
    again = write_labels(cohort.events, profile, tasks, Labels(given=str(tmp_path / "once")), tmp_path / "again")
    made, taken = read_labels(tmp_path / "once"), read_labels(tmp_path / "again")
    for task in tasks:
        assert taken[task].equals(made[task])
        assert (once[task]["labels"], once[task]["positive"]) == (again[task]["labels"], again[task]["positive"])
        assert not any(again[task]["left_out"].values())


def test_real_labels_that_are_given_back_stay_as_they_are(mimic_demo, repository, tmp_path):
    profile = str(repository / "pipelines" / "datasets" / "mimic_iv.yaml")
    tasks = ["guo_los", "guo_readmission", "lab_hypoglycemia", "new_hypertension"]
    write_labels(mimic_demo, profile, tasks, Labels(), tmp_path / "once")
    again = write_labels(mimic_demo, profile, tasks, Labels(given=str(tmp_path / "once")), tmp_path / "again")
    made, taken = read_labels(tmp_path / "once"), read_labels(tmp_path / "again")
    for task in tasks:
        repeated = int((~made[task].select("subject_id", "prediction_time").is_unique()).sum())
        if task.startswith("lab_"):
            assert repeated > 0
        assert taken[task].equals(made[task]), (task, repeated, again[task]["left_out"])
