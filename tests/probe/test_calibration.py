"""Slope, intercept and error against scikit-learn, refitted replicates and planted truths."""

from __future__ import annotations

import warnings
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from ehrctx.probe.by_task import Entry, TaskPredictions
from ehrctx.probe.calibration import (
    calibration_in_the_large,
    calibration_tables,
    fit_line,
    logits,
    quantile_bins,
    recalibrate,
)
from ehrctx.probe.statistics import Draws, Intervals, subject_draws
from ehrctx.study import Statistics

MODEL = Entry("mamba-tiny-64", "logistic_regression")


def risks(n: int, seed: int, intercept: float = 0.0, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels y and predictions p, whose logits lie on the line of the true ones."""
    rng = np.random.default_rng(seed)
    x = rng.normal(-1.5, 1.2, n)
    return rng.random(n) < expit(intercept + slope * x), expit(x)


def task_of(y: np.ndarray, p: np.ndarray, subject_ids: np.ndarray | None = None) -> TaskPredictions:
    ids = np.arange(len(y)) if subject_ids is None else subject_ids
    times = np.array([datetime(2000, 1, 1) + timedelta(hours=i) for i in range(len(y))], dtype="datetime64[us]")
    return TaskPredictions("stay", y, ids, times, {MODEL: p})


def table_of(task: TaskPredictions, tuning: TaskPredictions | None = None, replicates: int = 400):
    draws = Draws.of(task.subject_ids, Statistics(replicates=replicates))
    return calibration_tables([(task, tuning)], draws, Intervals(0.95))


def measure(table: pl.DataFrame, name: str, recalibration: str = "none") -> dict:
    found = table.filter((pl.col("measure") == name) & (pl.col("recalibration") == recalibration))
    assert found.height == 1
    return found.row(0, named=True)


def by_sklearn(y: np.ndarray, x: np.ndarray) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(x[:, None], y)
    return float(fitted.intercept_[0]), float(fitted.coef_[0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_the_line_is_the_unpenalised_logistic_regression(seed):
    y, p = risks(300, seed, 0.4, [1.0, 0.3, -0.5, 2.5, 0.0][seed])
    line = fit_line(y, logits(p))
    assert line == pytest.approx(by_sklearn(y, logits(p)), abs=1e-4)


def test_no_line_where_there_is_none():
    y = np.array([True, False, True, False])
    assert fit_line(np.ones(4, dtype=bool), np.arange(4.0)) is None
    assert fit_line(y, np.ones(4)) is None
    assert fit_line(y, np.array([3.0, 1.0, 4.0, 2.0])) is None, "a threshold parts the classes"
    assert fit_line(y, np.array([1.0, 3.0, 2.0, 4.0])) is None
    assert fit_line(y, np.array([2.0, 1.0, 3.0, 2.0])) is None, "parted but for a tie"
    assert fit_line(y, np.array([1.0, 2.0, 4.0, 3.0])) is not None


def test_one_positive_subject_has_no_interval_at_all():
    y, p = np.arange(60) < 1, np.linspace(0.9, 0.1, 60)
    table, bins = table_of(task_of(y, p))
    assert np.isfinite(measure(table, "ece")["value"])
    assert np.isnan(table.select("lower", "upper").to_numpy()).all()
    assert np.isnan(bins.select("lower", "upper").to_numpy()).all()


def test_no_line_where_rounding_alone_mixes_the_classes():
    """A LightGBM of one leaf too many, on the MIMIC-IV demo: its one positive label shares a leaf with all negative
    ones but one, whose predictions differ in the thirteenth digit."""
    rng = np.random.default_rng(0)
    x = np.append(-7.84 + 1e-13 * rng.integers(-3, 4, 30), 13.8)
    y = np.arange(31) == int(np.argsort(x)[10])
    assert fit_line(y, x) is None
    assert fit_line(~y, x) is None


@settings(max_examples=400)
@given(st.data())
def test_a_line_or_none_for_predictions_of_few_leaves(data):
    """Whatever the leaves and the rounding: never a failure, and never what is not finite."""
    leaves = st.sampled_from([0.0, 1.0, 0.5, 1e-9, 0.01, 0.0100001, 0.2, 0.200000000001, 0.999])
    n = data.draw(st.integers(1, 12))
    p = np.array(data.draw(st.lists(leaves, min_size=n, max_size=n)))
    y = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    rounding = np.array(data.draw(st.lists(st.integers(-3, 3), min_size=n, max_size=n))) * 1e-13
    line = fit_line(y, logits(p) + rounding)
    assert line is None or np.isfinite(line).all()


def test_a_far_start_converges():
    """Predictions near 0 and 1, as trees make them, some of them wrong."""
    rng = np.random.default_rng(0)
    p = rng.choice([0.0, 1.0, 0.01, 0.99, 0.5], 400)
    y = rng.random(400) < 0.1 + 0.3 * p
    assert fit_line(y, logits(p)) == pytest.approx(by_sklearn(y, logits(p)), abs=1e-4)


def test_calibration_in_the_large_makes_the_mean_right():
    y, p = risks(500, 1, 0.7)
    shift = calibration_in_the_large(y, logits(p))
    assert expit(shift + logits(p)).mean() == pytest.approx(y.mean(), abs=1e-9)
    assert shift == pytest.approx(0.7, abs=0.35)
    assert np.isnan(calibration_in_the_large(np.zeros(3, dtype=bool), np.zeros(3)))


def test_planted_miscalibration_is_found_and_mended():
    y, p = risks(20_000, 2, intercept=0.5, slope=0.6)
    y_tuning, p_tuning = risks(20_000, 3, intercept=0.5, slope=0.6)
    table, _ = table_of(task_of(y, p), task_of(y_tuning, p_tuning))
    slope = measure(table, "slope")
    assert slope["lower"] < 0.6 < slope["upper"] < 0.7
    for name, truth in (("slope", 1.0), ("intercept", 0.0)):
        mended = measure(table, name, "tuning")
        assert mended["lower"] < truth < mended["upper"]
    assert measure(table, "ece", "tuning")["value"] < 0.2 * measure(table, "ece")["value"]
    assert measure(table, "brier", "tuning")["value"] < measure(table, "brier")["value"]
    assert measure(table, "brier")["value"] == pytest.approx(((p - y) ** 2).mean())
    mended_p = recalibrate(y_tuning, p_tuning, p)
    assert mended_p is not None
    assert (np.argsort(mended_p, kind="stable") == np.argsort(p, kind="stable")).all(), "the ranking stays"


def test_replicates_take_one_step_to_where_a_refit_goes():
    rng = np.random.default_rng(4)
    y, p = risks(2_000, 4, 0.3, 0.8)
    of = rng.integers(0, 400, len(y))
    settings = Statistics(replicates=60)
    draws = Draws.of(of, settings)
    table, _ = calibration_tables([(task_of(y, p, of), None)], draws, Intervals(0.95))
    drawn, x = subject_draws(of, settings), logits(p)
    refitted = [by_sklearn(np.repeat(y, times), np.repeat(x, times))[1] for times in drawn]
    shifted = [calibration_in_the_large(np.repeat(y, times), np.repeat(x, times)) for times in drawn]
    for name, exact in (("slope", refitted), ("intercept", shifted)):
        found = measure(table, name)
        spread = np.std(exact)
        np.testing.assert_allclose(
            (found["lower"], found["upper"]), np.quantile(exact, [0.025, 0.975]), atol=0.15 * spread, err_msg=name
        )


@pytest.mark.parametrize("decimals", [1, 12])
def test_bins_and_curve_are_scikit_learns(decimals):
    y, p = risks(997, 5)
    p = p.round(decimals)  # with few values, many fall together
    observed, predicted = calibration_curve(y, p, n_bins=10, strategy="quantile")
    _, curve = table_of(task_of(y, p))
    np.testing.assert_allclose(curve["value"], observed)
    np.testing.assert_allclose(curve["predicted"], predicted)
    assert curve["n"].sum() == len(y)
    assert curve["n_positive"].sum() == y.sum()
    assert ((curve["lower"] <= curve["value"]) & (curve["value"] <= curve["upper"])).all()
    ece = sum(n / len(y) * abs(o - q) for n, o, q in zip(curve["n"], observed, predicted, strict=True))
    table, _ = table_of(task_of(y, p))
    assert measure(table, "ece")["value"] == pytest.approx(ece)
    sizes = np.bincount(quantile_bins(p))
    if decimals == 12:
        assert sizes.min() >= 99


def true_error(p: np.ndarray, intercept: float) -> float:
    """Of predictions whose logits are too low by `intercept`, over the bins of `p`."""
    gap = p - expit(intercept + logits(p))
    return float(np.abs(np.bincount(quantile_bins(p), gap)).sum() / len(p))


@pytest.mark.parametrize("intercept", [0.0, 0.25, 1.0])
def test_the_interval_of_the_error_covers_the_truth(intercept):
    """Percentiles would never cover a perfect calibration: noise alone gives every replicate some error."""
    covered = 0
    for seed in range(200):
        y, p = risks(600, 100 + seed, intercept)
        table, _ = table_of(task_of(y, p), replicates=200)
        found = measure(table, "ece")
        covered += found["lower"] - 1e-12 <= true_error(p, intercept) <= found["upper"] + 1e-12
    assert covered >= 181, "of 200; 190 are asked for, and 9 less are 3 standard deviations"


def test_one_class_and_equal_predictions_give_no_number_but_no_error():
    y, p = risks(40, 6)
    never, _ = table_of(task_of(np.zeros(40, dtype=bool), p))
    assert np.isnan(measure(never, "slope")["value"])
    assert np.isnan(measure(never, "intercept")["value"])
    assert measure(never, "ece")["value"] == pytest.approx(p.mean())
    same, curve = table_of(task_of(y, np.full(40, 0.3)), task_of(y, np.full(40, 0.3)))
    assert np.isnan(measure(same, "slope")["value"])
    assert curve.height == 1
    assert set(same["recalibration"]) == {"none"}, "nothing to fit a line on"
    falling = recalibrate(~y, p, p)
    assert falling is None, "the ranking would turn round"


@pytest.mark.parametrize("spread", [1e-5, 1e-9, 1e-14])
def test_predictions_that_hardly_differ_have_no_line(spread):
    """As a head with C of 1e-8 makes them; the equations of their line are singular."""
    y, p = risks(60, 7)
    table, _ = table_of(task_of(y, 0.2 + spread * p), task_of(y, 0.2 + spread * p))
    assert np.isnan(measure(table, "slope")["value"])
    assert np.isfinite(measure(table, "intercept")["value"])
