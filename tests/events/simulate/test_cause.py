"""The planted cause: as far away as asked for, hidden from every recent window, and doing what it is said to do."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ehrctx.errors import InputError
from ehrctx.events.simulate.clinic import CAUSE, SHAM
from ehrctx.events.simulate.cohort import shard_of, simulate

ONLY_CAUSE = "ICD10CM/Z51.0"
ONLY_SHAM = "ICD10CM/Z51.89"
LAST_OF_THE_DAY = pl.time(23, 59)


def known(events):
    """Events in the order in which they are known: codes of the day at 23:59, as the profile says."""
    midnight = pl.col("code").str.starts_with("ICD10CM/") & (pl.col("time").dt.time() == pl.time(0))
    moved = pl.when(midnight).then(pl.col("time").dt.offset_by("1439m")).otherwise("time")
    return events.drop_nulls("time").with_columns(time=moved).sort("subject_id", "time", maintain_order=True)


def distances(shard, length):
    """Per subject with an episode and a stay: events and years from the episode's last event to the first admission."""
    # of a session's three codes, the drug comes last, but others have it, too
    is_episode = pl.col("code").is_in([ONLY_CAUSE, ONLY_SHAM] if length > 1 else [CAUSE[0], SHAM[0]])
    ordered = known(shard.events).with_columns(place=pl.int_range(pl.len()).over("subject_id"))
    first = ordered.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION")).group_by("subject_id").first()
    last = ordered.filter(is_episode).group_by("subject_id").last()
    both = last.join(first, on="subject_id", suffix="_admission")
    return both.select(
        "subject_id",
        tokens=pl.col("place_admission") - pl.col("place") - 1,
        years=(pl.col("time_admission") - pl.col("time")).dt.total_seconds() / 365.25 / 86_400,
    )


@pytest.mark.parametrize("tokens", [0, 16, 64, 256])
@pytest.mark.parametrize("years", [0.0, 4.0])
@pytest.mark.parametrize("length", [60, 1])
def test_distances_are_kept(preset, tokens, years, length):
    parameters = preset("planted", cause={"distance_tokens": tokens, "distance_years": years, "events": length})
    shard = shard_of(parameters, 0, 0, 600)
    found = distances(shard, length)
    assert found.height > 150
    assert found["tokens"].min() >= tokens + (length > 1)  # the session's drug comes between
    assert found["years"].min() >= years
    if not years:  # and no larger than the events of one day make them
        assert found["tokens"].median() < tokens + 20


def test_the_truth_says_who_has_what(planted):
    has = planted.events.group_by("subject_id").agg(
        cause=(pl.col("code") == ONLY_CAUSE).any(), sham=(pl.col("code") == ONLY_SHAM).any()
    )
    joined = planted.subjects.join(has, on="subject_id")
    assert joined.height == 4_000
    assert (joined["has_cause"] == joined["cause"]).all()
    assert (joined["has_episode"] == (joined["cause"] | joined["sham"])).all()
    assert not (joined["cause"] & joined["sham"]).any()
    share = joined.filter("has_episode")["has_cause"].mean()
    assert share == pytest.approx(0.35, abs=4 * np.sqrt(0.35 * 0.65 / joined["has_episode"].sum()))


@pytest.mark.parametrize("length", [1, 2, 30, 31, 90])
def test_episodes_are_as_long_as_asked(preset, length):
    shard = shard_of(preset("planted", cause={"events": length, "distance_tokens": 8}), 1, 0, 200)
    with_episode = shard.subjects.filter("has_episode")["subject_id"]
    counted = shard.events.filter(pl.col("code").is_in([*CAUSE, *SHAM])).group_by("subject_id").len()
    assert len(with_episode) > 100
    assert set(counted["subject_id"]) == set(with_episode)
    assert counted["len"].unique().to_list() == [length]


def test_cause_and_sham_look_alike_but_for_their_codes(preset):
    """The same seed with everybody's episode hidden: the same events at the same times, other codes."""
    shown, hidden = (shard_of(preset("planted", cause={"shown": s}), 2, 0, 300).events for s in (True, False))
    assert shown.height == hidden.height
    keys = ["subject_id", "time", "numeric_value"]
    assert shown.sort(*keys).select(keys).equals(hidden.sort(*keys).select(keys))
    assert not set(hidden["code"]) & set(CAUSE)
    assert set(shown["code"]) - set(hidden["code"]) == set(CAUSE)


