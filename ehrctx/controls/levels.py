"""The control of properties: planted at several levels, all else being equal, each must rise or fall with its level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.stats import spearmanr

from ehrctx.controls.positive import read_truth
from ehrctx.robustness.properties import read_properties

# What is planted -> the property that is to follow it, and whether it rises.
FOLLOWS = {
    "copy_rate": {"rr": 1, "rr_1": 1},
    "gap_shape": {"gap_sd": -1, "gap_iqr": 1},
    "visit_rate": {"gap_mean": -1, "gap_sd": -1, "gap_iqr": -1},
}
SCHEMA: dict[str, Any] = {
    "planted": pl.String,
    "level": pl.Float64,
    "property": pl.String,
    "mean": pl.Float64,
    "n_subjects": pl.Int64,
}


def level_table(planted: str, events: Path, properties: Path) -> tuple[pl.DataFrame, dict[str, float]]:
    """(SCHEMA: the cohort's mean of each property at each level, rank correlation over subjects by property).

    A subject counts once, at the last prediction time; a rate that is undefined counts as 0.
    """
    levels = read_truth(events, "subjects").select("subject_id", "level")
    last = read_properties(properties).group_by("subject_id", maintain_order=True).last()
    joined = last.join(levels, on="subject_id").sort("level", "subject_id")
    rows, correlations = [], {}
    for name in FOLLOWS[planted]:
        values = joined[name].fill_nan(0.0)
        correlations[name] = float(spearmanr(joined["level"], values)[0])
        for (level,), own in (
            joined.with_columns(values.alias(name)).partition_by("level", as_dict=True, maintain_order=True).items()
        ):
            rows.append((planted, level, name, own[name].mean(), own.height))
    return pl.DataFrame(rows, schema=SCHEMA, orient="row"), correlations


def steps_that_follow(table: pl.DataFrame, planted: str, name: str) -> int:
    """At how many steps from one level to the next the mean strictly moves as it should."""
    own = table.filter(planted=planted, property=name).sort("level")
    return int((np.diff(own["mean"].to_numpy()) * FOLLOWS[planted][name] > 0).sum())
