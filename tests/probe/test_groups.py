"""Groups at prediction times against a loop over events, and nothing that comes later."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from by_hand import expanded, rarer
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.events.profile import DatasetProfile
from ehrctx.probe.by_task import Entry, TaskPredictions
from ehrctx.probe.groups import groups_at, read_groups, write_groups
from ehrctx.probe.statistics import SCORES, Draws, Intervals, scores, subject_draws
from ehrctx.probe.subgroups import subgroup_table
from ehrctx.study import Statistics

PROFILE = DatasetProfile(
    name="hand_made",
    groups={
        "sex": {"female": ("SEX//F",), "male": ("SEX//M",)},
        "cover": {"public": ("INS//P*",), "none": ("INS//0",)},
    },
)
START = datetime(2000, 1, 1)
SCHEMA = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}


def frame(rows: list[tuple[int, datetime | None, str]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def keys_of(rows: list[tuple[int, datetime]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")}, orient="row")


def test_static_and_timed_events_age_and_what_is_unknown():
    events = frame(
        [
            (1, None, "SEX//F"),
            (1, datetime(1950, 6, 1), "MEDS_BIRTH"),
            (1, datetime(2000, 1, 1, 12), "INS//P1"),
            (1, datetime(2010, 1, 1), "INS//0"),
            (2, datetime(1999, 1, 1), "OTHER"),
        ]
    )
    keys = keys_of(
        [
            (1, datetime(1950, 1, 1)),
            (1, datetime(2000, 1, 1, 11, 59, 59)),
            (1, datetime(2000, 1, 1, 12)),
            (1, datetime(2030, 7, 1)),
            (2, datetime(2000, 1, 1)),
        ]
    )
    assert groups_at(events, PROFILE, keys).rows() == [
        (1, datetime(1950, 1, 1), "unknown", "female", "unknown"),
        (1, datetime(2000, 1, 1, 11, 59, 59), "45-64", "female", "unknown"),
        (1, datetime(2000, 1, 1, 12), "45-64", "female", "public"),
        (1, datetime(2030, 7, 1), "80+", "female", "none"),
        (2, datetime(2000, 1, 1), "unknown", "unknown", "unknown"),
    ]


EVENTS = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.one_of(st.none(), st.integers(0, 40)),
        st.sampled_from(["SEX//F", "SEX//M", "INS//P2", "INS//0", "OTHER", "MEDS_BIRTH"]),
    ),
    max_size=25,
)


@hypothesis_settings(max_examples=150)
@given(EVENTS, st.lists(st.tuples(st.integers(1, 4), st.integers(0, 40)), min_size=1, max_size=8))
def test_groups_are_the_last_word_before_the_prediction_and_know_nothing_later(events, keys):
    step = timedelta(milliseconds=400)  # so that times share a second
    rows = [(s, None if t is None else START + t * step, code) for s, t, code in events]
    rows.sort(key=lambda row: (row[0], row[1] is not None, row[1] or START))
    times = sorted({(s, START + t * step) for s, t in keys})
    found = groups_at(frame(rows), PROFILE, keys_of(times))
    assert found.select("subject_id", "prediction_time").rows() == times
    for (subject, at), cover in zip(times, found["cover"], strict=True):
        last = "unknown"
        for s, time, code in rows:
            rounded_up = None if time is None else time.replace(microsecond=0) + timedelta(seconds=time.microsecond > 0)
            if s == subject and (rounded_up is None or rounded_up <= at.replace(microsecond=0)):
                last = {"INS//P2": "public", "INS//0": "none"}.get(code, last)
        assert cover == last
    # whatever comes after a prediction does not change its groups, but for a birth
    at = times[0][1]
    changed = [r for r in rows if r[1] is None or r[1] <= at or r[2] == "MEDS_BIRTH"]
    changed += [(s, at + timedelta(seconds=2), "INS//P9") for s in (1, 2, 3)]
    changed.sort(key=lambda row: (row[0], row[1] is not None, row[1] or START))
    again = groups_at(frame(changed), PROFILE, keys_of([t for t in times if t[1] <= at]))
    assert again.equals(found.filter(pl.col("prediction_time") <= at))


def test_group_names_that_results_have_are_refused():
    with pytest.raises(ValueError, match="'age' is a name that results have already"):
        DatasetProfile(name="x", groups={"age": {"old": ("OLD",)}})


def test_the_cohorts_groups(cohort, repository, tmp_path):
    facts = write_groups(
        cohort.events, str(repository / "pipelines/datasets/simulated.yaml"), cohort.labels, tmp_path / "g"
    )
    table = read_groups(tmp_path / "g")
    assert table.columns == ["subject_id", "prediction_time", "age", "sex"]
    assert set(table["sex"]) == {"female", "male"}
    assert table.group_by("subject_id").agg(pl.col("sex").n_unique())["sex"].max() == 1
    assert sum(facts["prediction_times"]["sex"].values()) == table.height


def test_scores_of_a_level_are_those_of_its_labels_alone():
    rng = np.random.default_rng(0)
    n, entry = 300, Entry("a", "logistic_regression")
    of, p = rng.integers(0, 60, n), rng.random(n).round(1)
    y = rng.random(n) < p
    times = np.datetime64("2000-01-01", "us") + np.arange(n)
    task = TaskPredictions("stay", y, of, times, {entry: p, Entry("a", "logistic_regression", "8", 1): p})
    keys = pl.DataFrame({"subject_id": of, "prediction_time": times}).cast({"prediction_time": pl.Datetime("us")})
    groups = keys.with_columns(sex=pl.Series(np.where(of % 3, "female", "male")), age=pl.lit("18-44"))
    is_repeated = rng.random(n) < 0.4
    history = keys.with_columns(task=pl.lit("stay"), repeated=pl.Series(is_repeated))
    draws = Draws.of(of, Statistics(replicates=80))
    table = subgroup_table([task], groups, history, draws, Intervals(0.9))
    assert table["group"].unique().sort().to_list() == ["age", "history", "sex"]
    masks = {("sex", "male"): of % 3 == 0, ("history", "repeated"): is_repeated, ("history", "new onset"): ~is_repeated}
    for (group, level), inside in masks.items():
        drawn = subject_draws(of, Statistics(replicates=80))
        own = scores(y[inside], p[inside], drawn[:, inside])
        gap = own - scores(y[~inside], p[~inside], drawn[:, ~inside])
        for s, score in enumerate(SCORES):
            found = table.filter((pl.col("group") == group) & (pl.col("level") == level) & (pl.col("score") == score))
            row = found.row(0, named=True)
            assert row["value"] == pytest.approx(scores(y[inside], p[inside], np.ones((1, inside.sum())))[0, s])
            n_inside, n_outside = (rarer(y[m], of[m]) for m in (inside, ~inside))
            assert (row["lower"], row["upper"]) == pytest.approx(expanded(own[:, s], 0.9, n_inside))
            limits = expanded(gap[:, s], 0.9, min(n_inside, n_outside))
            assert (row["difference_lower"], row["difference_upper"]) == pytest.approx(limits)
            assert (row["n"], row["n_positive"]) == (inside.sum(), y[inside].sum())
    assert table.filter(group="age")["difference"].null_count() == 3, "a group of one level has no others"
    with pytest.raises(InputError, match="300 held-out labels of 'stay' have no sex"):
        subgroup_table([task], groups.clear(), history, draws, Intervals(0.9))


def test_a_birth_too_early_to_be_believed_is_unknown(write_meds, tmp_path):
    """De-identified data sets move the births of the oldest by centuries; the timelines ignore such a birth, too."""
    events = frame(
        [
            (1, datetime(1880, 1, 1), "MEDS_BIRTH"),
            (1, datetime(2010, 1, 1), "A"),
            (1, datetime(2010, 1, 1) + timedelta(days=3650), "A"),
            (2, datetime(1880, 1, 1), "MEDS_BIRTH"),
            (2, datetime(2010, 1, 1), "A"),
        ]
    )
    at = datetime(2010, 6, 1)
    found = groups_at(events, DatasetProfile(name="p"), keys_of([(1, at), (2, at)]))
    assert found["age"].to_list() == ["unknown", "80+"]
