"""The forms in which exports write times, numbers and ids."""

from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from ehrctx.errors import InputError
from ehrctx.events.omop.columns import datetimes, integers, numbers, texts
from ehrctx.events.omop.read import Batch

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
        ("2020-02-29", DAY),
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
    "written", ["29/02/2020", "2020-02-30", "2020-02-29 25:00:00", "12:00", "2020-02-29 12:00:00+05:00", "soon", "2020"]
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
        ([12.0, float("nan"), -3.0], pl.Float64),
        ([12, None, -3], pl.Int32),
        ([Decimal("12.00"), None, Decimal(-3)], pl.Decimal(20, 2)),
    ],
)
def test_ids(values, dtype):
    read = integers(batch(values, dtype), "x")
    assert read.to_list() == [12, None, -3]
    assert read.dtype == pl.Int64
    number = numbers(batch(values, dtype), "x")
    assert number.to_list() == [12, None, -3]
    assert number.dtype == pl.Float64


@pytest.mark.parametrize(
    ("values", "dtype"),
    [(["1", "x"], pl.String), (["1", "1.5"], pl.String), ([1.0, 1.5], pl.Float64), ([1, 2**63], pl.UInt64)],
)
def test_what_is_no_id_is_refused_by_row(values, dtype):
    with pytest.raises(InputError, match=r"table\.csv, row 102: x is not a whole number"):
        integers(batch(values, dtype), "x")


def test_numbers_as_text():
    assert numbers(batch(["1e3", "-.5", "nan", " 7 ", ""]), "x").to_list() == [1000, -0.5, None, 7, None]
    for wrong in ("1,000", "5 mg", "-inf"):
        with pytest.raises(InputError, match=r"row 102: x is not a number"):
            numbers(batch(["1", wrong]), "x")


def test_a_column_that_is_not_there_is_empty():
    there = batch(["1", "2"])
    for read, dtype in (
        (texts, pl.String),
        (numbers, pl.Float64),
        (integers, pl.Int64),
        (datetimes, pl.Datetime("us")),
    ):
        column = read(there, "y")
        assert (column.to_list(), column.dtype) == ([None, None], dtype)
