"""Decision curves: is acting on the predictions better than treating everybody or nobody? (Vickers and Elkin 2006)

Who would treat from a risk of t on takes one true positive to be worth (1 - t) / t false ones. The net benefit at t is
then the true positives minus t / (1 - t) times the false ones, per label; treating nobody has 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

from ehrctx.probe.by_task import TaskPredictions
from ehrctx.probe.calibration import variants
from ehrctx.probe.statistics import Draws, interval
from ehrctx.probe.suppression import COUNTS

TREAT_ALL = "treat all"
SMALLEST = "smallest_cell"  # of true and false positives and negatives, in labels: what `tables` hides by
TABLE: dict[str, Any] = {
    **dict.fromkeys(("task", "model", "head", "recalibration"), pl.String),
    "threshold": pl.Float64,
    **dict.fromkeys(("value", "lower", "upper", "gain", "gain_lower", "gain_upper"), pl.Float64),
    "n_flagged_subjects": pl.Int64,
    SMALLEST: pl.Int64,
    **dict.fromkeys(COUNTS, pl.Int64),
}


def net_benefits(y: np.ndarray, p: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """What each label adds at each threshold, float64[n, thresholds]: its mean is the net benefit."""
    worth = np.where(y[:, None], 1.0, -thresholds / (1 - thresholds))
    return worth * (p[:, None] >= thresholds)


def smallest_cell(y: np.ndarray, flagged: np.ndarray) -> int:
    """The least of the numbers of true and false positives and negatives that are not 0."""
    cells = np.bincount(2 * y.astype(np.int64) + flagged, minlength=4)
    return int(cells[cells > 0].min())


def _mean(values: np.ndarray, subject_ids: np.ndarray, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """Means over labels, float64[m], and those of each replicate, float64[replicates, m]."""
    sums = draws.sums(np.column_stack([values, np.ones(len(values))]), subject_ids)
    with np.errstate(invalid="ignore"):
        return values.mean(axis=0), sums[:, :-1] / sums[:, -1:]


def net_benefit_table(
    tasks: Iterable[tuple[TaskPredictions, TaskPredictions | None]],
    draws: Draws,
    thresholds: tuple[float, ...],
    level: float,
) -> pl.DataFrame:
    """TABLE of the heads fitted on all labels and of treating all; `tasks` are (held-out, tuning), as for calibration.

    `gain` is the net benefit beyond that of the better of treating all and treating none, paired; `n_flagged_subjects`
    counts the subjects with a label at or over the threshold.
    """
    rows: list[dict[str, Any]] = []
    at = np.array(thresholds)
    for task, tuning in tasks:
        counts, n_subjects = task.counts(), len(np.unique(task.subject_ids))
        of_all = _mean(net_benefits(task.y, np.ones(len(task.y)), at), task.subject_ids, draws)
        default = tuple(np.where(of_all[0] > 0, benefit, 0.0) for benefit in of_all)
        curves = [(TREAT_ALL, "", "none", of_all, np.full(len(at), n_subjects), np.ones(len(task.y)))]
        for entry in task.on_all_labels().p:
            for recalibration, p in variants(task, tuning, entry).items():
                flagged = np.array([len(np.unique(task.subject_ids[p >= t])) for t in at])
                benefit = _mean(net_benefits(task.y, p, at), task.subject_ids, draws)
                curves.append((entry.model, entry.head, recalibration, benefit, flagged, p))
        for model, head, recalibration, (point, replicates), flagged, p in curves:
            for i, threshold in enumerate(thresholds):
                lower, upper = interval(replicates[:, i], level)
                gain_lower, gain_upper = interval(replicates[:, i] - default[1][:, i], level)
                rows.append(
                    {"task": task.task, "model": model, "head": head, "recalibration": recalibration}
                    | {"threshold": threshold, "value": float(point[i]), "lower": lower, "upper": upper}
                    | {"gain": float(point[i] - default[0][i]), "gain_lower": gain_lower, "gain_upper": gain_upper}
                    | {"n_flagged_subjects": int(flagged[i]), SMALLEST: smallest_cell(task.y, p >= threshold)}
                    | counts
                )
    return pl.DataFrame(rows, schema=TABLE)
