"""Scores and their patient-level bootstrap against scikit-learn, and against literally repeated rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from scipy.stats import norm, ttest_1samp, ttest_ind
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ehrctx.probe import statistics as module
from ehrctx.probe.statistics import (
    Draws,
    Intervals,
    holm,
    scores,
    subject_draws,
    subjects_of_mean,
    variances,
)
from ehrctx.study import Statistics


def by_sklearn(y: np.ndarray, p: np.ndarray, weights: np.ndarray | None = None) -> list[float]:
    brier = float(np.average((y - p) ** 2, weights=weights)) if weights is None or weights.sum() else np.nan
    kept = y if weights is None else y[weights > 0]
    if len(np.unique(kept)) < 2:
        return [np.nan, np.nan, brier]
    assert brier == pytest.approx(brier_score_loss(y, p, sample_weight=weights))
    return [
        roc_auc_score(y, p, sample_weight=weights),
        average_precision_score(y, p, sample_weight=weights),
        brier,
    ]


ROWS = st.lists(
    # few different predictions, so that there are ties; neighbours a rounding apart are no ties
    st.tuples(
        st.booleans(),
        st.one_of(st.sampled_from([0.0, 0.1, 0.5, np.nextafter(0.5, 1), 0.9, 1.0]), st.floats(0, 1)),
        st.integers(0, 4),
    ),
    min_size=2,
    max_size=30,
)


@hypothesis_settings(max_examples=200)
@given(rows=ROWS)
def test_scores_are_those_of_scikit_learn(rows):
    y, p, w = (np.array(column) for column in zip(*rows, strict=True))
    if not w.sum():
        w[0] = 1
    found = scores(y, p, np.stack([np.ones(len(y), dtype=int), w]))
    np.testing.assert_allclose(found[0], by_sklearn(y, p), atol=1e-9)
    np.testing.assert_allclose(found[1], by_sklearn(y, p, w), atol=1e-9)
    repeated = np.repeat(np.arange(len(y)), w)
    np.testing.assert_allclose(found[1], by_sklearn(y[repeated], p[repeated]), atol=1e-9)


@pytest.mark.parametrize("label", [True, False])
def test_one_class_has_a_brier_score_alone(label):
    p = np.array([0.2, 0.7, 0.7])
    found = scores(np.array([label] * 3), p, np.ones((1, 3)))[0]
    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx(np.mean((label - p) ** 2))
    mixed = scores(np.array([True, False, False]), p, np.array([[0, 1, 2], [3, 0, 0], [1, 1, 0]]))
    assert np.isnan(mixed[:, 0]).tolist() == [True, True, False]
    assert np.isfinite(mixed[:, 2]).all()


@pytest.mark.parametrize("cells", [1, 40, 41, 200])
def test_many_replicates_are_cut_without_a_seam(monkeypatch, cells):
    """In numpy; the compiled version goes through them one by one."""
    rng = np.random.default_rng(0)
    y, p, w = rng.random(40) < 0.3, rng.random(40).round(1), rng.integers(0, 3, size=(23, 40))
    whole = scores(y, p, w)
    monkeypatch.setattr(module, "_CELLS", cells)
    monkeypatch.setattr(module, "scores_of_replicates", None)
    np.testing.assert_allclose(scores(y, p, w), whole, atol=1e-12)


def test_order_of_the_rows_does_not_matter():
    rng = np.random.default_rng(1)
    y, p, w = rng.random(40) < 0.3, rng.random(40).round(1), rng.integers(0, 3, size=(5, 40))
    order = rng.permutation(40)
    np.testing.assert_allclose(scores(y[order], p[order], w[:, order]), scores(y, p, w), atol=1e-12)


@hypothesis_settings(max_examples=40)
@given(subjects=st.lists(st.integers(-5, 12), min_size=1, max_size=40), seed=st.integers(0, 50))
def test_all_labels_of_a_subject_are_drawn_together(subjects, seed):
    subjects = np.array(subjects)
    settings = Statistics(replicates=25, seed=seed)
    draws = subject_draws(subjects, settings)
    ids, first = np.unique(subjects, return_index=True)
    assert draws.shape == (25, len(subjects))
    assert (draws >= 0).all()
    for subject, place in zip(ids, first, strict=True):
        assert (draws[:, subjects == subject] == draws[:, [place]]).all()
    assert (draws[:, first].astype(int).sum(axis=1) == len(ids)).all(), "as many subjects as there are, each time"
    np.testing.assert_array_equal(draws, subject_draws(subjects, settings))


def test_draws_follow_the_seed_and_draw_with_replacement():
    subjects = np.repeat(np.arange(30), 3)
    draws = subject_draws(subjects, Statistics(replicates=2_000, seed=1))
    assert not np.array_equal(draws, subject_draws(subjects, Statistics(replicates=2_000, seed=2)))
    of_subjects = draws[:, ::3].astype(float)
    # a multinomial: mean 1, variance 1 - 1/30, a share (29/30)^30 of zeros
    assert of_subjects.mean(axis=0) == pytest.approx(np.ones(30), abs=0.12)
    assert of_subjects.var() == pytest.approx(29 / 30, rel=0.03)
    assert (of_subjects == 0).mean() == pytest.approx((29 / 30) ** 30, abs=0.01)


def test_the_bootstrap_is_a_loop_over_resampled_subjects():
    rng = np.random.default_rng(3)
    subjects = rng.integers(0, 15, size=50)
    y, p = rng.random(50) < 0.3, rng.random(50).round(1)
    draws = subject_draws(subjects, Statistics(replicates=60, seed=4, level=0.9))
    replicates = scores(y, p, draws)
    loop = []
    for times in draws:
        rows = [
            row for s in np.unique(subjects) for row in list(np.flatnonzero(subjects == s)) * times[subjects == s][0]
        ]
        loop.append(by_sklearn(y[rows], p[rows]))
    loop = np.array(loop)
    np.testing.assert_allclose(replicates, loop, atol=1e-9)
    for s in range(3):
        expected = (np.nanpercentile(loop[:, s], 5), np.nanpercentile(loop[:, s], 95))
        assert Intervals(0.9).of(replicates[:, s], np.inf) == pytest.approx(expected)


def test_intervals_leave_out_undefined_replicates_while_most_are_defined():
    values = np.arange(101.0)
    assert Intervals(0.9).of(values, np.inf) == pytest.approx((5, 95))
    assert Intervals(0.5).of(values, np.inf) == pytest.approx((25, 75))
    some = np.concatenate([values, np.full(101, np.nan)])
    assert Intervals(0.9).of(some, np.inf) == pytest.approx((5, 95))
    most = np.concatenate([values, np.full(102, np.nan)])
    assert np.isnan(Intervals(0.9).of(most, np.inf)).all()
    assert np.isnan(Intervals(0.9).of(np.full(30, np.nan), np.inf)).all()


def normal_replicates(sample: np.ndarray) -> np.ndarray:
    """The bootstrap's distribution of the mean of a normal sample, without its noise: quantiles of a normal."""
    return sample.mean() + sample.std() / np.sqrt(len(sample)) * norm.ppf((np.arange(400_000) + 0.5) / 400_000)


