"""Labels that somebody else made, in the MEDS label schema: EHRSHOT's own, or those of another tool."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.meds import read_parquet
from ehrctx.tasks.labelers import LABEL_SCHEMA


def label_files(folder: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """The file of each task: `<task>/labels.parquet`, as EHRSHOT has it, or `<task>.parquet`."""
    folder = Path(folder)
    found = {}
    for task in tasks:
        places = [folder / task / "labels.parquet", folder / f"{task}.parquet"]
        files = [place for place in places if place.is_file()]
        if not files:
            raise InputError(
                f"no labels of {task!r} in {folder}: neither {task}/labels.parquet nor {task}.parquet is there. "
                f"Put the file there, or leave the task out."
            )
        found[task] = files[0]
    return found


def read_given(file: Path) -> pl.DataFrame:
    """LABEL_SCHEMA from a MEDS label file. A grade above 0 is positive where boolean_value is not there."""
    labels = read_parquet(file, str(file))
    missing = [c for c in ("subject_id", "prediction_time") if c not in labels.columns]
    if missing:
        raise InputError(f"{file}: the column {missing[0]!r} is missing. Write it as MEDS prescribes.")
    stated = [
        value
        for column, value in (
            ("boolean_value", pl.col("boolean_value").cast(pl.Boolean)),
            ("integer_value", pl.col("integer_value") > 0),
        )
        if column in labels.columns
    ]
    if not stated:
        raise InputError(f"{file}: neither boolean_value nor integer_value is there. Write it as MEDS prescribes.")
    grade = pl.col("integer_value") if "integer_value" in labels.columns else pl.lit(None)
    found = labels.select("subject_id", "prediction_time", boolean_value=pl.coalesce(stated), integer_value=grade)
    read = found.cast(LABEL_SCHEMA)  # type: ignore[arg-type]
    for column in ("subject_id", "prediction_time", "boolean_value"):
        empty = read[column].is_null()
        if empty.any():
            row = int(empty.arg_true()[0]) + 1
            raise InputError(f"{file}, row {row:,}: {column} is empty. Fill it, or leave the row out.")
    return read.sort("subject_id", "prediction_time", maintain_order=True)
