"""Finding a CDM's tables, and reading them in batches of bounded size; errors by file and row.

Every column of a CSV is read as bytes, never inferred: what a file means does not depend on its first rows.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from ehrctx.artifacts import Source
from ehrctx.errors import InputError
from ehrctx.events.omop.tables import REQUIRED, TABLES

CSV_BLOCK = 8 * 2**20  # bytes of a CSV that make one batch
BATCH_ROWS = 250_000  # rows of a parquet file that make one batch
SEPARATORS = ",\t;|"
SUFFIXES = (".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True)
class Table:
    """One table's files, in the order in which they are read."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Header:
    """A CSV's column names, and how its fields are parted and quoted."""

    names: list[str]
    separator: str
    quoted: bool


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
    bare = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), None)
    return bare or (name if path.is_dir() else None)  # Spark calls folders measurement.parquet


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


def table_inputs(tables: Mapping[str, Table]) -> dict[str, Source]:
    """All files of `tables`, by the name under which the imported events record each."""
    return {f"{name}/{file.name}": file for name, table in tables.items() for file in table.files}


def _open_text(file: Path) -> TextIO:
    opened: Any = gzip.open if file.suffix.lower() == ".gz" else open
    return opened(file, "rt", encoding="utf-8-sig", errors="replace", newline="")


def _header(file: Path) -> Header:
    """How a CSV is written, by its first line."""
    try:
        with _open_text(file) as stream:
            line = stream.readline()
    except (OSError, EOFError):
        raise InputError(f"{file} cannot be read: it is damaged or cut off. Copy it again.") from None
    separator = max(SEPARATORS, key=line.count)
    # Athena separates by tabs and quotes nothing; who quotes quotes the names as well
    quoted = separator != "\t" or '"' in line
    return Header(next(csv.reader([line], delimiter=separator), []), separator, quoted)


def _ragged(file: Path, header: Header) -> int:
    """The data row that has not as many fields as the header; only looked for once it is known that there is one."""
    csv.field_size_limit(2**31 - 1)
    with _open_text(file) as stream:
        quoting: Any = csv.QUOTE_MINIMAL if header.quoted else csv.QUOTE_NONE
        rows = (row for row in csv.reader(stream, delimiter=header.separator, quoting=quoting) if row)
        return next((n for n, row in enumerate(rows) if len(row) != len(header.names)), 0)


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


def _csv_frames(file: Path, chosen: dict[str, str], header: Header) -> Iterator[pl.DataFrame]:
    widths: list[int] = []

    def on_ragged(row: pa_csv.InvalidRow) -> str:
        widths.append(row.actual_columns)
        return "error"  # what a handler raises is lost

    parse = pa_csv.ParseOptions(
        delimiter=header.separator,
        quote_char='"' if header.quoted else False,
        newlines_in_values=header.quoted,
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
            f"{file}, row {_ragged(file, header):,}: it has {widths[0]} fields where the header has "
            f"{len(header.names)}. Write as many fields in every row, and put those that hold a comma in quotes."
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
                header = _header(file)
                chosen = _chosen(file, header.names, required, optional)
                frames = _csv_frames(file, chosen, header)
            first = 1
            for frame in frames:
                rows = frame.select(pl.col(name).alias(lower) for lower, name in chosen.items())
                yield _decoded(Batch(file, first, rows))
                first += rows.height
