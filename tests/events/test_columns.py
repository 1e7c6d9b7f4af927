"""The forms in which exports write times, numbers and ids."""

from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from ehrctx.errors import InputError
from ehrctx.events.batches import Batch
from ehrctx.events.columns import datetimes, integers, numbers_or_texts, texts

NOON = datetime(2020, 2, 29, 12)
DAY = datetime(2020, 2, 29)


def batch(values, dtype=pl.String):
    return Batch(Path("table.csv"), 101, pl.DataFrame({"x": pl.Series(values, dtype=dtype)}))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2020-02-29 12:00:00", NOON),
        ("2020-02-29T12:00:00", NOON),
        ("2020-02-29T12:00:00Z", NOON),
        ("2020-02-29 12:00:00 UTC", NOON),
        ("2020-02-29 12:00:00+00", NOON),
        ("2020-02-29 12:00:00+00:00", NOON),
        (" 2020-02-29 12:00 ", NOON),
        ("2020-02-29 12:00:00.000000", NOON),
        ("2020-02-29 12:00:00.25", NOON.replace(microsecond=250_000)),
        ("2020-02-29 12:00:00.0000000", NOON),
        ("2020-02-29 12:00:00.123456789", NOON.replace(microsecond=123_456)),
        *((f"2020-02-29 12:00:00.{'0' * digits}", NOON) for digits in range(1, 10)),
        # offsets are taken off: the clock on the wall
        ("2020-02-29 12:00:00.0000000 +00:00", NOON),
        ("2020-02-29 12:00:00.0000000 +05:30", NOON),
        ("2020-02-29 12:00:00 -0500", NOON),
        ("2020-02-29T12:00:00.5-05", NOON.replace(microsecond=500_000)),
        ("2020-02-29T12:00Z", NOON),
        ("2020-02-29t12:00:00z", NOON),
        ("2020-02-29 12:00 utc", NOON),
        ("2020-02-29", DAY),
        ("NA", None),
        ("NaT", None),
        ("None", None),
        ("n/a", None),
        ("20200229", DAY),
        ("", None),
        ("NULL", None),
        (r"\N", None),
        (None, None),
    ],
)
def test_times_as_text(written, meant):
    # beside times of the usual form, and alone
    assert datetimes(batch(["2020-02-29 12:00:00", written, "2020-02-29"]), "x").to_list() == [NOON, meant, DAY]
    assert datetimes(batch([written]), "x").to_list() == [meant]


@pytest.mark.parametrize(
    "written",
    [
        "29/02/2020",
        "2020-02-30",
        "2020-02-29 25:00:00",
        "12:00",
        "1/2/2020",
        "1/2/2020 09:00",
        "soon",
        "2020",
        "2020-02-30-05",
        "20200229-05",
    ],
)
def test_what_is_no_time_is_refused_by_row(written):
    with pytest.raises(InputError) as caught:
        datetimes(batch(["2020-02-29", None, written]), "x")
    assert str(caught.value).startswith("table.csv, row 103: x is not a date or a date-time.")
    assert written not in str(caught.value)


def test_times_as_types():
    assert datetimes(batch([date(2020, 2, 29), None], pl.Date), "x").to_list() == [DAY, None]
    for unit in ("ms", "us", "ns"):
        assert datetimes(batch([NOON], pl.Datetime(unit)), "x").to_list() == [NOON]
    zoned = batch([NOON], pl.Datetime("us")).rows.with_columns(pl.col("x").dt.replace_time_zone("America/New_York"))
    assert datetimes(Batch(Path("t"), 1, zoned), "x").to_list() == [NOON]  # the clock on the wall
    assert datetimes(batch([None], pl.Null), "x").to_list() == [None]


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (["12", None, "-3"], pl.String),
        (["12.0", "", "-3"], pl.String),
        (["12.", "NULL", " -3.00"], pl.String),
        (["12", "NA", "-3"], pl.String),
        (["12", " nan", "-3"], pl.String),
        (["12", "<NA>", "-3"], pl.String),
        ([12.0, float("nan"), -3.0], pl.Float64),
        ([12, None, -3], pl.Int32),
        ([Decimal("12.00"), None, Decimal(-3)], pl.Decimal(20, 2)),
    ],
)
def test_ids(values, dtype):
    read = integers(batch(values, dtype), "x")
    assert read.to_list() == [12, None, -3]
    assert read.dtype == pl.Int64
    stated = numbers_or_texts(batch(values, dtype), "x")
    assert stated["number"].to_list() == [12, None, -3]
    assert stated["number"].dtype == pl.Float64
    assert stated["comparator"].null_count() == stated["text"].null_count() == 3


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(["1", "x"], pl.String), (["1", "1.5"], pl.String), ([1.0, 1.5], pl.Float64), ([1, 2**63], pl.UInt64)],
)
def test_what_is_no_id_is_refused_by_row(values, dtype):
    with pytest.raises(InputError, match=r"table\.csv, row 102: x is not a whole number"):
        integers(batch(values, dtype), "x")


@pytest.mark.parametrize(
    ("written", "number", "comparator", "text"),
    [
        ("1e3", 1000, None, None),
        ("-.5", -0.5, None, None),
        (" 7 ", 7, None, None),
        ("", None, None, None),
        *((missing, None, None, None) for missing in ("nan", "NA", "N/A", "NULL", "None", r"\N")),
        (">100", 100, ">", None),
        ("<= 5", 5, "<=", None),
        ("≥1.5e2", 150, ">=", None),
        ("≤-.5", -0.5, "<=", None),
        ("< 7.", 7, "<", None),
        ("1,5", None, None, "1,5"),
        ("1,000", None, None, "1,000"),
        ("5 mg", None, None, "5 mg"),
        ("> 5 mg", None, None, "> 5 mg"),
        (">>5", None, None, ">>5"),
        ("negative", None, None, "negative"),
    ],
)
def test_numbers_as_text(written, number, comparator, text):
    for values in ([written], ["1", written, "2"]):
        rows = numbers_or_texts(batch(values), "x").rows()
        assert rows[len(values) // 2] == (number, comparator, text)
        assert [row[0] for row in rows] == ([number] if len(values) == 1 else [1, number, 2])


def test_what_is_missing_in_a_text():
    """NA may be a name: there it is one."""
    written = ["NA", "", "NULL", r"\N", "None", "n/a", "x"]
    assert texts(batch(written), "x").to_list() == ["NA", None, None, None, "None", "n/a", "x"]


def test_a_column_that_is_not_there_is_empty():
    there = batch(["1", "2"])
    for read, dtype in (
        (texts, pl.String),
        (integers, pl.Int64),
        (datetimes, pl.Datetime("us")),
    ):
        column = read(there, "y")
        assert (column.to_list(), column.dtype) == ([None, None], dtype)
    assert numbers_or_texts(there, "y").rows() == [(None, None, None)] * 2
