"""What a vocabulary is fitted from: sums over train events that merge in any order, and to the same bits.

Every event of a subject weighs 1 / events_of_the_subject, so that each subject counts the same, in whole units of
1 / WHOLE: integers add up to the same sum in any order, which fractions do not. What one part of a data set knows and
what several parts know together are the same kind of thing, so that a cluster may merge them as it likes.

Values are kept exactly, value by value, up to MOST_CELLS distinct values of a code and unit. Where there are more, the
last bits of the float are dropped, one at a time, until MOST_CELLS cells suffice: neighbours fall together, and an edge
of a bin is a cell's lower bound. How many bits go is decided by the values alone, so it does not depend on how the data
were cut up either (a sketch such as KLL or a t-digest does). The error of a quantile is at most the share of the cell
that it falls into, and `vocabulary.bins_of` returns the largest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.timelines.hashing_numba import SMALLEST, add_up, factorize

WHOLE = 2**36  # the weight of a subject: 2^27 of them fit into 64 bits, and of a million events each weighs 6.9e4
MOST_CELLS = 4096

ENTRY = ["kind", "code", "unit", "text"]
ENTRIES: dict[str, Any] = {
    "kind": pl.String,  # code, text or number
    "code": pl.String,
    "unit": pl.String,  # of numbers
    "text": pl.String,  # of texts
    "weight": pl.Int64,
    "count": pl.Int64,  # events
}
# Values of numbers, by the 64 bits that name their code and unit.
VALUES: dict[str, Any] = {
    "measure": pl.UInt64,
    "cell": pl.UInt32,  # of a value: the bits of the float in the order of values, less the last `level`
    "level": pl.UInt8,
    "weight": pl.Int64,
    "count": pl.Int64,
}


@lru_cache(maxsize=2**20)
def measure_of(code: str, unit: str | None) -> int:
    """The 64 bits that name a code and unit everywhere."""
    return int.from_bytes(hashlib.blake2b(f"{code}\0{unit or ''}".encode(), digest_size=8).digest(), "little")


def lower_bounds(values: pl.DataFrame) -> np.ndarray:
    """The smallest value of each cell of VALUES; float32[n]."""
    bits = values["cell"].to_numpy() << values["level"].to_numpy().astype(np.uint32)
    bits = bits ^ np.where(bits >> 31 == 1, np.uint32(0x80000000), np.uint32(0xFFFFFFFF))
    return bits.view(np.float32)


@dataclass(frozen=True)
class Statistics:
    """Of the train events of any part of a data set."""

    entries: pl.DataFrame  # ENTRIES
    values: pl.DataFrame  # VALUES
    n_subjects: int

    @classmethod
    def merged(cls, parts: Iterable[Statistics]) -> Statistics:
        """Those of all parts together."""
        total = Accumulator()
        for part in parts:
            total.add(part)
        return total.result()

    def in_order(self) -> Statistics:
        """The same, in an order that says nothing of how they came about."""
        return Statistics(self.entries.sort(ENTRY), self.values.sort("measure", "cell"), self.n_subjects)

    def write(self, folder: Path) -> None:
        self.entries.write_parquet(folder / "entries.parquet")
        self.values.write_parquet(folder / "values.parquet")

    @classmethod
    def read(cls, folder: Path, n_subjects: int) -> Statistics:
        return cls(pl.read_parquet(folder / "entries.parquet"), pl.read_parquet(folder / "values.parquet"), n_subjects)


class _Cells:
    """VALUES of any parts, added up in place; every measure at the finest level with MOST_CELLS cells."""

    def __init__(self) -> None:
        self._number: dict[int, int] = {}  # of each measure, as they come
        self._level, self._size = np.zeros(0, dtype=np.uint8), np.zeros(0, dtype=np.int64)
        self._clear(SMALLEST // 2)

    def _clear(self, room: int) -> None:
        self._keys = np.empty(room, dtype=np.uint64)  # a measure's number, then the cell
        self._weights, self._counts = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int64)
        self._known, self._table = 0, np.full(2 * room, -1, dtype=np.int32)
        self._size[:] = 0

    def _numbers(self, measures: np.ndarray) -> np.ndarray:
        """The number of each row's measure; int64[n]."""
        ids, distinct = factorize(measures)
        known = len(self._number)
        numbers = np.array([self._number.setdefault(m, len(self._number)) for m in distinct.tolist()], dtype=np.int64)
        more = len(self._number) - known
        self._level = np.append(self._level, np.zeros(more, dtype=np.uint8))
        self._size = np.append(self._size, np.zeros(more, dtype=np.int64))
        return numbers[ids]

    def add(self, values: pl.DataFrame) -> None:
        of_row, given = self._numbers(values["measure"].to_numpy()), values["level"].to_numpy()
        finer = self._level.copy()
        np.maximum.at(finer, of_row[given > 0], given[given > 0])
        if (finer > self._level).any():
            self._coarsen(finer)
        self._insert(of_row, values["cell"].to_numpy(), given, values["weight"].to_numpy(), values["count"].to_numpy())
        while (large := self._size > MOST_CELLS).any():
            self._coarsen(self._level + large.astype(np.uint8))

    def _insert(
        self, of_row: np.ndarray, cell: np.ndarray, level: np.ndarray, weight: np.ndarray, count: np.ndarray
    ) -> None:
        cell = cell >> (self._level[of_row] - level).astype(np.uint32)
        before = self._known
        self._keys, self._weights, self._counts, self._known, self._table = add_up(
            self._keys, self._weights, self._counts, before, self._table,
            of_row.astype(np.uint64) << np.uint64(32) | cell, weight, count,
        )  # fmt: skip
        new = (self._keys[before : self._known] >> np.uint64(32)).astype(np.int64)
        self._size += np.bincount(new, minlength=len(self._size))

    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Number of the measure, cell, level, weight and count of each cell."""
        keys = self._keys[: self._known]
        of_row = (keys >> np.uint64(32)).astype(np.int64)
        weights, counts = self._weights[: self._known], self._counts[: self._known]
        return of_row, keys.astype(np.uint32), self._level[of_row], weights, counts

    def _coarsen(self, level: np.ndarray) -> None:
        """Puts the measures on other levels, none of them finer."""
        rows = self._rows()
        self._clear(len(self._keys))
        self._level = level
        self._insert(*rows)

    def frame(self) -> pl.DataFrame:
        of_row, cell, level, weight, count = self._rows()
        measures = np.fromiter(self._number, dtype=np.uint64, count=len(self._number))
        columns = {"measure": measures[of_row], "cell": cell, "level": level, "weight": weight, "count": count}
        return pl.DataFrame(columns, schema=VALUES)


class Accumulator:
    """Statistics that grow part by part, in memory that grows with what they know, not with the parts."""

    ROWS = 500_000  # of entries that wait to be added up

    def __init__(self) -> None:
        self._entries, self._cells, self._n_subjects = [pl.DataFrame(schema=ENTRIES)], _Cells(), 0

    def add(self, part: Statistics) -> None:
        self._cells.add(part.values)
        self._entries.append(part.entries.select(*ENTRIES))
        self._n_subjects += part.n_subjects
        if sum(entries.height for entries in self._entries) > self.ROWS:
            self._entries = [self._added()]

    def _added(self) -> pl.DataFrame:
        sums = pl.col("weight", "count").sum()
        return pl.concat(self._entries).group_by(ENTRY).agg(sums).select(*ENTRIES)

    def result(self) -> Statistics:
        return Statistics(self._added(), self._cells.frame(), self._n_subjects)
