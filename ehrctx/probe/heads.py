"""Heads: the study's linear probe, and the tree ensembles that it fits on counts beside it.

A head is fitted on the train split alone; the tuning split's AUROC chooses among the candidates of its grid; held-out
rows are only predicted (context-clues, section 5). Grids, fixed settings and the order in which ties are broken are
those of EHRSHOT's evaluation; random states are the study's.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from lightgbm import LGBMClassifier
from scipy.sparse import spmatrix
from scipy.special import expit
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from ehrctx.study import Probe

Features: TypeAlias = np.ndarray | spmatrix
LINEAR = "logistic_regression"


@dataclass(frozen=True)
class FittedHead:
    """A fitted classifier. `chosen` are its settings, `tuning_auroc` what chose them (None: one class there)."""

    classifier: Any
    chosen: dict[str, float]
    tuning_auroc: float | None
    converged: bool

    def predict(self, features: Features) -> np.ndarray:
        """Probability of the positive class, float64[n]."""
        found = _scores(self.classifier, features)
        return expit(found) if isinstance(self.classifier, Pipeline) else found


def _scores(classifier: Any, features: Features) -> np.ndarray:
    """What ranks the rows, float64[n]: log-odds of the linear probe (a probability of 1 - 1e-17 would be a tie), else
    the probability of the positive class."""
    if isinstance(classifier, Pipeline):
        scaler, regression = (step for _, step in classifier.steps)
        # the scale belongs to the weights: no scaled copy of the rows is made
        weights = (regression.coef_[0] / scaler.scale_).astype(np.promote_types(features.dtype, np.float32))
        return (features @ weights).astype(np.float64) + regression.intercept_[0]
    with warnings.catch_warnings():
        # LightGBM names unnamed columns when it fits, and scikit-learn then misses the names
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        return classifier.predict_proba(features)[:, 1]


def _logistic_regression(settings: Probe, *, C: float) -> Any:
    return LogisticRegression(C=C, tol=1e-4, max_iter=settings.max_iterations)


def _random_forest(settings: Probe, *, trees: int, depth: int) -> Any:
    return RandomForestClassifier(n_estimators=trees, max_depth=depth, random_state=settings.seed, n_jobs=1)


def _lightgbm(settings: Probe, *, depth: int, learning_rate: float, leaves: int) -> Any:
    return LGBMClassifier(
        max_depth=depth,
        learning_rate=learning_rate,
        num_leaves=leaves,
        n_estimators=settings.boosting.rounds,
        min_child_samples=1,  # with the library's 20, a few-shot tree would have no leaves
        random_state=settings.seed,
        deterministic=True,
        force_row_wise=True,
        n_jobs=1,
        verbose=-1,
    )


BUILDERS: dict[str, Callable[..., Any]] = {
    LINEAR: _logistic_regression,
    "random_forest": _random_forest,
    "lightgbm": _lightgbm,
}


def _grid(head: str, settings: Probe) -> dict[str, Any]:
    """The values of each setting of a head, simplest first."""
    grids: dict[str, dict[str, Any]] = {
        LINEAR: {"C": sorted(settings.regularization)},
        "random_forest": {"depth": sorted(settings.forest.depth), "trees": sorted(settings.forest.trees)},
        "lightgbm": {
            "learning_rate": sorted(settings.boosting.learning_rate),
            "depth": sorted(settings.boosting.depth, key=lambda d: (d < 0, d)),  # -1: no limit
            "leaves": sorted(settings.boosting.leaves),
        },
    }
    return grids[head]


def candidates(head: str, settings: Probe) -> list[dict[str, Any]]:
    """The grid of one head, simplest first, as EHRSHOT's grid search has it: a tie goes to the first."""
    grid = _grid(head, settings)
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _fit(classifier: Any, features: Features, y: np.ndarray) -> bool:
    """Fits in place; whether it converged. Other warnings pass."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        classifier.fit(features, y)
    for other in (w for w in caught if not issubclass(w.category, ConvergenceWarning)):
        warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return not any(issubclass(w.category, ConvergenceWarning) for w in caught)


def _widen(regression: LogisticRegression, columns: np.ndarray, width: int) -> None:
    """Makes a regression that was fitted on some of `width` columns one on all: a column of zeros has the weight 0."""
    weights = np.zeros((1, width), dtype=regression.coef_.dtype)
    weights[:, columns] = regression.coef_
    regression.coef_, regression.n_features_in_ = weights, width


def fit_head(
    head: str, train: Features, y_train: np.ndarray, tuning: Features, y_tuning: np.ndarray, settings: Probe
) -> FittedHead:
    """The best candidate. `train` must hold both classes; if `tuning` does not, the middle of the grid is taken."""
    middle = {name: values[len(values) // 2] for name, values in _grid(head, settings).items()}
    both = len(np.unique(y_tuning)) == 2
    scaler = MaxAbsScaler().fit(train) if head == LINEAR else None
    if scaler is not None:  # once for all candidates
        present = np.flatnonzero(scaler.max_abs_)
        whole = train = scaler.transform(train)
        if len(present) < train.shape[1]:
            train = train[:, present]
    best: FittedHead | None = None
    for chosen in candidates(head, settings) if both else [middle]:
        classifier = BUILDERS[head](settings, **chosen)
        converged = _fit(classifier, train, y_train)
        if scaler is not None:
            _widen(classifier, present, len(scaler.max_abs_))
            classifier = make_pipeline(scaler, classifier)
        auroc = float(roc_auc_score(y_tuning, _scores(classifier, tuning))) if both else None
        if best is None or (auroc is not None and best.tuning_auroc is not None and auroc > best.tuning_auroc):
            best = FittedHead(classifier, chosen, auroc, converged)
    assert best is not None
    if scaler is not None and len(present) < len(scaler.max_abs_):
        # columns of zeros change no minimum, but where L-BFGS stops: the one that is chosen is fitted as published
        regression = BUILDERS[head](settings, **best.chosen)
        converged = _fit(regression, whole, y_train)
        best = FittedHead(make_pipeline(scaler, regression), best.chosen, best.tuning_auroc, converged)
    return best
