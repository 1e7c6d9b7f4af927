"""The prediction times that are probed, and embeddings on disk: embeddings.npy float32[n, hidden] and index.parquet.

The split of a subject is the store's: what the vocabulary and the models were fitted on cannot be held out later.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ehrctx.artifacts import read_manifest
from ehrctx.errors import InputError
from ehrctx.tasks.label_sets import prediction_times, read_labels
from ehrctx.timelines.store import Timelines

KIND = "embeddings"


def labelled_times(timelines: Timelines, labels_folder: Path) -> tuple[pl.DataFrame, np.ndarray, int]:
    """The index (subject_id, prediction_time, split) of all tasks' labels, in order; the subjects' positions in the
    store (int64[n]); and how many times were left out because their subject has no timeline."""
    keys = prediction_times(read_labels(labels_folder))
    positions = timelines.positions_of(keys["subject_id"].to_numpy())
    known = positions >= 0
    index = keys.filter(pl.Series(known)).with_columns(split=pl.Series(timelines.subjects["split"][positions[known]]))
    return index, positions[known], int((~known).sum())


def read_embeddings(folder: Path) -> tuple[pl.DataFrame, np.ndarray]:
    """The index (subject_id, prediction_time, split) and the memory-mapped rows float32[n, hidden]."""
    read_manifest(folder, KIND)
    folder = Path(folder)
    index = pl.read_parquet(folder / "index.parquet")
    if "split" not in index.columns:
        raise InputError(
            f"{folder} was written by an older version: its index has no splits. Delete it and embed again."
        )
    return index, np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False)
