"""The simulated cohort: reproducible to the byte, valid MEDS, and its planted truth can be found again."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.profile import DatasetProfile, find_profile
from ehrctx.events.simulate.clinic import CONDITIONS, PRODROMES
from ehrctx.events.simulate.cohort import SUBJECTS_PER_SHARD, simulate
from ehrctx.events.simulate.life import EPISODE_SHARE, FOLLOW_UP_END, WASHOUT_EVENTS
from ehrctx.study import Simulation, Study
from ehrctx.tasks.definition import DEFINITIONS
from ehrctx.tasks.label_sets import read_labels, write_labels

# only the two kinds of episode use these codes
EPISODE_CODES = ("ICD10CM/C81.90", "ICD10CM/Z51.0", "RxNorm/3639", "ICD10CM/Z51.89", "RxNorm/5640")


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@dataclass(frozen=True)
class Demo:
    """The cohort of pipelines/studies/demo.yaml: its folder and facts, events, splits, truth, and labels by task."""

    study: Study
    folder: Path
    facts: dict[str, int]
    events: pl.DataFrame
    splits: pl.DataFrame
    truth: pl.DataFrame
    labels: dict[str, pl.DataFrame]
    label_facts: dict


@pytest.fixture(scope="module")
def demo(tmp_path_factory, repository):
    study = load(Study, repository / "pipelines" / "studies" / "demo.yaml")
    folder = tmp_path_factory.mktemp("demo") / "events"
    facts = simulate(study.simulate, folder)
    profile = str(repository / "pipelines" / "datasets" / f"{study.profile}.yaml")
    label_facts = write_labels(folder, profile, study.tasks, study.labels, folder.parent / "labels")
    return Demo(
        study,
        folder,
        facts,
        pl.concat([pl.read_parquet(file) for file in sorted((folder / "data").glob("*.parquet"))]),
        pl.read_parquet(folder / "metadata" / "subject_splits.parquet"),
        pl.read_parquet(folder / "truth" / "subjects.parquet"),
        read_labels(folder.parent / "labels"),
        label_facts,
    )


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


def test_breaks_no_rule_and_every_split_is_filled(demo):
    summary, found = check(open_dataset(demo.folder))
    assert found == []
    assert demo.facts == {"subjects": summary["subjects"], "events": summary["events"]}
    assert demo.facts["subjects"] == demo.study.simulate.subjects == 2000 > SUBJECTS_PER_SHARD
    assert sorted(demo.splits["subject_id"]) == list(range(1, 2001))
    counts = dict(demo.splits["split"].value_counts().iter_rows())
    assert set(counts) == {"train", "tuning", "held_out"}
    assert min(counts.values()) > 300


def test_smallest_cohort_has_every_split(tmp_path):
    simulate(Simulation(subjects=10), tmp_path / "events")
    splits = pl.read_parquet(tmp_path / "events" / "metadata" / "subject_splits.parquet")
    assert set(splits["split"]) == {"train", "tuning", "held_out"}


def test_every_code_is_listed_once(demo):
    codes = pl.read_parquet(demo.folder / "metadata" / "codes.parquet")["code"]
    assert set(codes) == set(demo.events["code"])
    assert codes.n_unique() == len(codes)


# --- the planted cause --------------------------------------------------------------------------------------------


def test_planted_episode_predicts_the_infarction(demo):
    joined = demo.labels["new_acutemi"].join(demo.truth, on="subject_id", how="left")
    assert joined["episode"].null_count() == 0
    assert demo.label_facts["new_acutemi"]["positive"] > 100
    assert roc_auc_score(joined["boolean_value"], joined["episode"].cast(pl.Int8)) >= 0.7
    assert abs(demo.truth["episode"].mean() - EPISODE_SHARE) < 0.05


def test_truth_is_what_the_events_say(demo):
    irradiated = set(demo.events.filter(code="ICD10CM/Z51.0")["subject_id"])
    assert irradiated == set(demo.truth.filter("episode")["subject_id"])


def test_no_short_window_reaches_the_episode(demo):
    distances = []
    for events in demo.events.partition_by("subject_id"):
        codes = events["code"].to_list()
        episode = max(i for i, code in enumerate(codes) if code in EPISODE_CODES)
        discharges = [i for i, code in enumerate(codes) if code.startswith("HOSPITAL_DISCHARGE")]
        if discharges:
            distances.append(discharges[0] - episode)
    assert len(distances) > 1_000
    assert min(distances) >= WASHOUT_EVENTS


def test_episode_shows_in_neither_length_nor_timing(demo):
    """The median first stay of both groups comes after about as many events."""
    truth = dict(demo.truth.iter_rows())
    firsts = {True: [], False: []}
    for events in demo.events.partition_by("subject_id"):
        codes = events["code"].to_list()
        stay = next((i for i, code in enumerate(codes) if code.startswith("HOSPITAL_ADMISSION")), None)
        if stay is not None:
            firsts[truth[events["subject_id"][0]]].append(stay)
    joined = np.concatenate([firsts[True], firsts[False]])
    auroc = roc_auc_score([1] * len(firsts[True]) + [0] * len(firsts[False]), joined)
    assert abs(auroc - 0.5) < 0.05


# --- the other tasks ----------------------------------------------------------------------------------------------


def test_the_demo_asks_all_shipped_tasks_once_per_subject(demo):
    assert set(demo.labels) == {file.stem for file in DEFINITIONS.glob("*.yaml")}
    assert demo.study.labels.max_times_per_subject == 1
    for task, labels in demo.labels.items():
        if task.startswith("lab_"):
            assert labels["subject_id"].is_unique().all()


@pytest.mark.parametrize("task", sorted(file.stem for file in DEFINITIONS.glob("*.yaml")))
def test_both_classes_in_every_split(demo, task):
    """Each model is fitted, chosen and scored on both."""
    labels = demo.labels[task].join(demo.splits, on="subject_id", how="left")
    counts = {key: part["boolean_value"].sum() for key, part in labels.partition_by("split", as_dict=True).items()}
    assert set(counts) == {("train",), ("tuning",), ("held_out",)}
    for (split,), positive in counts.items():
        assert 5 <= positive <= labels.filter(split=split).height - 5


def test_readmission_leaves_some_out_for_each_reason(demo):
    left_out = dict(demo.label_facts["guo_readmission"]["left_out"])
    assert left_out.pop("discharged while another stay was open") == 0  # no subject is in two stays at once
    assert left_out.keys() == {
        "discharged by death",
        "readmitted on the discharge day",
        "followed for less than 30 days",
    }
    assert min(left_out.values()) > 0


def test_follow_up_ends_where_the_profile_says(repository):
    profile = load(DatasetProfile, repository / "pipelines" / "datasets" / "simulated.yaml")
    last_second = datetime.fromisoformat(f"{profile.follow_up_end} 23:59:59")
    assert FOLLOW_UP_END.astype(datetime) == last_second


def test_nothing_happens_after_the_death_or_the_end_of_the_follow_up(demo):
    assert demo.events["time"].max() <= FOLLOW_UP_END.astype(datetime)
    deaths = demo.events.filter(code="MEDS_DEATH").select("subject_id", death="time")
    assert deaths["subject_id"].is_unique().all()
    assert 100 < deaths.height < 1_000
    lives = demo.events.join(deaths, on="subject_id")
    assert lives.filter(pl.col("time") > pl.col("death")).is_empty()
    died_in_hospital = demo.events.filter(code="HOSPITAL_DISCHARGE//DIED").select("subject_id", "time")
    assert died_in_hospital.join(deaths, left_on=["subject_id", "time"], right_on=["subject_id", "death"]).height == (
        died_in_hospital.height
    )


def stays_of(events):
    """(subject_id, visit_id, admitted, discharged); discharged is null where the record ends before."""

    def times(prefix, name):
        found = events.filter(pl.col("code").str.starts_with(prefix))
        return found.select("subject_id", "visit_id", pl.col("time").alias(name))

    opened, closed = times("HOSPITAL_ADMISSION", "admitted"), times("HOSPITAL_DISCHARGE", "discharged")
    keys = ["subject_id", "visit_id"]
    assert not opened.select(keys).is_duplicated().any()
    assert not closed.select(keys).is_duplicated().any()
    assert closed.join(opened, on=keys, how="anti").is_empty()
    return opened.join(closed, on=keys, how="left").sort("subject_id", "admitted")


def test_what_belongs_to_a_stay_lies_in_it_and_stays_do_not_overlap(demo):
    stays = stays_of(demo.events)
    assert stays.height > 3_000
    before = stays.with_columns(before=pl.col("discharged").shift(1).over("subject_id"))
    assert before.filter(pl.col("admitted") < pl.col("before")).is_empty()
    inside = demo.events.filter(pl.col("visit_id").is_not_null()).join(stays, on=["subject_id", "visit_id"], how="left")
    assert inside["admitted"].null_count() == 0
    assert inside.filter((pl.col("time") < pl.col("admitted")) | (pl.col("time") > pl.col("discharged"))).is_empty()


def test_intensive_care_lies_in_its_hospital_stay(demo):
    def times(prefix, name):
        found = demo.events.filter(pl.col("code").str.starts_with(prefix))
        assert found["visit_id"].null_count() == 0
        return found.select("subject_id", "visit_id", pl.col("time").alias(name))

    keys = ["subject_id", "visit_id"]
    entered, left = times("ICU_ADMISSION", "entered"), times("ICU_DISCHARGE", "left")
    icu = entered.join(left, on=keys, how="left").join(stays_of(demo.events), on=keys, how="left")
    assert icu.height == entered.height > 500
    assert left.join(entered, on=keys, how="anti").is_empty()
    assert icu.filter(pl.col("left").is_null() & pl.col("discharged").is_not_null()).is_empty()
    assert icu.select((pl.col("admitted") <= pl.col("entered")).all()).item()
    closed = icu.drop_nulls()
    assert closed.select((pl.col("entered") < pl.col("left")).all()).item()
    assert closed.select((pl.col("left") <= pl.col("discharged")).all()).item()
    day = pl.col("entered").dt.date() == pl.col("admitted").dt.date()
    assert 0.1 < icu.select(day.mean()).item() < 0.9  # known at the prediction time, and still to come


TASK_OF = {
    "hypertension": "new_hypertension",
    "hyperlipidemia": "new_hyperlipidemia",
    "pancreatic cancer": "new_pancan",
    "celiac": "new_celiac",
    "lupus": "new_lupus",
}


@pytest.mark.parametrize("disease", PRODROMES)
def test_signs_of_a_prodrome_raise_the_risk_of_its_disease(demo, disease):
    """Labels by whether the stay before them coded one of the signs."""
    prodrome, keys = PRODROMES[disease], ["subject_id", "visit_id"]
    signs = [f"ICD10CM/{code}" for code in prodrome.signs]
    signed = demo.events.filter(pl.col("code").is_in(signs) & pl.col("visit_id").is_not_null()).select(keys).unique()
    ends = stays_of(demo.events).with_columns(
        prediction_time=pl.col("discharged").dt.truncate("1d").dt.offset_by("23h59m")
    )
    labels = demo.labels[TASK_OF[disease]].join(ends, on=["subject_id", "prediction_time"])
    after_signs = labels.join(signed, on=keys)["boolean_value"]
    without = labels.join(signed, on=keys, how="anti")["boolean_value"]
    assert len(after_signs) > 100
    assert after_signs.mean() > 4 * without.mean()
    assert abs(after_signs.mean() - prodrome.risk) < 0.12
    assert without.mean() < prodrome.background + 0.04


# --- habits -------------------------------------------------------------------------------------------------------


def test_repetition_varies_between_subjects(demo):
    """The share of a record's codes that occur more than once."""
    counts = demo.events.drop_nulls("time").group_by("subject_id", "code").len()
    repeated = counts.group_by("subject_id").agg(share=(pl.col("len") > 1).mean())["share"]
    assert repeated.quantile(0.9) - repeated.quantile(0.1) > 0.15
    assert 0.4 < repeated.mean() < 0.9


