"""Parquet files that others wrote, opened in one place: all readers see the same times and refuse the same files."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehrctx.events.violations import CAST, NOT_UTF8, TWICE, BrokenFile, Rule, of_file, of_rows

_ERRORS = (pa.ArrowException, OSError, UnicodeDecodeError)


def _unreadable(name: str, error: Exception) -> BrokenFile:
    lines = str(error).splitlines() or [type(error).__name__]
    problem = f"not a readable parquet file ({lines[0].rstrip('.')})."
    return BrokenFile(of_file(name, Rule(problem, "Write it again.")), f"{name} is {problem} Write it again.")


def open_parquet(file: Path, name: str, read_dictionary: list[str] | None = None) -> pq.ParquetFile:
    """`name` is what errors call the file. Raises BrokenFile.

    Times of the type INT96, which older Spark writes, become microseconds: pyarrow's default, nanoseconds, end in 2262,
    and a later year would become an early one without a word.
    """
    try:
        opened = pq.ParquetFile(file, read_dictionary=read_dictionary, coerce_int96_timestamp_unit="us")
        _ = opened.schema_arrow.names  # raises where a name is not UTF-8
    except _ERRORS as error:
        raise _unreadable(name, error) from None
    return opened


def read_groups(file: pq.ParquetFile, name: str, groups: Sequence[int], columns: Sequence[str]) -> pa.Table:
    """These columns of these row groups. Raises BrokenFile."""
    try:
        return file.read_row_groups(list(groups), columns=list(columns), use_threads=False)
    except _ERRORS as error:
        raise _unreadable(name, error) from None


def is_text(dtype: pa.DataType) -> bool:
    """Whether a column of this type holds strings, plain or as a dictionary."""
    values = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
    return bool(pa.types.is_string(values) or pa.types.is_large_string(values) or pa.types.is_string_view(values))


def is_flat(dtype: pa.DataType) -> bool:
    """Whether polars holds a column of this type, and a row of it is one value."""
    t = pa.types
    kinds = (
        is_text, t.is_integer, t.is_floating, t.is_boolean, t.is_null, t.is_timestamp, t.is_date, t.is_time,
        t.is_duration, t.is_decimal32, t.is_decimal64, t.is_decimal128, t.is_binary, t.is_large_binary,
    )  # fmt: skip
    return any(kind(dtype) for kind in kinds)


def _is_flat_or_list(dtype: pa.DataType) -> bool:
    is_list = pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)
    return is_flat(dtype.value_type if is_list else dtype)


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or bool(value.decode()) or True
    except UnicodeDecodeError:
        return False


def checked_text(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
    """A column of strings, and the rows, from 0, where one is not UTF-8.

    A dictionary may hold strings that no row has, which are not checked: it is made anew where one is not UTF-8.
    """
    chunks, rows, first = [], [], 0
    for chunk in column.chunks:
        is_coded = pa.types.is_dictionary(chunk.type)
        try:
            (chunk.dictionary if is_coded else chunk).validate(full=True)
        except pa.ArrowInvalid:
            plain = chunk.dictionary_decode() if is_coded else chunk
            values = plain.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
            rows += [row for row, value in enumerate(values, first) if not _is_utf8(value)]
            chunk = pc.dictionary_encode(plain) if is_coded else chunk
        chunks.append(chunk)
        first += len(chunk)
    return pa.chunked_array(chunks, column.type) if chunks else column, rows


def to_polars(table: pa.Table, name: str) -> pl.DataFrame:
    """The table as a frame. Raises BrokenFile where a string is not UTF-8, with row and column."""
    for i, field in enumerate(table.schema):
        if is_text(field.type):
            column, rows = checked_text(table.column(i))
            if rows:
                raise BrokenFile(of_rows(name, rows, NOT_UTF8.about(field.name)))
            table = table.set_column(i, field.name, column)
    try:
        table.validate(full=True)  # of lists
    except pa.ArrowInvalid as error:
        raise _unreadable(name, error) from None
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _read_columns(opened: pq.ParquetFile, name: str, columns: Sequence[str]) -> pl.DataFrame:
    schema = opened.schema_arrow
    for column in columns:
        if schema.names.count(column) > 1:
            raise BrokenFile(of_file(name, TWICE.about(column)))
        if not _is_flat_or_list(schema.field(column).type):
            problem = f"the column {column!r} is {schema.field(column).type}, which cannot be read."
            raise BrokenFile(of_file(name, Rule(problem, CAST)))
    return to_polars(read_groups(opened, name, range(opened.num_row_groups), columns), name)


def read_parquet(file: Path, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Those of `columns` that the file has; by default all that polars holds, in which maps and decimals of 256 bits,
    say, are left out.

    `name` is what errors call the file. Raises BrokenFile where it cannot be read, where one of the columns is there
    twice or of a type that polars does not hold, and where a string is not UTF-8.
    """
    if columns is None:
        return read_others(file, name, ())
    opened = open_parquet(file, name)
    return _read_columns(opened, name, [column for column in columns if column in opened.schema_arrow.names])


def read_others(file: Path, name: str, without: Container[str]) -> pl.DataFrame:
    """All columns that polars holds but those `without` which it is asked for. Raises BrokenFile as `read_parquet`."""
    opened = open_parquet(file, name)
    chosen = [f.name for f in opened.schema_arrow if f.name not in without and _is_flat_or_list(f.type)]
    return _read_columns(opened, name, chosen)
