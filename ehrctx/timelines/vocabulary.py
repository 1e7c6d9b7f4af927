"""Fitting a vocabulary on the train split: which codes, texts and value bins become tokens.

The tokens that the spec has in any case come first (`spec.fixed_tokens`), then entries in the order of their ranking,
or word pieces. The study's CLMBR vocabulary (context-clues, femr 0.1.16) ranks by p ln p + (1 - p) ln(1 - p), p an
entry's weight; its Cookbook by the number of events.

Differences from the reference, on purpose: a code's values are binned per unit, so that mg/dL and mmol/L are never
mixed; quantiles rest on all values (see `statistics`) where it draws a reservoir of 10,000; bins are half-open; and a
code of which a value or a text is kept has its plain token as well, for values of units that were never seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrctx.errors import InputError
from ehrctx.timelines.roll_up import rolled_up
from ehrctx.timelines.spec import TokenizerSpec, fixed_tokens
from ehrctx.timelines.statistics import WHOLE, Statistics, lower_bounds, measure_of
from ehrctx.timelines.word_pieces import train_word_pieces

SCHEMA: dict[str, Any] = {
    "token": pl.UInt32,
    "kind": pl.String,  # special, visit, time, age, quantile, code, text, number, piece
    "code": pl.String,
    "unit": pl.String,
    "lower": pl.Float32,
    "upper": pl.Float32,
    "text": pl.String,
    "description": pl.String,
    "weight": pl.Float64,
    "count": pl.Int64,
    "initial": pl.UInt32,  # of a token that was added to another site's vocabulary: whose embedding it begins with
}
# The bins of every code and unit that has values.
BINS: dict[str, Any] = {
    "code": pl.String,
    "unit": pl.String,
    "lower": pl.Float32,
    "upper": pl.Float32,
    "bin": pl.UInt32,  # from 1
    "weight": pl.Int64,
    "count": pl.Int64,
}
CANDIDATES = ("kind", "code", "unit", "lower", "upper", "text", "weight", "count")
RANKED = ["kind", "code", "unit", "text", "lower"]


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer is, besides its spec."""

    tokens: pl.DataFrame  # SCHEMA, by token
    bins: pl.DataFrame  # BINS and the `token` that says each (null: it missed the vocabulary), by code, unit and lower

    def write(self, folder: Path) -> None:
        self.tokens.write_parquet(folder / "vocabulary.parquet")
        self.bins.write_parquet(folder / "bins.parquet")

    @classmethod
    def read(cls, folder: Path) -> Vocabulary:
        return cls(pl.read_parquet(folder / "vocabulary.parquet"), pl.read_parquet(folder / "bins.parquet"))


