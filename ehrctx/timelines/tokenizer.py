"""Applying a vocabulary: every event becomes one token or none, and every event that vanishes is counted by reason."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrctx.timelines.spec import UNK, TokenizerSpec
from ehrctx.timelines.vocabulary import HAS_NUMBER, KIND

# outcome of an event -> whether it became a token
OUTCOMES = {
    "code": True,
    "text": True,
    "number": True,
    "value ignored": True,  # its value has no entry, its code has one
    "unknown token": True,
    "out of vocabulary": False,
    "static": False,  # the spec keeps no static prefix
    "value is not finite": True,  # counted besides: NaN or infinity read as "no value"
}


@dataclass(frozen=True)
class Encoder:
    """A vocabulary prepared for joins: codes and texts to tokens, numbers to bins."""

    codes: pl.DataFrame
    texts: pl.DataFrame
    groups: pl.DataFrame
    edges: np.ndarray
    bin_tokens: np.ndarray
    spec: TokenizerSpec

    @classmethod
    def of(cls, vocabulary: pl.DataFrame, spec: TokenizerSpec) -> Encoder:
        """From a fitted vocabulary. Bins that missed the vocabulary leave gaps, which are out of vocabulary."""
        numbers = vocabulary.filter(pl.col("kind") == "number").sort("code", "unit", "lower")
        groups = (
            numbers.select("code", "unit")
            .unique(maintain_order=True)
            .with_row_index("group")
            .select("code", pl.col("unit").fill_null(""), "group")
        )
        placed = numbers.with_columns(pl.col("unit").fill_null("")).join(
            groups, on=["code", "unit"], maintain_order="left"
        )
        per_group = placed.group_by("group", maintain_order=True).agg("lower", "upper", "token")
        width = 2 * int(placed.group_by("group").len()["len"].max() or 0)  # type: ignore[arg-type]
        edges = np.full((groups.height, width), np.inf, dtype=np.float32)
        tokens = np.full((groups.height, width + 1), -1, dtype=np.int64)
        for group, lowers, uppers, ids in per_group.iter_rows():
            bounds = np.unique(np.array([*lowers, *uppers], dtype=np.float32))
            bounds = bounds[np.isfinite(bounds)]
            edges[group, : len(bounds)] = bounds
            starts = np.searchsorted(bounds, np.array(lowers, dtype=np.float32), side="right")
            tokens[group, starts] = ids
        return cls(
            codes=vocabulary.filter(pl.col("kind") == "code").select("code", _code="token"),
            texts=vocabulary.filter(pl.col("kind") == "text").select("code", text_value="text", _text="token"),
            groups=groups,
            edges=edges,
            bin_tokens=tokens,
            spec=spec,
        )

    def _bin(self, group: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Token of each value in its group (int64[n], -1 = none); half-open bins [lower, upper)."""
        token = np.full(len(group), -1, dtype=np.int64)
        for chunk in np.array_split(np.flatnonzero(group >= 0), max(1, len(group) // 1_000_000)):
            which = (value[chunk, None] >= self.edges[group[chunk]]).sum(axis=1)
            token[chunk] = self.bin_tokens[group[chunk], which]
        return token

    def encode(self, events: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        """The events that became a token, with a column `token` uint32, and how many events met which outcome."""
        joined = (
            events.with_columns(_kind=KIND, _unit=pl.col("unit").fill_null(""))
            .join(self.codes, on="code", how="left", maintain_order="left")
            .join(self.texts, on=["code", "text_value"], how="left", maintain_order="left")
            .join(self.groups, left_on=["code", "_unit"], right_on=["code", "unit"], how="left", maintain_order="left")
        )
        number = np.full(joined.height, -1, dtype=np.int64)
        if self.edges.size or len(self.bin_tokens):
            group = joined.select(pl.when(HAS_NUMBER).then(pl.col("group").cast(pl.Int64)).fill_null(-1)).to_series()
            value = joined["numeric_value"].fill_null(0.0).to_numpy()
            number = self._bin(group.to_numpy(), value)
        placed = joined.with_columns(_number=pl.Series(number)).with_columns(
            _number=pl.when(pl.col("_number") >= 0).then(pl.col("_number"))
        )
        exact = (
            pl.when(pl.col("_kind") == "number")
            .then(pl.col("_number"))
            .when(pl.col("_kind") == "text")
            .then(pl.col("_text"))
            .otherwise(pl.col("_code"))
            .cast(pl.Int64)
        )
        outcome = (
            pl.when(pl.lit(not self.spec.static_prefix) & pl.col("time").is_null())
            .then(pl.lit("static"))
            .when(exact.is_not_null())
            .then(pl.col("_kind"))
            .when(pl.col("_code").is_not_null())
            .then(pl.lit("value ignored"))
            .otherwise(pl.lit("unknown token" if self.spec.unknown == "unk" else "out of vocabulary"))
        )
        encoded = placed.with_columns(
            token=pl.coalesce(exact, pl.col("_code").cast(pl.Int64), pl.lit(UNK)).cast(pl.UInt32), _outcome=outcome
        )
        counts = dict(encoded["_outcome"].value_counts().iter_rows())
        counts["value is not finite"] = int((~events["numeric_value"].is_finite()).sum() or 0)
        kept = [name for name, becomes in OUTCOMES.items() if becomes]
        return encoded.filter(pl.col("_outcome").is_in(kept)).select(*events.columns, "token"), counts
