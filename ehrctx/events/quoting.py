"""Whether quotation marks are a CSV's syntax or part of its texts, by the whole of its content.

Both readings differ only in fields that begin with a quotation mark. Where quotes are syntax, such a field ends with
one, and those inside are doubled, as in `"a ""b"" c"`. Athena's vocabularies quote nothing, and a name may begin with a
quotation mark: `"Bamboo" spine`. The file is streamed: one that has no such field costs a search for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ehrctx.errors import InputError

BLOCK = 8 * 2**20
LONGEST_FIELD = 64 * 2**20  # bytes; a quotation mark that so many do not close is not closed at all
QUOTE, NEWLINE, RETURN = 34, 10, 13
NEWLINES = np.array([NEWLINE], np.uint8)
CLOSED = re.compile(rb'"[^"]*(?:""[^"]*)*"')
OPEN = re.compile(rb'[^"]*(?:""[^"]*)*"?')
LINE = re.compile(rb"[^\r\n][^\n]*")  # one that is not blank
NOT_CLOSED = (
    "a field begins with a quotation mark and does not end with one, or holds one that is not doubled. Write the file "
    "again with quotes as CSV has them, or with none."
)


class _Lines:
    """What the lines say of the fields that begin with a quotation mark, if none of these holds a line's end."""

    def __init__(self, separator: bytes, width: int) -> None:
        self.separator, self.width = separator, width
        self.closed = self.doubled = self.other = 0  # fields
        self.first_other = 0  # row
        self.spans_lines = False  # a line has another number of fields: only quotes can explain it
        self._rows = 0  # before the block
        self._watch_next = False
        self._field = re.compile(rb"[^%b\r\n]*" % re.escape(separator))

    def add(self, block: bytes) -> None:
        """Takes whole lines."""
        if self._watch_next:
            self._check_next(block, 0)
        self._add_quotes(block)
        self._rows += block.count(b"\n")

    def _check_width(self, line: bytes) -> None:
        self.spans_lines |= line.count(self.separator) != self.width - 1

    def _check_next(self, block: bytes, start: int) -> None:
        """A field that is not closed may go on in the next line, which then has another number of fields."""
        following = LINE.search(block, start)
        self._watch_next = following is None
        if following:
            self._check_width(following.group())

    def _add_quotes(self, block: bytes) -> None:
        values = np.frombuffer(block, np.uint8)
        quotes = np.flatnonzero(values == QUOTE)
        before = _padded(values)[quotes]
        end = -1
        for opening in quotes[(before == self.separator[0]) | (before == NEWLINE)].tolist():
            if opening > end:  # in another line
                start = block.rfind(b"\n", 0, opening) + 1
                end = block.find(b"\n", opening)
                end = len(block) if end < 0 else end
                self._check_width(block[start:end])
            if not self._add_field(self._field.match(block, opening).group(), block, opening):  # type: ignore[union-attr]
                self._check_next(block, end + 1)
            if self.spans_lines:
                return

    def _add_field(self, field: bytes, block: bytes, opening: int) -> bool:
        """Counts a field that begins with a quotation mark; whether it is closed by one."""
        if CLOSED.fullmatch(field):
            self.closed += 1
            self.doubled += b'""' in field[1:-1]
            return True
        self.other += 1
        self.first_other = self.first_other or self._rows + block.count(b"\n", 0, opening) + 1
        return False


def _blocks(stream: BinaryIO) -> Iterator[bytes]:
    """Blocks of whole lines."""
    rest = b""
    while block := stream.read(BLOCK):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield rest + block[:cut]
            rest = block[cut:]
        else:
            rest += block
    if rest:
        yield rest


def _padded(block: np.ndarray) -> np.ndarray:
    """The bytes with a line's end on both sides: `padded[i]` lies before `block[i]`, `padded[i + 2]` after it."""
    return np.concatenate([NEWLINES, block, NEWLINES])


