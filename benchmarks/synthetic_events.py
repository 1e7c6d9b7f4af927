"""Many made-up events as a MEDS data set: codes as skewed as real ones, 40 % of them with values and units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

CODES, EVENTS_PER_SHARD = 20_000, 1_000_000
SYSTEMS = ("SNOMED", "RxNorm", "LOINC", "CPT4", "ICD10CM")
UNITS = np.array(["mg/dL", "mmol/L", "g/L", "10*9/L"])
MINUTES = 20 * 365 * 24 * 60


def _shard(number: int, n: int, first_subject: int) -> pl.DataFrame:
    rng = np.random.default_rng([7, number])
    lengths = np.maximum(1, rng.lognormal(4.8, 1.6, n // 100 + 1).astype(int))  # median 121 as in the study
    ends = np.minimum(np.cumsum(lengths), n)
    lengths = np.diff(ends, prepend=0)
    lengths[-1] += n - ends[-1]
    subject = np.repeat(np.arange(len(lengths)) + first_subject, lengths)
    minute = rng.integers(0, MINUTES, n)
    minute = minute[np.lexsort((minute, subject))]
    of_rank = 1 / np.arange(1, CODES + 1)
    code = np.minimum(np.searchsorted(np.cumsum(of_rank / of_rank.sum()), rng.random(n)), CODES - 1)
    fixed = np.random.default_rng(1)
    numeric, mean = fixed.random(CODES) < 0.4, fixed.normal(50, 30, CODES)
    value = np.round(rng.normal(mean[code], 10), 1).astype(np.float32)
    named = np.array([f"{SYSTEMS[i % len(SYSTEMS)]}/{100_000 + 7 * i}" for i in range(CODES)])
    return pl.DataFrame(
        {
            "subject_id": subject,
            "time": np.datetime64("2000-01-01", "us") + minute.astype("timedelta64[m]"),
            "code": named[code],
            "numeric_value": value,
            "text_value": pl.Series(np.where(rng.random(n) < 0.03, 0, -1)).replace_strict({0: "normal", -1: None}),
            "unit": UNITS[code % len(UNITS)],
        }
    ).with_columns(pl.when(pl.Series(numeric[code])).then(pl.col("numeric_value", "unit")))


def write(folder: Path, n_events: int) -> None:
    """`folder` with data/ of `n_events` events, metadata/subject_splits.parquet, and profile.yaml."""
    for name in ("data", "metadata"):
        (folder / name).mkdir(parents=True)
    subjects = 0
    for number, first in enumerate(range(0, n_events, EVENTS_PER_SHARD)):
        events = _shard(number, min(EVENTS_PER_SHARD, n_events - first), subjects + 1)
        subjects = int(events["subject_id"][-1])
        events.write_parquet(folder / "data" / f"{number:04d}.parquet")
    drawn = np.random.default_rng(3).random(subjects)
    split = np.where(drawn < 0.7, "train", np.where(drawn < 0.85, "tuning", "held_out"))
    table = pl.DataFrame({"subject_id": np.arange(1, subjects + 1), "split": split})
    table.write_parquet(folder / "metadata" / "subject_splits.parquet")
    (folder / "profile.yaml").write_text("{name: made_up, unit_column: unit}\n")
