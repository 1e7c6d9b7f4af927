"""Which subject belongs to which split: the data set's own table, or a hash of the subject."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.events.meds import SPLITS, SPLITS_FILE, Dataset, check_splits, read_parquet, read_valid
from ehrctx.study import HashSplits

BUCKETS = 2**16


def _bucket(subject_id: int, seed: int) -> int:
    digest = hashlib.sha256(struct.pack(">qq", seed, subject_id)).digest()
    return int.from_bytes(digest, "big") % BUCKETS


def hash_splits(subject_ids: np.ndarray, splits: HashSplits) -> pl.DataFrame:
    """(subject_id, split) for int64[n] ids. The held-out subjects are exactly the test subjects of
    `femr.splits.generate_hash_split(ids, seed, frac_test=share)` of femr 0.2.4, whose hash this is.
    """
    _, tuning, held_out = splits.hash
    bucket = np.array([_bucket(int(s), splits.seed) for s in subject_ids])
    split = np.where(
        bucket <= held_out * BUCKETS, "held_out", np.where(bucket <= (held_out + tuning) * BUCKETS, "tuning", "train")
    )
    return pl.DataFrame({"subject_id": subject_ids.astype(np.int64), "split": split})


def subject_splits(dataset: Dataset, splits: HashSplits | None) -> pl.DataFrame:
    """(subject_id, split) of every subject with events, sorted by subject_id: the data set's own table, or `splits`.

    Raises InputError where the table is missing, breaks a rule, leaves subjects out, or a split is empty.
    """
    ids = []
    for shard in dataset.shards:
        raw = read_valid(dataset, shard)
        ids.append(raw["subject_id"].unique().to_numpy())
    present = np.unique(np.concatenate(ids))
    if splits is not None:
        table = hash_splits(present, splits)
    else:
        file = dataset.root / SPLITS_FILE
        if not file.is_file():
            raise InputError(
                f"{SPLITS_FILE} is missing. Write it, or set the study key `splits: {{hash: [.7, .15, .15]}}`."
            )
        given = read_parquet(file, SPLITS_FILE.as_posix())
        problems = check_splits(given, SPLITS_FILE.as_posix())
        if problems:
            raise InputError(str(problems[0]))
        table = pl.DataFrame({"subject_id": present}).join(
            given.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String)),
            on="subject_id",
            how="left",
        )
        without = table["split"].null_count()
        if without:
            raise InputError(
                f"{SPLITS_FILE}: {without:,} subjects that have events have no split. Add them to the table."
            )
    for split in SPLITS:
        if not (table["split"] == split).any():
            remedy = (
                "Use other shares or another seed." if splits else "Set the study key `splits: {hash: [.7, .15, .15]}`."
            )
            raise InputError(f"the split {split!r} is empty. {remedy}")
    return table.sort("subject_id")


def read_splits(path: Path) -> pl.DataFrame:
    """(subject_id, split) of a table that `subject_splits` made or a user wrote."""
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}.")
    table = read_parquet(path, str(path))
    problems = check_splits(table, str(path))
    if problems:
        raise InputError(str(problems[0]))
    return table.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String))