@pytest.mark.parametrize("n", [3, 5, 20, 200])
def test_expanded_intervals_and_tests_are_those_of_student(n):
    sample = np.random.default_rng(n).normal(0.3, 1, n)
    replicates, student = normal_replicates(sample), ttest_1samp(sample, 0)
    expected = student.confidence_interval(0.9)
    assert Intervals(0.9).of(replicates, n) == pytest.approx((expected.low, expected.high), rel=1e-3, abs=2e-3)
    assert Intervals(0.95).two_sided_p(replicates, n) == pytest.approx(student.pvalue, abs=1e-4)


def test_one_subject_of_a_class_has_no_interval():
    assert np.isnan(Intervals(0.9).of(np.arange(101.0), 1)).all()
    assert np.isnan(Intervals(0.95).two_sided_p(np.arange(101.0), 1))
    low, high = Intervals(0.95).of(np.arange(101.0), 2)
    assert (low, high) == pytest.approx((0, 100), abs=1e-6), "two know next to nothing: all replicates"


def test_a_score_rests_on_the_subjects_of_its_rarer_class():
    y = np.array([True, True, True, False, False, False])
    assert Intervals(0.95).subjects(y, np.array([1, 1, 2, 3, 4, 5])) == 2
    assert Intervals(0.95).subjects(~y, np.array([1, 1, 2, 3, 4, 5])) == 2
    assert Intervals(0.95).subjects(y, np.array([1, 1, 1, 1, 1, 2])) == 0, "one subject alone is none"
    assert Intervals(0.95, 3).subjects(y, np.array([1, 1, 2, 3, 4, 5])) == 0
    assert Intervals(0.95, 3).subjects(y, np.arange(6)) == 3
    assert Intervals(0.95).subjects(np.ones(6, dtype=bool), np.arange(6)) == 0


