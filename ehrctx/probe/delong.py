"""DeLong's variance of AUROCs, which the bootstrap is checked against: a closed form, without replicates.

DeLong, DeLong and Clarke-Pearson 1988 for labels that are independent; Obuchowski 1997 where a subject has several.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm, rankdata


def _placements(y: np.ndarray, p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each positive, the share of negatives under it; of each negative, that of positives over it (ties half)."""
    positive, negative = p[y], p[~y]
    ranks = rankdata(np.concatenate([positive, negative]))
    under = (ranks[: len(positive)] - rankdata(positive)) / len(negative)
    over = 1 - (ranks[len(positive) :] - rankdata(negative)) / len(positive)
    return under, over


def delong(y: np.ndarray, p: np.ndarray, subject_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of each of m models, float64[m], and their covariance, float64[m, m].

    y bool[n], p float64[m, n], subject_ids int64[n]: labels of a subject may depend on each other. NaN
    where all positives, or all negatives, are one subject's, or there are none.
    """
    _, subject = np.unique(subject_ids, return_inverse=True)
    n_subjects, n_positive, n_negative = subject.max() + 1, int(y.sum()), int((~y).sum())
    of_positives, of_negatives = (np.bincount(subject[c], minlength=n_subjects) for c in (y, ~y))
    if not n_positive or not n_negative:
        return np.full(len(p), np.nan), np.full((len(p), len(p)), np.nan)
    auroc = np.empty(len(p))
    under, over = np.empty((len(p), n_subjects)), np.empty((len(p), n_subjects))
    for m, predicted in enumerate(p):
        of_positive, of_negative = _placements(y, predicted)
        auroc[m] = of_positive.mean()
        # each subject's sum of deviations from the mean
        under[m] = np.bincount(subject[y], of_positive, n_subjects) - of_positives * auroc[m]
        over[m] = np.bincount(subject[~y], of_negative, n_subjects) - of_negatives * auroc[m]
    with_positive, with_negative = int((of_positives > 0).sum()), int((of_negatives > 0).sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        s10 = np.float64(with_positive) / (with_positive - 1) / n_positive * (under @ under.T)
        s01 = np.float64(with_negative) / (with_negative - 1) / n_negative * (over @ over.T)
        s11 = np.float64(n_subjects) / (n_subjects - 1) * (under @ over.T)
    covariance = s10 / n_positive + s01 / n_negative + (s11 + s11.T) / (n_positive * n_negative)
    return auroc, np.where(np.isfinite(covariance), covariance, np.nan)


def delong_p(auroc: np.ndarray, covariance: np.ndarray, a: int, b: int) -> float:
    """Two-sided p value of "models a and b have the same AUROC"; 1 for equal predictions, NaN without a variance."""
    difference = auroc[a] - auroc[b]
    variance = covariance[a, a] + covariance[b, b] - 2 * covariance[a, b]
    if np.isnan(variance):
        return float("nan")
    if variance <= 1e-15:  # the same predictions, up to rounding
        return 1.0 if abs(difference) < 1e-12 else float("nan")
    return float(2 * norm.sf(abs(difference) / np.sqrt(variance)))
