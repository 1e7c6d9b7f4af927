"""Events one a row, as femr 0.1 keeps them and EHRSHOT's CSV release writes them, as rows of MEDS.

A row has patient_id, start, end, code, value (a number or a text), unit, visit_id and omop_table. Its `start` becomes
the time. Its `end` stays a column, which nothing here reads: it is knowledge of the future at the time of the row. What
tasks need of it is an event of its own: the end of a hospital visit, at its time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.writer import COLUMNS

ADMISSION, DISCHARGE = "Visit/IP", "Visit/IP//END"
OURS = {DISCHARGE: "End of an inpatient visit"}  # descriptions of the codes that are added here
EVENTS: dict[str, Any] = {**COLUMNS, "end": pl.Datetime("us")}
OTHER_TIMES = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M")
NO_TIME = "{} is not an ISO date-time. Write it as YYYY-MM-DD HH:MM:SS."
NO_NUMBER = "{} is not a whole number of at most 64 bits. Correct it."


def refuse_row(file: Path, first_row: int, broken: pl.Series, problem: str) -> None:
    """Raises InputError that names the first row where `broken` is true; rows are counted from 1, below a header."""
    if broken.any():
        raise InputError(f"{file}, row {first_row + int(broken.arg_true()[0]):,}: {problem}")


def _times(text: pl.Series, file: Path, first_row: int) -> pl.Series:
    time = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
    for pattern in OTHER_TIMES:
        if time.null_count() == text.null_count():
            return time
        time = time.fill_null(text.str.to_datetime(pattern, time_unit="us", strict=False))
    if time.null_count() > text.null_count():
        day = text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us"))
        time = time.fill_null(day)
    refuse_row(file, first_row, text.is_not_null() & time.is_null(), NO_TIME.format(text.name))
    return time


def whole_numbers(text: pl.Series, file: Path, first_row: int) -> pl.Series:
    """int64 of texts, which pandas wrote as 31251999.0 where a column has gaps."""
    number = text.str.strip_suffix(".0").cast(pl.Int64, strict=False)
    refuse_row(file, first_row, text.is_not_null() & number.is_null(), NO_NUMBER.format(text.name))
    return number


def typed_rows(rows: pl.DataFrame, file: Path, first_row: int) -> pl.DataFrame:
    """Rows of texts (null where empty) with their types: value becomes `number` float64, or else `text`.

    Raises InputError, with `file` and row, where a text is not what its column holds; `first_row` is the number of the
    first of the rows.
    """
    refuse_row(file, first_row, rows["patient_id"].is_null(), "patient_id is empty. Fill it, or leave the row out.")
    number = rows["value"].cast(pl.Float64, strict=False)
    return rows.with_columns(
        *(whole_numbers(rows[name], file, first_row) for name in ("patient_id", "visit_id")),
        *(_times(rows[name], file, first_row) for name in ("start", "end")),
        number=number,
        text=pl.select(pl.when(number.is_null()).then(rows["value"])).to_series(),
    ).drop("value")


def to_events(rows: pl.DataFrame, left_out: Counter[str], also: Sequence[str] = ()) -> pl.DataFrame:
    """The events (EVENTS, and the columns `also`) of typed rows, in their order. What is left out is counted by reason.

    A number that is not finite, or is too large for float32, is no value that a model or a task can use: its event
    stays, without a value.
    """
    reasons = {"without a code": pl.col("code").is_null(), "without a start": pl.col("start").is_null()}
    for reason, broken in reasons.items():
        before = rows.height
        rows = rows.filter(~broken)
        left_out.update({reason: before - rows.height} if rows.height < before else {})
    value = rows["number"].cast(pl.Float32)
    finite = value.is_finite()
    undefined = int((~finite).sum())
    left_out.update({"values that are not finite": undefined} if undefined else {})
    return rows.select(
        *also,
        subject_id="patient_id",
        time="start",
        code="code",
        numeric_value=pl.when(finite).then(value),
        text_value="text",
        unit="unit",
        visit_id="visit_id",
        table="omop_table",
        end="end",
    ).select(*(pl.col(name).cast(dtype) for name, dtype in EVENTS.items()), *also)


def discharges(events: pl.DataFrame, left_out: Counter[str]) -> pl.DataFrame:
    """One event `Visit/IP//END` at the end of each `Visit/IP` that has one; ends before their start are counted.

    Only rows of OMOP's table of visits count, where the table is told, as for femr: another row with the same code is
    a part of a visit.
    """
    is_visit = (pl.col("code") == ADMISSION) & (pl.col("table") == "visit_occurrence").fill_null(True)
    visits = events.filter(is_visit & pl.col("end").is_not_null())
    ended = visits.filter(pl.col("end") >= pl.col("time"))
    if ended.height < visits.height:
        left_out["ends of visits before their start"] += visits.height - ended.height
    kept = {name: pl.col(name) for name in ("subject_id", "visit_id", "table")}
    columns = kept | {"time": pl.col("end"), "code": pl.lit(DISCHARGE)}
    return ended.select(columns.get(name, pl.lit(None)).cast(t).alias(name) for name, t in events.schema.items())
