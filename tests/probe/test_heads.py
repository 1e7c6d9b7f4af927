"""The study's linear probe against an explicit loop over scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MaxAbsScaler

from ehrctx.probe.heads import fit_probe
from ehrctx.study import Probe

GRID = Probe(regularization=(10.0, 1e-4, 1e-2, 1.0))  # in no order


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Twelve features of different scales, of which three tell something."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 12)) * np.logspace(-2, 3, 12)
    signal = x[:, 0] * 100 + x[:, 3] / np.logspace(-2, 3, 12)[3] - x[:, 11] / 1000
    return x, signal + 1.5 * rng.standard_normal(n) > 0.8


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sparse", [False, True])
def test_tuning_auroc_chooses_c(seed, sparse):
    (x, y), (x_tuning, y_tuning), (x_test, _) = draw(60, seed), draw(50, seed + 10), draw(30, seed + 20)
    make = csr_matrix if sparse else np.asarray
    fitted = fit_probe(make(x), y, make(x_tuning), y_tuning, GRID)

    largest = np.abs(x).max(axis=0)
    found = {}
    for c in sorted(GRID.regularization):
        regression = LogisticRegression(C=c, max_iter=1000).fit(x / largest, y)
        auroc = roc_auc_score(y_tuning, regression.predict_proba(x_tuning / largest)[:, 1])
        found[c] = (auroc, regression)
    best = max(found, key=lambda c: (found[c][0], -c))
    assert len({round(auroc, 9) for auroc, _ in found.values()}) > 1, "the choice must matter"
    assert fitted.c == best
    assert fitted.tuning_auroc == pytest.approx(found[best][0])
    expected = found[best][1].predict_proba(x_test / largest)[:, 1]
    np.testing.assert_allclose(fitted.predict(make(x_test)), expected, rtol=1e-6)


def test_ties_go_to_the_stronger_regularisation():
    x = np.linspace(-1, 1, 20)[:, None]
    y = x[:, 0] > 0
    fitted = fit_probe(x, y, x, y, GRID)
    assert (fitted.c, fitted.tuning_auroc) == (1e-4, 1.0)


def test_the_scaler_sees_the_train_split_alone():
    (x, y), (x_tuning, y_tuning), (x_test, _) = draw(80, 1), draw(40, 2), draw(10, 3)
    fitted = fit_probe(x, y, x_tuning, y_tuning, GRID)
    np.testing.assert_array_equal(fitted.scaler.scale_, MaxAbsScaler().fit(x).scale_)
    before = fitted.predict(x_test)
    extreme = x_test.copy()
    extreme[0] *= 1e6
    after = fitted.predict(extreme)
    np.testing.assert_array_equal(after[1:], before[1:])
    assert after[0] != before[0]


def test_tuning_rows_choose_c_and_nothing_else():
    (x, y), (x_tuning, y_tuning), (x_test, _) = draw(80, 1), draw(40, 2), draw(10, 3)
    one = Probe(regularization=(0.5,))
    first = fit_probe(x, y, x_tuning, y_tuning, one)
    second = fit_probe(x, y, 1e5 * x_tuning, ~y_tuning, one)
    np.testing.assert_array_equal(first.predict(x_test), second.predict(x_test))


def test_a_tuning_split_of_one_class_takes_the_middle_of_the_grid():
    (x, y), (x_tuning, _) = draw(80, 1), draw(40, 2)
    fitted = fit_probe(x, y, x_tuning, np.zeros(40, dtype=bool), Probe(regularization=(100.0, 1e-4, 1.0)))
    assert (fitted.c, fitted.tuning_auroc) == (1.0, None)
    expected = LogisticRegression(C=1.0, max_iter=1000).fit(x / np.abs(x).max(axis=0), y)
    np.testing.assert_allclose(fitted.regression.coef_, expected.coef_, rtol=1e-6)


@pytest.mark.parametrize("make", [np.asarray, csr_matrix])
def test_an_empty_tuning_split_takes_the_middle_of_the_grid(make):
    x, y = draw(80, 1)
    fitted = fit_probe(make(x), y, make(x)[:0], y[:0], Probe(regularization=(100.0, 1e-4, 1.0)))
    assert (fitted.c, fitted.tuning_auroc) == (1.0, None)


def test_probabilities_are_those_of_the_positive_class():
    x = np.linspace(-1, 1, 40)[:, None]
    y = x[:, 0] > 0
    p = fit_probe(x, y, x, y, Probe(regularization=(100.0,))).predict(x)
    assert p[y].min() > 0.5 > p[~y].max()


def test_whether_it_converged_is_told():
    x, y = draw(80, 1)
    assert fit_probe(x, y, x, y, Probe(regularization=(1.0,))).converged
    assert not fit_probe(x, y, x, y, Probe(regularization=(1e4,), max_iterations=1)).converged
