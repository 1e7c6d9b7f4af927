"""PERSON: who is there, when they were born, and their static events."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.batches import Batch
from ehrctx.events.columns import datetimes, integers
from ehrctx.events.omop.concepts import Index
from ehrctx.events.omop.read import Table, batches
from ehrctx.events.omop.tables import TRAITS

BIRTH_COLUMNS = ("birth_datetime", "year_of_birth", "month_of_birth", "day_of_birth")
TRAIT_COLUMNS = tuple(
    f"{trait}_{part}" for trait in TRAITS for part in ("concept_id", "source_concept_id", "source_value")
)


@dataclass(frozen=True)
class People:
    """The subjects of PERSON; `births` datetime[us] and `seen` (has events) are in the order of `index`."""

    index: Index
    births: pl.Series
    seen: np.ndarray

    def subjects(self) -> np.ndarray:
        return self.index.ids[self.seen]


def births_of(batch: Batch) -> pl.Series:
    """When the persons were born, datetime[us]; the first month or day where they are not said, as femr takes them: no
    event can precede the earliest birth that a year allows. Null where not even the year is there."""
    if not {"birth_datetime", "year_of_birth"} & set(batch.rows.columns):
        raise InputError(
            f"{batch.file}: the columns 'year_of_birth' and 'birth_datetime' are missing. Export one of them."
        )
    known = datetimes(batch, "birth_datetime")
    year, month, day = (integers(batch, column) for column in BIRTH_COLUMNS[1:])
    parts = [year, month.fill_null(1), day.fill_null(1)]
    text = pl.DataFrame([part.alias(name) for name, part in zip("ymd", parts, strict=True)]).select(
        pl.format("{}-{}-{}", pl.col("y").cast(pl.String).str.zfill(4), "m", "d")
    )
    stated = text.to_series().str.to_datetime("%Y-%m-%d", time_unit="us", strict=False)
    batch.refuse(
        known.is_null() & year.is_not_null() & stated.is_null(),
        "year_of_birth, month_of_birth and day_of_birth are no day that the calendar has. Correct them.",
    )
    return known.zip_with(known.is_not_null(), stated)


def read_people(table: Table) -> People:
    """Everybody in PERSON. Raises InputError, with file and row, where a person_id is missing or there twice."""
    ids, births, starts = [], [], []
    for batch in batches(table, ("person_id",), BIRTH_COLUMNS):
        person = integers(batch, "person_id")
        batch.refuse(person.is_null(), "person_id is empty. Give each person an id.")
        ids.append(person.to_numpy())
        births.append(births_of(batch))
        starts.append((batch.file, batch.first))
    if not ids or not sum(map(len, ids)):
        raise InputError(f"{table.files[0]} holds no person. Export the table with its rows.")
    every = np.concatenate(ids)
    order = np.argsort(every, kind="stable")
    later = order[1:][every[order][1:] == every[order][:-1]]
    if len(later):
        row = int(later.min())
        for (file, first), part in zip(starts, ids, strict=True):
            if row < len(part):
                raise InputError(f"{file}, row {first + row:,}: this person_id is there twice. Keep one row.")
            row -= len(part)
    return People(Index(every[order]), pl.concat(births).gather(order), np.zeros(len(every), dtype=bool))
