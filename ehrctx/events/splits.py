"""Which subject belongs to which split: the data set's own table, or a hash of the subject."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ehrctx.artifacts import fingerprint, new_file
from ehrctx.errors import InputError
from ehrctx.events.meds import SPLITS, SPLITS_FILE, Dataset
from ehrctx.events.parquet import read_parquet
from ehrctx.events.rules import check_splits
from ehrctx.events.shards import read_subjects
from ehrctx.events.violations import BrokenFile, Violation
from ehrctx.study import HashSplits, Privacy

PROVENANCE = b"ehrctx"  # the key of a table's parquet metadata that says what it was made from
BUCKETS = 2**16
WITHOUT = HashSplits(hash=(0.7, 0.15, 0.15))  # of subjects that no table splits; the study's shares
SCHEMA = {"subject_id": pl.Int64, "split": pl.String}
DEFAULT_PRIVACY = Privacy()  # where no study says how small counts are masked


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
    return pl.DataFrame({"subject_id": subject_ids.astype(np.int64), "split": split}, schema=SCHEMA)


def given_splits(dataset: Dataset) -> pl.DataFrame:
    """The data set's own table; no rows where it has none. Raises InputError where it breaks a rule."""
    parts = dataset.parts(SPLITS_FILE)
    return _read(parts, [dataset.name_of(file) for file in parts])


def without_events(splits: pl.DataFrame, present: np.ndarray, privacy: Privacy) -> str | None:
    """A sentence on the subjects of a table of splits that are not `present` (int64[m], those with events)."""
    absent = splits.filter(~pl.col("subject_id").is_in(present)).group_by("split").len()
    if absent.is_empty():
        return None
    counts = dict(absent.iter_rows())
    named = [f"{privacy.shown(counts[split])} in {split}" for split in SPLITS if split in counts]
    return (
        f"subjects of {SPLITS_FILE} without events in data/: {', '.join(named)}. If they should have some, restore the "
        f"missing files."
    )


def _refuse_empty_split(dataset: Dataset, table: pl.DataFrame, given: pl.DataFrame, privacy: Privacy) -> None:
    """Says why a split of `table` has no subject; `given` is the data set's own table, empty where it is not used."""
    empty = next((split for split in SPLITS if not (table["split"] == split).any()), None)
    if empty is None:
        return
    listed = int((given["split"] == empty).sum())
    if table.height < len(SPLITS) and not listed:
        raise InputError(
            f"{dataset.root} has events of fewer than {len(SPLITS)} subjects, and each split needs one at least. Give "
            f"a larger data set."
        )
    if listed:
        problem = f"{SPLITS_FILE} lists {privacy.shown(listed)} subjects of it, and none has events in data/."
        remedy = "Restore the missing files, or set the study key `splits: {hash: [.7, .15, .15]}`."
    elif given.height:
        problem = f"{SPLITS_FILE} lists no subject of it."
        remedy = "Add some, or set the study key `splits: {hash: [.7, .15, .15]}`."
    else:
        problem = f"the hash puts none of the {privacy.shown(table.height)} subjects there."
        remedy = "Use other shares or another seed: the study key `splits: {hash: [.5, .2, .3], seed: 1}`, say."
    raise InputError(f"the split {empty!r} is empty: {problem} {remedy}")


def subject_splits(dataset: Dataset, splits: HashSplits | None, privacy: Privacy = DEFAULT_PRIVACY) -> pl.DataFrame:
    """(subject_id, split) of every subject with events, sorted by subject_id: the data set's own table, or `splits`.

    Subjects that the table does not have are split by WITHOUT, and this is said; so is how many of its subjects have no
    events. Raises InputError where the table breaks a rule, or a split is empty.
    """
    present = read_subjects(dataset)
    given = pl.DataFrame(schema=SCHEMA)
    if splits is not None:
        table = hash_splits(present, splits)
    else:
        given = given_splits(dataset)
        without = np.setdiff1d(present, given["subject_id"].to_numpy())
        if len(without):
            shares = ", ".join(f"{share:g}" for share in WITHOUT.hash)
            counts = f"{privacy.shown(len(without))} of {privacy.shown(len(present))} subjects have no split in"
            print(f"warning: {counts} {SPLITS_FILE}: they are split by femr's hash, [{shares}].", file=sys.stderr)
        if absent := without_events(given, present, privacy):
            print(f"warning: {absent}", file=sys.stderr)
        table = pl.concat([given, hash_splits(without, WITHOUT)]).filter(pl.col("subject_id").is_in(present))
    _refuse_empty_split(dataset, table, given, privacy)
    return table.sort("subject_id")


def write_splits(table: pl.DataFrame, dataset: Dataset, splits: HashSplits | None, file: Path) -> None:
    """Writes the table, which says in its parquet metadata what it was made from."""
    chosen = "given" if splits is None else splits.model_dump()
    made_from = {"settings": {"splits": chosen}, "inputs": {"events": fingerprint(dataset.source())}}
    with new_file(file) as partial:
        table.write_parquet(partial, metadata={PROVENANCE.decode(): json.dumps(made_from)})


def examine_splits(files: Sequence[Path], names: Sequence[str]) -> tuple[pl.DataFrame, list[Violation]]:
    """(subject_id, split) of a table in one or several files, and the rules that it breaks; no rows if it breaks some.

    `names` are what errors call the files. Raises BrokenFile where one cannot be read.
    """
    parts, violations = [pl.DataFrame(schema=SCHEMA)], []
    for file, name in zip(files, names, strict=True):
        table = read_parquet(file, name, columns=list(SCHEMA))
        broken = check_splits(table, name)
        violations += broken
        if not broken:
            parts.append(table.select(pl.col(column).cast(dtype) for column, dtype in SCHEMA.items()))
    whole = pl.concat(parts)
    if not violations and whole["subject_id"].is_duplicated().any():
        violations = check_splits(whole, names[0])
    return (whole.clear() if violations else whole), violations


def _read(files: Sequence[Path], names: Sequence[str]) -> pl.DataFrame:
    table, violations = examine_splits(files, names)
    if violations:
        raise BrokenFile(violations[0])
    return table


def read_splits(path: Path) -> pl.DataFrame:
    """(subject_id, split) of a table that `subject_splits` made or a user wrote."""
    if not Path(path).is_file():
        raise InputError(f"no such file: {path}.")
    return _read([Path(path)], [str(path)])
