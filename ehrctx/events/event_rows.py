"""Events one a row, as femr 0.1 keeps them and EHRSHOT's CSV release writes them, as rows of MEDS.

A row has patient_id, start, end, code, value (a number or a text), unit, visit_id and omop_table. Its `start` becomes
the time. Its `end` stays a column, which nothing here reads: it is knowledge of the future at the time of the row. What
tasks need of it is an event of its own: the end of a hospital visit, at its time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from ehrctx.events.batches import Batch
from ehrctx.events.columns import datetimes, integers
from ehrctx.events.limits import is_implausible, is_placeholder_end, usable_codes
from ehrctx.events.meds import BIRTH
from ehrctx.events.units import is_missing_unit
from ehrctx.events.writer import COLUMNS

ADMISSION, DISCHARGE = "Visit/IP", "Visit/IP//END"
OURS = {DISCHARGE: "End of an inpatient visit"}  # descriptions of the codes that are added here
EVENTS: dict[str, Any] = {**COLUMNS, "end": pl.Datetime("us")}
IMPLAUSIBLE_START = "with a start before 1700 or after 2499"
MADE_STATIC = "events at a birth before 1700, which lose their time"
ALTERED_CODES = "codes that were too long or held control characters"
BIRTHS = (BIRTH, "SNOMED/3950001")


def typed_rows(batch: Batch) -> pl.DataFrame:
    """Rows of texts with their types: value becomes `number` float64, or else `text`; what is empty is null.

    Raises InputError, with file and row, where a text is not what its column holds.
    """
    patient = integers(batch, "patient_id")
    batch.refuse(patient.is_null(), "patient_id is empty. Fill it, or leave the row out.")
    as_written = {name: _as_written(batch, name) for name in ("code", "unit", "omop_table", "value")}
    value = as_written.pop("value")
    number = value.cast(pl.Float64, strict=False)
    unit = as_written.pop("unit")
    return pl.DataFrame(
        {
            "patient_id": patient,
            "visit_id": integers(batch, "visit_id"),
            "start": datetimes(batch, "start"),
            "end": datetimes(batch, "end"),
            "unit": unit.set(pl.select(is_missing_unit(pl.lit(unit))).to_series(), None),
            "number": number,
            "text": value.set(number.is_not_null(), None),
            **as_written,
        }
    )


def _as_written(batch: Batch, column: str) -> pl.Series:
    """A column as text with its spaces; null where it is empty, or the file has no such column."""
    if column not in batch.rows.columns:
        return pl.Series(column, [None] * batch.rows.height, pl.String)
    text = batch.rows[column].cast(pl.String)
    return text.set(text == "", None)


@dataclass(frozen=True)
class Counts:
    """Rows that are left out, by the one reason that counts; and what was altered of others."""

    left_out: Counter[str] = field(default_factory=Counter)
    adjusted: Counter[str] = field(default_factory=Counter)

    def adjust(self, what: str, n: int) -> None:
        """Counts `n` more, where there are some."""
        if n:
            self.adjusted[what] += n

    def facts(self) -> dict[str, dict[str, int]]:
        """As a manifest keeps it."""
        return {"left_out": dict(self.left_out), "adjusted": dict(self.adjusted)}


def implausible_starts(rows: pl.DataFrame) -> pl.Series:
    """Which of the rows start at a placeholder; births, and what PERSON says with them, may lie centuries back: where
    sources shift the births of patients over 89."""
    is_birth = pl.col("code").is_in(BIRTHS) | (pl.col("omop_table") == "person").fill_null(False)
    return rows.select((is_implausible(pl.col("start")) & ~is_birth).fill_null(False)).to_series()


def to_events(rows: pl.DataFrame, counts: Counts, also: Sequence[str] = ()) -> pl.DataFrame:
    """The events (EVENTS, and the columns `also`) of typed rows, in their order. What is left out is counted by reason.

    A number that is not finite, or is too large for float32, is no value that a model or a task can use: its event
    stays, without a value. An end at a placeholder is unknown.
    """
    code, is_altered = usable_codes(rows["code"])
    rows = rows.with_columns(code=code, _altered=is_altered)
    reasons = {
        "without a code": rows["code"].is_null(),
        "without a start": rows["start"].is_null(),
        IMPLAUSIBLE_START: implausible_starts(rows),
    }
    is_left_out = pl.Series([False] * rows.height, dtype=pl.Boolean)
    for reason, broken in reasons.items():
        if n := int((broken & ~is_left_out).sum()):
            counts.left_out[reason] += n
        is_left_out = is_left_out | broken
    rows = rows.filter(~is_left_out)
    counts.adjust(ALTERED_CODES, int(rows["_altered"].sum()))
    value = rows["number"].cast(pl.Float32)
    finite = value.is_finite()
    counts.adjust("values that are not finite", int((~finite).sum()))
    # what is said at such a birth, the sex, say, is no event of its year
    is_static = is_implausible(pl.col("start")) & ~pl.col("code").is_in(BIRTHS)
    counts.adjust(MADE_STATIC, int(rows.select(is_static).to_series().sum()))
    counts.adjust("ends that are placeholders", int(rows.select(is_implausible(pl.col("end"))).to_series().sum()))
    return rows.select(
        *also,
        subject_id="patient_id",
        time=pl.when(~is_static).then("start"),
        code="code",
        numeric_value=pl.when(finite).then(value),
        text_value="text",
        unit="unit",
        visit_id="visit_id",
        table="omop_table",
        end=pl.when(~is_implausible(pl.col("end"))).then("end"),
    ).select(*(pl.col(name).cast(dtype) for name, dtype in EVENTS.items()), *also)


def discharges(events: pl.DataFrame, counts: Counts) -> pl.DataFrame:
    """One event `Visit/IP//END` at the end of each `Visit/IP` that has one; ends before their start are counted.

    Only rows of OMOP's table of visits count, where the table is told, as for femr: another row with the same code is
    a part of a visit.
    """
    is_visit = (pl.col("code") == ADMISSION) & (pl.col("table") == "visit_occurrence").fill_null(True)
    visits = events.filter(is_visit & pl.col("end").is_not_null())
    closed = visits.filter(~is_placeholder_end(pl.col("time"), pl.col("end")))
    counts.adjust("ends that are placeholders", visits.height - closed.height)
    ended = closed.filter(pl.col("end") >= pl.col("time"))
    counts.adjust("ends of visits before their start", closed.height - ended.height)
    kept = {name: pl.col(name) for name in ("subject_id", "visit_id", "table")}
    columns = kept | {"time": pl.col("end"), "code": pl.lit(DISCHARGE)}
    return ended.select(columns.get(name, pl.lit(None)).cast(t).alias(name) for name, t in events.schema.items())
