"""Labels that somebody else made: EHRSHOT's own, or those of another tool, in the MEDS label schema or as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.meds import read_parquet
from ehrctx.tasks.label_csv import read_csv, refuse_row
from ehrctx.tasks.labelers import LABEL_SCHEMA


def label_files(folder: Path, tasks: Sequence[str]) -> dict[str, Path]:
    """The file of each task: `<task>/labeled_patients.csv` or `<task>/labels.parquet`, as EHRSHOT has them, or
    `<task>.parquet` or `<task>.csv`."""
    folder = Path(folder)
    found = {}
    for task in tasks:
        places = [f"{task}/labels.parquet", f"{task}/labeled_patients.csv", f"{task}.parquet", f"{task}.csv"]
        files = [folder / place for place in places if (folder / place).is_file()]
        if not files:
            raise InputError(
                f"no labels of {task!r} in {folder}: put {', '.join(places[:-1])} or {places[-1]} there, or leave the "
                f"task out."
            )
        if len(files) > 1:
            raise InputError(f"{folder} holds two files of {task!r}: {files[0]} and {files[1]}. Remove one of them.")
        found[task] = files[0]
    return found


ACCEPTED: dict[str, tuple[Callable[[pl.DataType], bool], str]] = {
    "subject_id": (lambda t: t.is_integer(), "an integer"),
    "prediction_time": (lambda t: isinstance(t, pl.Datetime), "a date-time"),
    "boolean_value": (lambda t: t in (pl.Boolean, pl.Null), "a boolean"),
    "integer_value": (lambda t: t.is_integer() or t.is_float() or t == pl.Null, "an integer"),
}


def read_given(file: Path) -> pl.DataFrame:
    """LABEL_SCHEMA from a label file. A grade above 0 is positive where there is no boolean_value.

    Raises InputError, with file and row, where a column or a value is missing or is not what MEDS prescribes.
    """
    labels, names = read_csv(file) if file.suffix == ".csv" else (read_parquet(file, str(file)), {})
    missing = [c for c in ("subject_id", "prediction_time") if c not in labels.columns]
    if missing:
        raise InputError(f"{file}: the column {missing[0]!r} is missing. Write it as MEDS prescribes.")
    for column, (accepts, expected) in ACCEPTED.items():
        if column in labels.columns and not accepts(labels.schema[column]):
            raise InputError(f"{file}: the column {column!r} is {labels.schema[column]}, expected {expected}. Cast it.")
    if "integer_value" in labels.columns:
        grade = labels["integer_value"]
        whole = grade.cast(pl.Int64, strict=False)
        problem = "integer_value is not a whole number. Round it, leave it empty, or leave the row out."
        refuse_row(file, grade.is_not_null() & (whole.is_null() | (whole != grade)), problem)
    stated = [c for c in ("boolean_value", "integer_value") if c in labels.columns]
    if not stated:
        raise InputError(f"{file}: neither boolean_value nor integer_value is there. Write it as MEDS prescribes.")
    values = {"boolean_value": pl.col("boolean_value"), "integer_value": pl.col("integer_value") > 0}
    found = labels.select(
        "subject_id",
        pl.col("prediction_time").dt.replace_time_zone(None),
        boolean_value=pl.coalesce(values[column] for column in stated),
        integer_value=pl.col("integer_value") if "integer_value" in stated else pl.lit(None),
    )
    for column, source in zip(found.columns, ("subject_id", "prediction_time", stated[0]), strict=False):
        refuse_row(
            file, found[column].is_null(), f"{names.get(source, source)} is empty. Fill it, or leave the row out."
        )
    if found["subject_id"].cast(pl.Int64, strict=False).has_nulls():
        raise InputError(f"{file}: a subject_id does not fit into 64 bits. Use the ids of the data set.")
    return found.cast(LABEL_SCHEMA).sort("subject_id", "prediction_time", maintain_order=True)  # type: ignore[arg-type]
