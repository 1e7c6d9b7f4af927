"""AUROC, AUPRC and Brier score, and their patient-level bootstrap, vectorised over replicates.

A replicate draws subjects with replacement, all labels of a subject together; the draws are shared by all models of a
task, so that differences are paired. A weight of w counts a label w times, as repeating it w times would.
"""

from __future__ import annotations

import numpy as np

from ehrctx.study import Statistics

SCORES = ("auroc", "auprc", "brier")
_CELLS = 8_000_000  # replicates x labels held at once: 64 MB of float64


try:
    from ehrctx.probe.statistics_numba import scores_of_replicates
except ImportError:
    scores_of_replicates = None  # type: ignore[assignment]


def scores(y: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC, AUPRC (average precision) and Brier score for each row of weights; float64[replicates, 3].

    y bool[n], p float64[n], weights [replicates, n] >= 0. Equal to scikit-learn's roc_auc_score,
    average_precision_score and brier_score_loss with sample_weight; NaN where a replicate holds one class only.
    """
    order = np.argsort(-p, kind="stable")
    y, p = y[order].astype(np.float64), p[order]
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


def interval(replicates: np.ndarray, level: float) -> tuple[float, float]:
    """Percentile interval over the replicates that are defined; (NaN, NaN) if fewer than half are."""
    defined = replicates[np.isfinite(replicates)]
    if len(defined) < len(replicates) / 2:
        return float("nan"), float("nan")
    lower, upper = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)
