"""Writing MEDS data sets: events that come in any order, sorted and sharded in bounded memory; and their metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ehrctx.events.meds import CODES_FILE, SPLITS_FILE

MEDS_VERSION = "0.4.1"
EVENTS_PER_SHARD = 1_000_000
MOST_SHARDS = 500  # as many files are open at once
SPILLED = 1_000_000  # rows held in memory before they are dealt out
# What every import writes of an event; `table` is the one of the source that it is from.
COLUMNS: dict[str, Any] = {
    "subject_id": pl.Int64,
    "time": pl.Datetime("us"),
    "code": pl.String,
    "numeric_value": pl.Float32,
    "text_value": pl.String,
    "unit": pl.String,
    "visit_id": pl.Int64,
    "table": pl.String,
}
RANK = "_rank"  # the column that orders events of one time until they are written


def shards_for(n_events: int) -> int:
    """How many shards hold `n_events` well."""
    return max(1, min(MOST_SHARDS, round(n_events / EVENTS_PER_SHARD)))


def _shard_of(subjects: pl.Series, n_shards: int) -> pl.Series:
    """Which shard a subject belongs to. Mixed first: ids are often multiples of something, or begin with their site."""
    mixed = subjects.to_numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing, wraps
    return pl.Series((mixed >> np.uint64(32)) % np.uint64(n_shards)).cast(pl.UInt16)


class ShardWriter:
    """Takes frames of events in any order, and writes `data/NNNN.parquet` in MEDS's order when it is closed.

    All frames have the same columns, among them subject_id int64 and time datetime[us]. A subject's events lie in one
    shard, static ones first, then by time; events of one time by rank, and by the order in which they were added.
    """

    def __init__(self, folder: Path, n_shards: int) -> None:
        self.n_events = 0
        self._data, self._spill, self._n = folder / "data", folder / ".spilled", n_shards
        self._data.mkdir()
        self._spill.mkdir()
        self._waiting: list[pl.DataFrame] = []
        self._files: dict[int, pq.ParquetWriter] = {}

    def add(self, events: pl.DataFrame, rank: int = 0) -> None:
        """Takes `events`; those of one subject and time come after all of a lower `rank` (0 to 255)."""
        self._waiting.append(events.with_columns(pl.lit(rank, pl.UInt8).alias(RANK)))
        self.n_events += events.height
        if sum(frame.height for frame in self._waiting) >= SPILLED:
            self._deal_out()

    def _deal_out(self) -> None:
        if not self._waiting:
            return
        rows = pl.concat(self._waiting)
        self._waiting = []
        dealt = rows.with_columns(_shard=_shard_of(rows["subject_id"], self._n)).partition_by(
            "_shard", as_dict=True, include_key=False, maintain_order=True
        )
        for (shard,), part in dealt.items():
            table = part.to_arrow()
            if shard not in self._files:
                self._files[shard] = pq.ParquetWriter(self._spill / f"{shard}.parquet", table.schema)
            self._files[shard].write_table(table)

    def close(self) -> None:
        """Sorts each shard and writes it where it belongs."""
        self._deal_out()
        for name, (shard, file) in enumerate(sorted(self._files.items())):
            file.close()
            spilled = self._spill / f"{shard}.parquet"
            rows = pl.read_parquet(spilled)
            spilled.unlink()
            ordered = rows.sort("subject_id", "time", RANK, nulls_last=False, maintain_order=True).drop(RANK)
            ordered.write_parquet(self._data / f"{name:04d}.parquet")
        self._spill.rmdir()


@contextmanager
def sharded(folder: Path, n_shards: int) -> Iterator[ShardWriter]:
    """A ShardWriter that is closed when all events are added."""
    writer = ShardWriter(folder, n_shards)
    yield writer
    writer.close()


def write_metadata(folder: Path, about: dict[str, Any], codes: pl.DataFrame, splits: pl.DataFrame) -> None:
    """`metadata/`: dataset.json from `about` (dataset_name, dataset_version …), codes.parquet (code, description,
    parent_codes) and subject_splits.parquet (subject_id, split), as MEDS prescribes them."""
    (folder / "metadata").mkdir()
    codes.select("code", "description", "parent_codes").write_parquet(folder / CODES_FILE)
    splits.select("subject_id", "split").write_parquet(folder / SPLITS_FILE)
    text = json.dumps({**about, "meds_version": MEDS_VERSION}, indent=1)
    (folder / "metadata" / "dataset.json").write_text(text + "\n")