def test_a_mean_rests_on_as_many_subjects_as_welch_has_it():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 6), rng.normal(0, 3, 40)
    of_means = np.array([[sample.var(ddof=1) / len(sample)] for sample in (a, b)])
    (n,) = subjects_of_mean(of_means, np.array([[6], [40]]))
    assert n - 1 == pytest.approx(ttest_ind(a, b, equal_var=False).df)
    assert subjects_of_mean(np.ones((10, 1)), np.full((10, 1), 5)) == pytest.approx(1 + 10 * 4)
    assert subjects_of_mean(np.array([[1.0], [0.0]]), np.array([[7], [2]])) == pytest.approx(7), "one alone varies"
    for few in (0, 1):
        of_one = subjects_of_mean(np.array([[1e-9], [1.0]]), np.array([[few], [9]]))
        assert np.isnan(Intervals(0.95).of(np.arange(101.0), of_one[0])).all(), "what one subject adds is not known"
    assert np.isinf(subjects_of_mean(np.zeros((2, 1)), np.array([[7], [9]])))


def test_variances_are_over_the_replicates_that_are_defined():
    replicates = np.array([[1.0, np.nan], [3.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(variances(replicates), [1.0, 0.0])


def test_draws_of_subjects_serve_labels_and_sums():
    rng = np.random.default_rng(5)
    of = rng.choice([3, 8, 11, 20], 50)
    settings = Statistics(replicates=30, seed=6)
    draws = Draws.of(of, settings)
    drawn = subject_draws(of, settings)
    some = of != 8  # of a task that not all subjects have labels of
    values = rng.normal(size=(int(some.sum()), 3))
    np.testing.assert_allclose(draws.sums(values, of[some]), drawn[:, some] @ values)
    y, p = rng.random(50) < 0.4, rng.random(50).round(1)
    point, replicates = draws.scores(y[some], p[some], of[some])
    np.testing.assert_allclose(point, by_sklearn(y[some], p[some]))
    np.testing.assert_allclose(replicates, scores(y[some], p[some], drawn[:, some]))
    assert Draws.of(np.zeros(0, dtype=np.int64), settings).times.shape == (30, 0)


@pytest.mark.parametrize("n", [8, np.inf])
def test_p_is_the_level_at_which_the_interval_reaches_zero(n):
    rng = np.random.default_rng(7)
    replicates = rng.normal(0.8, 1, 4_000)
    p = Intervals(0.95).two_sided_p(replicates, n)
    assert Intervals(1 - p + 0.01).of(replicates, n)[0] < 0 < Intervals(1 - p - 0.01).of(replicates, n)[0]
    assert Intervals(0.95).two_sided_p(-replicates, n) == p


def test_p_is_never_0_nor_over_1():
    replicates = np.random.default_rng(7).normal(0.8, 1, 4_000)
    assert Intervals(0.95).two_sided_p(replicates, np.inf) == pytest.approx(2 * norm.sf(0.8), abs=0.03)
    beyond_none = Intervals(0.95).two_sided_p(np.full(999, 0.2), np.inf)
    assert beyond_none == pytest.approx(2 / 1000), "more replicates might have gone beyond"
    assert Intervals(0.95).two_sided_p(np.zeros(999), 5) == 1.0
    assert np.isnan(Intervals(0.95).two_sided_p(np.array([0.1, np.nan, np.nan]), np.inf))


def closed_testing(p: np.ndarray) -> np.ndarray:
    """A test is rejected if every set of tests that holds it is, by Bonferroni: what Holm's steps stand for."""
    adjusted = []
    for i in range(len(p)):
        sets = [s for n in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), n) if i in s]
        adjusted.append(min(1.0, max(len(s) * p[list(s)].min() for s in sets)))
    return np.array(adjusted)


@hypothesis_settings(max_examples=60)
@given(st.lists(st.one_of(st.sampled_from([0.01, 0.02, 0.02, 1.0]), st.floats(0, 1)), max_size=6))
def test_holm_is_closed_testing_by_bonferroni(values):
    p = np.array(values)
    np.testing.assert_allclose(holm(p), closed_testing(p))
    with_none = np.append(p, np.nan)
    np.testing.assert_allclose(holm(with_none), np.append(closed_testing(p), np.nan), equal_nan=True)
