"""Simulated cohorts on disk: the same bytes on any number of workers, valid MEDS, and lives that hold together."""

from datetime import datetime

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.check import check
from ehrctx.events.meds import open_dataset
from ehrctx.events.profile import DatasetProfile, find_profile
from ehrctx.events.simulate.clinic import ABNORMAL, DISEASE_OF, LABS
from ehrctx.events.simulate.cohort import shard_of, simulate
from ehrctx.events.simulate.diseases import DISEASES
from ehrctx.events.simulate.people import FOLLOW_UP_END
from ehrctx.events.splits import subject_splits
from ehrctx.study import Study
from ehrctx.tasks.definition import DEFINITIONS, load_definitions

TASKS = sorted(file.stem for file in DEFINITIONS.glob("*.yaml"))


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", ["published", "planted"])
def test_same_seed_gives_the_same_bytes_on_any_number_of_workers(tmp_path, preset, name):
    parameters = preset(name, subjects_per_shard=40)
    for folder, seed, workers in (("one", 1, 1), ("two", 1, 2), ("three", 1, 3), ("other", 2, 1)):
        simulate(parameters, 130, seed, tmp_path / folder, workers)
    one, two, three, other = (contents(tmp_path / folder) for folder in ("one", "two", "three", "other"))
    assert one == two == three
    assert {name for name in one if name.startswith("data/")} == {f"data/{n:05d}.parquet" for n in range(4)}
    assert one["data/00000.parquet"] != other["data/00000.parquet"]
    assert one["truth/labels/00000.parquet"] != other["truth/labels/00000.parquet"]


def test_a_larger_cohort_begins_with_the_smaller_one(preset):
    """However it is cut into shards."""
    parameters = preset("published")
    small, large = shard_of(parameters, 1, 0, 20), shard_of(parameters, 1, 0, 50)
    cut = [shard_of(parameters, 1, first, first + 10) for first in (0, 10)]
    for name in ("events", "subjects", "diseases"):
        expected = getattr(small, name)
        assert getattr(large, name).filter(pl.col("subject_id") <= 20).equals(expected)
        assert pl.concat([getattr(shard, name) for shard in cut]).equals(expected)
    key = ["task", "subject_id", "prediction_time"]
    together = pl.concat([shard.labels for shard in cut])
    assert_frame_equal(together.sort(key), small.labels.sort(key), abs_tol=1e-12)


@pytest.mark.parametrize("name", ["published", "planted"])
def test_breaks_no_rule_and_every_split_is_filled(request, name):
    cohort = request.getfixturevalue(name)
    summary, found = check(open_dataset(cohort.folder))
    assert found == []
    assert cohort.facts == {
        "subjects": summary["subjects"],
        "events": summary["events"],
        "with_episode": cohort.subjects["has_episode"].sum(),
    }
    splits = pl.read_parquet(cohort.folder / "metadata" / "subject_splits.parquet")
    assert sorted(splits["subject_id"]) == list(range(1, summary["subjects"] + 1))
    shares = dict(splits["split"].value_counts(normalize=True).iter_rows())
    assert shares == pytest.approx({"train": 0.5, "tuning": 0.2, "held_out": 0.3}, abs=0.03)


def test_smallest_cohort_has_every_split(tmp_path, preset):
    simulate(preset("planted"), 10, 0, tmp_path / "events")
    splits = pl.read_parquet(tmp_path / "events" / "metadata" / "subject_splits.parquet")
    assert set(splits["split"]) == {"train", "tuning", "held_out"}


def test_every_code_is_listed_once_with_a_description_and_its_parents(published, planted):
    codes = pl.read_parquet(planted.folder / "metadata" / "codes.parquet")
    assert codes["code"].is_unique().all()
    assert codes["description"].str.len_chars().min() > 2
    occurring = set(planted.events["code"]) | set(published.events["code"])
    assert occurring <= set(codes["code"])
    parents = codes.explode("parent_codes").drop_nulls("parent_codes")
    assert set(parents["parent_codes"]) <= set(codes["code"])
    roots = codes.filter(pl.col("parent_codes").list.len() == 0)["code"]
    assert not any(code.startswith("ICD10CM/") and "-" not in code for code in roots)  # chapters alone
    leaves = codes.filter(~pl.col("code").is_in(parents["parent_codes"].implode()))["code"]
    assert len(set(leaves) - occurring) < 10  # what may occur, but is rare


