"""Rows of CSV and parquet files in batches of bounded size, of chosen columns; errors by file and row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ehrctx.errors import InputError
from ehrctx.events import csv_files, parquet
from ehrctx.events.csv_files import AS_UTF_8, csv_frames, read_header, readable

ROWS = 250_000  # rows of a parquet file that make one batch
PARQUET = b"PAR1"


@dataclass(frozen=True)
class Batch:
    """Rows of one file; the first of them is data row `first` of the file, counted from 1."""

    file: Path
    first: int
    rows: pl.DataFrame

    def refuse(self, broken: pl.Series, problem: str) -> None:
        """Raises InputError that names the first row of the mask `broken`, if there is one."""
        at = broken.fill_null(False).arg_true()
        if len(at):
            raise InputError(f"{self.file}, row {self.first + int(at[0]):,}: {problem}")


def _chosen(
    file: Path, names: list[str], required: Iterable[str], optional: Iterable[str], remedy: str
) -> dict[str, str]:
    """lower-case name -> name in the file, of the columns to read."""
    lower = [name.strip().lower() for name in names]
    required = list(dict.fromkeys(required))
    for name in required:
        if name not in lower:
            raise InputError(f"{file}: the column {name!r} is missing. {remedy}")
    wanted = [name for name in dict.fromkeys([*required, *optional]) if name in lower]
    twice = next((name for name in wanted if lower.count(name) > 1), None)
    if twice:
        raise InputError(f"{file}: the column {twice!r} is there twice. Remove one of them.")
    return {name: names[lower.index(name)] for name in wanted}


def _is_broken(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return True
    return False


def _decoded(batch: Batch) -> Batch:
    """The batch with its bytes as text."""
    columns = []
    for column in batch.rows:
        if column.dtype != pl.Binary:
            columns.append(column)
            continue
        try:
            columns.append(column.cast(pl.String))
        except pl.exceptions.PolarsError:
            broken = pl.Series([_is_broken(value) for value in column])
            batch.refuse(broken, f"{column.name} is not UTF-8 text. {AS_UTF_8}")
            raise
    return Batch(batch.file, batch.first, pl.DataFrame(columns))


def is_parquet(file: Path) -> bool:
    """Whether the file's name says that it is parquet."""
    return file.suffix.lower() == ".parquet"


def open_parquet(file: Path) -> pq.ParquetFile:
    """A parquet file, as all readers open one.

    Raises InputError where the file is empty, or no parquet.
    """
    with file.open("rb") as stream:
        head = stream.read(len(PARQUET))
    if not head:
        raise InputError(f"{file} is empty. Write it again, or remove it.")
    if head != PARQUET:
        raise InputError(
            f"{file} is not a readable parquet file: its content is none. Give it the suffix of what it is."
        )
    return parquet.open_parquet(file, str(file))


def _plain(column: pa.Array) -> pa.Array:
    """A column in a type that polars has."""
    return pc.cast(column, pa.string()) if pa.types.is_decimal256(column.type) else column


def parquet_frames(parquet: pq.ParquetFile, file: Path, columns: list[str]) -> Iterator[pl.DataFrame]:
    """The `columns` of a parquet file with their types. Raises InputError by the name of one that holds lists or the
    like."""
    for name in columns:
        dtype = parquet.schema_arrow.field(name).type
        if pa.types.is_nested(dtype):
            raise InputError(f"{file}: the column {name!r} is {dtype}, expected one value in a row. Flatten it.")
    for arrow in parquet.iter_batches(ROWS, columns=columns):
        by_name = dict(zip(arrow.schema.names, arrow.columns, strict=True))
        table = pa.table({name: _plain(by_name[name]) for name in columns})
        yield pl.DataFrame(pl.from_arrow(table))


def read_batches(
    files: Iterable[Path],
    required: Iterable[str],
    optional: Iterable[str] = (),
    remedy: str = "Write the file again with it.",
    block: int | None = None,
) -> Iterator[Batch]:
    """The rows of files, one after another, with the `required` columns and those of `optional` that are there.

    Columns have lower-case names, in that order; those of a CSV are text, those of parquet what they are. `remedy`
    follows the sentence that a column is missing; `block` is how many bytes of a CSV make a batch.
    Raises InputError by file, and where possible by row, where a file or a required column cannot be read.
    """
    required, optional = tuple(required), tuple(optional)
    for file in files:
        with readable(file, "parquet" if is_parquet(file) else "CSV"):
            chosen = _columns_of(file, required, optional, remedy)
            if is_parquet(file):
                frames = parquet_frames(open_parquet(file), file, list(chosen.values()))
            else:
                frames = csv_frames(file, read_header(file), list(chosen.values()), block or csv_files.BLOCK)
            first = 1
            for frame in frames:
                rows = frame.select(pl.col(name).alias(lower) for lower, name in chosen.items())
                yield _decoded(Batch(file, first, rows))
                first += rows.height


def _columns_of(file: Path, required: Iterable[str], optional: Iterable[str], remedy: str) -> dict[str, str]:
    names = open_parquet(file).schema_arrow.names if is_parquet(file) else read_header(file).names
    return _chosen(file, names, required, optional, remedy)


def columns_there(file: Path, names: Iterable[str]) -> list[str]:
    """Those of the columns `names` that a file has."""
    with readable(file, "parquet" if is_parquet(file) else "CSV"):
        return list(_columns_of(file, (), names, ""))
