"""`ehrctx properties`: repetition, irregularity and length of what is known of a subject at each prediction time.

Events are those that became tokens: the rest left no trace in the store. The static prefix never counts.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.artifacts import new_artifact, read_manifest
from ehrctx.robustness.irregularity import gap_statistics
from ehrctx.robustness.repetition import N_MAX, geometric_mean, repetition_rates
from ehrctx.tasks.label_sets import prediction_times, read_labels
from ehrctx.timelines.store import Timelines

KIND = "properties"
GAPS = ("gap_mean", "gap_sd", "gap_iqr")
RATES = (*(f"rr_{n}" for n in range(1, N_MAX + 1)), "rr", *GAPS, *(f"{name}_with_birth" for name in GAPS))
COUNTS = ("n_tokens", "n_events")
PROPERTIES: dict[str, Any] = {
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    **dict.fromkeys(RATES, pl.Float64),
    **dict.fromkeys(COUNTS, pl.Int64),
}


def properties_of(timelines: Timelines, position: int, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """RATES (float64[n, 11]; seconds for the gaps) and COUNTS (int64[n, 2]) of one subject at datetime64[n]."""
    n_static = int(timelines.subjects["n_static"][position])
    visible, row = np.unique(timelines.visible(position, times) - n_static, return_inverse=True)
    first = int(timelines.offsets[position]) + n_static
    seen = slice(first, first + int(visible[-1]))  # nothing beyond the last cut-off is read
    rates = repetition_rates(timelines.tokens[seen], visible)
    event, seconds = timelines.event[seen], timelines.seconds[seen].astype(np.int64)
    starts = np.flatnonzero(np.append(True, event[1:] != event[:-1])[: len(event)])
    n_events = np.asarray(np.searchsorted(starts, visible, side="left"), dtype=np.int64)
    happened = seconds[starts]
    if timelines.subjects["born"][position]:
        # second 0 is the birth itself or stamped with it: the gap after it is the subject's age at the first record
        at_birth = int(np.searchsorted(happened, 0, side="right"))
        happened = happened[at_birth:]
        n_after = np.maximum(n_events - at_birth, 0)
        gaps = gap_statistics(happened, n_after)
        with_birth = gap_statistics(np.append(0, happened), n_after + 1)
    else:
        gaps = with_birth = gap_statistics(happened, n_events)
    values = np.hstack([rates, geometric_mean(rates)[:, None], gaps, with_birth])
    return values[row], np.column_stack([visible, n_events])[row]


def compute_properties(timelines: Timelines, keys: pl.DataFrame) -> pl.DataFrame:
    """PROPERTIES of each distinct (subject_id, prediction_time) of `keys`, in order, of subjects in the store.

    Only what is visible at the prediction time counts. A rate is NaN where the history has no such n-gram or no gap.
    """
    keys = keys.select("subject_id", pl.col("prediction_time").cast(pl.Datetime("us"))).unique()
    keys = keys.sort("subject_id", "prediction_time")
    positions = timelines.positions_of(keys["subject_id"].to_numpy())
    keys, positions = keys.filter(pl.Series(positions >= 0)), positions[positions >= 0]
    times = keys["prediction_time"].to_numpy()
    rates, counts = np.empty((len(times), len(RATES))), np.empty((len(times), len(COUNTS)), dtype=np.int64)
    bounds = np.flatnonzero(np.diff(positions, prepend=-2, append=-2))
    for lo, hi in pairwise(bounds):
        rates[lo:hi], counts[lo:hi] = properties_of(timelines, int(positions[lo]), times[lo:hi])
    columns = dict(zip((*RATES, *COUNTS), (*rates.T, *counts.T), strict=True))
    return keys.with_columns(**{name: pl.Series(values) for name, values in columns.items()}).select(
        pl.col(name).cast(dtype) for name, dtype in PROPERTIES.items()
    )


def write_properties(timelines: Path, labels: Path, out: Path) -> dict[str, Any]:
    """Writes properties.parquet (PROPERTIES, a row per distinct prediction time of the labels) to the folder `out`.

    Prediction times of subjects without a timeline are left out and counted. Counted are also, for each of RATES, the
    rows where it is 0 or NaN: strata take NaN as 0, and cannot order equal values.
    """
    keys = prediction_times(read_labels(labels))
    facts: dict[str, Any] = {}
    with new_artifact(out, KIND, {"gap_ddof": 0}, {"timelines": timelines, "labels": labels}, facts) as folder:
        found = compute_properties(Timelines.open(timelines), keys)
        zero = found.select((pl.col(name).fill_nan(0) == 0).sum() for name in RATES)
        facts |= {"rows": found.height, "without_timeline": keys.height - found.height}
        facts["zero_or_undefined"] = zero.row(0, named=True)
        found.write_parquet(folder / "properties.parquet")
    return facts


def read_properties(folder: Path) -> pl.DataFrame:
    """PROPERTIES of a finished folder, ordered by subject_id and prediction_time."""
    read_manifest(folder, KIND)
    return pl.read_parquet(Path(folder) / "properties.parquet")