def test_hiding_the_cause_changes_no_outcome(preset):
    shown, hidden = (shard_of(preset("planted", cause={"shown": s}), 2, 0, 300) for s in (True, False))
    assert shown.labels.equals(hidden.labels)
    assert shown.subjects.equals(hidden.subjects)


def test_neither_length_nor_timing_of_what_came_before_tells_the_cause(planted):
    first = (
        planted.events.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION"))
        .group_by("subject_id")
        .agg(admitted=pl.col("time").min())
    )
    before = planted.events.join(first, on="subject_id").filter(pl.col("time") < pl.col("admitted"))
    seen = before.group_by("subject_id").agg(
        events=pl.len(),
        days=(pl.col("time").max() - pl.col("time").min()).dt.total_days(),
        codes=pl.col("code").n_unique(),
    )
    joined = planted.subjects.filter("has_episode").join(seen, on="subject_id")
    n = joined["has_cause"].sum()
    assert n > 1_000
    for name in ("events", "days", "codes", "copy_rate", "gap_shape", "visit_rate", "frailty"):
        assert abs(roc_auc_score(joined["has_cause"], joined[name]) - 0.5) < 4 * 0.29 / np.sqrt(n * 0.65)


def test_nothing_recent_tells_the_cause_either(planted):
    """Of the codes between episode and first discharge, none is more frequent with the cause than by chance."""
    episodes = planted.subjects.filter("has_episode").select("subject_id", "has_cause", "episode_end")
    discharge = (
        planted.events.filter(pl.col("code").str.starts_with("HOSPITAL_DISCHARGE"))
        .group_by("subject_id")
        .agg(discharged=pl.col("time").min())
    )
    window = planted.events.join(episodes, on="subject_id").join(discharge, on="subject_id")
    window = window.filter(
        (pl.col("time") >= pl.col("episode_end").dt.offset_by("1d")) & (pl.col("time") <= pl.col("discharged"))
    )
    counts = dict(window.select("subject_id", "has_cause").unique()["has_cause"].value_counts().iter_rows())
    by_code = (
        window.select("subject_id", "has_cause", "code")
        .unique()
        .group_by("code")
        .agg(with_cause=pl.col("has_cause").sum(), n=pl.len())
        .filter(pl.col("n") >= 200)
    )
    assert by_code.height > 50
    share = counts[True] / sum(counts.values())
    z = (by_code["with_cause"] - by_code["n"] * share) / (by_code["n"] * share * (1 - share)).sqrt()
    assert z.abs().max() < 4.5


def test_infarctions_follow_the_cause(planted):
    labels = planted.labels["new_acutemi"].join(planted.subjects, on="subject_id")
    rates = dict(labels.group_by("has_cause").agg(pl.col("boolean_value").mean()).iter_rows())
    assert rates[True] > 8 * rates[False]


def test_where_risks_are_the_same_cause_and_sham_fare_alike(make, preset):
    even = make(preset("planted", cause={"risk": 0.2, "background": 0.2}, deaths=0), 1_500)
    labels = even.labels["new_acutemi"].join(even.subjects, on="subject_id")
    rates = dict(labels.group_by("has_cause").agg(pl.col("boolean_value").mean()).iter_rows())
    assert rates[True] == pytest.approx(rates[False], abs=0.06)


def test_a_distance_that_no_timeline_has_is_refused_by_name(tmp_path, preset):
    parameters = preset("planted", cause={"distance_tokens": 50_000})
    with pytest.raises(InputError, match=r"cause\.distance_tokens is 50,000"):
        simulate(parameters, 20, 0, tmp_path / "events")
    assert list(tmp_path.iterdir()) == []


def test_an_episode_longer_than_any_timeline_is_refused_by_name(tmp_path, preset):
    parameters = preset("planted", cause={"distance_tokens": 0, "events": 9_000})
    with pytest.raises(InputError, match=r"cause\.events is 9,000"):
        simulate(parameters, 20, 0, tmp_path / "events")
