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

from ehrctx.timelines.hashing_numba import added_up, factorize

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
    "subjects": pl.Int64,
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


def _coarsened(values: pl.DataFrame) -> pl.DataFrame:
    """One row per cell: every measure at the coarsest level of its rows, or at the finest with MOST_CELLS cells."""
    of_row, measures = factorize(values["measure"].to_numpy())
    given = values["level"].to_numpy()
    level = np.zeros(len(measures), dtype=np.uint8)
    np.maximum.at(level, of_row[given > 0], given[given > 0])
    cell = values["cell"].to_numpy() >> (level[of_row] - given).astype(np.uint32)
    weight, count = values["weight"].to_numpy(), values["count"].to_numpy()
    while True:
        keys, weight, count = added_up(of_row.astype(np.uint64) << np.uint64(32) | cell, weight, count)
        of_row, cell = (keys >> np.uint64(32)).astype(np.int64), keys.astype(np.uint32)
        large = np.bincount(of_row, minlength=len(measures)) > MOST_CELLS
        if not large.any():
            break
        level[large] += 1
        cell = cell >> large[of_row].astype(np.uint32)
    columns = {"measure": measures[of_row], "cell": cell, "level": level[of_row], "weight": weight, "count": count}
    return pl.DataFrame(columns, schema=VALUES)


@dataclass(frozen=True)
class Statistics:
    """Of the train events of any part of a data set."""

    entries: pl.DataFrame  # ENTRIES
    values: pl.DataFrame  # VALUES
    n_subjects: int

    @classmethod
    def merged(cls, parts: Iterable[Statistics]) -> Statistics:
        """Those of all parts together."""
        parts = list(parts)
        entries = pl.concat([pl.DataFrame(schema=ENTRIES), *(part.entries for part in parts)])
        values = pl.concat([pl.DataFrame(schema=VALUES), *(part.values for part in parts)])
        return cls(
            entries=entries.group_by(ENTRY).agg(pl.col("weight", "count", "subjects").sum()).select(*ENTRIES),
            values=_coarsened(values),
            n_subjects=sum(part.n_subjects for part in parts),
        )

    def in_order(self) -> Statistics:
        """The same, in an order that says nothing of how they came about."""
        return Statistics(self.entries.sort(ENTRY), self.values.sort("measure", "cell"), self.n_subjects)

    def write(self, folder: Path) -> None:
        self.entries.write_parquet(folder / "entries.parquet")
        self.values.write_parquet(folder / "values.parquet")

    @classmethod
    def read(cls, folder: Path, n_subjects: int) -> Statistics:
        return cls(pl.read_parquet(folder / "entries.parquet"), pl.read_parquet(folder / "values.parquet"), n_subjects)


class Accumulator:
    """Statistics that grow piece by piece, in memory that grows with what they know, not with the pieces."""

    ROWS = 4_000_000  # of pieces that wait to be merged

    def __init__(self) -> None:
        self._merged = Statistics.merged([])
        self._waiting: list[Statistics] = []

    def add(self, part: Statistics) -> None:
        self._waiting.append(part)
        if sum(s.values.height + s.entries.height for s in self._waiting) > max(self.ROWS, self._merged.values.height):
            self._merged = self.result()
            self._waiting = []

    def result(self) -> Statistics:
        return Statistics.merged([self._merged, *self._waiting])
