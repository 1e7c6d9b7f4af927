"""Count features against a loop over events, and the linear probe's grid of C against pipelines that scale anew.

The loops are those of the reference: a count per code, carried along a subject's events and written down at each label
time (femr's CountFeaturizer); and, for each C, scikit-learn's scaler and regression from the beginning.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from measure import compare, options
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler

from ehrctx.probe.counts import SECONDS_PER_YEAR, count_features
from ehrctx.probe.heads import LINEAR, Features, fit_head
from ehrctx.study import Probe
from ehrctx.timelines.store import SUBJECT, Timelines

VOCABULARY = 40_000


def timelines(subjects: int, per_subject: int) -> Timelines:
    """Random timelines of log-normal length over ten years; rare and frequent tokens, as codes are."""
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(np.log(per_subject), 1, subjects).astype(np.int64))
    rows = np.zeros(subjects, dtype=SUBJECT)
    rows["subject_id"], rows["split"] = np.arange(subjects), "train"
    rows["origin"], rows["born"] = np.datetime64("1950-01-01", "us"), True
    seconds = [np.sort(rng.integers(0, 10 * 365 * 86_400, n)) for n in lengths]
    return Timelines(
        path=Path("in memory"),
        tokens=(rng.zipf(1.3, lengths.sum()) % VOCABULARY).astype(np.uint16),
        seconds=np.concatenate(seconds).astype(np.uint32),
        event=np.concatenate([np.arange(n) for n in lengths]).astype(np.uint32),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        subjects=rows,
        manifest={"facts": {"vocabulary_size": VOCABULARY}},
    )


def label_times(store: Timelines, per_subject: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of subjects (int64[n]) and times in order."""
    rng = np.random.default_rng(1)
    subjects = np.repeat(np.arange(len(store)), per_subject)
    seconds = np.sort(rng.integers(0, 10 * 365 * 86_400, (len(store), per_subject)), axis=1).ravel()
    return subjects, store.subjects["origin"][subjects] + seconds.astype("timedelta64[s]")


def counted_by_a_loop(store: Timelines, subjects: np.ndarray, times: np.ndarray) -> csr_matrix:
    """One event at a time, as femr's featurizers do; the age in its own last column."""
    data: list[float] = []
    columns: list[int] = []
    pointers = [0]
    for subject in np.unique(subjects):
        origin = store.subjects["origin"][subject]
        own = store.offsets[subject], store.offsets[subject + 1]
        events = zip(store.seconds[slice(*own)].tolist(), store.tokens[slice(*own)].tolist(), strict=True)
        waiting = next(events, None)
        counts: Counter[int] = Counter()
        for time in times[subjects == subject]:
            since = (time - origin) / np.timedelta64(1, "s")
            while waiting is not None and waiting[0] <= since:
                counts[waiting[1]] += 1
                waiting = next(events, None)
            for token, count in counts.items():
                columns.append(token)
                data.append(count)
            columns.append(VOCABULARY)
            data.append(since / SECONDS_PER_YEAR)
            pointers.append(len(data))
    values = np.array(data, dtype=np.float32)
    return csr_matrix((values, np.array(columns), np.array(pointers)), shape=(len(subjects), VOCABULARY + 1))


def compare_counts(subjects: int, times_each: int, tokens_each: int, repeats: int) -> None:
    store = timelines(subjects, tokens_each)
    of, times = label_times(store, times_each)
    ours, loop = count_features(store, of, times), counted_by_a_loop(store, of, times)
    assert ours.nnz == loop.nnz
    assert abs(ours - loop).max() == 0
    case = f"{len(of):,} label times of {subjects:,} subjects, {len(store.tokens):,} tokens, vocabulary {VOCABULARY:,}"
    compare(
        "count features", case,
        {"ours": lambda: count_features(store, of, times)},
        {"loop over events": lambda: counted_by_a_loop(store, of, times)},
        repeats, warm_up=False,
    )  # fmt: skip


def embedded(rows: int, width: int) -> tuple[Features, np.ndarray]:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((rows, width)).astype(np.float32) * rng.lognormal(0, 1, width).astype(np.float32)
    return x, x[:, :5].sum(axis=1) + 3 * rng.standard_normal(rows) > 2


def counted(rows: int) -> tuple[Features, np.ndarray]:
    store = timelines(rows // 10, 300)
    x = count_features(store, *label_times(store, 10))
    signal = np.log1p(x[:, :20].toarray()).sum(axis=1)
    return x, signal + np.random.default_rng(3).standard_normal(rows) > np.quantile(signal, 0.8)


def pipeline(c: float, settings: Probe) -> Pipeline:
    return make_pipeline(MaxAbsScaler(), LogisticRegression(C=c, max_iter=settings.max_iterations))


def by_pipelines(x: Features, y: np.ndarray, tuning: Features, y_tuning: np.ndarray, settings: Probe) -> None:
    for c in settings.regularization:
        fitted = pipeline(c, settings).fit(x, y)
        roc_auc_score(y_tuning, fitted.decision_function(tuning))  # as scikit-learn's grid search scores


def compare_grids(case: str, x: Features, y: np.ndarray, train: np.ndarray, repeats: int) -> None:
    """`train` are the rows to fit on; the second half of all rows chooses."""
    settings = Probe(max_iterations=200)
    half = len(y) // 2
    data = x[train], y[train], x[half:], y[half:]
    for c in (
        settings.regularization
    ):  # the same weights for each C; at a large one both stop early, where float32 lets them
        ours = fit_head(LINEAR, *data, settings.model_copy(update={"regularization": (c,)})).classifier[-1].coef_
        theirs = pipeline(c, settings).fit(*data[:2])[-1].coef_
        assert np.abs(ours - theirs).max() < 1e-2 * np.abs(theirs).max()
    compare(
        "linear probe", f"{case}, 8 values of C",
        {"ours": lambda: fit_head(LINEAR, *data, settings)},
        {"pipelines of scikit-learn": lambda: by_pipelines(*data, settings)},
        repeats, warm_up=False,
    )  # fmt: skip


def main() -> None:
    is_quick = options(__doc__, runs_on_gpu=False).quick
    repeats = 1 if is_quick else 3
    if is_quick:
        compare_counts(200, 50, 500, repeats)
    else:
        compare_counts(2_000, 50, 500, repeats)
    n = 2_000 if is_quick else 8_000
    x, y = embedded(2 * n, 256 if is_quick else 768)
    compare_grids(f"{n:,} embeddings of width {x.shape[1]}", x, y, np.arange(n), repeats)
    x, y = counted(2 * n)
    compare_grids(f"{n:,} rows of counts", x, y, np.arange(n), repeats)
    few = np.concatenate([np.flatnonzero(y[:n] == c)[:16] for c in (False, True)])
    compare_grids("counts, 16 labels per class", x, y, few, repeats)


if __name__ == "__main__":
    main()
