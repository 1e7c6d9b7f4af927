"""`repeated` against its definition, label by label; that what comes later does not matter; and what is written."""

import json
from datetime import datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.artifacts import MANIFEST
from ehrctx.errors import InputError
from ehrctx.study import Labels
from ehrctx.tasks.history import FILE, HISTORY_SCHEMA, history_of, read_history
from ehrctx.tasks.label_sets import read_labels, write_labels
from ehrctx.tasks.labelers import LABEL_SCHEMA

START = datetime(2020, 1, 1)
rows = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9), st.booleans()), max_size=30)


def labels_of(drawn):
    """Labels at (subject, hour), in any order and with several of one time."""
    return pl.DataFrame(
        [(s, START + timedelta(hours=h), positive, None) for s, h, positive in drawn], LABEL_SCHEMA, orient="row"
    )


def slowly(labels):
    """(subject, time) -> whether a positive label of the subject has an earlier time."""
    known = labels.select("subject_id", "prediction_time", "boolean_value").rows()
    found = {}
    for subject, time, _ in known:
        found[subject, time] = False
        for other, earlier, positive in known:
            if other == subject and earlier < time and positive:
                found[subject, time] = True
    return found


def as_dict(history):
    keys = history.select("subject_id", "prediction_time").rows()
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, history["repeated"], strict=True))


@given(rows)
def test_against_a_loop(drawn):
    labels = labels_of(drawn)
    history = history_of("t", labels)
    assert dict(history.schema) == HISTORY_SCHEMA
    assert set(history["task"]) <= {"t"}
    assert as_dict(history) == slowly(labels)
    assert list(as_dict(history)) == list(slowly(labels))  # in the order of the labels
    assert not any(as_dict(history_of("t", labels, first_only=True)).values())
    assert as_dict(history_of("t", labels, first_only=True)).keys() == slowly(labels).keys()


@given(rows, rows, st.integers(1, 3), st.integers(0, 9))
def test_what_comes_at_or_after_a_time_does_not_change_it(drawn, others, subject, hour):
    """Other subjects, and the subject's own labels from that time on, may be anything."""
    now = START + timedelta(hours=hour)
    before = [row for row in drawn if row[0] == subject and row[1] < hour]
    own = (subject, hour, True)
    later = [row for row in others if row[0] != subject or row[1] >= hour]
    one = as_dict(history_of("t", labels_of([*before, own])))[subject, now]
    assert as_dict(history_of("t", labels_of([*later, *before, own])))[subject, now] is one
    assert one is any(positive for _, _, positive in before)


@pytest.fixture(scope="module")
def folders(cohort, repository, tmp_path_factory):
    """The same tasks without a limit, with one, and as labels that were given."""
    root, profile = tmp_path_factory.mktemp("history"), str(repository / "pipelines" / "datasets" / "simulated.yaml")
    tasks = ["guo_readmission", "lab_hyponatremia", "new_acutemi"]
    write_labels(cohort.events, profile, tasks, Labels(), root / "all")
    write_labels(cohort.events, profile, tasks, Labels(max_times_per_subject=2), root / "limited")
    choices = Labels(given=str(root / "all"), max_times_per_subject=2)
    write_labels(cohort.events, profile, tasks, choices, root / "given")
    return root


def test_every_label_has_its_history(folders):
    history = read_history(folders / "all")
    for task, labels in read_labels(folders / "all").items():
        expected = slowly_by_subject(labels) if task != "new_acutemi" else dict.fromkeys(times_of(labels), False)
        assert as_dict(history.filter(task=task)) == expected
        assert any(expected.values()) is (task != "new_acutemi")
        assert labels["boolean_value"].any()


def slowly_by_subject(labels):
    return {key: value for part in labels.partition_by("subject_id") for key, value in slowly(part).items()}


def times_of(labels):
    return labels.select("subject_id", "prediction_time").rows()


@pytest.mark.parametrize("name", ["limited", "given"])
def test_labels_that_the_limit_leaves_out_count_as_earlier_ones(folders, name):
    whole = as_dict(read_history(folders / "all").filter(task="lab_hyponatremia"))
    kept = read_labels(folders / name)["lab_hyponatremia"]
    history = as_dict(read_history(folders / name).filter(task="lab_hyponatremia"))
    assert history == {key: whole[key] for key in times_of(kept)}
    assert history != slowly_by_subject(kept)
    assert (
        read_history(folders / name)
        .filter(pl.col("task") != "lab_hyponatremia")
        .equals(read_history(folders / "all").filter(pl.col("task") != "lab_hyponatremia"))
    )


def test_the_manifest_vouches_for_the_file(folders):
    assert FILE in json.loads((folders / "all" / MANIFEST).read_text())["files"]


def test_folders_without_it_are_refused(cohort, folders, tmp_path):
    with pytest.raises(InputError, match="is not a finished labels folder"):
        read_history(tmp_path)
    (tmp_path / MANIFEST).write_text((folders / "all" / MANIFEST).read_text())
    with pytest.raises(InputError, match=rf"has no {FILE}: an earlier version made it\. Make the labels again\."):
        read_history(tmp_path)
