"""The count baseline's features: how often each token occurred, over the whole visible history, and the age."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix

from ehrctx.timelines.store import Timelines

SECONDS_PER_YEAR = 365.25 * 86_400


def count_features(timelines: Timelines, subjects: np.ndarray, times: np.ndarray) -> csr_matrix:
    """Rows of (counts of each token, years since the origin), float32[n, vocabulary + 1].

    `subjects` are store positions, those of a subject together; `times` are datetime64[n]. The origin is the birth
    where the data set has one, so the last column is the age.
    """
    size = timelines.vocabulary_size
    rows_data: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(subjects)
    rows_columns: list[np.ndarray] = [np.zeros(0, dtype=np.int64)] * len(subjects)
    bounds = np.flatnonzero(np.diff(subjects, prepend=-2, append=-2))
    for first, last in pairwise(bounds):
        subject = int(subjects[first])
        tokens = timelines.tokens[timelines.offsets[subject] : timelines.offsets[subject + 1]]
        visible = timelines.visible(subject, times[first:last])
        counts, seen = np.zeros(size + 1, dtype=np.float32), 0
        for i in np.argsort(visible, kind="stable"):
            counts[:size] += np.bincount(tokens[seen : visible[i]], minlength=size)
            seen = visible[i]
            origin = timelines.subjects["origin"][subject]
            age = (times[first + i].astype("datetime64[us]") - origin) / np.timedelta64(1, "s")
            counts[size] = 0.0 if np.isnat(origin) else max(age, 0.0) / SECONDS_PER_YEAR
            rows_columns[first + i] = np.flatnonzero(counts)
            rows_data[first + i] = counts[rows_columns[first + i]]
    pointers = np.concatenate([[0], np.cumsum([len(c) for c in rows_columns])])
    return csr_matrix(
        (
            np.concatenate([np.zeros(0, np.float32), *rows_data]),
            np.concatenate([np.zeros(0, np.int64), *rows_columns]),
            pointers,
        ),
        shape=(len(subjects), size + 1),
    )