def split_halves(values, statistic, minimum):
    """The statistic of the even and of the odd rows of each subject: they agree if it is a habit, and not chance."""
    half = pl.int_range(pl.len()).over("subject_id") % 2
    parts = [
        values.filter(half == k)
        .group_by("subject_id")
        .agg(statistic.alias(name), n=pl.len())
        .filter(pl.col("n") >= minimum)
        for k, name in enumerate(("even", "odd"))
    ]
    both = parts[0].join(parts[1], on="subject_id")
    assert both.height > 1_000
    return np.corrcoef(both["even"], both["odd"])[0, 1]


def quantiles(values, statistic, minimum):
    """The first and the last decile over the subjects."""
    found = values.group_by("subject_id").agg(value=statistic, n=pl.len()).filter(pl.col("n") >= minimum)["value"]
    return found.quantile(0.1), found.quantile(0.9)


def test_regularity_is_a_habit_of_the_subject(demo):
    """The deviation of the gaps between visits before the first stay, relative to their mean."""
    first_stay = stays_of(demo.events).group_by("subject_id").agg(stay=pl.col("admitted").min())
    gaps = (
        demo.events.filter(code="OUTPATIENT_VISIT")
        .join(first_stay, on="subject_id", how="left")
        .filter(pl.col("stay").is_null() | (pl.col("time") < pl.col("stay")))
        .sort("subject_id", "time")
        .with_columns(gap=pl.col("time").diff().over("subject_id").dt.total_seconds())
        .drop_nulls("gap")
    )
    spread = pl.col("gap").std() / pl.col("gap").mean()
    regular, irregular = quantiles(gaps, spread, 6)
    assert regular < 0.6
    assert irregular > 1.1
    assert split_halves(gaps, spread, 6) > 0.5


