"""Finding a CDM's tables, reading them in batches of bounded size, parsing their columns; errors by file and row.

Every column of a CSV is read as bytes and parsed here, never inferred: what a file means does not depend on its first
rows.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ehrctx.errors import InputError
from ehrctx.events.omop.tables import REQUIRED, TABLES

CSV_BLOCK = 32 * 2**20  # bytes of a CSV that make one batch
BATCH_ROWS = 250_000  # rows of a parquet file that make one batch
SUFFIXES = (".csv", ".csv.gz", ".parquet")
MISSING = ("", "NULL", r"\N")  # how exports of databases write that there is nothing
DATE_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y%m%d")


@dataclass(frozen=True)
class Table:
    """One table's files, in the order in which they are read."""

    name: str
    files: tuple[Path, ...]


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


def _stem(path: Path) -> str | None:
    """The table's name in lower case, of a file with a known suffix or a folder."""
    name = path.name.lower()
    if path.is_dir():
        return name
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), None)


def find_tables(folder: Path) -> dict[str, Table]:
    """The tables that are read, by lower-case name: a file `<table>.csv`, `.csv.gz` or `.parquet`, or a folder of such.

    Raises InputError where the folder or a required table is not there, or a table is there twice.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no such folder: {folder}. Give the folder of an OMOP CDM, the one that holds person.csv.")
    found: dict[str, Table] = {}
    for path in sorted(folder.iterdir()):
        name = _stem(path)
        if name not in TABLES or path.name.startswith("."):
            continue
        parts = [path] if path.is_file() else [p for p in sorted(path.rglob("*")) if p.is_file() and _stem(p)]
        files = tuple(part for part in parts if not part.name.startswith("."))
        if not files:
            continue
        if name in found:
            raise InputError(
                f"{folder} holds the table {name} twice: {found[name].files[0].name} and {path.name}. Remove one."
            )
        found[name] = Table(name, files)
    for name, remedy in REQUIRED.items():
        if name not in found:
            forms = f"{name}.csv, {name}.parquet or a folder {name}/"
            raise InputError(f"{folder} has no table {name.upper()} ({forms}). {remedy}")
    return found


def _open_text(file: Path) -> TextIO:
    opened: Any = gzip.open if file.suffix.lower() == ".gz" else open
    return opened(file, "rt", encoding="utf-8-sig", errors="replace", newline="")


def _header(file: Path) -> tuple[list[str], str]:
    """A CSV's column names and its separator: a tab, as Athena writes, if its first line has one and no comma."""
    try:
        with _open_text(file) as stream:
            line = stream.readline()
    except (OSError, EOFError):
        raise InputError(f"{file} cannot be read: it is damaged or cut off. Copy it again.") from None
    separator = "\t" if "\t" in line and "," not in line else ","
    return next(csv.reader([line], delimiter=separator), []), separator


def _ragged(file: Path, separator: str, width: int) -> int:
    """The data row that has not `width` fields; only looked for once it is known that there is one."""
    csv.field_size_limit(2**31 - 1)
    with _open_text(file) as stream:
        quoting: Any = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
        rows = (row for row in csv.reader(stream, delimiter=separator, quoting=quoting) if row)
        return next((n for n, row in enumerate(rows) if len(row) != width), 0)


def _chosen(file: Path, names: list[str], required: Iterable[str], optional: Iterable[str]) -> dict[str, str]:
    """lower-case name -> name in the file, of the columns to read."""
    lower = [name.strip().lower() for name in names]
    required = list(dict.fromkeys(required))
    for name in required:
        if name not in lower:
            raise InputError(
                f"{file}: the column {name!r} is missing. Export the table with the columns of OMOP CDM 5.3 or 5.4."
            )
    wanted = [name for name in dict.fromkeys([*required, *optional]) if name in lower]
    twice = next((name for name in wanted if lower.count(name) > 1), None)
    if twice:
        raise InputError(f"{file}: the column {twice!r} is there twice. Remove one of them.")
    return {name: names[lower.index(name)] for name in wanted}


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
            batch.refuse(broken, f"{column.name} is not UTF-8 text. Write the file as UTF-8.")
            raise
    return Batch(batch.file, batch.first, pl.DataFrame(columns))