def as_tokens(rows: pl.DataFrame) -> pl.DataFrame:
    """`rows` with the columns of SCHEMA; null where they have none."""
    return rows.select(
        (pl.col(name) if name in rows.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in SCHEMA.items()
    )


def quantile_cuts(weights: np.ndarray, starts: np.ndarray, bins: int) -> np.ndarray:
    """Where the `bins` weighted quantile bins of each measure begin, after its first; ascending positions, int64[<= k].

    `weights` (int64[n]) are those of each measure's distinct values in ascending order, one measure after another from
    `starts` on. An edge is the smallest value below which, or at which, more than i/bins of the weight lies; edges that
    coincide, or that would leave the first bin empty, are dropped. Bins are half-open [lower, upper).
    """
    cumulative = np.cumsum(weights)
    before = np.append(0, cumulative)[starts]
    total = np.add.reduceat(weights, starts)
    i = np.arange(1, bins)[:, None]
    # floor(total * i / bins) without leaving 64 bits; whole numbers exceed it as they exceed the fraction
    targets = before + total // bins * i + total % bins * i // bins
    return np.setdiff1d(np.searchsorted(cumulative, targets.ravel(), side="right"), starts)


def bins_of(statistics: Statistics, spec: TokenizerSpec) -> tuple[pl.DataFrame, float]:
    """BINS of every code and unit, and by how much the share of values below an edge can be off; at most 1.

    The latter is 0 where no code and unit has more than MOST_CELLS distinct values.
    """
    names = statistics.entries.filter(kind="number").select("code", "unit").unique().sort("code", "unit")
    if not spec.bins or names.is_empty():
        return pl.DataFrame(schema=BINS), 0.0
    named = {measure_of(code, unit): order for order, (code, unit) in enumerate(names.iter_rows())}
    # sorted by themselves, without the names, of which there are few: these can be most of what a fit holds in memory
    cells = statistics.values.filter(pl.col("measure").is_in(list(named))).sort("measure", "cell")
    measure, values = cells["measure"].to_numpy(), lower_bounds(cells)
    weights = cells["weight" if spec.weights == "subject" else "count"].to_numpy()
    starts = np.flatnonzero(np.append(True, measure[1:] != measure[:-1]))
    cuts = quantile_cuts(weights, starts, spec.bins)
    first = np.union1d(starts, cuts)
    is_start = np.isin(first, starts)
    lower = np.where(is_start, np.float32(-np.inf), values[first])
    upper = np.where(np.append(is_start[1:], True), np.float32(np.inf), np.append(lower[1:], np.float32(np.inf)))
    sizes = np.diff(np.append(np.flatnonzero(is_start), len(first)))
    nth = np.arange(len(first)) - np.repeat(np.flatnonzero(is_start), sizes) + 1
    order = np.repeat([named[int(m)] for m in measure[starts]], sizes)
    sums = {name: np.add.reduceat(cells[name].to_numpy(), first) for name in ("weight", "count")}
    bins = pl.DataFrame({"order": order, "lower": lower, "upper": upper, "bin": nth, **sums}).sort("order", "bin")
    labelled = pl.concat([names.select(pl.all().gather(bins["order"])), bins.drop("order")], how="horizontal")
    whole = np.add.reduceat(weights, starts)[np.searchsorted(starts, cuts, side="right") - 1]
    coarse = cells["level"].to_numpy()[cuts] > 0
    error = float((weights[cuts] / whole)[coarse].max(initial=0.0))
    return labelled.select(pl.col(name).cast(dtype) for name, dtype in BINS.items()), error


def _told_apart(entries: pl.DataFrame, spec: TokenizerSpec) -> pl.DataFrame:
    """(kind, code, unit, text, weight, count) of what the spec tells apart; all else of a code is its plain entry."""
    told = {"code": True, "text": spec.texts, "number": spec.bins > 0 and spec.values == "joined"}
    apart = pl.col("kind").is_in([kind for kind, is_told in told.items() if is_told])
    return (
        entries.with_columns(
            kind=pl.when(apart).then("kind").otherwise(pl.lit("code")),
            unit=pl.when(apart).then("unit"),
            text=pl.when(apart).then("text"),
        )
        .group_by("kind", "code", "unit", "text")
        .agg(pl.col("weight", "count").sum())
    )


def _candidates(statistics: Statistics, spec: TokenizerSpec, bins: pl.DataFrame, parents: pl.DataFrame) -> pl.DataFrame:
    """CANDIDATES: every entry that may become a token; `weight` is its share of the weight of all events."""
    weighed, total = "weight", statistics.n_subjects * WHOLE
    if spec.weights == "event":
        weighed, total = "count", int(statistics.entries["count"].sum())
    told = _told_apart(statistics.entries, spec)
    if spec.roll_up:
        told = rolled_up(told, parents, spec.roll_up.fewer_than)
    numbers = told.filter(kind="number").select("code", "unit", whole=weighed)
    own_bins = bins.join(numbers, on=["code", "unit"], nulls_equal=True).with_columns(kind=pl.lit("number"))
    # the study gives every bin the same share of the code's weight, however its values tie
    ranked = pl.col("whole") / spec.bins if spec.ranking == "entropy" else pl.col(weighed)
    found = pl.concat(
        [told.filter(pl.col("kind") != "number").with_columns(ranked=weighed), own_bins.with_columns(ranked=ranked)],
        how="diagonal_relaxed",
    )
    # a plain token for every code with values or texts: that of values of unseen units
    bare = found.select("code").unique().join(found.filter(kind="code"), on="code", how="anti")
    plain = bare.with_columns(kind=pl.lit("code"), ranked=pl.lit(0.0), count=pl.lit(0, pl.Int64))
    everything = pl.concat([found, plain], how="diagonal_relaxed")
    return everything.with_columns(weight=pl.col("ranked") / total).select(CANDIDATES)


def _ranked(candidates: pl.DataFrame, spec: TokenizerSpec) -> pl.DataFrame:
    """The candidates, best first."""
    p = pl.col("weight").clip(1e-300, 1.0)
    rest = (1 - p).clip(1e-300, 1.0)
    # rounded, since two libraries' logarithms may differ in the last bit
    entropy = (p * p.log() + rest * rest.log()).round_sig_figs(12)
    rank = -pl.col("count") if spec.ranking == "count" else entropy
    return candidates.with_columns(_rank=rank).sort("_rank", *RANKED).drop("_rank")


def _that_fit(ranked: pl.DataFrame, room: int) -> pl.DataFrame:
    """The best entries that fill `room` tokens; each takes its code's plain token with it."""
    is_plain, place = pl.col("kind") == "code", pl.col("_place")
    placed = ranked.with_row_index("_place").with_columns(_brought_in=place.min().over("code"))
    new = (place == pl.col("_brought_in")).cast(pl.Int64)  # the code's best entry brings its plain token in
    fits = placed.with_columns(_fits=pl.when(is_plain).then(new).otherwise(1 + new).cum_sum() <= room)
    last = fits["_fits"].sum()  # costs never fall, so what fits comes first
    return fits.filter(pl.when(is_plain).then("_brought_in").otherwise("_place") < last).select(ranked.columns)


def best_entries(
    statistics: Statistics,
    spec: TokenizerSpec,
    bins: pl.DataFrame,
    codes: pl.DataFrame,
    parents: pl.DataFrame,
    room: int,
) -> pl.DataFrame:
    """At most `room` entries, best first, as rows of SCHEMA without ids. `codes` is (code, description), each once."""
    chosen = _that_fit(_ranked(_candidates(statistics, spec, bins, parents), spec), room)
    return chosen.join(codes, on="code", how="left", maintain_order="left")


def fit_vocabulary(
    statistics: Statistics, spec: TokenizerSpec, codes: pl.DataFrame, parents: pl.DataFrame
) -> tuple[Vocabulary, dict[str, Any]]:
    """The vocabulary of merged `statistics` of the train split, and facts about it: largest_quantile_error.

    `codes` is (code, description), each code once; `parents` (code, parent): see `ontology.parents_of`.
    Raises InputError if no event can become a token.
    """
    if statistics.n_subjects == 0 or statistics.entries.is_empty():
        raise InputError("the train split holds no event, so no vocabulary can be fitted. Check the splits.")
    fixed = pl.DataFrame(fixed_tokens(spec), schema=["kind", "code", "lower", "upper"], orient="row")
    room = spec.vocabulary_size - fixed.height
    bins, error = bins_of(statistics, spec)
    if spec.descriptions:
        pieces = train_word_pieces(statistics.entries, codes, spec.texts, room)
        own = pl.DataFrame({"text": pieces}).with_columns(kind=pl.lit("piece"))
    else:
        own = best_entries(statistics, spec, bins, codes, parents, room)
    tokens = as_tokens(pl.concat([fixed, own], how="diagonal_relaxed").with_row_index("token"))
    return Vocabulary(tokens, with_tokens(bins, tokens, spec)), {"largest_quantile_error": error}


def with_tokens(bins: pl.DataFrame, tokens: pl.DataFrame, spec: TokenizerSpec) -> pl.DataFrame:
    """BINS with the `token` that says each; null where it missed the vocabulary."""
    if spec.values == "separate":
        of_bin = tokens.filter(kind="quantile").select("token").with_row_index("bin", offset=1)
        return bins.join(of_bin, on="bin", how="left", maintain_order="left")
    own = tokens.filter(kind="number").select("code", "unit", "lower", "token")
    return bins.join(own, on=["code", "unit", "lower"], how="left", nulls_equal=True, maintain_order="left")
