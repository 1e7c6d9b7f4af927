"""The truth of every label: there is one, and outcomes happen as often as it says, over all and in every stratum."""

import dataclasses

import numpy as np
import polars as pl
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from ehrctx.events.simulate.diseases import DISEASES, NAMES
from ehrctx.events.simulate.parameters import Parameters
from ehrctx.events.simulate.people import DEATHS, FOLLOW_UP_END, RATES, YEAR, people_of
from ehrctx.events.simulate.stays import BY_SEVERITY, LENGTH, SPREAD
from ehrctx.events.simulate.truth import Survival, length_survival
from ehrctx.tasks.definition import DEFINITIONS

TASKS = sorted(file.stem for file in DEFINITIONS.glob("*.yaml"))
LABORATORY = [task for task in TASKS if task.startswith("lab_")]


def with_truth(cohort, task):
    """The task's labels with what is true of them; `y` as a number."""
    joined = cohort.labels[task].join(
        cohort.truth.filter(task=task), on=["subject_id", "prediction_time"], how="left", maintain_order="left"
    )
    return joined.join(cohort.subjects, on="subject_id").with_columns(y=pl.col("boolean_value").cast(pl.Float64))


def z_of(labels, probability="probability"):
    """How far outcomes are from the truth, in standard errors that allow for subjects who have several labels.

    Never smaller ones than independent labels have: with few outcomes what is seen says little of how they spread.
    """
    apart = labels.group_by("subject_id").agg(d=(pl.col("y") - pl.col(probability)).sum())["d"].to_numpy()
    independent = (labels[probability] * (1 - labels[probability])).sum()
    return apart.sum() / np.sqrt(max(np.square(apart).sum(), independent))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["planted", "published"])
