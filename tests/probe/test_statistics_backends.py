"""The compiled bootstrap against the one in numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.probe import statistics
from ehrctx.probe.statistics import _scores_in_numpy, scores


@given(st.integers(1, 60), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_compiled_and_numpy_agree(n, distinct, seed):
    """With ties, weights of 0 and replicates of one class or of nobody."""
    pytest.importorskip("numba")
    assert statistics.scores_of_replicates is not None
    rng = np.random.default_rng(seed)
    y, p = rng.random(n) < 0.4, rng.integers(0, distinct * 3, n) / (distinct * 3)
    weights = rng.integers(0, 3, (20, n)).astype(np.uint16)
    order = np.argsort(-p, kind="stable")
    with np.errstate(invalid="ignore"):
        expected = _scores_in_numpy(y[order].astype(float), p[order], order, weights)
    np.testing.assert_allclose(scores(y, p, weights), expected, rtol=1e-9, equal_nan=True)