def _is_broken(value: bytes | None) -> bool:
    try:
        (value or b"").decode()
    except UnicodeDecodeError:
        return True
    return False


def _csv_frames(file: Path, chosen: dict[str, str], separator: str, width: int) -> Iterator[pl.DataFrame]:
    widths: list[int] = []

    def on_ragged(row: pa_csv.InvalidRow) -> str:
        widths.append(row.actual_columns)
        return "error"  # what a handler raises is lost

    parse = pa_csv.ParseOptions(
        delimiter=separator,
        quote_char=False if separator == "\t" else '"',  # Athena quotes nothing
        newlines_in_values=separator != "\t",
        invalid_row_handler=on_ragged,
    )
    convert = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(chosen.values(), pa.binary()),
        include_columns=list(chosen.values()),
        strings_can_be_null=False,
    )
    try:
        with pa_csv.open_csv(file, pa_csv.ReadOptions(block_size=CSV_BLOCK), parse, convert) as reader:
            for arrow in reader:
                yield pl.DataFrame(pl.from_arrow(arrow))
    except pa.ArrowInvalid:
        if not widths:
            raise
        raise InputError(
            f"{file}, row {_ragged(file, separator, width):,}: it has {widths[0]} fields where the header has {width}. "
            f"Write as many fields in every row, and put those that hold a comma in quotes."
        ) from None


def _parquet_frames(parquet: pq.ParquetFile, chosen: dict[str, str]) -> Iterator[pl.DataFrame]:
    for arrow in parquet.iter_batches(BATCH_ROWS, columns=list(chosen.values())):
        yield pl.DataFrame(pl.from_arrow(arrow))


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turns what the readers raise into one sentence; theirs may quote a row."""
    try:
        yield
    except (pa.ArrowException, OSError, EOFError):
        kind = "parquet" if file.suffix.lower() == ".parquet" else "CSV"
        raise InputError(f"{file} is not a readable {kind} file: it is damaged or cut off. Write it again.") from None


def batches(table: Table, required: Iterable[str], optional: Iterable[str] = ()) -> Iterator[Batch]:
    """The rows of a table, file by file, with the `required` columns and those of `optional` that are there.

    Columns have lower-case names, in that order; those of a CSV are text, those of parquet what they are.
    Raises InputError by file, and where possible by row, where a file or a required column cannot be read.
    """
    required, optional = tuple(required), tuple(optional)
    for file in table.files:
        with _readable(file):
            if file.suffix.lower() == ".parquet":
                parquet = pq.ParquetFile(file)
                chosen = _chosen(file, parquet.schema_arrow.names, required, optional)
                frames = _parquet_frames(parquet, chosen)
            else:
                names, separator = _header(file)
                chosen = _chosen(file, names, required, optional)
                frames = _csv_frames(file, chosen, separator, len(names))
            first = 1
            for frame in frames:
                rows = frame.select(pl.col(name).alias(lower) for lower, name in chosen.items())
                yield _decoded(Batch(file, first, rows))
                first += rows.height


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
    time = text.str.to_datetime(DATE_FORMATS[0], time_unit="us", strict=False)
    left = text.is_not_null() & time.is_null()
    if left.any():
        plain = text.str.replace("T", " ", literal=True).str.replace(r"( ?UTC|Z|[+-]00(:?00)?)$", "")
        for form in DATE_FORMATS:
            parsed = plain.str.to_datetime(form, time_unit="us", strict=False)
            time = time.zip_with(time.is_not_null(), parsed)
        left = text.is_not_null() & time.is_null()
    batch.refuse(left, f"{column} is not a date or a date-time. Write it as YYYY-MM-DD or YYYY-MM-DD HH:MM:SS.")
    return time.alias(column)
