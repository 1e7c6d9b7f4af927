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
from ehrctx.probe.calibration import AS_PREDICTED, variants
from ehrctx.probe.statistics import Draws, Intervals
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
    """The least of the numbers of true and false positives and negatives (y, flagged: bool[n]) that are not 0."""
    cells = np.bincount(2 * y.astype(np.int64) + flagged, minlength=4)
    return int(cells[cells > 0].min())


def net_benefit_table(
    tasks: Iterable[tuple[TaskPredictions, TaskPredictions | None]],
    draws: Draws,
    thresholds: tuple[float, ...],
    intervals: Intervals,
) -> pl.DataFrame:
    """TABLE of the heads fitted on all labels and of treating all; `tasks` are (held-out, tuning), as for calibration.

    `gain` is the net benefit beyond that of the better of treating all and treating none, paired; `n_flagged_subjects`
    counts the subjects with a label at or over the threshold.
    """
    rows: list[dict[str, Any]] = []
    at = np.array(thresholds)
    for task, tuning in tasks:
        y, subject_ids, counts = task.y, task.subject_ids, task.counts()
        n = intervals.subjects(y, subject_ids)
        everybody = np.ones(len(y))
        of_all = draws.means(net_benefits(y, everybody, at), subject_ids)
        default, default_replicates = (np.where(of_all[0] > 0, benefit, 0.0) for benefit in of_all)
        curves = [(TREAT_ALL, "", AS_PREDICTED, everybody)]
        for entry in task.on_all_labels().p:
            curves += [(entry.model, entry.head, how, p) for how, p in variants(task, tuning, entry).items()]
        for model, head, recalibration, p in curves:
            point, replicates = draws.means(net_benefits(y, p, at), subject_ids)
            for i, threshold in enumerate(thresholds):
                flagged = p >= threshold
                lower, upper = intervals.of(replicates[:, i], n)
                gain_lower, gain_upper = intervals.of(replicates[:, i] - default_replicates[:, i], n)
                rows.append(
                    {"task": task.task, "model": model, "head": head, "recalibration": recalibration}
                    | {"threshold": threshold, "value": float(point[i]), "lower": lower, "upper": upper}
                    | {"gain": float(point[i] - default[i]), "gain_lower": gain_lower, "gain_upper": gain_upper}
                    | {"n_flagged_subjects": len(np.unique(subject_ids[flagged])), SMALLEST: smallest_cell(y, flagged)}
                    | counts
                )
    return pl.DataFrame(rows, schema=TABLE)
