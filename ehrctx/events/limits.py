"""What an import takes for impossible in any source: placeholders of times, and codes that are none."""

from __future__ import annotations

import hashlib
from datetime import timedelta

import polars as pl

from ehrctx.events.rules import FIRST_DAY, LAST_DAY, LONGEST_CODE

# Databases write 9999-12-31, 2999-12-31, 1111-11-11 or 0001-01-01 for a time that is unknown or yet to come.
LONGEST_STAY = timedelta(days=50 * 365)
IMPLAUSIBLE = (
    f"lies before {FIRST_DAY.year} or after {LAST_DAY.year - 1}, as placeholders do. Correct it, or drop such rows "
    f"with --implausible-time drop."
)
ENDING = "//END"  # which is added to the code of a visit
CONTROL = r"[\x00-\x1f\x7f\u0085\u2028\u2029]+"
HASH_DIGITS = 8


def is_implausible(time: pl.Expr) -> pl.Expr:
    """Whether a time is a placeholder: before 1700, or after 2499. False where there is none."""
    return ((time < FIRST_DAY) | (time >= LAST_DAY)).fill_null(False)


def is_placeholder_end(start: pl.Expr, end: pl.Expr) -> pl.Expr:
    """Whether the end of a visit stands for "not yet": out of the years of `is_implausible`, or decades after its
    start, as 2099-12-31 is. False where there is none."""
    return is_implausible(end) | (end - start > LONGEST_STAY).fill_null(False)


def _shortened(code: str) -> str:
    """The beginning of a code, and a hash of the whole: two long codes stay two."""
    ending = "~" + hashlib.sha256(code.encode()).hexdigest()[:HASH_DIGITS]
    room = LONGEST_CODE - len(ENDING) - len(ending)
    return code.encode()[:room].decode(errors="ignore") + ending


def usable_codes(codes: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The codes, and whether each was changed.

    One that is longer than MEDS has codes (500 bytes) is cut, and ends with a hash of the whole. Line ends and other
    control characters are spaces. A code of spaces alone is null.
    """
    long = (codes.str.len_bytes() > LONGEST_CODE).fill_null(False)
    odd = codes.str.contains(CONTROL).fill_null(False)
    blank = (codes.str.strip_chars() == "").fill_null(False)
    changed = long | odd
    if not (changed | blank).any():
        return codes, changed
    plain = codes.str.replace_all(CONTROL, " ")
    shortened = {code: _shortened(code) for code in plain.filter(plain.str.len_bytes() > LONGEST_CODE).unique()}
    return plain.replace(shortened).set(blank, None), changed & ~blank