def test_drug_products_lead_to_their_ingredients(planted):
    codes = pl.read_parquet(planted.folder / "metadata" / "codes.parquet")
    parents = dict(codes.select("code", "parent_codes").iter_rows())
    described = dict(codes.select("code", "description").iter_rows())
    assert described["RxNorm/314076"] == "lisinopril 10 MG Oral Tablet"
    assert [described[parent] for parent in parents["RxNorm/314076"]] == ["lisinopril"]
    assert parents["ICD10CM/E11.22"] == ["ICD10CM/E11.2"]


@pytest.mark.parametrize("task", DISEASE_OF)
def test_both_codes_of_a_tasks_disease_belong_to_the_task(repository, monkeypatch, task):
    monkeypatch.chdir(repository)
    (definition,) = load_definitions((task,))
    disease = DISEASES[DISEASE_OF[task]]
    for code in (disease.code, disease.advanced_code):
        assert code.startswith(tuple(definition.diagnosis["ICD10CM"]))
    others = [d for name, d in DISEASES.items() if name != DISEASE_OF[task]]
    for code in (code for d in others for code in (d.code, d.advanced_code, *d.signs)):
        assert not code.startswith(tuple(definition.diagnosis["ICD10CM"]))


@pytest.mark.parametrize("task", ABNORMAL)
def test_a_laboratory_tasks_cut_is_its_definitions(planted, task):
    """Of the values that the cohort holds: those beyond the cut are labelled, and no other."""
    rule = ABNORMAL[task]
    code = f"LOINC/{LABS[rule.test].loinc}"
    results = planted.events.filter(pl.col("code") == code).with_columns(
        prediction_time=pl.col("time").dt.offset_by("-1m")
    )
    joined = planted.labels[task].join(results, on=["subject_id", "prediction_time"])
    joined = joined.filter(pl.len().over("subject_id", "prediction_time") == 1)
    value = pl.col("numeric_value")
    beyond = (value < rule.cut if rule.side == "below" else value > rule.cut).fill_null(False)
    assert joined.height > 10_000
    assert joined.select((beyond == pl.col("boolean_value")).all()).item()
    near = joined.select((value - rule.cut).abs().min()).item()
    assert near == pytest.approx(0.5 * 10 ** -LABS[rule.test].decimals, rel=1e-3)  # values on both sides were seen


# --- the tasks of the demo ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(make, repository):
    """The cohort of pipelines/studies/demo.yaml."""
    study = load(Study, repository / "pipelines" / "studies" / "demo.yaml")
    from ehrctx.events.simulate.parameters import parameters_of

    preset = str(repository / "pipelines" / "cohorts" / f"{study.simulate.preset}.yaml")
    parameters = parameters_of(preset, study.simulate.parameters, "demo")
    return study, make(parameters, study.simulate.subjects, study.simulate.seed)


def test_the_demo_asks_all_shipped_tasks(demo):
    study, _ = demo
    assert sorted(study.tasks) == TASKS
    assert study.labels.max_times_per_subject == 1


@pytest.mark.parametrize("task", TASKS)
def test_both_classes_in_every_split(demo, task):
    """Each model is fitted, chosen and scored on both."""
    study, cohort = demo
    splits = subject_splits(open_dataset(cohort.folder), study.splits)
    labels = cohort.labels[task].join(splits, on="subject_id", how="left")
    counts = {key: part["boolean_value"].sum() for key, part in labels.partition_by("split", as_dict=True).items()}
    assert set(counts) == {("train",), ("tuning",), ("held_out",)}
    for (split,), positive in counts.items():
        assert 5 <= positive <= labels.filter(split=split).height - 5


# Of EHRSHOT's test labels (arXiv 2307.02028). Left out: infarctions, which are planted, and hypertension and
# hyperlipidemia, which most have before they first come to hospital.
PREVALENCES = {
    "guo_los": 0.253,
    "guo_readmission": 0.130,
    "guo_icu": 0.045,
    "lab_thrombocytopenia": 0.332,
    "lab_hyperkalemia": 0.024,
    "lab_hypoglycemia": 0.015,
    "lab_hyponatremia": 0.285,
    "lab_anemia": 0.690,
    "new_pancan": 0.038,
    "new_celiac": 0.013,
    "new_lupus": 0.022,
}


@pytest.mark.parametrize(("task", "prevalence"), PREVALENCES.items())
def test_outcomes_are_about_as_common_as_in_ehrshot(planted, task, prevalence):
    assert planted.labels[task]["boolean_value"].mean() == pytest.approx(prevalence, rel=0.4)


# --- lives --------------------------------------------------------------------------------------------------------


def test_readmission_leaves_some_out_for_each_reason(planted):
    left_out = dict(planted.label_facts["guo_readmission"]["left_out"])
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
    assert (last_second - datetime(1970, 1, 1)).days + 1 == FOLLOW_UP_END


