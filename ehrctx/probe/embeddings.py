"""Embeddings on disk, readable without torch: embeddings.npy float32[n, hidden], index.parquet (subject_id, time)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ehrctx.artifacts import read_manifest

KIND = "embeddings"


def read_embeddings(folder: Path) -> tuple[pl.DataFrame, np.ndarray]:
    """The index (subject_id, prediction_time) and the memory-mapped rows float32[n, hidden]."""
    read_manifest(folder, KIND)
    folder = Path(folder)
    return pl.read_parquet(folder / "index.parquet"), np.load(
        folder / "embeddings.npy", mmap_mode="r", allow_pickle=False
    )
