"""DeLong's covariance against a double loop over pairs, and against the bootstrap of many labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from ehrctx.probe.delong import delong, delong_p
from ehrctx.probe.statistics import Draws
from ehrctx.study import Statistics


def by_pairs(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    """The covariance of DeLong et al. 1988, equations 4 to 6, label by label."""
    positive, negative = p[:, y], p[:, ~y]
    wins = (positive[:, :, None] > negative[:, None, :]) + 0.5 * (positive[:, :, None] == negative[:, None, :])
    of_positive, of_negative = wins.mean(axis=2), wins.mean(axis=1)
    return np.cov(of_positive) / positive.shape[1] + np.cov(of_negative) / negative.shape[1]


@hypothesis_settings(max_examples=100)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**32 - 1))
def test_independent_labels_are_delongs(n_positive, n_negative, seed):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n_positive + n_negative) < n_positive)
    p = rng.integers(0, 5, (3, len(y))) / 5  # with ties
    auroc, covariance = delong(y, p, np.arange(len(y)))
    assert auroc == pytest.approx([roc_auc_score(y, one) for one in p])
    np.testing.assert_allclose(covariance, by_pairs(y, p), atol=1e-12)


def clustered(n_subjects: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """1 to 8 labels per subject that share a risk, and two models that see it with different noise."""
    rng = np.random.default_rng(seed)
    of = np.repeat(np.arange(n_subjects), rng.integers(1, 9, n_subjects))
    risk = rng.normal(size=n_subjects)[of] + 0.5 * rng.normal(size=len(of))
    y = rng.random(len(of)) < 1 / (1 + np.exp(1.5 - risk))
    shared = rng.normal(size=n_subjects)[of]
    return y, np.stack([risk + shared, risk + 0.8 * shared + rng.normal(size=len(of))]), of


def test_delong_and_the_bootstrap_agree_on_many_labels():
    y, p, of = clustered(1_500, seed=0)
    auroc, covariance = delong(y, p, of)
    draws = Draws.of(of, Statistics(replicates=4_000))
    replicates = np.stack([draws.scores(y, one, of)[1][:, 0] for one in p])
    np.testing.assert_allclose(np.cov(replicates), covariance, rtol=0.08)
    difference = replicates[0] - replicates[1]
    spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert difference.std() == pytest.approx(spread, rel=0.05)
    limits = auroc[0] - auroc[1] + spread * norm.ppf([0.025, 0.975])
    np.testing.assert_allclose(np.quantile(difference, [0.025, 0.975]), limits, atol=0.15 * spread)


def test_labels_of_a_subject_are_not_independent():
    """Every label copied five times, within its subject: the AUROC and its variance stay as they are."""
    y, p, of = clustered(300, seed=1)
    once = delong(y, p, of)
    copied = delong(np.repeat(y, 5), np.repeat(p, 5, axis=1), np.repeat(of, 5))
    np.testing.assert_allclose(copied[0], once[0])
    np.testing.assert_allclose(copied[1], once[1])
    as_if = delong(np.repeat(y, 5), np.repeat(p, 5, axis=1), np.arange(5 * len(y)))
    assert (np.diag(as_if[1]) < np.diag(once[1]) / 4).all()


def test_p_values_are_uniform_where_two_models_are_equal():
    rng = np.random.default_rng(2)
    found = []
    for _ in range(400):
        y = rng.random(200) < 0.3
        p = y + 1.5 * rng.normal(size=(2, 200))
        found.append(delong_p(*delong(y, p, np.arange(200)), 0, 1))
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(found) < level) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 400))


def test_no_variance_is_said():
    y = np.array([True, True, False, False])
    p = np.array([[0.1, 0.4, 0.3, 0.2], [0.1, 0.4, 0.3, 0.2], [0.9, 0.8, 0.3, 0.2]])
    auroc, covariance = delong(y, p, np.array([1, 2, 3, 4]))
    assert delong_p(auroc, covariance, 0, 1) == 1.0
    assert 0 < delong_p(auroc, covariance, 0, 2) < 1
    _, one_subject = delong(y, p, np.array([1, 1, 3, 4]))
    assert np.isnan(one_subject).all()
    assert np.isnan(delong_p(auroc, one_subject, 0, 2))
