"""Do predicted risks mean what they say? Reliability curves, calibration slope and intercept, expected calibration
error, and recalibration on the tuning split.

Slope and intercept are Cox's (1958): the logistic regression of the label on the logit of the prediction, and its
intercept where the slope is held at 1 (calibration in the large). 1 and 0 are perfect. A slope under 1 is too sure of
itself, an intercept over 0 predicts too little.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from scipy.optimize import brentq
from scipy.special import expit, logit

from ehrctx.probe.by_task import Entry, TaskPredictions
from ehrctx.probe.statistics import Draws, Intervals
from ehrctx.probe.suppression import COUNTS

BINS = 10
CLIP = 1e-6  # trees predict 0 and 1, whose logits are infinite
SPREAD = 1e-4  # a head that hardly learned (C of 1e-8) predicts one risk for all: no line goes through one point
MEASURES = ("slope", "intercept", "ece", "brier")
AS_PREDICTED, RECALIBRATED = "none", "tuning"

_WHO = dict.fromkeys(("task", "model", "head", "recalibration"), pl.String)
_ESTIMATE: dict[str, Any] = dict.fromkeys(("value", "lower", "upper"), pl.Float64)
_COUNTED = dict.fromkeys(COUNTS, pl.Int64)
CALIBRATION_TABLE: dict[str, Any] = {**_WHO, "measure": pl.String, **_ESTIMATE, **_COUNTED}
RELIABILITY_TABLE: dict[str, Any] = {**_WHO, "bin": pl.Int64, "predicted": pl.Float64, **_ESTIMATE, **_COUNTED}


def logits(p: np.ndarray) -> np.ndarray:
    """Log odds of probabilities, float64[n], those within CLIP of 0 or 1 moved there."""
    return logit(np.clip(p, CLIP, 1 - CLIP))


class Line(NamedTuple):
    """The log odds of the label are intercept + slope x the log odds of the prediction."""

    intercept: float
    slope: float


def fit_line(y: np.ndarray, x: np.ndarray) -> Line | None:
    """The maximum-likelihood line of labels y bool[n] on log odds x float64[n], by Newton's method.

    None where there is none: one class, x within SPREAD, or classes that some threshold parts but for SPREAD.
    """
    positive, negative = x[y], x[~y]
    if not len(positive) or not len(negative) or np.ptp(x) < SPREAD:
        return None
    # a tree's leaf gives all its labels one risk, up to rounding
    if positive.min() > negative.max() - SPREAD or positive.max() < negative.min() + SPREAD:
        return None
    centre, spread = x.mean(), x.std()
    x = (x - centre) / spread  # or predictions that hardly differ would make the equations singular
    theta = np.array([logit(y.mean()), 0.0])
    for _ in range(100):
        step = np.linalg.solve(*_information_and_score(y, x, theta))
        # halved until the likelihood grows, or a far start would overshoot
        while _log_likelihood(y, x, theta + step) < _log_likelihood(y, x, theta) - 1e-9:
            step /= 2
        theta += step
        if np.abs(step).max() < 1e-10:
            break
    intercept, slope = theta.tolist()
    return Line(intercept - slope * centre / spread, slope / spread)


def _log_likelihood(y: np.ndarray, x: np.ndarray, theta: np.ndarray) -> float:
    eta = theta[0] + theta[1] * x
    return float((y * eta - np.logaddexp(0, eta)).sum())


def _information_and_score(y: np.ndarray, x: np.ndarray, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean = expit(theta[0] + theta[1] * x)
    design = np.stack([np.ones_like(x), x])
    return (design * (mean * (1 - mean))) @ design.T, design @ (y - mean)


def calibration_in_the_large(y: np.ndarray, x: np.ndarray) -> float:
    """The intercept where the slope is 1; NaN for labels of one class."""
    if y.all() or not y.any():
        return float("nan")
    found = brentq(lambda intercept: float((expit(intercept + x) - y).sum()), -50, 50, xtol=1e-12)
    return float(found)


def recalibrate(y_tuning: np.ndarray, p_tuning: np.ndarray, p: np.ndarray) -> np.ndarray | None:
    """`p` on the line that was fitted on the tuning split (Platt 1999); None where there is no line, or a falling one,
    which would turn the ranking round."""
    line = fit_line(y_tuning, logits(p_tuning))
    return None if line is None or line.slope <= 0 else expit(line.intercept + line.slope * logits(p))


def quantile_bins(p: np.ndarray) -> np.ndarray:
    """BINS bins of about equal size, equal predictions together; int64[n] from 0 (scikit-learn's `quantile`)."""
    edges = np.percentile(p, np.linspace(0, 100, BINS + 1)[1:-1])
    return np.searchsorted(edges, p)


def _slope_and_intercept(y: np.ndarray, x: np.ndarray, subject_ids: np.ndarray, draws: Draws) -> dict[str, Any]:
    """Each with its replicates, which take one Newton step from the whole sample's line: refitting to the first order
    (Davison and Hinkley 1997, section 2.7), at the price of sums over subjects."""
    large, line = calibration_in_the_large(y, x), fit_line(y, x)
    mean = expit(large + x)
    gradient, curvature = draws.sums(np.stack([y - mean, mean * (1 - mean)], axis=1), subject_ids).T
    with np.errstate(divide="ignore", invalid="ignore"):
        found: dict[str, Any] = {"intercept": (large, large + gradient / curvature)}
    if line is None:
        return found | {"slope": (float("nan"), np.full(len(gradient), np.nan))}
    mean = expit(line.intercept + line.slope * x)
    weight, residual = mean * (1 - mean), y - mean
    sums = draws.sums(np.stack([weight, weight * x, weight * x**2, residual, residual * x], axis=1), subject_ids)
    w, wx, wxx, r, rx = sums.T
    with np.errstate(divide="ignore", invalid="ignore"):
        return found | {"slope": (line.slope, line.slope + (w * rx - wx * r) / (w * wxx - wx**2))}


def _error(
    y: np.ndarray, p: np.ndarray, subject_ids: np.ndarray, draws: Draws, intervals: Intervals, n: int
) -> tuple[float, float, float]:
    """Expected calibration error over `quantile_bins`, the mean distance of predicted and observed; and its interval.

    Noise moves every bin away from the truth, so that the error is too large, and that of a replicate still more.
    Percentiles would add the two up. The upper limit is as far above the error as the lower quantile of the replicates
    is below their mean. The lower limit is the error minus what noise may have added at most, by the triangle
    inequality: the replicates' distance from the sample.
    """
    gaps, of_replicates = draws.means(np.eye(BINS)[quantile_bins(p)] * (p - y)[:, None], subject_ids)
    error = float(np.abs(gaps).sum())
    errors = np.abs(of_replicates).sum(axis=1)
    _, noise = intervals.of(np.abs(of_replicates - gaps).sum(axis=1), n)
    upper = error + float(np.nanmean(errors)) - intervals.of(errors, n)[0]
    return error, float(np.maximum(0.0, error - noise)), upper


def _measures(
    y: np.ndarray, p: np.ndarray, subject_ids: np.ndarray, draws: Draws, intervals: Intervals
) -> list[dict[str, Any]]:
    """One row for each of MEASURES."""
    brier, of_replicates = draws.means(((p - y) ** 2)[:, None], subject_ids)
    replicated = _slope_and_intercept(y, logits(p), subject_ids, draws)
    replicated["brier"] = float(brier[0]), of_replicates[:, 0]
    n = intervals.subjects(y, subject_ids)
    found = {name: (point, *intervals.of(replicates, n)) for name, (point, replicates) in replicated.items()}
    found["ece"] = _error(y, p, subject_ids, draws, intervals, n)
    return [{"measure": name} | dict(zip(_ESTIMATE, found[name], strict=True)) for name in MEASURES]


def _bins(task: TaskPredictions, p: np.ndarray, draws: Draws, intervals: Intervals) -> list[dict[str, Any]]:
    """The reliability curve: the mean prediction and the share of positive labels of each bin that is not empty."""
    which = quantile_bins(p)
    inside = np.eye(BINS)[which]
    sums = draws.sums(np.concatenate([inside * task.y[:, None], inside], axis=1), task.subject_ids)
    rows = []
    for b in np.unique(which):
        rows_of_bin = which == b
        n = intervals.subjects(task.y[rows_of_bin], task.subject_ids[rows_of_bin])
        with np.errstate(invalid="ignore"):
            lower, upper = intervals.of(sums[:, b] / sums[:, BINS + b], n)
        found = {"bin": int(b) + 1, "predicted": float(p[rows_of_bin].mean())}
        found |= {"value": float(task.y[rows_of_bin].mean()), "lower": lower, "upper": upper}
        rows.append(found | task.only(rows_of_bin).counts())
    return rows


def variants(task: TaskPredictions, tuning: TaskPredictions | None, entry: Entry) -> dict[str, np.ndarray]:
    """The predictions of one entry as they are, and recalibrated where the tuning split allows it."""
    found = {AS_PREDICTED: task.p[entry]}
    if tuning is not None and entry in tuning.p:
        recalibrated = recalibrate(tuning.y, tuning.p[entry], task.p[entry])
        if recalibrated is not None:
            found[RECALIBRATED] = recalibrated
    return found


def calibration_tables(
    tasks: Iterable[tuple[TaskPredictions, TaskPredictions | None]], draws: Draws, intervals: Intervals
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """CALIBRATION_TABLE and RELIABILITY_TABLE of the heads fitted on all labels; `tasks` are (held-out, tuning).

    Recalibrated rows are missing where the tuning split has one class or no predictions of the task.
    """
    measures: list[dict[str, Any]] = []
    bins: list[dict[str, Any]] = []
    for task, tuning in tasks:
        for entry in task.on_all_labels().p:
            for recalibration, p in variants(task, tuning, entry).items():
                who = {"task": task.task, "model": entry.model, "head": entry.head, "recalibration": recalibration}
                counts = task.counts()
                measures += [who | row | counts for row in _measures(task.y, p, task.subject_ids, draws, intervals)]
                bins += [who | row for row in _bins(task, p, draws, intervals)]
    return pl.DataFrame(measures, schema=CALIBRATION_TABLE), pl.DataFrame(bins, schema=RELIABILITY_TABLE)
