"""Was the outcome already there before? New onsets and repeated events are different questions (arXiv 2507.00574).

A patient with low sodium yesterday has it today, and a model that knows it scores well without having learned who gets
it first. So `history.parquet` says of every label of a folder whether its outcome repeats an earlier one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.artifacts import read_manifest
from ehrctx.errors import InputError

LABELS = "labels"  # the kind of the folder
FILE = "history.parquet"
HISTORY_SCHEMA: dict[str, Any] = {
    "task": pl.String,
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "repeated": pl.Boolean,
}


def history_of(task: str, labels: pl.DataFrame, first_only: bool = False) -> pl.DataFrame:
    """HISTORY_SCHEMA with one row for each distinct (subject_id, prediction_time) of one task's labels, in their order.

    `repeated`: the same subject has a positive label at an earlier prediction time. Labels that come later, or at the
    same time, do not matter. `first_only`: the task asks for first events alone, so none is repeated, although several
    prediction times may precede the one event.
    """
    first = labels.filter("boolean_value").group_by("subject_id").agg(_first=pl.col("prediction_time").min())
    repeated = pl.lit(False) if first_only else (pl.col("prediction_time") > pl.col("_first")).fill_null(False)
    return (
        labels.select("subject_id", "prediction_time")
        .unique(maintain_order=True)
        .join(first, on="subject_id", how="left", maintain_order="left")
        .select(pl.lit(task).alias("task"), "subject_id", "prediction_time", repeated=repeated)
        .cast(HISTORY_SCHEMA)  # type: ignore[arg-type]
    )


def read_history(folder: Path) -> pl.DataFrame:
    """HISTORY_SCHEMA of all labels of a finished folder: a row for each task, subject and prediction time."""
    read_manifest(folder, LABELS)
    file = Path(folder) / FILE
    if not file.is_file():
        raise InputError(f"{folder} has no {FILE}: an earlier version made it. Make the labels again.")
    return pl.read_parquet(file)
