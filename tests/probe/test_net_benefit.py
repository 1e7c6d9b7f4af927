"""Net benefit against its formula, counted label by label."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from by_hand import expanded, rarer

from ehrctx.probe.by_task import Entry, TaskPredictions
from ehrctx.probe.net_benefit import SMALLEST, TREAT_ALL, net_benefit_table
from ehrctx.probe.statistics import Draws, Intervals, subject_draws
from ehrctx.probe.tables import _hide_few_flagged
from ehrctx.study import Privacy, Statistics

THRESHOLDS = (0.05, 0.2, 0.5)
MODEL = Entry("a", "logistic_regression")


def counted(y: np.ndarray, p: np.ndarray, threshold: float) -> float:
    """Vickers and Elkin 2006: true positives / n - false positives / n x t / (1 - t)."""
    true = sum(1 for yes, risk in zip(y, p, strict=True) if yes and risk >= threshold)
    false = sum(1 for yes, risk in zip(y, p, strict=True) if not yes and risk >= threshold)
    return true / len(y) - false / len(y) * threshold / (1 - threshold)


@pytest.fixture(scope="module")
def made() -> tuple[TaskPredictions, pl.DataFrame]:
    rng = np.random.default_rng(0)
    of = rng.integers(0, 40, 120)
    p = rng.choice([0.05, 0.1, 0.2, 0.4, 0.5, 0.9], 120)  # some exactly at a threshold: they are treated
    y = rng.random(120) < p
    task = TaskPredictions("stay", y, of, np.arange(120).astype("datetime64[us]"), {MODEL: p})
    draws = Draws.of(of, Statistics(replicates=50))
    return task, net_benefit_table([(task, None)], draws, THRESHOLDS, Intervals(0.9))


def at(table: pl.DataFrame, model: str, threshold: float) -> dict:
    return table.filter((pl.col("model") == model) & (pl.col("threshold") == threshold)).row(0, named=True)


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_values_intervals_and_gains_are_those_counted(made, threshold):
    task, table = made
    p = task.p[MODEL]
    value, everybody = counted(task.y, p, threshold), counted(task.y, np.ones(120), threshold)
    found = at(table, "a", threshold)
    assert found["value"] == pytest.approx(value)
    assert at(table, TREAT_ALL, threshold)["value"] == pytest.approx(everybody)
    assert found["gain"] == pytest.approx(value - max(everybody, 0))
    replicates, gains = [], []
    for times in subject_draws(task.subject_ids, Statistics(replicates=50)):
        y, drawn = np.repeat(task.y, times), np.repeat(p, times)
        replicates.append(counted(y, drawn, threshold))
        default = counted(y, np.ones(len(y)), threshold) if everybody > 0 else 0.0
        gains.append(replicates[-1] - default)
    n = rarer(task.y, task.subject_ids)
    assert (found["lower"], found["upper"]) == pytest.approx(expanded(replicates, 0.9, n))
    assert (found["gain_lower"], found["gain_upper"]) == pytest.approx(expanded(gains, 0.9, n))
    assert found["n_flagged_subjects"] == len(set(task.subject_ids[p >= threshold]))


def test_treating_all_gains_nothing_over_itself(made):
    _, table = made
    everybody = table.filter(pl.col("model") == TREAT_ALL)
    assert everybody.height == len(THRESHOLDS)
    for row in everybody.iter_rows(named=True):
        assert row["gain"] == pytest.approx(min(row["value"], 0.0))


def test_true_risks_are_never_worse_than_the_defaults():
    rng = np.random.default_rng(1)
    p = rng.beta(1, 4, 20_000)
    y = rng.random(20_000) < p
    task = TaskPredictions("stay", y, np.arange(20_000), np.arange(20_000).astype("datetime64[us]"), {MODEL: p})
    draws = Draws.of(task.subject_ids, Statistics(replicates=50))
    table = net_benefit_table([(task, None)], draws, (0.02, 0.1, 0.3, 0.6), Intervals(0.95)).filter(model="a")
    assert (table["gain_upper"] > 0).all()
    assert (table.filter(pl.col("threshold").is_in([0.1, 0.3]))["gain_lower"] > 0).all()


def test_rows_that_would_count_few_people_are_empty(made):
    """Of 120 labels: what is flagged, right or wrong, is told only where no part of it is small."""
    _, table = made
    hidden = _hide_few_flagged(table, Privacy(minimum_count=10))
    assert SMALLEST not in hidden.columns
    for exact, shown in zip(table.iter_rows(named=True), hidden.iter_rows(named=True), strict=True):
        flagged = exact["n_flagged_subjects"]
        few = exact[SMALLEST] < 10 or 0 < flagged < 10 or 0 < exact["n_subjects"] - flagged < 10
        assert (shown["value"] is None) == few
        assert shown["n_flagged_subjects"] == ("" if few else str(flagged))
    assert hidden["value"].null_count() > 0
    assert hidden["value"].count() > 0
