"""Columns of a batch as text, numbers, ids and times, however the file writes them; errors by file and row.

A column that the file does not have is one of nulls: which ones must be there is said where the table is read.
"""

from __future__ import annotations

import polars as pl

from ehrctx.events.batches import Batch
from ehrctx.events.units import is_missing_unit

MISSING = ("", "NULL", r"\N")  # how exports of databases write that there is no text: NA may be a name
COMPARED = r"^(<=|>=|<|>|≤|≥)\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)$"
# What follows a time: a zone, or an offset from UTC.
ZONE = r"(?i)^(.*\d[ t]\d{2}:\d{2}[\d:.]*) ?(?:utc|z|[+-]\d{2}(?::?\d{2})?)$"
# The likely ones first, which polars parses fastest.
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y-%m-%d", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y%m%d")


def _text(column: pl.Series) -> pl.Series:
    """Text without spaces around it; null where there is nothing."""
    stripped = column.cast(pl.String).str.strip_chars()
    return stripped.set(stripped.is_in(MISSING), None)


def _stated(text: pl.Series) -> pl.Series:
    """Texts that are no number, id or time: null where they say that there is none, as R's NA and pandas' NaT do."""
    is_missing = is_missing_unit(pl.lit(text)) | (pl.lit(text).str.to_lowercase() == "nat").fill_null(True)
    return text.set(pl.select(is_missing).to_series(), None)


def texts(batch: Batch, column: str) -> pl.Series:
    """A column as text; nulls where the file has no such column."""
    if column not in batch.rows.columns:
        return pl.Series(column, [None] * batch.rows.height, pl.String)
    return _text(batch.rows[column])


def numbers_or_texts(batch: Batch, column: str) -> pl.DataFrame:
    """(number float64, comparator, text) of a column of numbers: `>100` is 100 and ">".

    What is no number is in `text`, and there alone. Nulls where the file has no such column.
    """
    schema = {"number": pl.Float64, "comparator": pl.String, "text": pl.String}
    if column not in batch.rows.columns:
        return pl.DataFrame({name: pl.Series([None] * batch.rows.height, dtype=t) for name, t in schema.items()})
    raw = batch.rows[column]
    is_text = not (raw.dtype.is_numeric() or raw.dtype == pl.Null)
    raw = _text(raw) if is_text else raw
    number = raw.cast(pl.Float64, strict=False)
    other = raw.is_not_null() & number.is_null()
    if other.any():
        other &= _stated(raw.cast(pl.String).set(~other, None)).is_not_null()
    rows = pl.DataFrame({"number": number.fill_nan(None)}).with_columns(
        comparator=pl.lit(None, pl.String), text=pl.lit(None, pl.String)
    )
    if not other.any():
        return rows
    written = raw.cast(pl.String).set(~other, None)
    compared = written.str.extract(COMPARED, 2).cast(pl.Float64, strict=False)
    comparator = written.str.extract(COMPARED, 1).replace({"≤": "<=", "≥": ">="}).set(compared.is_null(), None)
    return rows.with_columns(
        number=pl.coalesce("number", compared), comparator=comparator, text=written.set(compared.is_not_null(), None)
    )


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
            raw = _stated(raw)
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
    """A column as datetime[us], dates at 00:00; nulls where the file has no such column. Zones and offsets are taken
    off, whatever they are: a time is that of the clock on the wall, and a database that knows no local times labels
    them UTC."""
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
    if time.null_count() > text.null_count():
        rest = _stated(text.set(time.is_not_null(), None))
        plain = rest.str.replace(ZONE, "$1").str.replace("(?i)t", " ")
        time = time.zip_with(rest.is_null(), _parsed(plain))
        batch.refuse(
            rest.is_not_null() & time.is_null(),
            f"{column} is not a date or a date-time. Write it as YYYY-MM-DD or YYYY-MM-DD HH:MM:SS.",
        )
    return time.alias(column)
