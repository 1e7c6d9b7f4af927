"""The count baseline's features: how often each token occurred, over the whole visible history, and the age."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix

from ehrctx.timelines.store import Timelines

SECONDS_PER_YEAR = 365.25 * 86_400
BLOCK = 1 << 20  # counts that are held densely at a time


def _ages(timelines: Timelines, subjects: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Years since the origin, float32[n]; 0 before it, and where there is none."""
    since = times.astype("datetime64[us]") - timelines.subjects["origin"][subjects]
    years = since / np.timedelta64(1, "s") / SECONDS_PER_YEAR
    return np.where(np.isnat(since), 0.0, np.maximum(years, 0.0)).astype(np.float32)


def count_features(timelines: Timelines, subjects: np.ndarray, times: np.ndarray) -> csr_matrix:
    """Rows of (counts of each token, years since the origin), float32[n, vocabulary + 1].

    `subjects` are store positions, `times` datetime64[n]. The origin is the birth where the data set has one, so the
    last column is the age.
    """
    order = np.lexsort((times, subjects))
    subjects, times = subjects[order], times[order]
    ages = _ages(timelines, subjects, times)
    data, columns, lengths = [np.zeros(0, np.float32)], [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
    bounds = np.flatnonzero(np.diff(subjects, prepend=-2, append=-2))
    for first, last in pairwise(bounds):
        subject = int(subjects[first])
        visible = timelines.visible(subject, times[first:last])
        start = timelines.offsets[subject]
        # a column for each token that the subject has, and one for the age
        own, tokens = np.unique(timelines.tokens[start : start + visible[-1]], return_inverse=True)
        names = np.append(own, timelines.vocabulary_size).astype(np.int32)
        held, seen, height = np.zeros(len(names), np.int64), 0, max(1, BLOCK // len(names))
        for top in range(0, last - first, height):
            upto = visible[top : top + height]
            row = np.searchsorted(upto, np.arange(seen, upto[-1]), side="right")  # the first that sees the token
            cells = row * len(names) + tokens[seen : upto[-1]]
            added = np.bincount(cells, minlength=len(upto) * len(names)).reshape(len(upto), -1)
            added[0] += held
            counts = added.cumsum(axis=0)
            held, seen = counts[-1], upto[-1]
            block = counts.astype(np.float32)
            block[:, -1] = ages[first + top : first + top + len(upto)]
            filled = block != 0
            data.append(block[filled])
            columns.append(np.broadcast_to(names, block.shape)[filled])
            lengths.append(filled.sum(axis=1))
    pointers = np.cumsum(np.concatenate(lengths))
    found = csr_matrix(
        (np.concatenate(data), np.concatenate(columns), pointers), shape=(len(subjects), timelines.vocabulary_size + 1)
    )
    return found if np.array_equal(order, np.arange(len(order))) else found[np.argsort(order)]
