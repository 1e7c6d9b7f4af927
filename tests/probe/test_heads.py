"""The heads against explicit loops over scikit-learn and LightGBM; which candidate the tuning split chooses."""

from __future__ import annotations

import numpy as np
import pytest
from lightgbm import LGBMClassifier
from scipy.sparse import csr_matrix
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.preprocessing import MaxAbsScaler

from ehrctx.probe.heads import LINEAR, candidates, fit_head
from ehrctx.study import Boosting, Forest, Probe

GRID = Probe(
    regularization=(10.0, 1e-4, 1e-2, 1.0),  # in no order
    forest=Forest(trees=(12, 3), depth=(4, 1)),
    boosting=Boosting(depth=(2, -1), learning_rate=(0.3, 0.05), leaves=(8, 3), rounds=15),
)
HEADS = (LINEAR, "random_forest", "lightgbm")
MAKES = pytest.mark.parametrize("make", [np.asarray, csr_matrix], ids=["dense", "sparse"])


def draw(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Twelve features of different scales, of which three tell something."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 12)) * np.logspace(-2, 3, 12)
    signal = x[:, 0] * 100 + x[:, 3] / np.logspace(-2, 3, 12)[3] - x[:, 11] / 1000
    return x, signal + 1.5 * rng.standard_normal(n) > 0.8


def draw_counts(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """As counts of tokens are: whole numbers, half of them zero; positive where exactly one of two tokens occurs."""
    rng = np.random.default_rng(seed)
    x = rng.poisson(np.log(2), size=(n, 20)).astype(np.float32)
    return x, (x[:, 2] > 0) ^ (x[:, 7] > 0)


def by_hand(head: str, chosen: dict, x: np.ndarray, y: np.ndarray, settings: Probe):
    """The classifier of one candidate, from the libraries alone."""
    if head == LINEAR:
        return LogisticRegression(C=chosen["C"], max_iter=settings.max_iterations).fit(x, y)
    if head == "random_forest":
        made = RandomForestClassifier(
            n_estimators=chosen["trees"], max_depth=chosen["depth"], random_state=settings.seed
        )
        return made.fit(x, y)
    made = LGBMClassifier(
        max_depth=chosen["depth"], learning_rate=chosen["learning_rate"], num_leaves=chosen["leaves"],
        n_estimators=settings.boosting.rounds, random_state=settings.seed, min_child_samples=1, verbose=-1, n_jobs=1,
    )  # fmt: skip
    return made.fit(x, y)


def expected_grid(head: str) -> list[dict]:
    if head == LINEAR:
        return [{"C": c} for c in (1e-4, 1e-2, 1.0, 10.0)]
    if head == "random_forest":
        return [{"depth": d, "trees": t} for d in (1, 4) for t in (3, 12)]
    return [
        {"leaves": leaves, "depth": d, "learning_rate": r} for r in (0.05, 0.3) for d in (2, -1) for leaves in (3, 8)
    ]


@pytest.mark.parametrize("head", HEADS)
def test_candidates_come_simplest_first(head):
    assert candidates(head, GRID) == expected_grid(head)


def test_the_study_s_grids():
    assert [len(candidates(head, Probe())) for head in HEADS] == [8, 25, 27]
    assert [c["C"] for c in candidates(LINEAR, Probe())] == [1e-8, 1e-6, 1e-4, 1e-2, 1e-1, 1.0, 1e2, 1e4]
    assert {(c["depth"], c["trees"]) for c in candidates("random_forest", Probe())} == {
        (depth, trees) for depth in (3, 5, 10, 20, 50) for trees in (10, 20, 50, 100, 300)
    }
    assert {(c["leaves"], c["depth"], c["learning_rate"]) for c in candidates("lightgbm", Probe())} == {
        (leaves, depth, rate) for leaves in (10, 25, 100) for depth in (3, 6, -1) for rate in (0.02, 0.1, 0.5)
    }


@MAKES
@pytest.mark.parametrize("seed", range(3))
def test_tuning_auroc_chooses_c(seed, make):
    (x, y), (x_tuning, y_tuning), (x_test, _) = draw(60, seed), draw(50, seed + 10), draw(30, seed + 20)
    fitted = fit_head(LINEAR, make(x), y, make(x_tuning), y_tuning, GRID)

    largest = np.abs(x).max(axis=0)
    found = {}
    for c in sorted(GRID.regularization):
        regression = LogisticRegression(C=c, max_iter=1000).fit(x / largest, y)
        auroc = roc_auc_score(y_tuning, regression.predict_proba(x_tuning / largest)[:, 1])
        found[c] = (auroc, regression)
    best = max(found, key=lambda c: (found[c][0], -c))
    assert len({round(auroc, 9) for auroc, _ in found.values()}) > 1, "the choice must matter"
    assert fitted.chosen == {"C": best}
    assert fitted.tuning_auroc == pytest.approx(found[best][0])
    expected = found[best][1].predict_proba(x_test / largest)[:, 1]
    np.testing.assert_allclose(fitted.predict(make(x_test)), expected, rtol=1e-6)


@pytest.mark.parametrize("head", HEADS[1:])
def test_tuning_auroc_chooses_among_trees(head):
    (x, y), (x_tuning, y_tuning), (x_test, _) = draw_counts(150, 1), draw_counts(80, 2), draw_counts(40, 3)
    fitted = fit_head(head, csr_matrix(x), y, csr_matrix(x_tuning), y_tuning, GRID)
    scored = []
    for chosen in expected_grid(head):
        classifier = by_hand(head, chosen, x, y, GRID)
        scored.append((roc_auc_score(y_tuning, classifier.predict_proba(x_tuning)[:, 1]), chosen, classifier))
    assert len({round(auroc, 9) for auroc, *_ in scored}) > 2, "the choice must matter"
    auroc, chosen, classifier = max(scored, key=lambda one: one[0])  # of equals, max takes the first
    assert fitted.chosen == chosen
    assert fitted.tuning_auroc == pytest.approx(auroc)
    np.testing.assert_allclose(fitted.predict(csr_matrix(x_test)), classifier.predict_proba(x_test)[:, 1], rtol=1e-6)


def published_search(head: str, x, y, x_tuning, y_tuning, settings: Probe):
    """EHRSHOT's evaluation, written out: a grid search over one given split, then a fit on the train rows alone.

    Returns the settings that were chosen and the predictions for the tuning rows.
    """
    if head == LINEAR:
        model = LogisticRegression(tol=1e-4, solver="lbfgs", max_iter=settings.max_iterations)
        grid = {"C": sorted(settings.regularization)}
        scaler = MaxAbsScaler().fit(x)
        x, x_tuning = scaler.transform(x), scaler.transform(x_tuning)
    elif head == "random_forest":
        model = RandomForestClassifier(random_state=settings.seed)
        grid = {"n_estimators": sorted(settings.forest.trees), "max_depth": sorted(settings.forest.depth)}
    else:
        model = LGBMClassifier(
            n_estimators=settings.boosting.rounds, random_state=settings.seed, min_child_samples=1, verbose=-1, n_jobs=1
        )
        grid = {
            "max_depth": [d for d in sorted(settings.boosting.depth) if d > 0] + [-1],
            "learning_rate": sorted(settings.boosting.learning_rate),
            "num_leaves": sorted(settings.boosting.leaves),
        }
    split = PredefinedSplit(np.repeat([-1, 0], [len(y), len(y_tuning)]))
    search = GridSearchCV(model, grid, scoring="roc_auc", cv=split, refit=False)
    search.fit(np.concatenate([x, x_tuning]), np.concatenate([y, y_tuning]))
    chosen = model.set_params(**search.best_params_).fit(x, y)
    return search.best_params_, chosen.predict_proba(x_tuning)[:, 1]


OUR_NAMES = {"n_estimators": "trees", "max_depth": "depth", "num_leaves": "leaves"}


@pytest.mark.filterwarnings("ignore:X does not have valid feature names")
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("n", "seed"), [(100, 0), (12, 1), (12, 2), (12, 3)])
def test_a_head_is_that_of_the_published_search(head, n, seed):
    """Few rows as well, where an AUROC takes few values and ties are the rule."""
    (x, y), (x_tuning, y_tuning) = draw_counts(n, seed), draw_counts(n, seed + 10)
    settings = GRID.model_copy(update={"regularization": Probe().regularization})
    expected, p = published_search(head, x, y, x_tuning, y_tuning, settings)
    fitted = fit_head(head, csr_matrix(x), y, csr_matrix(x_tuning), y_tuning, settings)
    assert fitted.chosen == {OUR_NAMES.get(name, name): value for name, value in expected.items()}
    np.testing.assert_allclose(fitted.predict(csr_matrix(x_tuning)), p, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_ties_go_to_the_simpler(head):
    x = np.repeat(np.linspace(-1, 1, 40), 3)[:, None]
    y = x[:, 0] > 0
    fitted = fit_head(head, x, y, x, y, GRID)
    assert fitted.tuning_auroc == 1.0, "all candidates are perfect here"
    assert fitted.chosen == expected_grid(head)[0]


def test_the_scaler_sees_the_train_split_alone():
    (x, y), (x_tuning, y_tuning), (x_test, _) = draw(80, 1), draw(40, 2), draw(10, 3)
    fitted = fit_head(LINEAR, x, y, x_tuning, y_tuning, GRID)
    (scaler,) = (step for step in fitted.classifier if isinstance(step, MaxAbsScaler))
    np.testing.assert_array_equal(scaler.scale_, MaxAbsScaler().fit(x).scale_)
    before = fitted.predict(x_test)
    extreme = x_test.copy()
    extreme[0] *= 1e6
    after = fitted.predict(extreme)
    np.testing.assert_array_equal(after[1:], before[1:])
    assert after[0] != before[0]


@pytest.mark.parametrize("head", HEADS)
def test_tuning_rows_choose_and_nothing_else(head):
    """With one candidate, the tuning rows change nothing but the AUROC that is told."""
    (x, y), (x_tuning, y_tuning), (x_test, _) = draw(80, 1), draw(40, 2), draw(10, 3)
    one = Probe(
        regularization=(0.5,),
        forest=Forest(trees=(5,), depth=(3,)),
        boosting=Boosting(depth=(3,), learning_rate=(0.1,), leaves=(4,), rounds=10),
    )
    first = fit_head(head, x, y, x_tuning, y_tuning, one)
    second = fit_head(head, x, y, 1e5 * x_tuning, ~y_tuning, one)
    np.testing.assert_array_equal(first.predict(x_test), second.predict(x_test))
    assert first.tuning_auroc != second.tuning_auroc


@pytest.mark.parametrize("head", HEADS)
def test_predicting_changes_nothing(head):
    """What held-out rows are asked for, and in which company, does not matter."""
    (x, y), (x_tuning, y_tuning), (x_test, _) = draw(80, 1), draw(40, 2), draw(20, 3)
    fitted = fit_head(head, x, y, x_tuning, y_tuning, GRID)
    together = fitted.predict(x_test)
    assert together.dtype == np.float64
    fitted.predict(1e6 * x_test)
    alone = np.concatenate([fitted.predict(x_test[i : i + 1]) for i in range(20)])
    np.testing.assert_allclose(alone, together, rtol=1e-12)


@MAKES
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("n_tuning", [0, 40])
def test_a_tuning_split_of_one_class_or_none_takes_the_middle_candidate(head, n_tuning, make):
    (x, y), (x_tuning, _), (x_test, _) = draw(80, 1), draw(40, 2), draw(10, 3)
    settings = Probe(
        regularization=(100.0, 1e-4, 1.0),
        forest=Forest(trees=(3, 4, 5), depth=(1, 2, 3)),
        boosting=Boosting(depth=(2, 3, -1), learning_rate=(0.1, 0.2, 0.3), leaves=(3, 4, 5), rounds=5),
    )
    middle = {
        LINEAR: {"C": 1.0},
        "random_forest": {"depth": 2, "trees": 4},
        "lightgbm": {"leaves": 4, "depth": 3, "learning_rate": 0.2},
    }[head]
    fitted = fit_head(head, make(x), y, make(x_tuning)[:n_tuning], np.zeros(n_tuning, dtype=bool), settings)
    assert (fitted.chosen, fitted.tuning_auroc) == (middle, None)
    scale = np.abs(x).max(axis=0) if head == LINEAR else 1.0
    expected = by_hand(head, middle, x / scale, y, settings).predict_proba(x_test / scale)[:, 1]
    np.testing.assert_allclose(fitted.predict(make(x_test)), expected, rtol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_probabilities_are_those_of_the_positive_class(head):
    x = np.repeat(np.linspace(-1, 1, 40), 3)[:, None]
    y = x[:, 0] > 0
    p = fit_head(head, x, y, x, y, Probe(regularization=(100.0,), forest=GRID.forest, boosting=GRID.boosting)).predict(
        x
    )
    assert p[y].min() > 0.5 > p[~y].max()


def test_whether_it_converged_is_told():
    x, y = draw(80, 1)
    assert fit_head(LINEAR, x, y, x, y, Probe(regularization=(1.0,))).converged
    assert not fit_head(LINEAR, x, y, x, y, Probe(regularization=(1e4,), max_iterations=1)).converged


@pytest.mark.parametrize("head", HEADS[1:])
def test_trees_always_converge(head, recwarn):
    x, y = draw_counts(60, 1)
    assert fit_head(head, csr_matrix(x), y, csr_matrix(x), y, GRID).converged
    assert not [str(w.message) for w in recwarn], "no warning reaches the user"


@pytest.mark.parametrize("head", HEADS)
def test_sparse_and_dense_counts_give_the_same(head):
    (x, y), (x_tuning, y_tuning), (x_test, _) = draw_counts(150, 1), draw_counts(80, 2), draw_counts(40, 3)
    dense = fit_head(head, x, y, x_tuning, y_tuning, GRID)
    sparse = fit_head(head, csr_matrix(x), y, csr_matrix(x_tuning), y_tuning, GRID)
    assert sparse.chosen == dense.chosen
    assert sparse.tuning_auroc == pytest.approx(dense.tuning_auroc)
    np.testing.assert_allclose(sparse.predict(csr_matrix(x_test)), dense.predict(x_test), rtol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_the_same_seed_gives_the_same_head(head):
    """Whatever the state of numpy's global generator, which scikit-learn falls back on without a seed."""
    (x, y), (x_tuning, y_tuning), (x_test, _) = draw_counts(150, 1), draw_counts(80, 2), draw_counts(40, 3)
    np.random.seed(5)  # noqa: NPY002
    first = fit_head(head, x, y, x_tuning, y_tuning, GRID)
    np.random.seed(6)  # noqa: NPY002
    again = fit_head(head, x, y, x_tuning, y_tuning, GRID)
    assert again.chosen == first.chosen
    np.testing.assert_array_equal(again.predict(x_test), first.predict(x_test))


def test_another_seed_gives_another_forest():
    (x, y), (x_test, _) = draw_counts(150, 1), draw_counts(40, 3)
    one = {"forest": Forest(trees=(5,), depth=(4,))}
    first, other = (fit_head("random_forest", x, y, x, y, Probe(**one, seed=seed)).predict(x_test) for seed in (0, 1))
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("head", HEADS[1:])
def test_trees_find_what_no_line_can(head):
    """Positive where exactly one of two tokens occurs: the baselines see it, the linear probe does not."""
    (x, y), (x_tuning, y_tuning), (x_test, y_test) = draw_counts(800, 1), draw_counts(300, 2), draw_counts(400, 3)
    splits = (csr_matrix(x), y, csr_matrix(x_tuning), y_tuning)
    settings = Probe(
        forest=Forest(trees=(100,), depth=(5, 20)),
        boosting=Boosting(depth=(6,), learning_rate=(0.1,), leaves=(25,), rounds=60),
    )
    auroc = {
        name: roc_auc_score(y_test, fit_head(name, *splits, settings).predict(csr_matrix(x_test)))
        for name in (LINEAR, head)
    }
    assert auroc[head] > 0.9
    assert auroc[LINEAR] < 0.7
