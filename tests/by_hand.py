"""Intervals as they are defined, for tables that hold them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import norm, t


def expanded(replicates: Sequence[float] | np.ndarray, level: float, n: float) -> tuple[float, float]:
    """Hesterberg (2015): the percentiles that are as far out as Student's t of `n`, and a bootstrap divides by n; none
    of one subject."""
    if n < 2:
        return np.nan, np.nan
    z = t.ppf((1 + level) / 2, n - 1) / np.sqrt(1 - 1 / n)
    lower, upper = np.nanquantile(replicates, [norm.cdf(-z), norm.cdf(z)])
    return float(lower), float(upper)


def rarer(y: np.ndarray, subjects: np.ndarray) -> int:
    """Subjects with a label of the class that fewer have."""
    return min(len({s for s, yes in zip(subjects, y, strict=True) if yes == wanted}) for wanted in (True, False))


def welch(parts: Sequence[tuple[np.ndarray, int]]) -> float:
    """Subjects that a mean of (replicates, subjects) rests on: Welch's degrees of freedom, and one."""
    variances = [float(np.nanvar(replicates)) for replicates, _ in parts]
    if not any(variances):
        return np.inf
    return 1 + sum(variances) ** 2 / sum(v**2 / (max(n, 2) - 1) for v, (_, n) in zip(variances, parts, strict=True))
