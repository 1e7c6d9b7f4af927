"""The study's linear probe: MaxAbsScaler, then L2 logistic regression whose C the tuning split chooses.

Scaler and model are fitted on the train split alone; C is chosen by the tuning split's AUROC; held-out rows are only
predicted (context-clues, section 5).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.sparse import spmatrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import MaxAbsScaler

from ehrctx.study import Probe

Features: TypeAlias = np.ndarray | spmatrix


@dataclass(frozen=True)
class FittedProbe:
    """A scaler and a logistic regression. `c` is the chosen C, `tuning_auroc` its AUROC there (None: one class)."""

    scaler: MaxAbsScaler
    regression: LogisticRegression
    c: float
    tuning_auroc: float | None
    converged: bool

    def predict(self, features: Features) -> np.ndarray:
        """Probability of the positive class, float64[n]."""
        return self.regression.predict_proba(self.scaler.transform(features))[:, 1]


def fit_probe(
    train: Features, y_train: np.ndarray, tuning: Features, y_tuning: np.ndarray, settings: Probe
) -> FittedProbe:
    """The study's probe. `train` must hold both classes; if `tuning` does not, the middle C of the grid is taken."""
    scaler = MaxAbsScaler().fit(train)
    x_train = scaler.transform(train)
    grid = sorted(settings.regularization)
    both = len(np.unique(y_tuning)) == 2
    x_tuning = scaler.transform(tuning) if both else None
    best: FittedProbe | None = None
    for c in grid if both else grid[len(grid) // 2 : len(grid) // 2 + 1]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            regression = LogisticRegression(C=c, tol=1e-4, max_iter=settings.max_iterations).fit(x_train, y_train)
        converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
        auroc = float(roc_auc_score(y_tuning, regression.predict_proba(x_tuning)[:, 1])) if both else None
        # ties go to the smaller C, the more regularised model
        if best is None or (auroc is not None and best.tuning_auroc is not None and auroc > best.tuning_auroc):
            best = FittedProbe(scaler, regression, c, auroc, converged)
    assert best is not None
    return best
