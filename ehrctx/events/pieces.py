"""A data set in pieces of whole subjects, so that what is held in memory at a time does not grow with its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ehrctx.events.meds import Dataset
from ehrctx.events.parquet import open_parquet, read_groups

ROWS = 1_000_000


@dataclass(frozen=True)
class Piece:
    """Consecutive whole subjects of one shard: rows [first_row, first_row + n_rows) of the file, counted from 0."""

    shard: Path
    first_row: int
    n_rows: int
    row_groups: tuple[int, ...]  # that hold them
    skipped: int  # rows of the first of these groups that are not this piece's


def _cuts(file: pq.ParquetFile, name: str, ends: np.ndarray, rows: int) -> Iterator[int]:
    """The rows where pieces after the first begin: the first change of subject at or after a row group's start, `rows`
    or more after the last cut."""
    start = 0
    for group in range(1, len(ends) - 1):
        begin = int(ends[group])
        is_between = ends[group - 1] < begin < ends[group + 1]  # two row groups that have rows
        if not is_between or begin - start < rows:
            continue
        before, after = (read_groups(file, name, (g,), ["subject_id"]).column(0).to_numpy() for g in (group - 1, group))
        changes = np.flatnonzero(after != np.concatenate([before[-1:], after[:-1]]))
        if len(changes):
            start = begin + int(changes[0])
            yield start


def shard_pieces(dataset: Dataset, shard: Path, rows: int = ROWS) -> list[Piece]:
    """The pieces of one shard in order. A piece has about `rows` rows, more where a row group or a subject has."""
    name = dataset.name_of(shard)
    file = open_parquet(shard, name)
    schema = file.schema_arrow
    ends = np.cumsum([0, *(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups))])
    is_numbered = schema.names.count("subject_id") == 1 and pa.types.is_integer(schema.field("subject_id").type)
    cuts = [0, *(_cuts(file, name, ends, rows) if is_numbered and ends[-1] > 1.5 * rows else []), int(ends[-1])]
    pieces = []
    for first, end in pairwise(cuts):
        groups = np.flatnonzero((ends[:-1] < end) & (ends[1:] > first))
        skipped = first - int(ends[groups[0]]) if len(groups) else 0
        pieces.append(Piece(shard, first, end - first, tuple(groups.tolist()), skipped))
    return pieces


def pieces_of(dataset: Dataset, rows: int = ROWS) -> list[Piece]:
    """The pieces of all shards in order."""
    return [piece for shard in dataset.shards for piece in shard_pieces(dataset, shard, rows)]
