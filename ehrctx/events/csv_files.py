"""CSV files as other programs write them: compressed or not, whatever separates and quotes; errors by file and row.

Every column is read as bytes, never inferred: what a file means does not depend on its first rows. A row is a data row,
counted from 1 below the header; blank lines are none.
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from ehrctx.errors import InputError
from ehrctx.events.quoting import has_quotes

BLOCK = 8 * 2**20  # bytes that make one frame
SEPARATORS = ",\t;|"
HEAD = 4096  # bytes by which content that is not text is known
NAMES = 64  # bytes that hold names of columns alone
TAIL = 2**16  # bytes that hold the last row
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
# The first bytes of what is not text.
OTHER_CONTENT = {
    b"PK\x03\x04": ("a ZIP archive or a spreadsheet", "Unpack it, or save it as CSV."),
    b"BZh": ("compressed by bzip2", "Unpack it."),
    b"\xfd7zXZ": ("compressed by xz", "Unpack it."),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "Unpack it."),
    b"PAR1": ("parquet", "Give it the suffix .parquet."),
}
ENCODINGS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
AS_UTF_8 = "Write the file as UTF-8."


@dataclass(frozen=True)
class Header:
    """A CSV's column names, and how its fields are separated and quoted."""

    names: list[str]
    separator: str
    quoted: bool


@contextmanager
def readable(file: Path, kind: str) -> Iterator[None]:
    """Turns what readers raise into one sentence; theirs may quote a row. `kind` is what the file should be."""
    try:
        yield
    except PermissionError:
        raise InputError(f"{file} cannot be read: permission denied. Ask for the permission to read it.") from None
    except (pa.ArrowException, pl.exceptions.PolarsError, OSError, EOFError):
        raise InputError(f"{file} is not a readable {kind} file: it is damaged or cut off. Write it again.") from None


def is_gzip(file: Path) -> bool:
    """Whether the content is compressed by gzip, whatever the name says."""
    with file.open("rb") as stream:
        return stream.read(len(GZIP)) == GZIP


def open_bytes(file: Path) -> BinaryIO:
    """The unpacked bytes of a text file."""
    if is_gzip(file):
        return cast(BinaryIO, gzip.GzipFile(file, "rb"))
    return file.open("rb")


def _encoding(head: bytes) -> str | None:
    """The encoding of a text's first bytes where it cannot be UTF-8: names of columns have no zero bytes there."""
    marked = next((name for mark, name in ENCODINGS.items() if head.startswith(mark)), None)
    zeros = head[:NAMES].count(b"\0") / len(head[:NAMES])
    if marked or zeros < 0.25:
        return marked
    return "UTF-32" if zeros > 0.6 else "UTF-16"


def _refuse_content(file: Path, head: bytes) -> None:
    if not head.removeprefix(BOM).strip():
        raise InputError(f"{file} is empty. Write it with its header, or remove it.")
    for mark, (content, remedy) in OTHER_CONTENT.items():
        if head.startswith(mark):
            raise InputError(f"{file} is not text but {content}. {remedy}")
    if encoding := _encoding(head):
        raise InputError(f"{file} is not UTF-8 text, it looks like {encoding}. {AS_UTF_8}")


