"""A data set in pieces of whole subjects, so that what is held in memory at a time does not grow with its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehrctx.events.meds import Dataset, unreadable

ROWS = 1_000_000


@dataclass(frozen=True)
class Piece:
    """Consecutive whole subjects of one shard: rows [first_row, first_row + n_rows) of the file, counted from 0."""

    shard: Path
    first_row: int
    n_rows: int
    row_groups: tuple[int, ...]  # that hold them
    skipped: int  # rows of the first of these groups that are not this piece's


def open_parquet(file: Path, name: str, read_dictionary: list[str] | None = None) -> pq.ParquetFile:
    """`name` is what errors call the file."""
    try:
        return pq.ParquetFile(file, read_dictionary=read_dictionary)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(name, error) from None


def read_groups(file: pq.ParquetFile, name: str, groups: tuple[int, ...], columns: list[str]) -> pa.Table:
    try:
        return file.read_row_groups(list(groups), columns=columns, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise unreadable(name, error) from None


def _cuts(file: pq.ParquetFile, name: str, ends: np.ndarray, rows: int) -> Iterator[int]:
    """The rows where pieces after the first begin: the first change of subject at or after a row group's start, `rows`
    or more after the last cut."""
    start = 0
    for group, begin in enumerate(ends[:-1].tolist()):
        if group == 0 or begin - start < rows:
            continue
        before, own = (read_groups(file, name, (g,), ["subject_id"]).column(0).to_numpy() for g in (group - 1, group))
        changes = np.flatnonzero(own != np.concatenate([before[-1:], own[:-1]]))
        if len(changes):
            start = begin + int(changes[0])
            yield start


def pieces_of(dataset: Dataset, rows: int = ROWS) -> list[Piece]:
    """All pieces in order. A piece has about `rows` rows, more where a row group or a subject has."""
    found = []
    for shard in dataset.shards:
        name = dataset.name_of(shard)
        file = open_parquet(shard, name)
        ends = np.cumsum([0, *(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups))])
        divided = "subject_id" in file.schema_arrow.names and ends[-1] > 1.5 * rows
        cuts = [0, *(_cuts(file, name, ends, rows) if divided else []), int(ends[-1])]
        for first, end in pairwise(cuts):
            groups = np.flatnonzero((ends[:-1] < end) & (ends[1:] > first))
            skipped = first - int(ends[groups[0]]) if len(groups) else 0
            found.append(Piece(shard, first, end - first, tuple(groups.tolist()), skipped))
    return found
