"""What a data set's texts may print: one line, in the order in which it was written."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrctx.printable import printable


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("plain", "plain"),
        ("µg/dL, naïve 血圧 −5 °C", "µg/dL, naïve 血圧 −5 °C"),
        ("no-break\u00a0space", "no-break\u00a0space"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\x1b[2Jred\x1b[0m", "\\x1b[2Jred\\x1b[0m"),
        ("\x9b2J\x7f\x00", "\\x9b2J\\x7f\\x00"),
        ("rtl \u202e\u2066\u200f", "rtl \\u202e\\u2066\\u200f"),
        ("zero\u200b\u200d\ufeff width", "zero\\u200b\\u200d\\ufeff width"),
        ("line\u2028paragraph\u2029", "line\\u2028paragraph\\u2029"),
        ("tag\U000e0041", "tag\\U000e0041"),
    ],
)
def test_what_moves_or_hides_text_is_escaped(text, printed):
    assert printable(text) == printed


@given(st.text(st.characters(codec=None)))
def test_one_line_without_controls(text):
    printed = printable(text)
    assert len(printed.splitlines()) <= 1
    assert not {unicodedata.category(char) for char in printed} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert printable(printed) == printed