def read_header(file: Path) -> Header:
    """`header_of`, kept: a file is read through once for it, unless it changes."""
    status = file.stat()
    return _kept_header(file, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _kept_header(file: Path, size: int, modified: int) -> Header:
    return header_of(file)


def header_of(file: Path) -> Header:
    """How a CSV is written: its first line, and, of quotation marks, all of it (see `quoting`).

    Raises InputError where the file is empty, no text in UTF-8, or cut off, and by row where quotes are not closed.
    """
    with readable(file, "CSV"):
        with open_bytes(file) as stream:
            head = stream.read(HEAD)
            _refuse_content(file, head)
        with open_bytes(file) as stream:
            first_line = stream.readline()
        try:
            line = first_line.removeprefix(BOM).decode()
        except UnicodeDecodeError:
            raise InputError(f"{file}: its first line is not UTF-8 text. {AS_UTF_8}") from None
        if "\r" in line.rstrip("\r\n"):
            raise InputError(f"{file}: its lines end as on old Macs, with CR alone. Write them with LF or CR LF.")
        separator = max(SEPARATORS, key=line.count)
        names = next(csv.reader([line], delimiter=separator), [])
        with open_bytes(file) as stream:
            stream.readline()
            quoted = has_quotes(stream, file, separator.encode(), len(names), '"' in line)
    return Header(names, separator, quoted)


def _ragged_row(file: Path, header: Header) -> int:
    """The data row that has not as many fields as the header; only looked for once it is known that there is one."""
    csv.field_size_limit(2**31 - 1)
    with open_bytes(file) as stream:
        quoting: Any = csv.QUOTE_MINIMAL if header.quoted else csv.QUOTE_NONE
        lines = (line.decode(errors="replace") for line in stream)
        rows = (row for row in csv.reader(lines, delimiter=header.separator, quoting=quoting) if row)
        return next((n for n, row in enumerate(rows) if len(row) != len(header.names)), 0)


def csv_frames(file: Path, header: Header, columns: list[str], block: int) -> Iterator[pl.DataFrame]:
    """The `columns` of a CSV as bytes (empty where a field is), about `block` bytes of the file a frame."""
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
        column_types=dict.fromkeys(columns, pa.binary()), include_columns=columns, strings_can_be_null=False
    )
    source = pa.OSFile(str(file))
    if is_gzip(file):
        source = pa.CompressedInputStream(source, "gzip")
    try:
        with pa_csv.open_csv(source, pa_csv.ReadOptions(block_size=block), parse, convert) as reader:
            for arrow in reader:
                yield pl.DataFrame(pl.from_arrow(arrow))
    except pa.ArrowInvalid as error:
        if widths:
            raise InputError(
                f"{file}, row {_ragged_row(file, header):,}: it has {widths[0]} fields where the header has "
                f"{len(header.names)}. Write as many fields in every row, and put those that hold a separator in "
                f"quotes."
            ) from None
        if "straddling" in str(error):
            raise InputError(f"{file}: a row is longer than {block:,} bytes. Shorten its texts.") from None
        raise


def refuse_cut_off(file: Path, header: Header) -> None:
    """Raises InputError where the last row has fewer fields than the header, for readers that fill it up with nulls."""
    if header.quoted or is_gzip(file):  # gzip notices itself where it is cut off
        return
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL))
        last_row = stream.read().rstrip(b"\r\n").rpartition(b"\n")[2]
    width = last_row.count(header.separator.encode()) + 1
    if width < len(header.names):
        raise InputError(
            f"{file}: its last row has {width} fields where the header has {len(header.names)}: it is cut off. Copy it "
            f"again."
        )


def read_text(file: Path) -> bytes:
    """The whole unpacked text of a small file, without a byte order mark.

    Raises InputError where the file is empty, damaged or no text, and by row where it is not UTF-8.
    """
    with readable(file, "CSV"), open_bytes(file) as stream:
        text = stream.read()
    _refuse_content(file, text[:HEAD])
    refuse_broken_lines(file, text.splitlines())
    return text.removeprefix(BOM)


def refuse_broken_lines(file: Path, lines: Iterator[bytes] | list[bytes]) -> None:
    """Raises InputError that names the first of the `lines` of a file, header included, that is not UTF-8 text."""
    row = -1
    for line in lines:
        row += bool(line.strip())
        try:
            line.decode()
        except UnicodeDecodeError:
            where = f"{file}, row {row:,}: this row" if row else f"{file}: its first line"
            raise InputError(f"{where} is not UTF-8 text. {AS_UTF_8}") from None