def test_carrying_diagnoses_forward_is_a_habit_of_the_subject(demo):
    """How often an outpatient visit codes a chronic condition again that an earlier one coded."""
    chronic = [f"ICD10CM/{code}" for code, prevalence, _ in CONDITIONS.values() if prevalence > 0]
    outpatient = demo.events.filter(pl.col("visit_id").is_null()).with_columns(day=pl.col("time").dt.date())
    visits = outpatient.filter(code="OUTPATIENT_VISIT").select("subject_id", "day").unique()
    coded = outpatient.filter(pl.col("code").is_in(chronic)).select("subject_id", "code", "day").unique()
    first = coded.group_by("subject_id", "code").agg(first=pl.col("day").min())
    chances = (
        visits.join(first, on="subject_id")
        .filter(pl.col("day") > pl.col("first"))
        .join(coded.with_columns(again=True), on=["subject_id", "code", "day"], how="left")
        .with_columns(pl.col("again").fill_null(False))
        .sort("subject_id", "day", "code")
    )
    rarely, often = quantiles(chances, pl.col("again").mean(), 15)
    assert rarely < 0.35
    assert often > 0.65
    assert split_halves(chances, pl.col("again").mean(), 15) > 0.6


def test_profile_is_found_by_its_name(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert load(DatasetProfile, find_profile("simulated")).name == "simulated"


def test_unknown_profile_names_the_nearest(repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(InputError, match="did you mean 'simulated'"):
        find_profile("simulatd")
