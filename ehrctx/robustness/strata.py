"""Brier score by quartile of a property, per task and over all tasks, with paired patient-level intervals.

Quartiles are those of Context Clues (arXiv 2412.16178): per task, over its held-out labels, ties by first rank.
One set of bootstrap draws serves every task, model and quartile, so that differences and macro means are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.probe.by_task import EVALUATED, count_labels
from ehrctx.probe.statistics import Intervals, subject_draws, subjects_of_mean, variances
from ehrctx.probe.suppression import COUNTS
from ehrctx.study import Statistics
from ehrctx.tasks.definition import MACRO

STRATIFIED = ("rr_1", "rr", "gap_sd", "gap_sd_with_birth", "gap_mean", "gap_iqr", "n_tokens")
QUARTILES = ("Q1", "Q2", "Q3", "Q4")
DIFFERENCE = "Q4-Q1"
STRATA = (*QUARTILES, DIFFERENCE)
SCORE = "brier"
TABLE: dict[str, Any] = {
    **dict.fromkeys(("task", "model", "head", "property", "stratum", "score"), pl.String),
    **dict.fromkeys(("value", "lower", "upper"), pl.Float64),
    **dict.fromkeys(COUNTS, pl.Int64),
}
_LABEL = ["subject_id", "prediction_time", "y"]


def quartiles(values: np.ndarray) -> np.ndarray:
    """0..3 for each value (int64[n], n >= 4): pandas' qcut(values.rank(method="first"), 4), with NaN taken as 0.

    Equal values are ranked in the order given, so that the quartiles are of equal size whatever the ties.
    """
    rank = np.empty(len(values))
    rank[np.argsort(np.nan_to_num(values, nan=0.0), kind="stable")] = np.arange(1, len(values) + 1)
    edges = 1 + (len(values) - 1) * np.array([0.25, 0.5, 0.75])  # the ranks' linear quantiles
    return np.searchsorted(edges, rank, side="left")


@dataclass(frozen=True)
class _Task:
    """The held-out labels of one task, ordered by subject and time."""

    y: np.ndarray  # bool[n]
    subjects: np.ndarray  # int64[s]: which of the drawn subjects have labels
    subject: np.ndarray  # int64[n] into `subjects`
    models: list[tuple[str, str]]  # (model, head)
    errors: np.ndarray  # float64[models, n], squared
    quartile: dict[str, np.ndarray]  # by property, 0..3, int64[n]


def _task(task: str, frame: pl.DataFrame, properties: pl.DataFrame, ids: np.ndarray) -> _Task:
    parts = frame.sort(*_LABEL).partition_by("model", "head", maintain_order=True)
    parts = sorted(parts, key=lambda part: part.select("model", "head").row(0))
    labels = parts[0].select(_LABEL)
    if not all(part.select(_LABEL).equals(labels) for part in parts):
        raise InputError(f"the models predicted different labels of {task!r}. Run the probes again.")
    placed = labels.join(properties, on=_LABEL[:2], how="left", validate="m:1", maintain_order="left")
    if placed["n_tokens"].null_count():
        raise InputError(
            f"{placed['n_tokens'].null_count():,} held-out labels of {task!r} have no properties. "
            f"Compute the properties again, from the labels that the probes predicted."
        )
    y = labels["y"].to_numpy()
    present, subject = np.unique(labels["subject_id"].to_numpy(), return_inverse=True)
    return _Task(
        y=y,
        subjects=np.asarray(np.searchsorted(ids, present)),
        subject=subject,
        models=[part.select("model", "head").row(0) for part in parts],
        errors=np.stack([(part["p"].to_numpy() - y) ** 2 for part in parts]),
        quartile={name: quartiles(placed[name].to_numpy().astype(np.float64)) for name in STRATIFIED},
    )


def _brier(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums of squared errors [..., models, 4] and counts [..., 4] -> Brier score of STRATA [..., models, 5]."""
    with np.errstate(invalid="ignore"):
        brier = sums / counts[..., None, :]  # 0 / 0 in a replicate that draws nobody of the stratum: undefined
    return np.concatenate([brier, brier[..., 3:] - brier[..., :1]], axis=-1)


