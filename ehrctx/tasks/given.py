"""Labels that somebody else made: EHRSHOT's own, or those of another tool, in the MEDS label schema or as CSV."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.batches import open_parquet, parquet_frames
from ehrctx.events.csv_files import readable
from ehrctx.tasks.label_csv import read_csv, refuse_row
from ehrctx.tasks.label_files import is_csv
from ehrctx.tasks.labelers import LABEL_SCHEMA

# Before MEDS 0.3; and what ACES writes for data sets that are not in MEDS.
OTHER_NAMES = {"subject_id": "patient_id", "prediction_time": "index_timestamp"}
ACCEPTED: dict[str, tuple[Callable[[pl.DataType], bool], str]] = {
    "subject_id": (lambda t: t.is_integer(), "an integer"),
    "prediction_time": (lambda t: isinstance(t, pl.Datetime), "a date-time"),
    "boolean_value": (lambda t: t in (pl.Boolean, pl.Null), "a boolean"),
    "integer_value": (lambda t: t.is_integer() or t.is_float() or t == pl.Null, "an integer"),
}
UNUSABLE = ("float_value", "categorical_value")


def _read_parquet(file: Path) -> pl.DataFrame:
    """The columns of a label file that may matter, with their types."""
    with readable(file, "parquet"):
        parquet = open_parquet(file)
        there = parquet.schema_arrow.names
        columns = [name for name in (*ACCEPTED, *OTHER_NAMES.values(), "label", *UNUSABLE) if name in there]
        twice = next((name for name in columns if there.count(name) > 1), None)
        if twice:
            raise InputError(f"{file}: the column {twice!r} is there twice. Remove one of them.")
        schema = pl.DataFrame(pl.from_arrow(parquet.schema_arrow.empty_table().select(columns)))
        return pl.concat([schema, *parquet_frames(parquet, file, columns)], how="vertical_relaxed")


def _read_columns(file: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """The columns of a label file under MEDS's names, and what the file calls those that it calls otherwise."""
    if is_csv(file):
        return read_csv(file)
    labels = _read_parquet(file)
    names = {old: new for new, old in OTHER_NAMES.items() if new not in labels.columns and old in labels.columns}
    if "label" in labels.columns and not {"boolean_value", "integer_value"} & set(labels.columns):
        names["label"] = "boolean_value" if labels.schema["label"] == pl.Boolean else "integer_value"
    return labels.rename(names), {new: old for old, new in names.items()}


def read_given(file: Path) -> pl.DataFrame:
    """LABEL_SCHEMA from a label file. A grade above 0 is positive where there is no boolean_value.

    MEDS 0.3 has all columns of values and leaves those empty that are not meant, 0.4 may leave them out; other columns,
    such as ACES's summaries of windows, are ignored. Raises InputError, with file and row, where a column or a value is
    missing or is not what MEDS prescribes.
    """
    labels, names = _read_columns(file)
    missing = [c for c in ("subject_id", "prediction_time") if c not in labels.columns]
    if missing:
        raise InputError(f"{file}: the column {missing[0]!r} is missing. Write it as MEDS prescribes.")
    stated = [c for c in ("boolean_value", "integer_value") if c in labels.columns]
    others = [c for c in UNUSABLE if c in labels.columns]
    if not stated:
        instead = f" ({others[0]} is)" if others else ""
        raise InputError(
            f"{file}: neither boolean_value nor integer_value is there{instead}. Write one of them (in a CSV: value)."
        )
    if labels.is_empty():  # a shard of which no subject has the task; its columns may have no type
        return pl.DataFrame(schema=LABEL_SCHEMA)
    for column, (accepts, expected) in ACCEPTED.items():
        if column in labels.columns and not accepts(labels.schema[column]):
            called = names.get(column, column)
            raise InputError(f"{file}: the column {called!r} is {labels.schema[column]}, expected {expected}. Cast it.")
    if getattr(labels.schema["prediction_time"], "time_zone", None) is not None:
        raise InputError(
            f"{file}: prediction_time has a time zone, and the events have none. Convert it to the data set's local "
            f"time, and drop the zone."
        )
    if "integer_value" in labels.columns:
        grade = labels["integer_value"]
        whole = grade.cast(pl.Int64, strict=False)
        called = names.get("integer_value", "integer_value")
        problem = f"{called} is not a whole number. Round it, leave it empty, or leave the row out."
        refuse_row(file, grade.is_not_null() & (whole.is_null() | (whole != grade)), problem)
        problem = f"{called} is negative, which is no grade. Leave the row out where the answer is unknown."
        refuse_row(file, (whole < 0).fill_null(False), problem)
    values = {"boolean_value": pl.col("boolean_value"), "integer_value": pl.col("integer_value") > 0}
    found = labels.select(
        "subject_id",
        "prediction_time",
        boolean_value=pl.coalesce(values[column] for column in stated),
        integer_value=pl.col("integer_value") if "integer_value" in stated else pl.lit(None),
    )
    for column in others:
        problem = f"{column} alone is filled. Only boolean_value and integer_value can be used: fill one of them."
        refuse_row(file, found["boolean_value"].is_null() & labels[column].is_not_null(), problem)
    for column, source in zip(found.columns, ("subject_id", "prediction_time", stated[0]), strict=False):
        refuse_row(
            file, found[column].is_null(), f"{names.get(source, source)} is empty. Fill it, or leave the row out."
        )
    if found["subject_id"].cast(pl.Int64, strict=False).has_nulls():
        raise InputError(f"{file}: a subject_id does not fit into 64 bits. Use the ids of the data set.")
    return found.cast(LABEL_SCHEMA).sort("subject_id", "prediction_time", maintain_order=True)  # type: ignore[arg-type]
