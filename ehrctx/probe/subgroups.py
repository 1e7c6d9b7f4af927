"""Scores by subgroup: sex, age band, race, and new onsets apart from repeated events.

A model that knows that a disease which was there will be there again scores well on repeated events and may be useless
for the first one, which is what it is wanted for (arXiv 2507.00574).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.probe.by_task import TaskPredictions
from ehrctx.probe.statistics import SCORES, Draws, Intervals
from ehrctx.probe.suppression import COUNTS

HISTORY = "history"
NEW_ONSET, REPEATED = "new onset", "repeated"
ESTIMATES = ("value", "lower", "upper", "difference", "difference_lower", "difference_upper")
TABLE: dict[str, Any] = {
    **dict.fromkeys(("task", "model", "head", "group", "level", "score"), pl.String),
    **dict.fromkeys(ESTIMATES, pl.Float64),
    **dict.fromkeys(COUNTS, pl.Int64),
}
_KEY = ["subject_id", "prediction_time"]


def _levels(task: TaskPredictions, groups: pl.DataFrame, history: pl.DataFrame) -> pl.DataFrame:
    """A column of level names for each group, in the order of the task's labels; `history` where the task has one."""
    labels = pl.DataFrame({"subject_id": task.subject_ids, "prediction_time": task.times}).cast(
        {"prediction_time": pl.Datetime("us")}
    )
    repeated = history.filter(pl.col("task") == task.task).select(*_KEY, "repeated").unique(_KEY)
    placed = labels.join(groups, on=_KEY, how="left", maintain_order="left")
    if repeated.height:
        placed = placed.join(repeated, on=_KEY, how="left", maintain_order="left")
    lacking = {name: n for name in placed.columns if (n := placed[name].null_count())}
    if lacking:
        name, n = next(iter(lacking.items()))
        raise InputError(
            f"{n:,} held-out labels of {task.task!r} have no {name}. "
            f"Run `ehrctx groups` again, from the labels that the probes predicted."
        )
    if repeated.height:
        level = pl.when("repeated").then(pl.lit(REPEATED)).otherwise(pl.lit(NEW_ONSET))
        placed = placed.with_columns(level.alias(HISTORY)).drop("repeated")
    return placed.drop(_KEY)


def _of_levels(
    task: TaskPredictions, p: np.ndarray, of_labels: np.ndarray, draws: Draws
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of each level: its scores and their difference to those of all others, float64[6], and both in each replicate,
    float64[replicates, 6]."""
    masks = {name: of_labels == name for name in sorted(set(of_labels))}
    own = {name: draws.scores(task.y[m], p[m], task.subject_ids[m]) for name, m in masks.items()}
    found = {}
    for name, mask in masks.items():
        if len(masks) == 1:
            rest = tuple(np.full_like(part, np.nan) for part in own[name])
        elif len(masks) == 2:
            (rest,) = (of_level for other, of_level in own.items() if other != name)
        else:
            rest = draws.scores(task.y[~mask], p[~mask], task.subject_ids[~mask])
        point, replicates = (np.concatenate([a, a - b], axis=-1) for a, b in zip(own[name], rest, strict=True))
        found[name] = point, replicates
    return found


def _subjects_inside_and_outside(task: TaskPredictions, mask: np.ndarray, intervals: Intervals) -> tuple[int, int]:
    """How many subjects the scores of the labels in `mask` bool[n] rest on, and those of all others."""
    inside, outside = (intervals.subjects(task.y[m], task.subject_ids[m]) for m in (mask, ~mask))
    return inside, outside


def subgroup_table(
    tasks: Iterable[TaskPredictions], groups: pl.DataFrame, history: pl.DataFrame, draws: Draws, intervals: Intervals
) -> pl.DataFrame:
    """TABLE of the heads fitted on all labels. `difference` is a level's score minus that of all other levels of its
    group together; a score that one class leaves undefined is empty.

    `groups` is (subject_id, prediction_time, a column for each group), `history` (task, subject_id, prediction_time,
    repeated). Raises InputError if a label is in neither.
    """
    rows: list[dict[str, Any]] = []
    for task in tasks:
        levels = _levels(task, groups, history)
        for group in levels.columns:
            of_labels = levels[group].to_numpy()
            counts = {name: task.only(of_labels == name).counts() for name in set(of_labels)}
            n = {name: _subjects_inside_and_outside(task, of_labels == name, intervals) for name in counts}
            for entry, p in task.on_all_labels().p.items():
                for name, (point, replicates) in _of_levels(task, p, of_labels, draws).items():
                    who = {"task": task.task, "model": entry.model, "head": entry.head, "group": group, "level": name}
                    for s, score in enumerate(SCORES):
                        gap = s + len(SCORES)
                        values = (
                            *(float(point[s]), *intervals.of(replicates[:, s], n[name][0])),
                            *(float(point[gap]), *intervals.of(replicates[:, gap], min(n[name]))),
                        )
                        rows.append(who | {"score": score} | dict(zip(ESTIMATES, values, strict=True)) | counts[name])
    return pl.DataFrame(rows, schema=TABLE).with_columns(pl.col(ESTIMATES).fill_nan(None))