def _values(task: _Task, name: str, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brier score of STRATA, float64[models, 5], and of each replicate, float64[replicates, models, 5].

    `drawn` float64[replicates, s] says how often a replicate counts each of the task's subjects.

    A Brier score is a ratio of sums over labels, and a draw takes a subject's labels together: the sums per subject and
    quartile, weighted by the draws, are all that a replicate needs.
    """
    cell, n_cells = task.subject * 4 + task.quartile[name], 4 * len(task.subjects)
    counts = np.bincount(cell, minlength=n_cells).reshape(-1, 4).astype(np.float64)
    sums = np.stack([np.bincount(cell, e, n_cells).reshape(-1, 4) for e in task.errors], axis=1)
    of_replicates = (drawn @ sums.reshape(len(sums), -1)).reshape(len(drawn), *sums.shape[1:])
    return _brier(sums.sum(axis=0), counts.sum(axis=0)), _brier(of_replicates, drawn @ counts)


def _counts(tasks: Sequence[_Task], name: str, stratum: str) -> dict[str, int]:
    """COUNTS of a stratum of all `tasks` together; of both its quartiles for the difference."""
    quartile = [0, 3] if stratum == DIFFERENCE else [QUARTILES.index(stratum)]
    inside = [np.isin(task.quartile[name], quartile) for task in tasks]
    y = np.concatenate([t.y[i] for t, i in zip(tasks, inside, strict=True)])
    return count_labels(y, np.concatenate([t.subjects[t.subject[i]] for t, i in zip(tasks, inside, strict=True)]))


def _subjects_of_strata(task: _Task, name: str, intervals: Intervals) -> np.ndarray:
    """On how many subjects the scores of STRATA rest, int64[5]; their difference on the fewer of its two.

    At least two, whose interval is as wide as all draws: the Brier score of a stratum of one class is defined, and if
    it had no interval, that would tell a hidden count and leave the mean over tasks without one.
    """
    inside = [task.quartile[name] == q for q in range(len(QUARTILES))]
    n = [max(2, intervals.subjects(task.y[i], task.subject[i])) for i in inside]
    return np.array([*n, min(n[0], n[3])])


def _rows(
    task: str,
    of: Sequence[_Task],
    name: str,
    points: np.ndarray,
    replicates: np.ndarray,
    n: np.ndarray,
    intervals: Intervals,
) -> list[dict[str, Any]]:
    """The rows of one task (or of the macro mean of several) and one property; `n` [models, 5] subjects."""
    rows = []
    counts = [_counts(of, name, stratum) for stratum in STRATA]
    for m, (model, head) in enumerate(of[0].models):
        for s, stratum in enumerate(STRATA):
            lower, upper = intervals.of(replicates[:, m, s], n[m, s])
            identity = {"task": task, "model": model, "head": head, "property": name, "stratum": stratum}
            found = {"score": SCORE, "value": float(points[m, s]), "lower": lower, "upper": upper}
            rows.append(identity | found | counts[s])
    return rows


def strata_table(predictions: Sequence[pl.DataFrame], properties: pl.DataFrame, statistics: Statistics) -> pl.DataFrame:
    """TABLE: the Brier score of each task, model, head and quartile of each of STRATIFIED, and of Q4 minus Q1.

    Only held-out predictions with k "all" and replicate 0 count. The task "macro" is the unweighted mean over the tasks
    that every model predicted, if there are two or more: n and n_positive are sums over them, subjects are distinct. A
    task with fewer than 4 held-out labels has no quartiles and no rows.
    """
    held_out = pl.concat(list(predictions)).filter(
        (pl.col("split") == EVALUATED) & (pl.col("k") == "all") & (pl.col("replicate") == 0)
    )
    if held_out.is_empty():
        return pl.DataFrame(schema=TABLE)
    ids = held_out["subject_id"].unique().sort().to_numpy()
    draws, intervals = subject_draws(ids, statistics), Intervals(statistics.level)
    n_models = held_out.select("model", "head").n_unique()
    rows: list[dict[str, Any]] = []
    shared: list[_Task] = []
    sums = dict.fromkeys(STRATIFIED, np.zeros(()))  # of the tasks' replicates
    parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {name: [] for name in STRATIFIED}
    for (task,), frame in held_out.group_by(["task"], maintain_order=True):
        found = _task(str(task), frame, properties, ids)
        if len(found.y) < len(QUARTILES):
            continue
        of_all = len(found.models) == n_models
        shared += [found] * of_all
        drawn = draws[:, found.subjects].astype(np.float64)
        for name in STRATIFIED:
            points, replicates = _values(found, name, drawn)
            n = np.broadcast_to(_subjects_of_strata(found, name, intervals), points.shape)
            rows += _rows(str(task), [found], name, points, replicates, n, intervals)
            if of_all:
                sums[name] = sums[name] + replicates
                parts[name].append((points, variances(replicates), n))
    if len(shared) > 1:
        for name in STRATIFIED:
            points, spread, n = (np.stack(of_tasks) for of_tasks in zip(*parts[name], strict=True))
            means = points.mean(axis=0), sums[name] / len(shared), subjects_of_mean(spread, n)
            rows += _rows(MACRO, shared, name, *means, intervals)
    return pl.DataFrame(rows, schema=TABLE)
