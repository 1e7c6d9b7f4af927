"""AUROC, AUPRC and Brier score, their patient-level bootstrap, vectorised over replicates, and tests from it.

A replicate draws subjects with replacement, all labels of a subject together; the draws are shared by all tasks, models
and tables, so that differences are paired. A weight of w counts a label w times, as repeating it w times would.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from ehrctx.study import Statistics

SCORES = ("auroc", "auprc", "brier")
LESS_IS_BETTER = ("brier",)
# With fewer subjects that have a positive label, a percentile bootstrap over subjects covers clearly less than it says
# (two subjects with 15 positive labels each: 39 % of its intervals call two equal models different). No verdict then.
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


def interval(replicates: np.ndarray, level: float) -> tuple[float, float]:
    """Percentile interval over the replicates that are defined; (NaN, NaN) if fewer than half are."""
    defined = replicates[np.isfinite(replicates)]
    if len(defined) < len(replicates) / 2:
        return float("nan"), float("nan")
    lower, upper = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)


def two_sided_p(replicates: np.ndarray) -> float:
    """P value of "the difference is 0": the level at which the percentile interval would just reach 0.

    Twice the smaller share of replicates at or beyond 0, never less than 2 / (replicates + 1) (Davison and Hinkley
    1997, section 4.4); NaN where `interval` is.
    """
    defined = replicates[np.isfinite(replicates)]
    if len(defined) < len(replicates) / 2:
        return float("nan")
    beyond = min((defined <= 0).sum(), (defined >= 0).sum())
    return float(min(1.0, 2 * (1 + beyond) / (1 + len(defined))))


def holm(p: np.ndarray) -> np.ndarray:
    """P values float64[m] adjusted for being m (Holm 1979): rejecting those under a level keeps the chance of any false
    rejection under it. NaN is no test and stays."""
    adjusted = np.full(len(p), np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted
