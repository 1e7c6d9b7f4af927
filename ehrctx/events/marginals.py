"""`ehrctx marginals`: how long records are and what they are made of, for one data set beside another.

Aggregates alone: a code is named only where enough subjects have it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.configuration import load
from ehrctx.errors import InputError
from ehrctx.events.meds import open_dataset
from ehrctx.events.profile import DatasetProfile, find_profile, matches
from ehrctx.events.shards import read_shards
from ehrctx.study import Privacy

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
# Gaps between consecutive events, in seconds: bounds and what the table calls what lies below each.
GAPS = {"none": 0, "an hour": 3_600, "a day": 86_400, "30 days": 30 * 86_400, "a year": 31_557_600}
TOP = 12
SCHEMA: dict[str, Any] = {"data": pl.String, "quantity": pl.String, "value": pl.Float64}
CODE_SCHEMA: dict[str, Any] = {"data": pl.String, "code": pl.String, "share": pl.Float64, "subjects": pl.Float64}


@dataclass(frozen=True)
class Marginals:
    """Of one data set: `table` (SCHEMA), the commonest `codes` (CODE_SCHEMA: shares of events and of subjects), and for
    the figure the lengths, sorted, and how many gaps lie in each class of GAPS and beyond."""

    table: pl.DataFrame
    codes: pl.DataFrame
    lengths: np.ndarray
    gaps: np.ndarray


def _gaps(events: pl.DataFrame) -> np.ndarray:
    """How many gaps are 0 seconds, and how many up to each further bound and beyond; int64[len(GAPS) + 1]."""
    seconds = events.filter(pl.col("time").is_not_null()).select(
        pl.col("time").diff().over("subject_id").dt.total_seconds()
    )
    values = seconds.to_series().drop_nulls().to_numpy()
    return np.bincount(np.searchsorted(list(GAPS.values()), values), minlength=len(GAPS) + 1)


def _per_stay(events: pl.DataFrame, profile: DatasetProfile) -> np.ndarray:
    """Events of each visit that has an admission."""
    if not profile.visit_column:
        return np.zeros(0)
    visits = (
        events.drop_nulls("visit")
        .group_by("subject_id", "visit")
        .agg(pl.len(), opened=matches(pl.col("code"), profile.admission).any())
    )
    return visits.filter("opened")["len"].to_numpy()


def marginals_of(data: Path, profile_file: str, name: str, privacy: Privacy) -> Marginals:
    """The marginals of a MEDS data set, one shard at a time; `name` is what tables and figures call it.

    Births are no events here: the gap to a first visit is an age.
    """
    dataset, profile = open_dataset(data), load(DatasetProfile, find_profile(profile_file))
    lengths, stays, batches = [], [], []
    gaps = np.zeros(len(GAPS) + 1, dtype=np.int64)
    counts: Counter[str] = Counter()
    holders: Counter[str] = Counter()
    shares = Counter[str]()
    for of_shard in read_shards(dataset, profile):
        events = of_shard.filter(pl.col("code") != profile.birth)
        lengths.append(events.group_by("subject_id").len()["len"].to_numpy())
        stays.append(_per_stay(events, profile))
        batches.append(events.drop_nulls("time").group_by("subject_id", "time").len()["len"].to_numpy())
        gaps += _gaps(events)
        shares["with a number"] += events["numeric_value"].count()
        shares["with a text"] += events["text_value"].count() if "text_value" in events.columns else 0
        for code, n, subjects in events.group_by("code").agg(pl.len(), pl.col("subject_id").n_unique()).iter_rows():
            counts[code] += n
            holders[code] += subjects
    length = np.sort(np.concatenate(lengths))
    total = length.sum()
    if not total:
        raise InputError(f"{data} has no events but births. Give a data set with other events.")
    rows: list[tuple[str, float]] = [("subjects", len(length)), ("events", total), ("codes", len(counts))]
    rows += [(f"events per subject, {_named(q)}", float(np.quantile(length, q))) for q in QUANTILES]
    rows += [(f"share of events {name}", shares[name] / total) for name in ("with a number", "with a text")]
    for what, found in (("events per hospital stay", stays), ("events of one moment", batches)):
        values = np.concatenate(found)
        if len(values):
            rows += [(f"{what}, {_named(q)}", float(np.quantile(values, q))) for q in (0.5, 0.9)]
    bounds = ["none", *(f"up to {later}" for _, later in pairwise(GAPS)), "longer"]
    rows += [(f"share of gaps: {bound}", n / max(1, gaps.sum())) for bound, n in zip(bounds, gaps, strict=True)]
    common = [code for code, _ in counts.most_common() if holders[code] >= privacy.minimum_count][:TOP]
    codes = [(name, code, counts[code] / total, holders[code] / len(length)) for code in common]
    return Marginals(
        pl.DataFrame([(name, *row) for row in rows], schema=SCHEMA, orient="row"),
        pl.DataFrame(codes, schema=CODE_SCHEMA, orient="row"),
        length,
        gaps,
    )


def _named(quantile: float) -> str:
    return "median" if quantile == 0.5 else f"{100 * quantile:g}th percentile"
