"""Fitting the CLMBR vocabulary on the train split: which codes, texts and value bins become tokens.

Every event of a subject weighs 1 / (n_subjects x n_events_of_that_subject), so each subject counts the same. An entry
is a code without a value, a (code, text), or one of the quantile bins of a (code, unit). Entries are ranked by
p ln p + (1 - p) ln(1 - p), p their weight; the smallest come first (context-clues: CLMBR, femr 0.1.16).

Two differences from the reference, on purpose: quantiles are exact where it draws a reservoir of 10,000 values, and a
code's values are binned per unit, so that mg/dL and mmol/L are never mixed. Statistics are sums over shards, so they
merge in any order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.timelines.spec import SPECIAL_TOKENS, TokenizerSpec

SCHEMA: dict[str, Any] = {
    "token": pl.UInt32,
    "kind": pl.String,
    "code": pl.String,
    "unit": pl.String,
    "lower": pl.Float32,
    "upper": pl.Float32,
    "text": pl.String,
    "description": pl.String,
    "weight": pl.Float64,
    "count": pl.Int64,
}
KEYS = ["kind", "code", "unit", "text", "value"]

HAS_NUMBER = pl.col("numeric_value").is_finite().fill_null(False)
HAS_TEXT = (pl.col("text_value").str.len_bytes() > 0).fill_null(False)
# What an event is to a tokenizer: a number wins over a text (a result is often given as both).
KIND = pl.when(HAS_NUMBER).then(pl.lit("number")).when(HAS_TEXT).then(pl.lit("text")).otherwise(pl.lit("code"))


def count_entries(events: pl.DataFrame) -> pl.DataFrame:
    """One shard's sums: (kind, code, unit, text, value, weight, count); weights as if n_subjects were 1."""
    return (
        events.with_columns(kind=KIND, _weight=1.0 / pl.len().over("subject_id"))
        .select(
            "kind",
            "code",
            pl.when(pl.col("kind") == "number").then("unit").alias("unit"),
            pl.when(pl.col("kind") == "text").then("text_value").alias("text"),
            # -0.0 and 0.0 are one value
            pl.when(pl.col("kind") == "number").then(pl.col("numeric_value") + 0.0).alias("value"),
            "_weight",
        )
        .group_by(KEYS)
        .agg(weight=pl.col("_weight").sum(), count=pl.len().cast(pl.Int64))
    )


def merge_entries(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """The sums of several shards as one, in a fixed order."""
    return pl.concat(list(parts)).group_by(KEYS).agg(pl.col("weight", "count").sum()).sort(KEYS)


def quantile_edges(values: np.ndarray, weights: np.ndarray, bins: int) -> np.ndarray:
    """The interior edges of `bins` weighted quantile bins of sorted distinct float32 `values`; float32[<= bins - 1].

    Edge i is the smallest value below which, or at which, more than i/bins of the weight lies. Bins are half-open
    [lower, upper); edges that coincide, or that would leave the first bin empty, are dropped.
    """
    cumulative = np.cumsum(weights)
    targets = cumulative[-1] * np.arange(1, bins) / bins
    # tolerance: a target that equals a cumulative weight up to rounding must fall on the same side everywhere
    index = np.searchsorted(cumulative, targets * (1 + 1e-12), side="right")
    edges = np.unique(values[np.minimum(index, len(values) - 1)])
    return edges[edges > values[0]]


def _bins_of(numbers: pl.DataFrame, bins: int) -> pl.DataFrame:
    rows: list[dict] = []
    for (code, unit), group in numbers.group_by(["code", "unit"], maintain_order=True):
        ordered = group.sort("value")
        values, weights, counts = (ordered[c].to_numpy() for c in ("value", "weight", "count"))
        edges = quantile_edges(values, weights, bins)
        lower, upper = np.append(-np.inf, edges), np.append(edges, np.inf)
        which = np.searchsorted(edges, values, side="right")
        n = np.bincount(which, counts, minlength=len(lower)).astype(np.int64)
        # the study gives every bin the same share of the code's weight, however its values tie
        rows += [
            {"code": code, "unit": unit, "lower": lo, "upper": up, "weight": weights.sum() / bins, "count": int(c)}
            for lo, up, c in zip(lower, upper, n, strict=True)
        ]
    schema = {k: SCHEMA[k] for k in ("code", "unit", "lower", "upper", "weight", "count")}
    return pl.DataFrame(rows, schema=schema).with_columns(kind=pl.lit("number"))


def fit_vocabulary(
    entries: pl.DataFrame, n_subjects: int, spec: TokenizerSpec, descriptions: pl.DataFrame
) -> pl.DataFrame:
    """The vocabulary (see SCHEMA), special tokens first, from the merged `entries` of `n_subjects` train subjects.

    `descriptions` is (code, description). Raises InputError if no event can become a token.
    """
    if n_subjects == 0 or entries.is_empty():
        raise InputError("the train split holds no event, so no vocabulary can be fitted. Check the splits.")
    numbers = entries.filter(pl.col("kind") == "number")
    plain = entries.filter(pl.col("kind") != "number").select("kind", "code", "text", "weight", "count")
    ranked = (
        pl.concat([plain, _bins_of(numbers, spec.bins)], how="diagonal_relaxed")
        .with_columns(weight=(pl.col("weight") / n_subjects).clip(1e-300, 1.0))
        .with_columns(_rest=(1 - pl.col("weight")).clip(1e-300, 1.0))
        .with_columns(_rank=pl.col("weight") * pl.col("weight").log() + pl.col("_rest") * pl.col("_rest").log())
    )
    # rounded, so that sums in another order cannot swap two equal entries
    ranked = ranked.sort(pl.col("_rank").round_sig_figs(12), "kind", "code", "unit", "text", "lower")
    kept = ranked.head(spec.vocabulary_size - len(SPECIAL_TOKENS)).join(
        descriptions.unique("code", keep="first", maintain_order=True), on="code", how="left", maintain_order="left"
    )
    specials = pl.DataFrame({"kind": ["special"] * len(SPECIAL_TOKENS), "code": SPECIAL_TOKENS})
    return (
        pl.concat([specials, kept.drop("_rank", "_rest")], how="diagonal_relaxed")
        .with_row_index("token")
        .select([pl.col(name).cast(dtype) for name, dtype in SCHEMA.items()])
    )