def test_nothing_happens_after_the_death_or_the_end_of_the_follow_up(planted):
    assert planted.events["time"].max() < datetime(2025, 1, 1)
    deaths = planted.events.filter(code="MEDS_DEATH").select("subject_id", death="time")
    assert deaths["subject_id"].is_unique().all()
    assert 500 < deaths.height < 4_000
    lives = planted.events.join(deaths, on="subject_id")
    assert lives.filter(pl.col("time") > pl.col("death")).is_empty()
    died_in_hospital = planted.events.filter(code="HOSPITAL_DISCHARGE//DIED").select("subject_id", "time")
    at_death = died_in_hospital.join(deaths, left_on=["subject_id", "time"], right_on=["subject_id", "death"])
    assert at_death.height == died_in_hospital.height > 100


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


def test_what_belongs_to_a_stay_lies_in_it_and_stays_do_not_overlap(planted):
    stays = stays_of(planted.events)
    assert stays.height > 3_000
    before = stays.with_columns(before=pl.col("discharged").shift(1).over("subject_id"))
    assert before.filter(pl.col("admitted") < pl.col("before")).is_empty()
    inside = planted.events.filter(pl.col("visit_id").is_not_null()).join(
        stays, on=["subject_id", "visit_id"], how="left"
    )
    assert inside["admitted"].null_count() == 0
    assert inside.filter((pl.col("time") < pl.col("admitted")) | (pl.col("time") > pl.col("discharged"))).is_empty()


def test_intensive_care_lies_in_its_hospital_stay(planted):
    def times(prefix, name):
        found = planted.events.filter(pl.col("code").str.starts_with(prefix))
        assert found["visit_id"].null_count() == 0
        return found.select("subject_id", "visit_id", pl.col("time").alias(name))

    keys = ["subject_id", "visit_id"]
    entered, left = times("ICU_ADMISSION", "entered"), times("ICU_DISCHARGE", "left")
    icu = entered.join(left, on=keys, how="left").join(stays_of(planted.events), on=keys, how="left")
    assert icu.height == entered.height > 1_000
    assert left.join(entered, on=keys, how="anti").is_empty()
    assert icu.filter(pl.col("left").is_null() & pl.col("discharged").is_not_null()).is_empty()
    assert icu.select((pl.col("admitted") <= pl.col("entered")).all()).item()
    closed = icu.drop_nulls()
    assert closed.select((pl.col("entered") < pl.col("left")).all()).item()
    assert closed.select((pl.col("left") <= pl.col("discharged")).all()).item()
    day = pl.col("entered").dt.date() == pl.col("admitted").dt.date()
    assert 0.1 < icu.select(day.mean()).item() < 0.9  # known at the prediction time, and still to come


# --- habits -------------------------------------------------------------------------------------------------------


def test_visits_carry_forward_as_often_as_the_truth_says(published):
    """The share of visits whose diagnoses are those of the visit before, by copy rate."""
    coded = published.events.filter(pl.col("code").str.starts_with("ICD10CM/"), pl.col("visit_id").is_null())
    lists = coded.group_by("subject_id", pl.col("time").dt.date()).agg(pl.col("code").unique().sort())
    listed = lists.sort("subject_id", "time").with_columns(
        same=(pl.col("code") == pl.col("code").shift(1)).over("subject_id")
    )
    shares = (
        listed.filter(pl.col("code").list.len() > 2)
        .group_by("subject_id")
        .agg(pl.col("same").mean(), n=pl.len())
        .filter(pl.col("n") >= 20)
    )
    joined = shares.join(published.subjects, on="subject_id")
    assert joined.height > 100
    assert np.corrcoef(joined["same"], joined["copy_rate"])[0, 1] > 0.85
    assert abs((joined["same"] - joined["copy_rate"]).mean()) < 0.1


def test_rates_of_visits_are_the_truths(published):
    """Per year of record, of subjects who are followed for long: more visits the higher the rate."""
    died = pl.col("time").filter(pl.col("code") == "MEDS_DEATH").first().fill_null(pl.datetime(2025, 1, 1))
    visited = pl.col("time").filter(pl.col("code") == "OUTPATIENT_VISIT")
    visits = published.events.group_by("subject_id").agg(
        n=visited.len(), years=(died - visited.min()).dt.total_days() / 365.25
    )
    joined = visits.filter(pl.col("years") > 5, pl.col("n") > 5).join(published.subjects, on="subject_id")
    assert joined.height > 250
    ratio = (joined["n"] / joined["years"] / joined["visit_rate"]).to_numpy()
    assert 0.8 < np.median(ratio) < 1.6  # chronic diseases bring more
    assert np.corrcoef(np.log(joined["n"] / joined["years"]), np.log(joined["visit_rate"]))[0, 1] > 0.8


