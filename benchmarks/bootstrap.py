"""The patient-level bootstrap of three scores: the compiled one against numpy, and against a loop over scikit-learn.

The loop takes a tenth of the replicates, and its time is scaled up. That it gives the same numbers is checked.
"""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import numpy as np
from measure import line, medians, options, peak_mib
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from ehrctx.probe import statistics
from ehrctx.study import Statistics


def labels(n: int, subjects: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """y, p and the subject of each label; predictions have ties, as those of trees do."""
    rng = np.random.default_rng(0)
    y = rng.random(n) < 0.1
    return y, np.round(1 / (1 + np.exp(-(y + rng.standard_normal(n) - 2))), 3), rng.integers(0, subjects, n)


def by_sklearn(y: np.ndarray, p: np.ndarray, draws: np.ndarray) -> np.ndarray:
    scorers = roc_auc_score, average_precision_score, brier_score_loss
    return np.array([[score(y, p, sample_weight=weights) for score in scorers] for weights in draws])


def main() -> None:
    is_quick = options(__doc__, runs_on_gpu=False).quick
    replicates = 100 if is_quick else 1_000
    settings = Statistics(replicates=replicates)
    for n, subjects in ((1_800, 550), (60_000, 2_200)):
        y, p, of = labels(n, subjects)

        def ours(y: np.ndarray = y, p: np.ndarray = p, of: np.ndarray = of) -> np.ndarray:
            return statistics.Draws.of(of, settings).scores(y, p, of)[1]

        def in_numpy(ours: Callable[[], np.ndarray] = ours) -> np.ndarray:
            with patch.object(statistics, "scores_of_replicates", None):
                return ours()

        def loop(y: np.ndarray = y, p: np.ndarray = p, of: np.ndarray = of) -> np.ndarray:
            return by_sklearn(y, p, statistics.subject_draws(of, settings)[: replicates // 10])

        np.testing.assert_allclose(ours()[: replicates // 10], loop(), rtol=1e-9)

        repeats = 1 if is_quick else 3
        took = medians({"ours": ours, "numpy": in_numpy, "loop": loop}, repeats)
        took["loop"] *= 10
        peaks = {"ours": peak_mib(ours), "numpy": peak_mib(in_numpy), "loop": peak_mib(loop)}
        for name, called in (("numpy", "the same in numpy"), ("loop", "loop over scikit-learn, scaled up")):
            line(
                "bootstrap", f"{n:,} labels x {replicates:,} replicates, three scores", "s", took["ours"], took[name],
                called, repeats, more_is_better=False, ours_peak_mib=peaks["ours"], baseline_peak_mib=peaks[name],
            )  # fmt: skip


if __name__ == "__main__":
    main()
