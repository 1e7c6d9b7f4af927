"""Predictions as the tables need them: by task and split, all heads' for the same labels in the same order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.probe.suppression import COUNTS

EVALUATED = "held_out"
_LABEL = ["subject_id", "prediction_time", "y"]


class Entry(NamedTuple):
    """Who predicted: a model and a head on it, fitted on `k` labels per class ("all") in the draw `replicate`."""

    model: str
    head: str
    k: str = "all"
    replicate: int = 0


@dataclass(frozen=True)
class TaskPredictions:
    """The labels of one task and split, in order of subject and time, and what was predicted for them."""

    task: str
    y: np.ndarray  # bool[n]
    subject_ids: np.ndarray  # int64[n]
    times: np.ndarray  # datetime64[n]
    p: dict[Entry, np.ndarray]  # float64[n] each

    def only(self, rows: np.ndarray) -> TaskPredictions:
        """Of the labels `rows` (bool[n]) alone."""
        p = {entry: predicted[rows] for entry, predicted in self.p.items()}
        return TaskPredictions(self.task, self.y[rows], self.subject_ids[rows], self.times[rows], p)

    def on_all_labels(self) -> TaskPredictions:
        """Without few-shot heads."""
        p = {entry: predicted for entry, predicted in self.p.items() if entry.k == "all"}
        return TaskPredictions(self.task, self.y, self.subject_ids, self.times, p)

    def counts(self) -> dict[str, int]:
        return count_labels(self.y, self.subject_ids)


def count_labels(y: np.ndarray, subject_ids: np.ndarray) -> dict[str, int]:
    """COUNTS of labels: `y` bool[n], and whose they are, `subject_ids` int64[n]."""
    numbers = len(y), int(y.sum()), len(np.unique(subject_ids)), len(np.unique(subject_ids[y]))
    return dict(zip(COUNTS, numbers, strict=True))


def by_task(predictions: Sequence[pl.LazyFrame], split: str = EVALUATED) -> Iterator[TaskPredictions]:
    """Each task that has predictions in `split`, in order of its first; one task is in memory at a time.

    Raises InputError if two entries predicted different labels of a task.
    """
    of_split = pl.concat(list(predictions)).filter(pl.col("split") == split)
    for task in of_split.select(pl.col("task").unique(maintain_order=True)).collect()["task"]:
        frame = of_split.filter(pl.col("task") == task).collect()
        labels: pl.DataFrame | None = None
        p: dict[Entry, np.ndarray] = {}
        for key, part in frame.partition_by(*Entry._fields, maintain_order=True, as_dict=True).items():
            ordered = part.sort(_LABEL)
            own = ordered.select(_LABEL)
            labels = own if labels is None else labels
            if not own.equals(labels):
                raise InputError(f"the models predicted different labels of {task!r}. Run the probes again.")
            p[Entry(*key)] = predicted = ordered["p"].to_numpy()
            if not ((predicted >= 0) & (predicted <= 1)).all():
                raise InputError(f"{key[0]} predicted what is no probability for {task!r}. Run its probe again.")
        assert labels is not None
        y, subject_ids, times = (labels[c].to_numpy() for c in ("y", "subject_id", "prediction_time"))
        yield TaskPredictions(task, y, subject_ids, times, p)


def evaluated_subjects(predictions: Sequence[pl.LazyFrame]) -> np.ndarray:
    """The distinct subjects with held-out predictions of any task, int64[s] ascending."""
    of_split = pl.concat(list(predictions)).filter(pl.col("split") == EVALUATED)
    return of_split.select(pl.col("subject_id").unique().sort()).collect()["subject_id"].to_numpy()
