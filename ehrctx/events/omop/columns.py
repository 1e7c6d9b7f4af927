"""Columns of a batch as text, numbers, ids and times, however the file writes them; errors by file and row.

A column that the file does not have is one of nulls: which ones must be there is said where the table is read.
"""

from __future__ import annotations

import polars as pl

from ehrctx.events.omop.read import Batch

MISSING = ("", "NULL", r"\N")  # how exports of databases write that there is nothing
# The likely ones first, which polars parses fastest.
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y%m%d")


def _text(column: pl.Series) -> pl.Series:
    """Text without spaces around it; null where there is nothing."""
    stripped = column.cast(pl.String).str.strip_chars()
    return stripped.set(stripped.is_in(MISSING), None)


def texts(batch: Batch, column: str) -> pl.Series:
    """A column as text; nulls where the file has no such column."""
    if column not in batch.rows.columns:
        return pl.Series(column, [None] * batch.rows.height, pl.String)
    return _text(batch.rows[column])


def numbers(batch: Batch, column: str) -> pl.Series:
    """A column as float64; nulls where the file has no such column."""
    if column not in batch.rows.columns:
        return pl.Series(column, [None] * batch.rows.height, pl.Float64)
    raw = batch.rows[column]
    raw = raw if raw.dtype.is_numeric() or raw.dtype == pl.Null else _text(raw)
    number = raw.cast(pl.Float64, strict=False)
    batch.refuse(
        (raw.is_not_null() & number.is_null()) | number.is_infinite(),
        f"{column} is not a number. Write it with a point and without unit, or leave it empty.",
    )
    return number.fill_nan(None)  # pandas writes NaN for nothing


def integers(batch: Batch, column: str) -> pl.Series:
    """A column of ids as int64 (12.0 is 12); nulls where the file has no such column."""
    if column not in batch.rows.columns:
        return pl.Series(column, [None] * batch.rows.height, pl.Int64)
    raw = batch.rows[column]
    if raw.dtype.is_float():
        raw = raw.fill_nan(None)
        whole = raw.set(raw != raw.floor(), None).cast(pl.Int64, strict=False)
    elif raw.dtype.is_integer() or raw.dtype == pl.Null:
        whole = raw.cast(pl.Int64, strict=False)
    else:
        raw = _text(raw)
        whole = raw.cast(pl.Int64, strict=False)
        if (raw.is_not_null() & whole.is_null()).any():  # pandas writes a point where other rows are missing
            whole = raw.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
    batch.refuse(raw.is_not_null() & whole.is_null(), f"{column} is not a whole number of 64 bits. Correct it.")
    return whole.alias(column)


def _parsed(text: pl.Series) -> pl.Series:
    """datetime[us] of what is written in one of TIME_FORMATS, else null."""
    time = text.str.to_datetime(TIME_FORMATS[0], time_unit="us", strict=False)
    for form in TIME_FORMATS[1:]:
        rest = text.set(time.is_not_null(), None)
        if rest.null_count() < len(rest):
            time = time.zip_with(rest.is_null(), rest.str.to_datetime(form, time_unit="us", strict=False))
    return time


def datetimes(batch: Batch, column: str) -> pl.Series:
    """A column as datetime[us], dates at 00:00; nulls where the file has no such column. Zones are taken off: the CDM's
    times are local ones, and a database that knows no local times labels them UTC."""
    us = pl.Datetime("us")
    if column not in batch.rows.columns:
        return pl.Series(column, [None] * batch.rows.height, us)
    raw = batch.rows[column]
    if isinstance(raw.dtype, pl.Datetime):
        return raw.dt.replace_time_zone(None).cast(us)
    if raw.dtype in (pl.Date, pl.Null):
        return raw.cast(us)
    text = _text(raw)
    time = _parsed(text)
    rest = text.set(time.is_not_null(), None)
    if rest.null_count() < len(rest):
        plain = rest.str.replace(r"( ?UTC|Z|[+-]00(:?00)?)$", "").str.replace("T", " ", literal=True)
        time = time.zip_with(rest.is_null(), _parsed(plain))
    batch.refuse(
        text.is_not_null() & time.is_null(),
        f"{column} is not a date or a date-time. Write it as YYYY-MM-DD or YYYY-MM-DD HH:MM:SS.",
    )
    return time.alias(column)
