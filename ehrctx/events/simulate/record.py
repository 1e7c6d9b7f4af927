"""Events in the making: added in any order, kept up to the end of each subject's record, and put in MEDS's order."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from ehrctx.events.simulate.clinic import ASSESSMENTS, LABS, PLATELETS_IN_WORDS, TESTS, URINE_RESULTS

# Events of one minute: in this order.
FIRST, TRANSFER_IN, VITAL, RESULT, DIAGNOSIS, DRUG, TRANSFER_OUT, LAST, DEATH = range(9)
TEXTS = tuple(
    dict.fromkeys((PLATELETS_IN_WORDS, *URINE_RESULTS, *(word for words in ASSESSMENTS.values() for word in words)))
)
STATIC = -np.inf  # the time of events without a time
NO_VALUE, NO_TEXT, NO_VISIT = np.nan, -1, -1


@cache
def code_table() -> pl.DataFrame:
    """Every code that may occur, and its parents: code, description, parent_codes; `codes.csv`."""
    with Path(__file__).with_name("codes.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return pl.DataFrame(
        {
            "code": [row["code"] for row in rows],
            "description": [row["description"] for row in rows],
            "parent_codes": [row["parents"].split(";") if row["parents"] else [] for row in rows],
        },
        schema={"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String)},
    )


@cache
def _places() -> dict[str, int]:
    return {code: place for place, code in enumerate(code_table()["code"])}


def place_of(code: str) -> int:
    """Where `code` stands in the code table."""
    return _places()[code]


def icd(*codes: str) -> np.ndarray:
    """Places of ICD-10-CM codes."""
    return np.array([place_of(f"ICD10CM/{code}") for code in codes])


def rxnorm(*codes: str) -> np.ndarray:
    """Places of RxNorm codes."""
    return np.array([place_of(f"RxNorm/{code}") for code in codes], dtype=np.int64)


@cache
def loinc_codes() -> np.ndarray:
    """The place of each test's LOINC code."""
    return np.array([place_of(f"LOINC/{LABS[test].loinc}") for test in TESTS])


class Batch(NamedTuple):
    """Some events, one per element: subjects' rows, times, places of codes, values, texts, visits; and their rank."""

    rows: np.ndarray
    times: np.ndarray
    codes: np.ndarray
    values: np.ndarray
    texts: np.ndarray
    visits: np.ndarray
    ranks: np.ndarray

    def take(self, which: np.ndarray) -> Batch:
        """Some of the events."""
        return Batch(*(column[which] for column in self))


class Expected(NamedTuple):
    """How likely results were abnormal: a task, and per result the subject's row, the result's time, the chance."""

    task: str
    rows: np.ndarray
    times: np.ndarray
    chances: np.ndarray


class Record:
    """The events of some subjects, and how likely laboratory results were abnormal before they were drawn."""

    def __init__(self) -> None:
        self._batches: list[Batch] = []
        self.expected: list[Expected] = []

    def expect(self, task: str, rows: np.ndarray, times: np.ndarray, chances: np.ndarray) -> None:
        """Takes the chance of each result of the task's test."""
        self.expected.append(Expected(task, rows, times, chances))

    def add(
        self,
        rank: int,
        rows: np.ndarray,
        times: np.ndarray,
        codes: np.ndarray | int,
        values: np.ndarray | float = NO_VALUE,
        texts: np.ndarray | int = NO_TEXT,
        visits: np.ndarray | int = NO_VISIT,
    ) -> None:
        """Takes one event per row; what is no array holds for all of them. Times are float64 days since 1970."""
        n = len(rows)

        def column(of: np.ndarray | float, dtype: type) -> np.ndarray:
            return np.broadcast_to(np.asarray(of), n).astype(dtype)

        self._batches.append(
            Batch(
                rows.astype(np.int32),
                times,
                column(codes, np.int32),
                column(values, np.float32),
                column(texts, np.int8),
                column(visits, np.int32),
                column(rank, np.int8),
            )
        )

    def batch(self) -> Batch:
        """All events so far, in the order in which they came."""
        return joined(*self._batches)


def joined(*batches: Batch) -> Batch:
    """One after another."""
    return Batch(*(np.concatenate(columns) for columns in zip(*batches, strict=True)))


def in_order(batch: Batch) -> Batch:
    """By subject, static events first, then by time, rank, and as they came."""
    return batch.take(np.lexsort((batch.ranks, batch.times, batch.rows)))


def timestamps(days: np.ndarray) -> pl.Series:
    """Days since 1970, to the minute, as polars has them; static events have none."""
    static = np.isneginf(days)
    minutes = np.rint(np.where(static, 0.0, days) * 1440).astype(np.int64)
    return pl.Series(minutes * 60_000_000).cast(pl.Datetime("us")).set(pl.Series(static), None)


def frame_of(batch: Batch, subject_ids: np.ndarray) -> pl.DataFrame:
    """The events as MEDS has them."""
    table = code_table()
    by_place = {int(place): LABS[test].unit for place, test in zip(loinc_codes(), TESTS, strict=True)}
    units = pl.Series([by_place.get(place) for place in range(table.height)], dtype=pl.String)
    has_value = ~np.isnan(batch.values)
    texts = pl.Series([*TEXTS, None], dtype=pl.String)
    return pl.DataFrame(
        {
            "subject_id": subject_ids[batch.rows],
            "time": timestamps(batch.times),
            "code": table["code"].gather(batch.codes),
            "numeric_value": pl.Series(batch.values).fill_nan(None),
            "unit": units.gather(batch.codes).set(pl.Series(~has_value), None),
            "text_value": texts.gather(np.where(batch.texts < 0, len(TEXTS), batch.texts)),
            "visit_id": pl.Series(batch.visits).cast(pl.Int64).set(pl.Series(batch.visits < 0), None),
        }
    )
