"""Whether the outcome of a label was there before: what tells a new onset from a repeated event (arXiv 2507.00574)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.artifacts import read_manifest
from ehrctx.tasks.definition import Diagnosis, Task

FILE = "history.parquet"
HISTORY: dict[str, Any] = {
    "task": pl.String,
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "repeated": pl.Boolean,
}
_KEY = ["subject_id", "prediction_time"]


def history_of(definition: Task, labels: pl.DataFrame) -> pl.DataFrame:
    """HISTORY of all labels of a task: repeated is one whose subject has a positive label at an earlier time.

    Diagnoses are never repeated: only the first is a label, even where several discharges precede it.
    """
    earlier = labels.filter("boolean_value").group_by("subject_id").agg(_first=pl.col("prediction_time").min())
    is_repeated = (pl.col("prediction_time") > pl.col("_first")).fill_null(False)
    return (
        labels.select(_KEY)
        .unique(maintain_order=True)
        .join(earlier, on="subject_id", how="left", maintain_order="left")
        .select(
            pl.lit(definition.task).alias("task"),
            *_KEY,
            repeated=pl.lit(False) if isinstance(definition, Diagnosis) else is_repeated,
        )
        .cast(HISTORY)  # type: ignore[arg-type]
    )


def read_history(labels_folder: Path) -> pl.DataFrame:
    """HISTORY of all labels of a folder that `ehrctx label` wrote."""
    read_manifest(labels_folder, "labels")
    return pl.read_parquet(Path(labels_folder) / FILE)
