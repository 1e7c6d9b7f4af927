"""`ehrctx check`: what a MEDS data set holds, and every rule it breaks, with file and row."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.events.meds import (
    SPLITS_FILE,
    Dataset,
    Violation,
    check_splits,
    read_parquet,
    read_raw,
    subjects_in_two_shards,
    violations_of,
)
from ehrctx.study import Privacy

FEW = Privacy().minimum_count  # what is true of fewer subjects is not told: the oldest subject's year of birth, say


def check(dataset: Dataset) -> tuple[dict[str, Any], list[Violation]]:
    """Aggregates of the whole data set, and all violations. Reads one shard at a time.

    The summary has: files, subjects, events, codes, first_year and last_year (in which at least `FEW` subjects have
    events), events_per_subject (median, p90, p99), with_numeric_value, with_text_value, static (shares of events).
    """
    found: list[Violation] = []
    lengths: list[np.ndarray] = []
    subjects: dict[Path, np.ndarray] = {}
    codes: set[str] = set()
    subjects_in_year: Counter[int] = Counter()
    counts = {"events": 0, "numeric": 0, "text": 0, "static": 0}
    for shard in dataset.shards:
        raw = read_raw(dataset, shard)
        problems = violations_of(raw, dataset.name_of(shard))
        found += problems
        if not {"subject_id", "time", "code"} <= set(raw.columns) or any(not p.n for p in problems):
            continue
        per_subject = raw.drop_nulls("subject_id").group_by("subject_id").len().sort("subject_id")
        subjects[shard] = per_subject["subject_id"].to_numpy()
        lengths.append(per_subject["len"].to_numpy())
        codes.update(raw["code"].drop_nulls().cast(pl.String).unique().to_list())
        timed = raw.drop_nulls("time").group_by(pl.col("time").dt.year()).agg(pl.col("subject_id").n_unique())
        subjects_in_year.update(dict(timed.iter_rows()))
        counts["events"] += raw.height
        counts["static"] += raw["time"].null_count()
        counts["numeric"] += raw["numeric_value"].count() if "numeric_value" in raw.columns else 0
        counts["text"] += raw["text_value"].count() if "text_value" in raw.columns else 0
    found += subjects_in_two_shards([(dataset.name_of(shard), ids) for shard, ids in subjects.items()])
    if (dataset.root / SPLITS_FILE).is_file():
        found += check_splits(read_parquet(dataset.root / SPLITS_FILE, SPLITS_FILE.as_posix()), SPLITS_FILE.as_posix())
    years = [year for year, n_subjects in subjects_in_year.items() if n_subjects >= FEW]
    n = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
    share = {k: counts[k] / counts["events"] if counts["events"] else 0.0 for k in ("numeric", "text", "static")}
    summary = {
        "files": len(dataset.shards),
        "subjects": int(sum(len(ids) for ids in subjects.values())),
        "events": counts["events"],
        "codes": len(codes),
        "first_year": min(years, default=None),
        "last_year": max(years, default=None),
        "events_per_subject": {
            "median": float(np.median(n)) if len(n) else 0.0,
            "p90": float(np.quantile(n, 0.9)) if len(n) else 0.0,
            "p99": float(np.quantile(n, 0.99)) if len(n) else 0.0,
        },
        "with_numeric_value": share["numeric"],
        "with_text_value": share["text"],
        "static": share["static"],
    }
    return summary, found
