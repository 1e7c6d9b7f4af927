"""Which subject belongs to which split: the data set's own table, or a hash of the subject."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path

import numpy as np
import polars as pl

from ehrctx.artifacts import fingerprint, new_file
from ehrctx.errors import InputError
from ehrctx.events.meds import SPLITS, SPLITS_FILE, Dataset, check_splits, read_parquet, read_valid
from ehrctx.study import HashSplits, Privacy

PROVENANCE = b"ehrctx"  # the key of a table's parquet metadata that says what it was made from
BUCKETS = 2**16
WITHOUT = HashSplits(hash=(0.7, 0.15, 0.15))  # of subjects that no table splits; the study's shares


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


def _given(dataset: Dataset) -> pl.DataFrame:
    """The data set's own table; no rows where it has none. Raises InputError where it breaks a rule."""
    file = dataset.root / SPLITS_FILE
    if not file.is_file():
        return pl.DataFrame(schema={"subject_id": pl.Int64, "split": pl.String})
    return read_splits(file, SPLITS_FILE.as_posix())


def subject_splits(dataset: Dataset, splits: HashSplits | None) -> pl.DataFrame:
    """(subject_id, split) of every subject with events, sorted by subject_id: the data set's own table, or `splits`.

    Subjects that the table does not have are split by WITHOUT, and said. Raises InputError where the table breaks a
    rule, or a split is empty.
    """
    ids = []
    for shard in dataset.shards:
        raw = read_valid(dataset, shard)
        ids.append(raw["subject_id"].unique().to_numpy())
    present = np.unique(np.concatenate(ids))
    if splits is not None:
        table = hash_splits(present, splits)
    else:
        given = _given(dataset)
        without = np.setdiff1d(present, given["subject_id"].to_numpy())
        if len(without):
            shares = ", ".join(f"{share:g}" for share in WITHOUT.hash)
            told = f"{Privacy().shown(len(without))} of {Privacy().shown(len(present))} subjects have no split in"
            print(f"warning: {told} {SPLITS_FILE}: they are split by femr's hash, [{shares}].", file=sys.stderr)
        table = pl.concat([given, hash_splits(without, WITHOUT)]).filter(pl.col("subject_id").is_in(present))
    for split in SPLITS:
        if not (table["split"] == split).any():
            remedy = (
                "Use other shares or another seed." if splits else "Set the study key `splits: {hash: [.7, .15, .15]}`."
            )
            raise InputError(f"the split {split!r} is empty. {remedy}")
    return table.sort("subject_id")


def write_splits(table: pl.DataFrame, dataset: Dataset, splits: HashSplits | None, file: Path) -> None:
    """Writes the table, which says in its parquet metadata what it was made from."""
    chosen = "given" if splits is None else splits.model_dump()
    made_from = {"settings": {"splits": chosen}, "inputs": {"events": fingerprint(dataset.source())}}
    with new_file(file) as partial:
        table.write_parquet(partial, metadata={PROVENANCE.decode(): json.dumps(made_from)})


def read_splits(path: Path, name: str | None = None) -> pl.DataFrame:
    """(subject_id, split) of a table that `subject_splits` made or a user wrote; `name` is what errors call it."""
    name = name or str(path)
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}.")
    table = read_parquet(path, name)
    problems = check_splits(table, name)
    if problems:
        raise InputError(str(problems[0]))
    return table.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String))
