"""AUROC, AUPRC and Brier score, their patient-level bootstrap, vectorised over replicates, and tests from it.

A replicate draws subjects with replacement, all labels of a subject together; the draws are shared by all tasks, models
and tables, so that differences are paired. A weight of w counts a label w times, as repeating it w times would.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from ehrctx.study import Privacy, Statistics

SCORES = ("auroc", "auprc", "brier")
LESS_IS_BETTER = ("brier",)
# With fewer subjects that have a positive label no verdict is drawn: in the one population that was measured, intervals
# of 10 and 20 of them held the truth as often as they say, of 5 they did not (docs/performance.md).
FEW_POSITIVES = 20
_CELLS = 8_000_000  # replicates x labels held at once: 64 MB of float64


try:
    from ehrctx.probe.statistics_numba import scores_of_replicates
except ImportError:
    scores_of_replicates = None  # type: ignore[assignment]


def scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray, columns: np.ndarray | None = None) -> np.ndarray:
    """AUROC, AUPRC (average precision) and Brier score for each row of weights; float64[replicates, 3].

    y bool[n], p float64[n], weights [replicates, m] >= 0, of which each label takes one column, that of `columns`
    int64[n] or, if left out, its own. Equal to scikit-learn's roc_auc_score, average_precision_score and
    brier_score_loss with sample_weight; NaN where a replicate holds one class only.
    """
    order = np.argsort(-p, kind="stable")
    y, p = y[order].astype(np.float64), p[order]
    order = order if columns is None else columns[order]
    if scores_of_replicates is not None:
        return scores_of_replicates(y, p, order, np.ascontiguousarray(weights))
    return _scores_in_numpy(y, p, order, weights)


def _scores_in_numpy(y: np.ndarray, p: np.ndarray, order: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same as `statistics_numba.scores_of_replicates`, some replicates at a time."""
    starts = np.flatnonzero(np.diff(p, prepend=np.inf))  # where each run of equal predictions begins
    out = np.empty((len(weights), len(SCORES)))
    for first in range(0, len(weights), max(1, _CELLS // max(1, len(y)))):
        rows = slice(first, first + max(1, _CELLS // max(1, len(y))))
        w = weights[rows][:, order].astype(np.float64)
        positive = np.add.reduceat(w * y, starts, axis=1)
        total = np.add.reduceat(w, starts, axis=1)
        negative = total - positive
        true_positives, seen = positive.cumsum(1), total.cumsum(1)
        n_positive, n_negative = true_positives[:, -1:], negative.sum(1, keepdims=True)
        with np.errstate(divide="ignore", invalid="ignore"):
            # pairs in which the positive ranks higher; half of the tied ones
            above = (negative * (true_positives - positive / 2)).sum(1, keepdims=True) / (n_positive * n_negative)
            precision = np.where(seen > 0, true_positives / seen, 0.0)
            average_precision = (positive * precision).sum(1, keepdims=True) / n_positive
            brier = (w * (y - p) ** 2).sum(1, keepdims=True) / w.sum(1, keepdims=True)
        one_class = ~((n_positive > 0) & (n_negative > 0))
        out[rows] = np.where(one_class & [True, True, False], np.nan, np.hstack([above, average_precision, brier]))
    return out


def subject_draws(subjects: np.ndarray, settings: Statistics) -> np.ndarray:
    """How often each label is counted in each replicate; uint16[replicates, n]. `subjects` are the labels' ids."""
    ids, which = np.unique(subjects, return_inverse=True)
    rng = np.random.default_rng(settings.seed)
    times = rng.multinomial(len(ids), np.full(len(ids), 1 / len(ids)), size=settings.replicates).astype(np.uint16)
    return times[:, which]


@dataclass(frozen=True)
class Draws:
    """The draws of all subjects that have a label: `ids` int64[s] ascending, `times` uint16[replicates, s]."""

    ids: np.ndarray
    times: np.ndarray

    @classmethod
    def of(cls, subject_ids: np.ndarray, settings: Statistics) -> Self:
        """Of the distinct `subject_ids`, of which there may be none."""
        ids = np.unique(subject_ids)
        return cls(ids, subject_draws(ids, settings) if len(ids) else np.zeros((settings.replicates, 0), np.uint16))

    @cached_property
    def _as_float(self) -> np.ndarray:
        return self.times.astype(np.float64)

    def scores(self, y: np.ndarray, p: np.ndarray, subject_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The scores of y bool[n] and p float64[n], float64[3], and those of each replicate, float64[replicates, 3].

        A label's weight is its subject's, so that no weights of labels are ever held: replicates x subjects suffice.
        """
        columns = np.searchsorted(self.ids, subject_ids)
        once = np.ones((1, len(self.ids)), dtype=self.times.dtype)
        return scores(y, p, once, columns)[0], scores(y, p, self.times, columns)

    def sums(self, values: np.ndarray, subject_ids: np.ndarray) -> np.ndarray:
        """Sums over labels of `values` float64[n, m] in each replicate; float64[replicates, m].

        As a draw takes a subject's labels together, the sums of each subject, weighted, are all that a replicate needs.
        """
        which = np.searchsorted(self.ids, subject_ids)
        of_subjects = np.stack([np.bincount(which, column, len(self.ids)) for column in values.T], axis=1)
        return self._as_float @ of_subjects

    def means(self, values: np.ndarray, subject_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means over labels of `values` float64[n, m], float64[m], and those of each replicate, float64[replicates, m]:
        NaN where a replicate draws none of the labels."""
        sums = self.sums(np.column_stack([values, np.ones(len(values))]), subject_ids)
        with np.errstate(invalid="ignore"):
            return values.mean(axis=0), sums[:, :-1] / sums[:, -1:]


def variances(replicates: np.ndarray) -> np.ndarray:
    """Of float64[replicates, ...] over the replicates that are defined, float64[...]; 0 where none is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nan_to_num(np.nanvar(replicates, axis=0))


def subjects_of_mean(spread: np.ndarray, n: np.ndarray) -> np.ndarray:
    """On how many subjects the mean of independent scores rests, float64[...]; infinitely many if none varies.

    `spread` float64[scores, ...] are the scores' variances, `n` [scores, ...] how many subjects each rests on: the
    degrees of freedom by Satterthwaite (1946), and one more. 1, which is no interval, if one of them rests on fewer
    than two: its variance is not known.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = spread.sum(axis=0) ** 2 / (spread**2 / (np.maximum(n, 2) - 1)).sum(axis=0)
    return 1 + np.where((n < 2).any(axis=0), 0.0, np.where(np.isnan(freedom), np.inf, freedom))


def _student(n: float) -> tuple[float, float]:
    """Student's degrees of freedom for n subjects, and how many times smaller a bootstrap's deviation, which divides by
    n and not by n - 1, is than the sample's."""
    return min(n - 1, 1e9), np.sqrt(1 - 1 / n)


@dataclass(frozen=True)
class Intervals:
    """Expanded percentile intervals of a `level`, and tests (Hesterberg 2015, The American Statistician 69:371).

    Percentiles are too narrow for few subjects: as a normal's quantiles are against Student's t, and as a variance that
    divides by n is against one that divides by n - 1. The level is raised by as much.
    """

    level: float
    least: int = 2

    @classmethod
    def under(cls, privacy: Privacy, level: float) -> Self:
        """Those that may be shown where counts under the minimum are hidden."""
        return cls(level, max(2, privacy.minimum_count))

    def subjects(self, y: np.ndarray, subject_ids: np.ndarray) -> int:
        """On how many subjects a score of labels y bool[n] rests: those with a label of the class that fewer have.

        0, which is no interval, if they are fewer than `least`: where counts are hidden, intervals that are missing for
        one subject alone would tell it.
        """
        n = min(len(np.unique(subject_ids[y])), len(np.unique(subject_ids[~y])))
        return n if n >= self.least else 0

    def _defined(self, replicates: np.ndarray, n: float) -> np.ndarray | None:
        defined = replicates[np.isfinite(replicates)]
        return defined if n >= 2 and len(defined) >= len(replicates) / 2 else None

    def of(self, replicates: np.ndarray, n: float) -> tuple[float, float]:
        """The limits of a score of `n` subjects, over the replicates that are defined; (NaN, NaN) if most are not."""
        defined = self._defined(replicates, n)
        if defined is None:
            return float("nan"), float("nan")
        freedom, shrinkage = _student(n)
        tail = float(ndtr(stdtrit(freedom, (1 - self.level) / 2) / shrinkage))
        lower, upper = np.quantile(defined, [tail, 1 - tail])
        return float(lower), float(upper)

    def two_sided_p(self, replicates: np.ndarray, n: float) -> float:
        """P value of "the difference is 0": the level at which its interval would just reach 0; NaN if there is none.

        From the smaller share of replicates at or beyond 0, never less than one of as many and one (Davison and Hinkley
        1997, section 4.4).
        """
        defined = self._defined(replicates, n)
        if defined is None:
            return float("nan")
        beyond = min((defined <= 0).sum(), (defined >= 0).sum())
        freedom, shrinkage = _student(n)
        return float(2 * stdtr(freedom, shrinkage * min(0.0, ndtri((1 + beyond) / (1 + len(defined))))))


def holm(p: np.ndarray) -> np.ndarray:
    """P values float64[m] adjusted for being m (Holm 1979): rejecting those under a level keeps the chance of any false
    rejection under it. NaN is no test and stays."""
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted
