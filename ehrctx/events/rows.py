"""The rows of a shard as they lie in the file, in the types to which the columns of all files are brought.

Parquet stores a column of codes as a dictionary and integers. Read so, nothing is done once per event that can be done
once per code: units, patterns and vocabularies are looked up for the names in the dictionary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from ehrctx.events.parquet import checked_text, is_text
from ehrctx.events.profile import DatasetProfile, matches
from ehrctx.events.violations import NOT_UTF8, Violation, of_rows

TICKS = {"s": 1_000_000, "ms": 1_000, "us": 1}  # microseconds
FARTHEST = 10**18  # microseconds, 31,700 years: times beyond are moved here, where no product or difference overflows


@dataclass(frozen=True)
class Coded:
    """A column of strings: `names[ids[i]]`, and -1 for null. `names` are distinct."""

    ids: np.ndarray  # int32[n]
    names: pl.Series

    def strings(self) -> pl.Series:
        return self.names.gather(pl.Series(self.ids, dtype=pl.Int64).replace(-1, None))

    def matching(self, patterns: tuple[str, ...]) -> np.ndarray:
        """bool[n]: whether each is one of `patterns` (see `profile.matches`)."""
        named = self.names.alias("code").to_frame().with_columns(_matches=matches(pl.col("code"), patterns))
        return self.flagged(named["_matches"].to_numpy())

    def flagged(self, of_names: np.ndarray) -> np.ndarray:
        """bool[n]: what bool[len(names)] says of each; False for null."""
        return np.append(of_names, False)[self.ids]


@dataclass(frozen=True)
class Rows:
    """Rows in the order of the file. `visit` is null where none is asked for."""

    subject: pl.Series  # integers, of the file's width
    time: pl.Series  # datetime[us]
    code: Coded
    value: pl.Series  # float32
    text: Coded
    unit: Coded
    visit: pl.Series  # whatever type the column has

    def frame(self) -> pl.DataFrame:
        """subject_id, time, code, numeric_value, text_value."""
        return pl.DataFrame(
            {
                "subject_id": self.subject,
                "time": self.time,
                "code": self.code.strings(),
                "numeric_value": self.value,
                "text_value": self.text.strings(),
            }
        )


def text_columns(schema: pa.Schema, profile: DatasetProfile) -> list[str]:
    """The columns that are read as dictionaries."""
    wanted = dict.fromkeys(("code", "text_value", profile.unit_column))
    return [str(name) for name in wanted if name in schema.names and is_text(schema.field(name).type)]


def columns_of(schema: pa.Schema, profile: DatasetProfile, visits: bool) -> list[str]:
    """The columns that are read: MEDS's own, and those that the profile names."""
    named = (profile.unit_column, profile.visit_column if visits else None)
    wanted = dict.fromkeys(("subject_id", "time", "code", "numeric_value", "text_value", *named))
    return [str(name) for name in wanted if name in schema.names]


def _coded(column: pa.ChunkedArray) -> Coded:
    if pa.types.is_null(column.type) or not column.num_chunks:
        return Coded(np.full(len(column), -1, dtype=np.int32), pl.Series([], dtype=pl.String))
    if not pa.types.is_dictionary(column.type):
        column = pc.dictionary_encode(column)
    column = column.unify_dictionaries()
    ids = [chunk.indices.cast(pa.int32()) for chunk in column.chunks]
    filled = [(pc.fill_null(chunk, -1) if chunk.null_count else chunk).to_numpy(zero_copy_only=False) for chunk in ids]
    return Coded(np.concatenate(filled), pl.Series(column.chunk(0).dictionary.cast(pa.large_string())))


def _times(column: pa.ChunkedArray) -> pl.Series:
    """Microseconds, whatever the unit of the column; nanoseconds are rounded down."""
    if pa.types.is_null(column.type):
        return pl.Series([None] * len(column), dtype=pl.Datetime("us"))
    ticks = pl.Series(column.cast(pa.int64()))
    if column.type.unit == "ns":
        return (ticks // 1_000).cast(pl.Datetime("us"))
    per_tick = TICKS[column.type.unit]
    return (ticks.clip(-FARTHEST // per_tick, FARTHEST // per_tick) * per_tick).cast(pl.Datetime("us"))


def _numbers(column: pa.ChunkedArray) -> pl.Series:
    if pa.types.is_decimal(column.type) or pa.types.is_float16(column.type):
        column = column.cast(pa.float64())
    return pl.Series(column).cast(pl.Float32)


def _visits(column: pa.ChunkedArray) -> pl.Series:
    """Null where a row has no visit, which pandas writes as NaN, and others as an empty string."""
    if is_text(column.type) or pa.types.is_decimal256(column.type):
        texts = pl.Series(column.cast(pa.large_string()))
        return texts.set(texts == "", None)
    visits = pl.Series(column)
    return visits.fill_nan(None) if visits.dtype.is_float() else visits


def rows_of(table: pa.Table, profile: DatasetProfile, name: str, first_row: int) -> tuple[Rows | None, list[Violation]]:
    """The rows of a table that no rule of `rules.wrong_columns` is broken by; None where a string is not UTF-8.

    The visits are there if the table has their column. `name` is the file's, `first_row` how many of its rows lie
    before the table.
    """
    broken = []
    for i, field in enumerate(table.schema):
        if is_text(field.type):
            column, rows = checked_text(table.column(i))
            table = table.set_column(i, field.name, column)
            if rows:
                broken.append(of_rows(name, rows, NOT_UTF8.about(field.name), first_row))
    if broken:
        return None, broken
    columns = dict(zip(table.column_names, table.columns, strict=True))
    empty = pa.chunked_array([pa.nulls(len(table))])
    visit = columns.get(profile.visit_column or "")
    rows_read = Rows(
        subject=pl.Series(columns["subject_id"]),
        time=_times(columns["time"]),
        code=_coded(columns["code"]),
        value=_numbers(columns.get("numeric_value", empty)),
        text=_coded(columns.get("text_value", empty)),
        unit=_coded(columns.get(profile.unit_column or "", empty)),
        visit=pl.repeat(None, len(table), dtype=pl.Int64, eager=True) if visit is None else _visits(visit),
    )
    return rows_read, []