def _is_closed(block: np.ndarray, quotes: np.ndarray, separator: int) -> bool:
    """Whether every other quotation mark opens a field, and the one after it closes it; vectorized."""
    opening, closing = quotes[::2], quotes[1::2]
    padded = _padded(block)
    before, after = padded[opening], padded[closing + 2]
    opens = (before == separator) | (before == NEWLINE) | (before == QUOTE)
    closes = (after == separator) | (after == NEWLINE) | (after == RETURN) | (after == QUOTE)
    return bool(opens.all() and closes.all())


def _first_unclosed(stream: BinaryIO, separator: bytes) -> int | None:
    """Where quotes are syntax, the row of the first field that begins with one and does not end with one."""
    field = re.compile(
        rb'(?:(?<=[%b\n\r])|\A)"(?:[^"]*(?:""[^"]*)*"(?=[%b\r\n]|\Z))?' % (re.escape(separator), re.escape(separator))
    )
    rows, rest = 0, b""
    while True:
        read = stream.read(BLOCK)
        block = rest + read
        if not block:
            return None
        values = np.frombuffer(block, np.uint8)
        quotes = np.flatnonzero(values == QUOTE)
        ends = np.flatnonzero(values == NEWLINE)
        outside = np.searchsorted(quotes, ends) % 2 == 0
        # up to the last end of a line outside of quotes, if every other quotation mark opens and closes
        cut = len(block) if not read else int(ends[outside][-1]) + 1 if outside.any() else 0
        within = quotes[quotes < cut]
        if cut and len(within) % 2 == 0 and _is_closed(values[:cut], within, separator[0]):
            rows += int(outside[ends < cut].sum())
            rest = block[cut:]
            continue
        cut, is_broken = _check_fields(block, field, last=not read or len(block) > LONGEST_FIELD)
        rows += _rows_before(block[:cut], field)
        if is_broken:
            return rows + 1
        rest = block[cut:]


def _rows_before(block: bytes, field: re.Pattern[bytes]) -> int:
    return field.sub(b"", block).count(b"\n")


def _check_fields(block: bytes, field: re.Pattern[bytes], last: bool) -> tuple[int, bool]:
    """The end of the last row that is checked, and whether a field follows that is not closed."""
    checked = after = 0
    for match in field.finditer(block):
        checked = block.rfind(b"\n", after, match.start()) + 1 or checked
        after = match.end()
        is_closed = len(match.group()) > 1
        # at the end of the block it may go on: an open field, or a closed one after which a quotation mark may come
        goes_on = after == len(block) if is_closed else OPEN.fullmatch(block, after) is not None
        if goes_on and not last:
            return checked, False
        if not is_closed:
            return checked, True
    return len(block) if last else block.rfind(b"\n", after) + 1 or checked, False


def has_quotes(stream: BinaryIO, file: Path, separator: bytes, width: int, quoted_header: bool) -> bool:
    """Whether quotation marks are syntax in the rows of `stream`, which begins below the header and can be rewound.

    They are where the header has some, where only quotes explain the number of fields of a line, and where every field
    that begins with a quotation mark is closed by one. Raises InputError, by row, where they are syntax and a field is
    not closed, and where it cannot be told: some fields are closed as CSV has it and others are not, or both readings
    fit the whole file.
    """
    start = stream.tell()
    lines = _Lines(separator, width)
    if not quoted_header:
        for block in _blocks(stream):
            lines.add(block)
            if lines.spans_lines:
                break
        if not lines.spans_lines and not lines.other:
            return lines.closed > 0
        stream.seek(start)
    unclosed = _first_unclosed(stream, separator)
    if quoted_header or lines.spans_lines:
        broken = unclosed
    else:
        is_mixed = lines.doubled or lines.closed > lines.other or unclosed is None
        broken = lines.first_other if is_mixed else None
    if broken is not None:
        raise InputError(f"{file}, row {broken:,}: {NOT_CLOSED}")
    return quoted_header or lines.spans_lines
