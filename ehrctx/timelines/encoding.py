"""Applying a vocabulary: what becomes of every event, and how many events met which fate.

An event becomes the token of its entry, or, where the vocabulary has none, of its code alone, of its code's nearest
ancestor, [UNK], or nothing, in this order, as far as the spec goes along. The days since the event before, and where a
visit starts and ends, are said by tokens of the event that makes them known, at its time: so no token tells of the
future, and changing what comes later changes none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from ehrctx.events.profile import DatasetProfile, matches
from ehrctx.timelines.counting import Counted
from ehrctx.timelines.encoding_numba import (
    BINNED,
    BINS_FROM,
    BINS_TO,
    DROPPED_STATIC,
    ENDS_VISIT,
    PLAIN,
    PLAIN_FROM,
    PLAIN_TO,
    STARTS_VISIT,
    WIDTH,
    tokens_of,
)
from ehrctx.timelines.lookup import Lookup
from ehrctx.timelines.spec import TokenizerSpec

COVERAGE: dict[str, Any] = {"code": pl.String, "outcome": pl.String, "events": pl.Int64}
NOT_FINITE, LONG_TEXT = "value is not finite", "text is a note"  # counted besides


@dataclass(frozen=True)
class Encoded:
    """One piece's tokens. Subjects own consecutive rows, in the order of the piece; some may own none."""

    tokens: np.ndarray  # uint32[t]
    seconds: np.ndarray  # uint32[t]
    event: np.ndarray  # uint32[t], position of the event among the subject's
    lengths: np.ndarray  # int64[m], tokens of each subject
    n_static: np.ndarray  # int64[m], of these, static ones
    coverage: pl.DataFrame  # COVERAGE


class Encoder:
    """A tokenizer, ready to encode pieces."""

    def __init__(self, lookup: Lookup, tokens: pl.DataFrame, spec: TokenizerSpec, profile: DatasetProfile) -> None:
        """`tokens` are those of the vocabulary that `lookup` looks into."""
        self._lookup, self._spec, self._profile = lookup, spec, profile
        gaps, visits = tokens.filter(kind="time"), tokens.filter(kind="visit")
        self._gap_from = gaps["lower"].cast(pl.Int64).to_numpy()
        self._first_gap = int(gaps["token"][0]) if gaps.height else -1
        self._visit_start = int(visits["token"][0]) if visits.height else -1

    def _plan(self, table: pl.DataFrame, found: pl.DataFrame) -> np.ndarray:
        """For the entries of one piece, of which `found` is what `Lookup.of` gives: see `tokens_of`."""
        ends = np.cumsum(found["n"].to_numpy(), dtype=np.int64)
        group, group_from = found["group"].cast(pl.Int64).fill_null(-1).to_numpy(), self._lookup.group_from
        roles = table.with_columns(
            starts=matches(pl.col("code"), self._profile.admission),
            ends=matches(pl.col("code"), self._profile.discharge),
        )
        plan = np.zeros((table.height, WIDTH), dtype=np.int32)  # half the width, as it should stay in a cache
        plan[:, PLAIN_FROM], plan[:, PLAIN_TO] = np.append(0, ends[:-1])[: len(ends)], ends
        plan[:, BINS_FROM] = np.where(group >= 0, group_from[group], 0)
        plan[:, BINS_TO] = np.where(group >= 0, group_from[np.minimum(group + 1, len(group_from) - 1)], 0)
        plan[:, STARTS_VISIT], plan[:, ENDS_VISIT] = roles["starts"].to_numpy(), roles["ends"].to_numpy()
        return plan

    def encode(self, counted: Counted) -> Encoded:
        """One piece's tokens, and what became of its events."""
        plain, found = self._lookup.of(counted.table)
        plan = self._plan(counted.table, found)
        met = np.zeros((len(plan), 3), dtype=np.int64)
        lengths, n_static = (np.zeros(len(counted.subjects), dtype=np.int64) for _ in range(2))
        most_of_an_event = plan[:, PLAIN_TO] - plan[:, PLAIN_FROM] + (plan[:, BINS_TO] > plan[:, BINS_FROM])
        most_of_an_event += (self._first_gap >= 0) + 2 * (self._visit_start >= 0)
        room = int(most_of_an_event @ np.bincount(counted.entry, minlength=len(plan)))
        out = [np.empty(room, dtype=np.uint32) for _ in range(3)]
        lookup, separate = self._lookup, self._spec.values == "separate"
        n = tokens_of(
            counted.entry, counted.value, counted.seconds, counted.offsets(), counted.subjects["n_static"].copy(),
            self._spec.static_prefix, plan, plain, lookup.lower, lookup.bin_token, separate, self._visit_start,
            self._gap_from, self._first_gap, met, lengths, n_static, *out,
        )  # fmt: skip
        return Encoded(out[0][:n], out[1][:n], out[2][:n], lengths, n_static, _coverage(counted.table, met, found))


def _coverage(table: pl.DataFrame, met: np.ndarray, found: pl.DataFrame) -> pl.DataFrame:
    """COVERAGE of one piece, a row for each of its entries."""
    of_each = (
        (pl.lit("static"), pl.Series(met[:, DROPPED_STATIC])),
        (found["without"], pl.Series(met[:, PLAIN])),
        (found["binned"], pl.Series(met[:, BINNED])),
        (pl.lit(NOT_FINITE), table["not_finite"]),
        (pl.lit(LONG_TEXT), table["long_text"]),
    )
    parts = [table.select("code", outcome=outcome, events=events) for outcome, events in of_each]
    return pl.concat([part.filter(pl.col("events") > 0).select(*COVERAGE) for part in parts])


def total_coverage(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """COVERAGE of several parts together, in order."""
    return (
        pl.concat([pl.DataFrame(schema=COVERAGE), *(part.select(*COVERAGE) for part in parts)])
        .group_by("code", "outcome")
        .agg(pl.col("events").sum())
        .sort("code", "outcome")
    )