def test_problems_accumulate(published):
    """The number of diagnosed diseases never falls, and is larger at the end of a record than at its beginning."""
    spans = (
        published.events.drop_nulls("time")
        .filter(pl.col("code") != "MEDS_BIRTH")
        .group_by("subject_id")
        .agg(first=pl.col("time").min(), last=pl.col("time").max())
    )
    counted = (
        spans.join(published.diseases, on="subject_id", how="left")
        .group_by("subject_id")
        .agg(
            at_first=(pl.col("diagnosed") <= pl.col("first")).sum(),
            at_last=(pl.col("diagnosed") <= pl.col("last")).sum(),
            years=(pl.col("last").first() - pl.col("first").first()).dt.total_days() / 365.25,
        )
    )
    long = counted.filter(pl.col("years") > 8)
    assert long.height > 100
    assert long["at_last"].mean() > long["at_first"].mean() + 1


# --- planted levels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("copy_rate", (0.0, 0.5, 1.0)),
        ("gap_shape", (0.5, 1.0, 4.0)),
        ("visit_rate", (1.0, 4.0)),
        ("progression", (0.0, 2.0)),
    ],
)
def test_levels_hold_all_else_fixed(preset, name, values):
    """Each subject lives once at every level: the same person, of whom one habit differs."""
    shard = shard_of(preset("planted", levels={"property": name, "values": list(values)}), 0, 0, 40 * len(values))
    subjects = shard.subjects.with_columns(twin=(pl.col("subject_id") - 1) // len(values))
    assert subjects["level"].to_list() == list(values) * 40
    assert (subjects[name] == subjects["level"]).all()
    fixed = [c for c in ("copy_rate", "gap_shape", "visit_rate", "progression", "frailty") if c != name]
    assert subjects.group_by("twin").agg(pl.col(fixed).n_unique()).select(pl.col(fixed).max()).row(0) == (1,) * len(
        fixed
    )
    births = shard.events.filter(code="MEDS_BIRTH").join(subjects, on="subject_id")
    assert births.group_by("twin").agg(pl.col("time").n_unique())["time"].max() == 1


def test_copying_changes_neither_visits_nor_results(preset):
    values = (0.0, 0.9)
    shard = shard_of(preset("planted", levels={"property": "copy_rate", "values": list(values)}), 0, 0, 80)
    rows = shard.events.with_columns(twin=(pl.col("subject_id") - 1) // 2, level=(pl.col("subject_id") - 1) % 2)
    visits = rows.filter(code="OUTPATIENT_VISIT").select("twin", "level", "time").sort("twin", "time")
    first, second = (visits.filter(level=level).drop("level") for level in (0, 1))
    assert first.equals(second)
    assert first.height > 1_000


def test_without_progression_nobody_falls_ill_anew(preset):
    shard = shard_of(preset("planted", progression=0), 0, 0, 300)
    first = (
        shard.events.drop_nulls("time")
        .filter(pl.col("code") != "MEDS_BIRTH")
        .group_by("subject_id")
        .agg(first=pl.col("time").min())
    )
    joined = shard.diseases.join(first, on="subject_id")
    assert joined.height > 500
    for stage in ("preclinical", "diagnosed", "advanced"):
        assert joined.filter(pl.col(stage) > pl.col("first").dt.offset_by("1d")).is_empty()


# --- lengths ------------------------------------------------------------------------------------------------------


def test_lengths_follow_the_published_percentiles(published):
    """Context Clues, appendix: p25 17, p50 71, p75 338, p90 1,380, p95 2,954, p99 10,235 tokens."""
    lengths = published.events.group_by("subject_id").len()["len"]
    targets = {0.25: 17, 0.5: 71, 0.75: 338, 0.9: 1_380, 0.95: 2_954, 0.99: 10_235}
    for q, target in targets.items():
        assert 0.6 * target < lengths.quantile(q) < 1.6 * target
    assert 70 <= round(lengths.median(), -1) <= 150


def test_long_records_are_as_long_as_in_intensive_care(preset):
    lengths = shard_of(preset("long"), 0, 0, 300).events.group_by("subject_id").len()["len"]
    assert 2_500 < lengths.median() < 6_000
    assert 13_000 < lengths.quantile(0.9) < 40_000


# --- the profile --------------------------------------------------------------------------------------------------


def test_profile_is_found_by_its_name(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert load(DatasetProfile, find_profile("simulated")).name == "simulated"


def test_unknown_profile_names_the_nearest(repository, monkeypatch):
    monkeypatch.chdir(repository)
    with pytest.raises(InputError, match="did you mean 'simulated'"):
        find_profile("simulatd")
