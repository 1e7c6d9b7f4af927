"""Whether quotation marks are syntax: by the content of the file, the same whatever the size of the blocks."""

import csv
import io
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.errors import InputError
from ehrctx.events import quoting
from ehrctx.events.quoting import NOT_CLOSED, has_quotes

FILE = Path("table.csv")


CASES = {
    "no quotes": ("1\ta\tb\n", False),
    "quotes inside of fields": ('1\t5\'11"\tb\n2\tx "y" z\tb\n', False),
    "quoted where needed": ('1\t"she said ""no"""\tb\n', True),
    "quoted whole": ('1\t"abc"\t""\n', True),
    "a tab in quotes": ('1\ta\tb\n1\t"x\ty"\tb\n', True),
    "a line's end in quotes": ('1\ta\tb\n1\tb\t"x\ny"\n', True),
    "a line's end in quotes, a blank line below": ('1\ta\tb\n1\tb\t"x\n\ny"\n', True),
    "a name that begins with a quotation mark": ('1\t"Bamboo" spine\tb\n', False),
    "a stray quotation mark": ('1\t"5 mg\tb\n2\ta\tb\n', False),
    "two stray ones, which would be one field": ('1\t"5 mg\tb\n2\t"6 mg\tb\n', False),
    "a stray one in the last line, and blank lines": ('1\ta\t"b\n\n\n', False),
    "a stray one beside a name in quotes": ('1\t"5 mg\tb\n2\t"abc"\tb\n', False),
    "carriage returns": ('1\t"abc"\t"x\ty"\r\n1\t"abc"\tb\r\n', True),
    "no line's end at the end": ('1\t2\t"a ""b"""', True),
}


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 8 * 2**20])
@pytest.mark.parametrize("case", CASES)
def test_quotation_marks(monkeypatch, case, block):
    monkeypatch.setattr(quoting, "BLOCK", block)
    text, quoted = CASES[case]
    assert has_quotes(io.BytesIO(text.encode()), FILE, b"\t", 3, False) is quoted


REFUSED = {
    "both kinds": ('1\t"she said ""no"""\tb\n2\t"Bamboo" spine\tb\n', 2),
    "most are closed": ('1\t"a"\t"b"\n2\t"a" b\tc\n', 2),
    "a tab in quotes, and a stray one": ('1\t"a\tb"\tc\n2\t"x\ny"\tc\n3\t"z\tc\n', 3),
    "either reading fits": ('1\t"5 mg\tb\n2\t5\'11"\tb\n', 1),
    "never closed": ('1\t"a\tb"\tc\n2\tx\t"y\n3\n4\n', 2),
}


@pytest.mark.parametrize("block", [1, 3, 8 * 2**20])
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_is_refused_by_row(monkeypatch, case, block):
    monkeypatch.setattr(quoting, "BLOCK", block)
    text, row = REFUSED[case]
    with pytest.raises(InputError) as caught:
        has_quotes(io.BytesIO(text.encode()), FILE, b"\t", 3, False)
    assert str(caught.value) == f"table.csv, row {row}: {NOT_CLOSED}"


@pytest.mark.parametrize("block", [1, 4, 8 * 2**20])
def test_below_a_header_with_quotes_all_fields_are_checked(monkeypatch, block):
    monkeypatch.setattr(quoting, "BLOCK", block)
    good = '"1","a ""b""","c\n\nd"\n1,5\'11","x,y"\n"","""","e"\n'
    assert has_quotes(io.BytesIO(good.encode()), FILE, b",", 3, True)
    for broken in ('"1","a "b" c","d"\n', '"1","a","d\n', '"1","a"b,"d"\n'):
        with pytest.raises(InputError, match=r"table\.csv, row 4: a field begins"):
            has_quotes(io.BytesIO((good + broken).encode()), FILE, b",", 3, True)


cells = st.text(alphabet='ab" ,\n', max_size=6)


@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=6), st.sampled_from([1, 5, 2**20]))
def test_what_a_writer_quotes_where_needed_is_read_as_written(rows, block):
    """Or refused: a text with a line's end may look like a row of its own."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    before, quoting.BLOCK = quoting.BLOCK, block
    try:
        quoted = has_quotes(io.BytesIO(out.getvalue().encode()), FILE, b",", 3, False)
    except InputError:
        assert any("\n" in cell and "," in cell for row in rows for cell in row)
        return
    finally:
        quoting.BLOCK = before
    assert quoted == any(c in cell for row in rows for cell in row for c in '",\n')


@given(st.lists(st.tuples(*[st.text(alphabet='ab" ', max_size=5)] * 2), min_size=1, max_size=6))
def test_texts_without_separators_are_read_as_they_are_or_refused(rows):
    """Without quotes as syntax: a reading that keeps every text, unless all that begin with a quote look quoted."""
    text = "".join("\t".join(row) + "\n" for row in rows)
    beginning = [cell for row in rows for cell in row if cell.startswith('"')]
    closed = [cell for cell in beginning if quoting.CLOSED.fullmatch(cell.encode())]
    try:
        quoted = has_quotes(io.BytesIO(text.encode()), FILE, b"\t", 2, False)
    except InputError:
        assert len(closed) < len(beginning)
        return
    assert quoted == (bool(closed) and len(closed) == len(beginning))


def test_a_large_file_takes_a_second(monkeypatch):
    line = b'"1234567","a name of some length","2020-01-01 00:00:00","12.5","mg/dL"\n'
    text = line * (16 * 2**20 // len(line))
    started = time.perf_counter()
    assert has_quotes(io.BytesIO(text), FILE, b",", 5, True)
    assert has_quotes(io.BytesIO(text.replace(b'"', b"")), FILE, b",", 5, False) is False
    assert time.perf_counter() - started < 2
