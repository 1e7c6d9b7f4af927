"""The simulated cohort: reproducible to the byte, valid MEDS, and its planted truth can be found again."""

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.profile import find_profile
from ehrctx.events.simulate.cohort import simulate
from ehrctx.events.simulate.life import WASHOUT_EVENTS
from ehrctx.study import Labels, Simulation
from ehrctx.tasks.label_sets import write_labels

# only the two kinds of episode use these codes
EPISODE_CODES = ("ICD10CM/C81.90", "ICD10CM/Z51.0", "RxNorm/3639", "ICD10CM/Z51.89", "RxNorm/5640")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "events"
    facts = simulate(Simulation(subjects=800, seed=3), folder)
    return folder, facts


def test_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulate(Simulation(subjects=40, seed=seed), tmp_path / name)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a["data/0000.parquet"] != c["data/0000.parquet"]
    assert a["truth/subjects.parquet"] != c["truth/subjects.parquet"]


def test_a_larger_cohort_begins_with_the_smaller_one(tmp_path):
    simulate(Simulation(subjects=20, seed=1), tmp_path / "small")
    simulate(Simulation(subjects=30, seed=1), tmp_path / "large")
    small, large = (pl.read_parquet(tmp_path / n / "data" / "0000.parquet") for n in ("small", "large"))
    assert large.filter(pl.col("subject_id") <= 20).equals(small)


def test_breaks_no_rule_and_every_split_is_filled(large):
    folder, facts = large
    summary, found = check(open_dataset(folder))
    assert found == []
    assert facts == {"subjects": summary["subjects"], "events": summary["events"]}
    assert facts["subjects"] == 800
    splits = pl.read_parquet(folder / "metadata" / "subject_splits.parquet")
    assert sorted(splits["subject_id"]) == list(range(1, 801))
    counts = dict(splits["split"].value_counts().iter_rows())
    assert set(counts) == {"train", "tuning", "held_out"}
    assert min(counts.values()) > 100


def test_smallest_cohort_has_every_split(tmp_path):
    simulate(Simulation(subjects=10), tmp_path / "events")
    splits = pl.read_parquet(tmp_path / "events" / "metadata" / "subject_splits.parquet")
    assert set(splits["split"]) == {"train", "tuning", "held_out"}


def test_every_code_is_listed_once(large):
    folder, _ = large
    used = set(pl.read_parquet(folder / "data" / "0000.parquet")["code"])
    codes = pl.read_parquet(folder / "metadata" / "codes.parquet")["code"]
    assert set(codes) == used
    assert codes.n_unique() == len(codes)


def test_planted_episode_predicts_the_infarction(large, tmp_path, repository, monkeypatch):
    folder, _ = large
    monkeypatch.chdir(repository)
    assert find_profile("simulated").is_file()
    facts = write_labels(folder, "simulated", ["new_acutemi"], Labels(), tmp_path / "labels")
    labels = pl.read_parquet(tmp_path / "labels" / "new_acutemi.parquet")
    truth = pl.read_parquet(folder / "truth" / "subjects.parquet")
    joined = labels.join(truth, on="subject_id", how="left")
    assert joined["episode"].null_count() == 0
    assert facts["new_acutemi"]["positive"] > 50
    assert roc_auc_score(joined["boolean_value"], joined["episode"].cast(pl.Int8)) >= 0.7
    assert 0.3 < truth["episode"].mean() < 0.4


def test_truth_is_what_the_events_say(large):
    folder, _ = large
    events = pl.read_parquet(folder / "data" / "0000.parquet")
    irradiated = set(events.filter(code="ICD10CM/Z51.0")["subject_id"])
    truth = pl.read_parquet(folder / "truth" / "subjects.parquet")
    assert irradiated == set(truth.filter("episode")["subject_id"])


def test_no_short_window_reaches_the_episode(large):
    folder, _ = large
    distances = []
    for events in pl.read_parquet(folder / "data" / "0000.parquet").partition_by("subject_id"):
        codes = events["code"].to_list()
        episode = max(i for i, code in enumerate(codes) if code in EPISODE_CODES)
        discharges = [i for i, code in enumerate(codes) if code.startswith("HOSPITAL_DISCHARGE")]
        if discharges:
            distances.append(discharges[0] - episode)
    assert len(distances) > 500
    assert min(distances) >= WASHOUT_EVENTS


def test_episode_shows_in_neither_length_nor_timing(large):
    """The median first stay of both groups comes after about as many events."""
    folder, _ = large
    truth = dict(pl.read_parquet(folder / "truth" / "subjects.parquet").iter_rows())
    firsts = {True: [], False: []}
    for events in pl.read_parquet(folder / "data" / "0000.parquet").partition_by("subject_id"):
        codes = events["code"].to_list()
        stay = next((i for i, code in enumerate(codes) if code.startswith("HOSPITAL_ADMISSION")), None)
        if stay is not None:
            firsts[truth[events["subject_id"][0]]].append(stay)
    joined = np.concatenate([firsts[True], firsts[False]])
    auroc = roc_auc_score([1] * len(firsts[True]) + [0] * len(firsts[False]), joined)
    assert abs(auroc - 0.5) < 0.08


def test_unknown_profile_names_the_nearest(repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(InputError, match="did you mean 'simulated'"):
        find_profile("simulatd")
