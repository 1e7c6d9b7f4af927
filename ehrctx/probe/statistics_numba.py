"""The bootstrap's inner loop, compiled: one pass over the ranked labels per replicate.

Imported only where numba is installed; `statistics` has the same in numpy.
"""

from __future__ import annotations

import numpy as np

from ehrctx.kernels import kernel


@kernel()
def scores_of_replicates(y: np.ndarray, p: np.ndarray, order: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC, AUPRC, Brier score of each row of `weights`; float64[replicates, 3].

    `y` float64[n] (0 or 1) and `p` float64[n] are sorted by prediction, descending; `order` int64[n] says which column
    of `weights` [replicates, m] each belongs to. NaN where a replicate holds one class only.
    """
    out = np.empty((weights.shape[0], 3))
    n = len(y)
    for replicate in range(weights.shape[0]):
        of_labels = weights[replicate]
        true_positives, seen, above, precisions, errors = 0.0, 0.0, 0.0, 0.0, 0.0
        i = 0
        while i < n:
            positive, total, start = 0.0, 0.0, p[i]
            while i < n and p[i] == start:  # a run of equal predictions
                w = float(of_labels[order[i]])
                positive += w * y[i]
                total += w
                errors += w * (y[i] - start) ** 2
                i += 1
            true_positives += positive
            seen += total
            # pairs in which the positive ranks higher; half of the tied ones
            above += (total - positive) * (true_positives - positive / 2)
            if seen > 0:
                precisions += positive * true_positives / seen
        negatives = seen - true_positives
        both = true_positives > 0 and negatives > 0
        out[replicate, 0] = above / (true_positives * negatives) if both else np.nan
        out[replicate, 1] = precisions / true_positives if both else np.nan
        out[replicate, 2] = errors / seen if seen > 0 else np.nan
    return out