def test_every_label_has_one_truth(request, name, task):
    cohort = request.getfixturevalue(name)
    truth = cohort.truth.filter(task=task)
    assert not truth.select("subject_id", "prediction_time").is_duplicated().any()
    joined = with_truth(cohort, task)
    assert joined.height == cohort.labels[task].height > 1_000
    assert joined["probability"].null_count() == 0
    assert joined.select(pl.col("probability", "probability_without_cause").is_between(0, 1).all()).row(0) == (
        True,
        True,
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["planted", "published"])
def test_outcomes_happen_as_often_as_the_truth_says(request, name, task):
    labels = with_truth(request.getfixturevalue(name), task)
    assert abs(z_of(labels)) < 3.5
    assert abs(z_of(labels, "probability_without_cause")) < 3.5
    ranked = labels.sort("probability").with_row_index("rank")
    fifths = ranked.with_columns(fifth=pl.col("rank") * 5 // labels.height).partition_by("fifth")
    judged = [part for part in fifths if part["y"].sum() >= 10]
    assert max((abs(z_of(part)) for part in judged), default=0) < 3.7


@pytest.mark.parametrize("task", TASKS)
def test_the_truth_knows_more_than_the_share_of_positives(planted, task):
    labels = with_truth(planted, task)
    assert roc_auc_score(labels["y"], labels["probability"]) > 0.6


@pytest.mark.parametrize("by", ["has_cause", "has_episode", "frailty"])
def test_infarctions_are_calibrated_in_every_group(planted, by):
    for part in with_truth(planted, "new_acutemi").partition_by(by):
        assert abs(z_of(part)) < 3.3


@pytest.fixture(scope="module")
def often_in_hospital(make, preset):
    """Short records with many stays, of which some are open when the follow-up ends."""
    stays = {"index_years": None, "rate": 4, "tested": 0}
    return make(preset("planted", record_years=2, shortest_record_years=1, visits={"rate": 1}, stays=stays), 4_000)


@pytest.mark.parametrize("task", ["guo_los", "guo_icu"])
def test_a_stay_with_a_label_has_ended_before_the_follow_up(often_in_hospital, task):
    """Towards the end of it, stays that are known are short."""
    labels = with_truth(often_in_hospital, task)
    left = (pl.datetime(2025, 1, 1) - pl.col("prediction_time")).dt.total_minutes() / 1440
    last = labels.filter(left < 12)
    assert last.height > 500
    for part in (last, last.filter(left < 8), last.filter(left >= 8)):
        assert abs(z_of(part)) < 3.3
    if task == "guo_los":
        assert labels.filter(left < 6)["probability"].max() == labels.filter(left < 6)["y"].max() == 0


def test_risks_within_a_year_are_those_that_were_asked_for(make, preset):
    """Where nothing competes, and labels whose year outlasts the follow-up are left out."""
    cohort = make(preset("planted", deaths=0, cause={"risk": 0.45, "background": 0.04}), 1_500)
    whole_year = pl.col("prediction_time") < pl.datetime(2023, 12, 31)
    truth = with_truth(cohort, "new_acutemi").filter(whole_year).group_by("has_cause").agg(pl.col("probability").mean())
    risks = dict(truth.iter_rows())
    # from the second day on, and to the end of the 365th of 365.25 days
    for has_cause, risk in ((True, 0.45), (False, 0.04)):
        hazard = -np.log1p(-risk) / YEAR
        assert risks[has_cause] == pytest.approx(np.exp(-hazard) - np.exp(-365 * hazard), rel=1e-6)


@pytest.mark.parametrize("task", LABORATORY)
def test_a_results_truth_does_not_depend_on_the_cause(planted, task):
    labels = with_truth(planted, task)
    assert (labels["probability"] == labels["probability_without_cause"]).all()


def test_without_the_cause_only_infarctions_and_readmissions_differ(planted):
    differing = planted.truth.filter((pl.col("probability") - pl.col("probability_without_cause")).abs() > 1e-9)
    assert set(differing["task"]) == {"new_acutemi", "guo_readmission"}


def test_suspicion_falls_with_every_year_without_an_infarction(planted):
    """Who may have the cause, and had no infarction for long, is less likely to have it (Bayes)."""
    labels = with_truth(planted, "new_acutemi").filter("has_episode", pl.col("probability_without_cause") > 0)
    labels = labels.filter(pl.col("prediction_time") < pl.datetime(2023, 12, 31)).sort("subject_id", "prediction_time")
    first, later = (
        labels.group_by("subject_id", maintain_order=True)
        .agg(
            first=pl.col("probability_without_cause").first(),
            last=pl.col("probability_without_cause").last(),
            n=pl.len(),
        )
        .filter(pl.col("n") > 1)
        .select("first", "last")
    )
    assert len(first) > 100
    assert (later < first + 0.01).mean() > 0.95


def test_survival_is_what_happens(preset):
    """Against the simulator itself: who declines within a year, by stage, at the middle of the record."""
    parameters = preset("planted", deaths=3.0)
    people = people_of(parameters, 5, 0, 20_000)
    time = np.full(len(people), FOLLOW_UP_END - 5 * YEAR)
    rows = np.nonzero((people.start < time) & (people.decline > time))[0]
    stage = people.stage_at(rows, time[rows])
    spared = Survival.of(people, parameters.deaths).at(people, rows, time[rows], stage, np.full((len(rows), 1), 365.0))[
        :, 0
    ]
    lived = people.decline[rows] > time[rows] + 365
    for some in (
        np.ones(len(rows), bool),
        (stage >= 2).sum(axis=1) > 6,
        people.frailty[rows] == 2,
        stage.max(axis=1) == 3,
    ):
        expected = spared[some]
        z = (lived[some] - expected).sum() / np.sqrt((expected * (1 - expected)).sum())
        assert abs(z) < 3.5
        assert expected.mean() < 0.97


def test_survival_without_diseases_is_gompertz(preset):
    parameters = preset("planted", progression=0, deaths=1.0)
    people = people_of(parameters, 0, 0, 50)
    survival = Survival.of(people, 1.0)
    assert survival.logs[:, :, :2].max() == survival.logs[:, :, :2].min() == 0  # who is well stays well, and is spared
    rows, since = np.arange(50), people.start
    stage = np.zeros((50, len(NAMES)), dtype=np.int8)
    found = survival.at(people, rows, since, stage, np.full((50, 1), 200.0))[:, 0]
    ages = (since - people.birth) / YEAR
    law = stats.gompertz(c=0.006 / 0.085 * np.exp(-0.085 * 60), scale=1 / 0.085)  # .006 a year at 60
    assert np.allclose(found, (law.sf(ages + 200 / YEAR) / law.sf(ages)) ** people.frailty)


def test_killing_in_a_diagnosed_stage_is_exponential(preset):
    people = people_of(preset("planted", progression=0), 0, 0, 10)
    survival = Survival.of(people, 1.0)
    disease = NAMES.index("pancreatic cancer")
    frailty = np.unique(np.stack([people.frailty, people.progression]), axis=1)[0]
    expected = -DEATHS[disease, 0] * frailty * np.arange(367)[None].T / YEAR
    assert np.allclose(survival.logs[:, disease, 2], expected.T)


def test_lengths_of_stays_are_lognormal():
    severity = np.array([-1.0, 0.0, 2.0])
    expected = stats.lognorm(s=SPREAD, scale=np.exp(LENGTH + BY_SEVERITY * severity)).sf(7.0)
    assert np.allclose(length_survival(severity, 7.0), expected)


def test_stages_take_the_time_that_their_rates_say():
    """From the age of 18 on, each stage's wait is exponential, on the clock that runs faster once the record began."""
    people = people_of(Parameters(progression=1.0), 3, 0, 20_000)
    adult = people.birth + 18 * YEAR
    for disease in (0, 6, 17):
        first, second, _ = people.stages[:, disease].T
        waits = (second - first) * RATES[disease, 1] * people.frailty / YEAR
        assert stats.kstest(waits, "expon").pvalue > 1e-3
        assert stats.kstest((first - adult) * RATES[disease, 0] * people.frailty / YEAR, "expon").pvalue > 1e-3


def test_disease_table_lists_what_was_reached(planted):
    assert set(planted.diseases["disease"]) == set(DISEASES)
    ordered = planted.diseases.select(
        one=(pl.col("preclinical") <= pl.col("diagnosed")).all(),
        two=(pl.col("diagnosed") <= pl.col("advanced")).all(),
        all=pl.col("preclinical").is_not_null().all(),
    )
    assert ordered.row(0) == (True, True, True)
    assert dataclasses.asdict(DISEASES["lupus"])["code"] == "M32.9"
