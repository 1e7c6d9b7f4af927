"""The negative control: outcomes go to other subjects as they are, and have to do with nothing any more."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.study import Labels
from ehrctx.tasks.label_sets import read_labels, write_labels
from ehrctx.tasks.permutation import permuted


def labels_of(counts, seed=0):
    """`counts[i]` labels of subject i, in order, outcomes at random."""
    rng = np.random.default_rng(seed)
    subjects = np.repeat(np.arange(len(counts)) + 10, counts)
    grades = rng.integers(0, 4, len(subjects))
    return pl.DataFrame(
        {
            "subject_id": subjects,
            "prediction_time": np.datetime64("2020-01-01", "us") + np.arange(len(subjects)) * np.timedelta64(1, "h"),
            "boolean_value": grades > 0,
            "integer_value": grades,
        },
        schema_overrides={"prediction_time": pl.Datetime("us"), "subject_id": pl.Int64},
    )


def outcomes(labels):
    return {
        key: rows["integer_value"].to_list() for (key,), rows in labels.partition_by("subject_id", as_dict=True).items()
    }


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30), st.integers(0, 99))
def test_each_subject_has_the_outcomes_of_one_subject_in_a_circle(counts, seed):
    labels = labels_of(counts)
    found = permuted(labels, "guo_los", seed)
    keys = ["subject_id", "prediction_time"]
    assert found.select(keys).equals(labels.select(keys))
    assert (found["boolean_value"] == (found["integer_value"] > 0)).all()  # of one label, both values
    before, after = outcomes(labels), outcomes(found)
    for own in after.values():
        circles = [given[i:] + given[:i] for given in before.values() for i in range(len(given))]
        assert any(own == (circle * len(own))[: len(own)] for circle in circles)


@given(st.integers(1, 5), st.integers(2, 30), st.integers(0, 99))
def test_where_all_have_as_many_labels_outcomes_are_only_dealt_out(each, n, seed):
    labels = labels_of([each] * n)
    found = permuted(labels, "guo_los", seed)
    rotations = [
        sorted(min(own[i:] + own[:i] for i in range(each)) for own in outcomes(some).values())
        for some in (found, labels)
    ]
    assert rotations[0] == rotations[1]


@given(st.lists(st.integers(1, 5), min_size=2, max_size=30), st.integers(0, 99))
def test_nobody_keeps_their_own(counts, seed):
    labels = labels_of(counts).with_columns(integer_value=pl.col("subject_id"))
    found = permuted(labels, "guo_los", seed)
    assert (found["integer_value"] != labels["subject_id"]).all()


def test_the_number_of_labels_before_tells_nothing():
    """Outcomes that sank with every label of a subject, as where nobody's last stay is followed by another."""
    counts = np.random.default_rng(1).integers(1, 5, 6_000)
    labels = labels_of(counts)
    number = np.concatenate([np.arange(n) for n in counts])
    labels = labels.with_columns(boolean_value=pl.Series(number == 0))
    found = permuted(labels, "guo_los", 0)["boolean_value"].to_numpy()
    rates = [found[number == k].mean() for k in range(4)]
    assert max(rates) - min(rates) < 4 * 0.5 * np.sqrt(2 / (number == 3).sum())
    assert np.mean(1 / counts) == pytest.approx(np.mean(rates), abs=0.02)


def test_tasks_are_permuted_apart_and_seeds_differ():
    labels = labels_of([2] * 50)
    made = [permuted(labels, task, seed)["integer_value"].to_list() for task, seed in (("a", 0), ("b", 0), ("a", 1))]
    assert made[0] == permuted(labels, "a", 0)["integer_value"].to_list()
    assert len({tuple(one) for one in made}) == 3
    assert permuted(labels.clear(), "a", 0).is_empty()


def test_nothing_is_left_of_a_perfect_association():
    labels = labels_of([1] * 4_000)
    found = permuted(labels, "guo_los", 3)
    assert abs(np.corrcoef(labels["boolean_value"], found["boolean_value"])[0, 1]) < 4 / np.sqrt(4_000)


@pytest.mark.parametrize("seed", [0, 7])
def test_the_study_key_permutes_every_task(cohort, repository, tmp_path, seed):
    profile = str(repository / "pipelines" / "datasets" / "simulated.yaml")
    tasks = ("guo_los", "new_acutemi")
    made = {}
    for name, choices in (("as they are", Labels()), ("permuted", Labels(permuted=seed))):
        write_labels(cohort.events, profile, tasks, choices, tmp_path / name)
        made[name] = read_labels(tmp_path / name)
    for task in tasks:
        before, after = made["as they are"][task], made["permuted"][task]
        assert after.equals(permuted(before, task, seed))
        assert not after.equals(before)
