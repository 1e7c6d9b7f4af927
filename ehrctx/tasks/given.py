"""Labels that somebody else made, in the MEDS label schema: EHRSHOT's own, or those of another tool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
                f"no labels of {task!r} in {folder}: put {task}/labels.parquet or {task}.parquet there, or leave the "
                f"task out."
            )
        found[task] = files[0]
    return found


ACCEPTED: dict[str, tuple[Callable[[pl.DataType], bool], str]] = {
    "subject_id": (lambda t: t.is_integer(), "an integer"),
    "prediction_time": (lambda t: isinstance(t, pl.Datetime), "a date-time"),
    "boolean_value": (lambda t: t in (pl.Boolean, pl.Null), "a boolean"),
    "integer_value": (lambda t: t.is_integer() or t.is_float() or t == pl.Null, "an integer"),
}


def read_given(file: Path) -> pl.DataFrame:
    """LABEL_SCHEMA from a MEDS label file. A grade above 0 is positive where boolean_value is not there."""
    labels = read_parquet(file, str(file))
    missing = [c for c in ("subject_id", "prediction_time") if c not in labels.columns]
    if missing:
        raise InputError(f"{file}: the column {missing[0]!r} is missing. Write it as MEDS prescribes.")
    for column, (accepts, expected) in ACCEPTED.items():
        if column in labels.columns and not accepts(labels.schema[column]):
            raise InputError(f"{file}: the column {column!r} is {labels.schema[column]}, expected {expected}. Cast it.")
    if "integer_value" in labels.columns:
        grade = labels["integer_value"]
        whole = grade.cast(pl.Int64, strict=False)
        broken = grade.is_not_null() & (whole.is_null() | (whole != grade))
        if broken.any():
            raise InputError(
                f"{file}, row {int(broken.arg_true()[0]) + 1:,}: integer_value is not a whole number. "
                f"Round it, leave it empty, or leave the row out."
            )
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
    for column, name in (*((c, c) for c in ("subject_id", "prediction_time")), ("boolean_value", stated[0])):
        empty = found[column].is_null()
        if empty.any():
            raise InputError(
                f"{file}, row {int(empty.arg_true()[0]) + 1:,}: {name} is empty. Fill it, or leave the row out."
            )
    if found["subject_id"].cast(pl.Int64, strict=False).has_nulls():
        raise InputError(f"{file}: a subject_id does not fit into 64 bits. Use the ids of the data set.")
    return found.cast(LABEL_SCHEMA).sort("subject_id", "prediction_time", maintain_order=True)  # type: ignore[arg-type]
